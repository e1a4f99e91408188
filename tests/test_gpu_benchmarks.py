"""The benchmarks on a GPU: that they refuse to run without one, and that all but the GPU works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pynvml  # type: ignore[import-untyped]  # it has no type information
import pytest

from benchmarks import (
    environment,
    gpu,
    gpu_latency,
    gpu_memory,
    gpu_offline,
    gpu_throughput,
    image_model,
    models,
    report,
)
from benchmarks.processes import ENVIRONMENT
from byoc_server.device.nvml import Gpu, NvmlReport
from byoc_server.engines.base import EngineOptions, GpuOptions
from byoc_server.engines.providers import CPU, CUDA
from tests.engines.fake_cuda import HAS_GPU, needs_gpu

NAMES = ["gpu_throughput", "gpu_latency", "gpu_padding", "gpu_memory"]
HAS_WRK = shutil.which("wrk") is not None


def run(name: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(output)]
    return subprocess.run(
        command, cwd=environment.ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.skipif(HAS_GPU, reason="here they run")
@pytest.mark.parametrize("name", NAMES)
def test_without_a_gpu_they_refuse_in_one_line(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path / "result.json")
    assert done.returncode == 1
    assert done.stderr.startswith(f"python -m benchmarks.{name}: this benchmark needs ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("usable", "providers", "words"),
    [
        (False, [CUDA, CPU], "needs an NVIDIA GPU"),
        (True, [CPU], "needs onnxruntime-gpu in place of onnxruntime"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, usable: bool, providers: list[str], words: str
) -> None:
    monkeypatch.setattr(gpu, "look_for_gpus", lambda *_: SimpleNamespace(usable=usable))
    monkeypatch.setattr(gpu, "built_in_providers", lambda: providers)
    with pytest.raises(report.BenchmarkError, match=words):
        gpu.require_gpu()


def test_the_stamp_of_a_gpu_names_its_kind_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NvmlReport("580.95.05", (Gpu("NVIDIA A10G", 0, 24 * 2**30),))
    monkeypatch.setattr(gpu, "look_for_gpus", lambda *_: SimpleNamespace(usable=True))
    monkeypatch.setattr(gpu, "built_in_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(gpu, "read_nvml", lambda: nvml)
    expected = {"gpu": "NVIDIA A10G", "gpu_memory_mib": 24576, "driver": "580.95.05"}
    assert gpu.require_gpu() == {**expected, "onnxruntime_gpu": ort.__version__}


def test_a_driver_that_does_not_tell_fails_the_benchmark() -> None:
    with pytest.raises(report.BenchmarkError, match="lists no GPU: Driver/library version mismatch"):
        gpu.facts(NvmlReport(error="Driver/library version mismatch"))
    with pytest.raises(report.BenchmarkError, match="NVML finds none"):
        gpu.facts(NvmlReport())


def test_the_memory_in_use_is_that_of_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: ("gpu", index))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used={("gpu", 0): 7}[handle]))
    assert gpu.used_bytes() == 7
    assert calls == ["init", "shutdown"]


def build(path: Path) -> Path:
    return models.resnet(path, stages=(2, 2), width=8, pixels=32, classes=10)


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_a_model_of_bytes_answers_as_the_one_it_was_made_of(tmp_path: Path, half: bool, tolerance: float) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 32, 32), np.uint8)
    original = ort.InferenceSession(str(build(tmp_path / "original.onnx")), providers=[CPU])
    (expected,) = original.run(None, {"input": pixels.astype(np.float32) / 255})
    changed = ort.InferenceSession(
        str(image_model.of_bytes(build(tmp_path / "changed.onnx"), half=half)), providers=[CPU]
    )
    assert [node.type for node in changed.get_inputs()] == ["tensor(uint8)"]
    (output,) = changed.run(None, {"input": pixels})
    assert isinstance(output, np.ndarray)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, np.asarray(expected, np.float32), atol=tolerance * np.abs(expected).max())


def test_half_precision_takes_half_the_bytes(tmp_path: Path) -> None:
    full, half = (
        image_model.of_bytes(build(tmp_path / f"{half}.onnx"), half=half).stat().st_size for half in (False, True)
    )
    assert 0.5 < half / full < 0.75


def test_the_loop_beside_runs_batches_of_bytes(tmp_path: Path) -> None:
    path = image_model.of_bytes(build(tmp_path / "m.onnx"))
    with gpu_offline.looping(path, None) as loop:
        assert loop.run(2, 0.01).rows_per_s > 0
        assert loop.run(5, 0.01).rows_per_s > 0


@pytest.mark.skipif(HAS_GPU, reason="here the session really gets the GPU")
def test_a_loop_that_cannot_run_says_why(tmp_path: Path) -> None:
    path = image_model.of_bytes(build(tmp_path / "m.onnx"))
    with (
        pytest.raises(report.BenchmarkError, match="cannot run on the GPU"),
        gpu_offline.looping(path, GpuOptions()),
    ):
        pass


def test_growth_is_counted_from_a_tenth_of_the_batches_on() -> None:
    used = [(number, 100.0 + (50 if number > 1 else 0) + (number == 7)) for number in range(1, 21)]
    assert gpu_memory.summary(used) == {"settled_mib": 150.0, "most_mib": 151.0, "growth_mib": 1.0}


def test_memory_is_sampled_while_batches_of_mixed_size_run() -> None:
    amounts = iter(range(0, 10**9, 2**20))
    options = EngineOptions(1, "cpu")
    used = gpu_memory.watch(options, gpu_throughput.QUICK, 100, lambda: next(amounts))
    assert [batches for batches, _ in used] == list(range(2, 101, 2))
    assert [mib for _, mib in used] == list(range(50))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WRK, reason="needs the load generator wrk")
def test_throughput_is_measured_on_whatever_there_is() -> None:
    row, rounds = gpu_throughput.compare(gpu_throughput.VARIANTS[1], gpu_throughput.QUICK, "cpu")
    assert row["variant"] == "CUDA, float16"
    for figure in ("served_images_per_s", "offline_images_per_s", "served_to_offline", "served_p99_ms"):
        assert float(str(row[figure])) > 0
    assert len(rounds) == 1


def test_tensorrt_that_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(variant: gpu_throughput.Variant, *_: object) -> tuple[report.Row, list[report.Row]]:
        if variant.flags:
            raise report.BenchmarkError("the server did not become ready: the model cannot run with TensorRT: x")
        return {"variant": variant.name, "served_to_offline": 0.95}, [{"variant": variant.name}]

    monkeypatch.setattr(gpu, "require_gpu", lambda: {"gpu": "NVIDIA A10G"})
    monkeypatch.setattr(gpu_throughput, "compare", compare)
    result = gpu_throughput.measure(True)
    assert [row["variant"] for row in result.rows] == ["CUDA, float32", "CUDA, float16"]
    assert result.settings["left_out"] == "TensorRT, float16: not installed"
    assert all(goal.met for goal in result.goals)


def test_any_other_failure_of_a_variant_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: object) -> None:
        raise report.BenchmarkError("the server ended with 1")

    monkeypatch.setattr(gpu, "require_gpu", dict)
    monkeypatch.setattr(gpu_throughput, "compare", compare)
    with pytest.raises(report.BenchmarkError, match="ended with 1"):
        gpu_throughput.measure(True)


@pytest.mark.slow
def test_latency_is_measured_on_whatever_there_is() -> None:
    flags = {"first": ("--device", "cpu"), "second": ("--device", "cpu", "--max-batch-size", "4")}
    rows, rounds = gpu_latency.compare(flags, gpu_latency.QUICK)
    assert [row["server"] for row in rows] == ["first", "second"]
    assert len(rounds) == 2
    for row in rows:
        assert float(str(row["solo_p50_ms"])) > 0
        assert float(str(row["p99_ms"])) >= float(str(row["p50_ms"])) > 0
    assert rows[0]["images_per_s"] == rows[1]["images_per_s"] == 0.5 * float(str(rows[0]["capacity_images_per_s"]))


@pytest.mark.gpu
@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize("name", NAMES)
def test_they_run_on_a_gpu(name: str, tmp_path: Path) -> None:
    if name == "gpu_throughput" and not HAS_WRK:
        pytest.skip("needs the load generator wrk")
    output = tmp_path / "result.json"
    done = run(name, output)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["benchmark"] == name
    assert result["settings"]["gpu"]
    assert result["rows"]
    assert os.sep not in json.dumps(result["settings"])
