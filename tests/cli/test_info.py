"""``byoc info``, on this machine and on hosts laid out for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byoc_server.cli.info import as_json, as_text, collect
from byoc_server.cli.main import main
from byoc_server.config import Settings
from byoc_server.device.nvml import Gpu, NvmlReport
from byoc_server.device.runtime import RuntimePackage
from byoc_server.device.survey import Sources
from tests.device.dummy_libraries import build_libcuda, needs_compiler
from tests.device.fake_root import BRANCHES_129, BRANCHES_131, FakeRoot, closed_banner, note_text

L4 = Gpu("NVIDIA L4", 14, 24 * 2**30, (8, 9), mig=False)
FOR_CUDA_13 = RuntimePackage("onnxruntime-gpu", "1.31.1", 13, {"nvidia-cudnn-cu13": "9.28.0.42"})


def host(root: FakeRoot) -> FakeRoot:
    return root.nodes("nvidia0", "nvidiactl").banner(closed_banner("535.54.03")).host_library("535.54.03")


def look(
    root: FakeRoot,
    settings: Settings | None = None,
    gpus: NvmlReport | None = None,
    runtime: RuntimePackage = FOR_CUDA_13,
) -> dict[str, Any]:
    report = gpus or NvmlReport("535.54.03", (L4,))
    sources = Sources(lambda: report, lambda: ("", 1), lambda: runtime)
    facts = collect(settings or Settings(cuda_compat="rule"), {}, root.path, sources)
    assert json.loads(as_json(facts)) == facts
    return facts


def test_this_machine_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    assert "usable cores" in output
    assert "onnxruntime 1." in output


def test_this_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cuda_compat"]["mode"] == "auto"
    assert "CPUExecutionProvider" in facts["onnxruntime"]["built_in_providers"]


def test_a_setting_that_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOC_CUDA_COMPAT", "maybe")
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("byoc info: error: BYOC_CUDA_COMPAT=maybe")


def test_a_package_that_fits(tmp_path: Path) -> None:
    root = host(FakeRoot(tmp_path)).compat(versions=["590.44.01"], note=BRANCHES_131, cuda="13.1")
    facts = look(root)
    assert facts["cuda_compat"]["decision"] == "ENABLE"
    assert facts["onnxruntime"]["fits_driver"] is True
    assert facts["driver"] == {"version": "535.54.03", "source": "proc", "cuda": "12.2"}
    text = as_text(facts)
    assert "NVIDIA L4, 24576 MiB, compute capability 8.9" in text
    assert "590.44.01" in text
    assert "for CUDA 13, nvidia-cudnn-cu13 9.28.0.42" in text
    assert "fits the driver" in text


def test_a_driver_too_old_names_the_remedy(tmp_path: Path) -> None:
    facts = look(host(FakeRoot(tmp_path)))
    assert facts["onnxruntime"]["fits_driver"] is False
    assert "al2023-ami-sagemaker-inference-gpu-4-1" in facts["onnxruntime"]["remedy"]
    assert "al2023-ami-sagemaker-inference-gpu-4-1" in as_text(facts)


def test_a_defect_is_named(tmp_path: Path) -> None:
    facts = look(host(FakeRoot(tmp_path)).folder("usr/local/cuda/compat"))
    assert facts["cuda_compat"]["packages"][0]["defect"] == "no usable libcuda"
    assert "no usable libcuda" in as_text(facts)


def test_a_gpu_that_nvml_does_not_tell_of(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).nodes("nvidia0")
    text = as_text(look(root, gpus=NvmlReport(error="driver not loaded", error_code=9)))
    assert "/dev/nvidia0; NVML: driver not loaded" in text
    assert "version unknown" in text


def test_a_partitioned_gpu_of_unknown_capability(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA H100", 14, 80 * 2**30, None, mig=True)
    assert "compute capability unknown, MIG" in as_text(look(host(FakeRoot(tmp_path)), gpus=NvmlReport(gpus=(gpu,))))


def test_a_gpu_that_was_asked_for_and_cannot_be_had(tmp_path: Path) -> None:
    facts = look(FakeRoot(tmp_path), Settings(device="gpu"))
    assert facts["device"]["name"] == ""
    assert "onnxruntime-gpu" in as_text(facts)


def test_without_onnx_runtime(tmp_path: Path) -> None:
    facts = look(FakeRoot(tmp_path), runtime=RuntimePackage())
    assert facts["onnxruntime"]["built_in_providers"] == []
    assert "not installed" in as_text(facts)


@pytest.mark.parametrize(
    ("driver", "fits", "runs_on"), [("580.95.05", True, "gpu"), ("535.54.03", False, ""), ("999.1", None, "gpu")]
)
def test_whether_the_runtime_fits_the_driver(
    tmp_path: Path, driver: str, fits: bool | None, runs_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoc_server.cli.info._providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    root = FakeRoot(tmp_path).nodes("nvidia0").banner(closed_banner(driver)).host_library(driver)
    facts = look(root, gpus=NvmlReport(driver, (L4,)))
    assert facts["onnxruntime"]["fits_driver"] is fits
    assert facts["device"]["name"] == runs_on
    assert ("fits the driver" in as_text(facts)) is (fits is True)


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    root = host(FakeRoot(tmp_path)).compat("opt/caf\udce9", note=BRANCHES_129)
    facts = look(root, Settings(cuda_compat="rule", cuda_compat_dir="/opt/caf\udce9"))
    assert "caf\\udce9" in as_text(facts)


@needs_compiler
def test_a_probe_is_shown(tmp_path: Path) -> None:
    root = host(FakeRoot(tmp_path))
    build_libcuda(tmp_path / "usr/local/cuda-12.9/compat", "575.57.08", 804, note=note_text(BRANCHES_129).decode())
    facts = look(root, Settings())
    assert facts["cuda_compat"]["decision"] == "SKIP_PROBE_804"
    assert "package's libcuda: cuInit returned 804, CUDA 12.9" in as_text(facts)
