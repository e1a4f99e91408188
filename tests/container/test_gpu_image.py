"""The GPU image on a machine that has no GPU, or gives it none."""

from __future__ import annotations

import json

import pytest

from tests.container.engine import Engine
from tests.container.test_cpu_image import HEALTH_CHECK

pytestmark = pytest.mark.container


def test_without_a_gpu_it_serves_on_the_cpu(engine: Engine, gpu_image: str) -> None:
    run = ["--network=none", "--user=1234:0", "--cap-drop=all", "--memory=512m", "--cpus=1", *engine.read_only]
    with engine.running(gpu_image, "serve", options=run) as container:
        ping, answer = container.ask((b"5.1,3.5,1.4,0.2", {"Content-Type": "text/csv"}))
        assert ping.status == 200
        assert answer.json()["predictions"][0]["label"] == "setosa"
        (ready,) = container.events("ready")
        assert ready["execution_providers"] == ["CPUExecutionProvider"]
        code, seconds = container.stop()
        assert code == 0, container.log()
        assert seconds < 5


def test_a_gpu_that_is_demanded_and_missing_is_a_503_with_the_reason(engine: Engine, gpu_image: str) -> None:
    """No silent fall-back: the endpoint must not come into service on the CPU; the health check says why."""
    with engine.running(gpu_image, "serve", options=["--env=BYOC_DEVICE=gpu", "--network=none"]) as container:
        container.wait_for(lambda: container.events("gpu_unavailable"), "the log says what is missing")
        (ping,) = container.ask(until_ready=False)
        assert ping.status == 503
        error = ping.json()["error"]
        assert error["code"] == "gpu_unavailable"
        assert "GPU" in error["message"]
        check = container.exec(*HEALTH_CHECK)
        assert check.code == 1
        assert error["message"] in check.errors
        assert container.stop()[0] == 0


def test_the_container_toolkit_is_asked_for_the_driver_and_may_not_refuse(engine: Engine, gpu_image: str) -> None:
    config = engine.inspect_image(gpu_image)["Config"]
    variables = dict(line.split("=", 1) for line in config["Env"])
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert variables["NVIDIA_DISABLE_REQUIRE"] == "1"
    assert not {"LD_LIBRARY_PATH", "NVIDIA_REQUIRE_CUDA"} & set(variables)
    assert config["Entrypoint"] == ["/opt/venv/bin/byoc"]
    assert config["Cmd"] == ["serve"]
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert not [name for name in config["Labels"] if "multi-models" in name or "bidirectional" in name]


def test_its_cuda_libraries_are_those_that_are_pinned_and_complete(engine: Engine, gpu_image: str) -> None:
    """ONNX Runtime's CUDA part finds every library and symbol it needs, but for the driver's own."""
    script = (
        "import importlib.metadata, json, os, pathlib, subprocess\n"
        "packages = {d.name: d.version for d in importlib.metadata.distributions()}\n"
        "site = next(pathlib.Path('/opt/venv/lib').glob('python*/site-packages'))\n"
        "path = ':'.join(map(str, site.glob('nvidia/*/lib')))\n"
        "part = site / 'onnxruntime/capi/libonnxruntime_providers_cuda.so'\n"
        "lines = subprocess.run(['ldd', '-r', part], capture_output=True, text=True,\n"
        "                       env={**os.environ, 'LD_LIBRARY_PATH': path})\n"
        "print(json.dumps([packages, (lines.stdout + lines.stderr).splitlines()]))"
    )
    packages, lines = json.loads(engine.python(gpu_image, script))
    assert packages["onnxruntime-gpu"] == "1.31.1"
    assert packages["nvidia-cuda-runtime"] == "13.0.96"
    assert "onnxruntime" not in packages
    assert [line.split()[0] for line in lines if "not found" in line] == ["libcuda.so.1"]
    undefined = [line.split()[2] for line in lines if "undefined symbol" in line]
    assert [name for name in undefined if not name.startswith("cu") and name != "Provider_GetHost"] == []
    drivers_own = ("cuTensorMapEncodeTiled",)
    assert [name for name in undefined if name.startswith("cu") and name not in drivers_own] == []
