"""A GPU that is demanded and not to be had: the server says so for as long as it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest
import requests

from byoc_server.config import Settings
from byoc_server.device.gpu import GpuPresence
from byoc_server.engines.providers import CUDA
from byoc_server.server import worker
from tests.onnx_models import identity
from tests.server_process import running, wait_for


def assert_says_why(answer: requests.Response) -> None:
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "60"
    error = answer.json()["error"]
    assert error["code"] == "gpu_unavailable"
    for words in ("GPU", "install onnxruntime-gpu", "--device cpu"):
        assert words in error["message"]


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="onnxruntime-gpu is installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_gpu_is_answered_with_the_reason_and_the_server_stays(workers: int, tmp_path: Path) -> None:
    model = identity(tmp_path / "model.onnx")
    variables = {"BYOC_DEVICE": "gpu", "BYOC_WORKERS": str(workers)}
    with running("--model", str(model), ready=False, environ=variables) as server:
        wait_for(lambda: len(server.events("gpu_unavailable")) == workers, "every worker has said what is missing")
        pids = server.worker_pids()
        for _ in range(10):  # connections of their own, which go to any worker
            assert_says_why(requests.get(f"{server.url}/ping", timeout=10))
            assert_says_why(requests.post(f"{server.url}/invocations", data="[[1, 2, 3, 4]]", timeout=10))
        assert server.process.poll() is None
        assert server.worker_pids() == pids
        lines = server.events("gpu_unavailable")
        assert [line["level"] for line in lines] == ["error"] * workers
        assert all("install onnxruntime-gpu" in line["message"] for line in lines)
        assert server.events("ready") == []
        assert server.stop() == 0
        for line in server.log.splitlines():
            assert json.loads(line)["event"] in {
                "cuda_compat",
                "start",
                "process",
                "gpu_unavailable",
                "request",
                "stop",
            }


def test_a_model_on_the_cpu_says_so(tmp_path: Path) -> None:
    model = identity(tmp_path / "model.onnx")
    with running("--model", str(model), "--device", "cpu") as server:
        (ready,) = server.events("ready")
        assert (ready["device"], ready["execution_providers"]) == ("cpu", ["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("device", "nodes", "usable"),
    [
        ("auto", ("/dev/nvidia0", "/dev/nvidiactl"), True),
        ("auto", (), False),
        ("cpu", None, False),
        ("gpu", None, False),
    ],
)
def test_a_gpu_is_looked_for_only_where_the_settings_leave_it_open(
    device: str, nodes: tuple[str, ...] | None, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def look(root: Path, environ: object) -> GpuPresence:
        looks.append(root)
        return GpuPresence(nodes or (), proc=bool(nodes))

    monkeypatch.setattr(worker, "look_for_gpus", look)
    options = worker.engine_options(Settings(device=device), 3)
    assert (options.threads, options.device, options.gpu_usable) == (3, device, usable)
    assert looks == ([] if nodes is None else [Path("/")])
