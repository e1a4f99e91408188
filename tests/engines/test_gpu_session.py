"""Opening a session on the GPU, or failing with the reason."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from byoc_server.engines import gpu_session
from byoc_server.engines.base import EngineOptions, GpuOptions
from byoc_server.engines.onnx import open_model
from byoc_server.engines.providers import CPU, CUDA, TENSORRT, cuda_options
from byoc_server.errors import GpuUnavailable, ModelLoadError, SettingsError
from tests.engines.fake_cuda import HAS_GPU, ON_GPU, CudaBuild, CudaSession, RealSession
from tests.onnx_models import identity, mlp

ON_TENSORRT = EngineOptions(1, "gpu", gpu=GpuOptions("tensorrt"))


def test_on_a_gpu_cuda_comes_first_and_nothing_falls_back(
    tmp_path: Path, cuda_build: CudaBuild, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        engine = open_model(identity(tmp_path / "m.onnx"), ON_GPU)
    assert cuda_build.calls == [("preload", {"cuda": True, "cudnn": True}), ("severity", 4), "session", ("severity", 3)]
    expected = {"providers": [(CUDA, cuda_options(GpuOptions())), CPU], "enable_fallback": False}
    assert cuda_build.sessions[0].arguments == expected
    assert (engine.facts["device"], engine.facts["execution_providers"]) == ("gpu", [CUDA, CPU])
    assert engine.infer({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[1, 1, 1, 1]]
    assert capfd.readouterr() == ("", "")
    assert [record.levelname for record in caplog.records if "libcurand.so.10" in record.message] == ["DEBUG"]


def test_tensorrt_comes_before_cuda_and_is_told_the_shapes_of_a_batch(tmp_path: Path, cuda_build: CudaBuild) -> None:
    gpu = GpuOptions("tensorrt", tensorrt_precision="fp16", largest_batch_rows=64)
    engine = open_model(mlp(tmp_path / "m.onnx", [4, 3]), EngineOptions(1, "gpu", gpu=gpu))
    (name, options), (second, _), third = cuda_build.sessions[0].arguments["providers"]
    assert (name, second, third) == (TENSORRT, CUDA, CPU)
    assert options["trt_fp16_enable"] == "1"
    assert (options["trt_profile_min_shapes"], options["trt_profile_max_shapes"]) == ("input:1x4", "input:64x4")
    assert "trt_engine_cache_path" not in options
    assert engine.fixed_shapes


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_model_that_tensorrt_runs_in_parts_is_opened_without_shapes(
    tmp_path: Path, cuda_build: CudaBuild, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = fail_first(
        monkeypatch, lambda options: "trt_profile_min_shapes" in options,
        "User needs to provide all the dynamic shape inputs with associated profiles if they want to explicitly set",
    )  # fmt: skip
    gpu = GpuOptions("tensorrt", tensorrt_cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        open_model(identity(tmp_path / "m.onnx"), EngineOptions(1, "gpu", gpu=gpu))
    assert len(opened) == 2
    assert opened[0]["trt_engine_cache_path"] == opened[1]["trt_engine_cache_path"]
    assert "trt_profile_min_shapes" not in opened[1]
    assert "only parts of the model" in caplog.text


def fail_first(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[dict[str, str]], bool], words: str
) -> list[dict[str, str]]:
    """Make sessions fail by the options of their first provider. Returns those options, one a session."""
    opened: list[dict[str, str]] = []
    open_session = ort.InferenceSession

    def session(path: str, options: ort.SessionOptions, **arguments: Any) -> Any:
        if arguments["providers"] != [CPU]:
            opened.append(arguments["providers"][0][1])
            if fails(opened[-1]):
                raise RuntimeError(words)
        return open_session(path, options, **arguments)

    monkeypatch.setattr(ort, "InferenceSession", session)
    return opened


@pytest.mark.parametrize(
    ("options", "reported", "expected", "words"),
    [
        (
            ON_GPU,
            "/src/cuda_call.cc:154 CUDA failure 35: CUDA driver version is insufficient ; hostname=h ;",
            GpuUnavailable,
            r"CUDA failure 35 \(CUDA driver version is insufficient\): the host's",
        ),
        (
            ON_TENSORRT,
            "/src/pybind.cc:729 void Register(PySessionOptions&, const ProviderOptions&) Please install TensorRT "
            "libraries as mentioned in the GPU requirements page\n",
            GpuUnavailable,
            r"cannot run with TensorRT: (libonnxruntime_providers_tensorrt\.so is not|Please install)",
        ),
        (
            EngineOptions(1, "gpu", gpu=GpuOptions(cuda_graphs=True)),
            "This session cannot use the graph capture feature as requested by the user  as all compute graph nodes "
            "have not been partitioned to the CUDAExecutionProvider",
            ModelLoadError,
            r"^cuda_graphs: all compute graph nodes have not been partitioned .*; --cuda-graphs false does without$",
        ),
    ],
)
def test_a_session_that_does_not_open_is_explained(
    tmp_path: Path,
    cuda_build: CudaBuild,
    monkeypatch: pytest.MonkeyPatch,
    options: EngineOptions,
    reported: str,
    expected: type[Exception],
    words: str,
) -> None:
    fail_first(monkeypatch, lambda _: True, reported)
    with pytest.raises(expected, match=words):
        open_model(identity(tmp_path / "m.onnx"), options)
    assert cuda_build.calls[-1] == ("severity", 3)


@pytest.mark.parametrize("options", [ON_GPU, ON_TENSORRT], ids=["cuda", "tensorrt"])
def test_a_model_that_is_broken_is_not_blamed_on_the_gpu(
    tmp_path: Path, cuda_build: CudaBuild, options: EngineOptions
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"^ONNX Runtime cannot load broken\.onnx: .+"):
        open_model(path, options)


def test_a_combination_that_answers_wrongly_is_refused_before_anything_is_loaded(
    tmp_path: Path, cuda_build: CudaBuild
) -> None:
    with pytest.raises(SettingsError, match="cuda_graphs needs execution_provider=cuda"):
        open_model(tmp_path / "m.onnx", EngineOptions(1, "gpu", gpu=GpuOptions("tensorrt", cuda_graphs=True)))
    assert cuda_build.calls == []


@pytest.mark.parametrize("options", [ON_GPU, EngineOptions(1, "auto", gpu_usable=True)], ids=["gpu", "auto"])
@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(HAS_GPU, reason="here the session really gets the GPU")
def test_a_silent_fall_back_to_the_cpu_is_a_failure(
    tmp_path: Path, cuda_build: CudaBuild, monkeypatch: pytest.MonkeyPatch, options: EngineOptions, loads: bool
) -> None:
    """The session is a real one, opened with CUDA in the lead, and runs on the CPU: that is how ONNX Runtime is."""
    monkeypatch.setattr(ort, "InferenceSession", RealSession)
    words = "libonnxruntime_providers_cuda.so is not in this container"
    if loads:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
        words = "does not say why"
    monkeypatch.setattr(gpu_session, "LIBRARIES", tmp_path)
    with pytest.raises(GpuUnavailable, match=words):
        open_model(identity(tmp_path / "m.onnx"), options)


@pytest.mark.parametrize(
    ("obtained", "words"),
    [
        ([CUDA, CPU], "cannot run with TensorRT: libonnxruntime_providers_tensorrt.so is not in this container"),
        ([CPU], "cannot run with TensorRT: libonnxruntime_providers_tensorrt.so is not in this container"),
        ([TENSORRT, CPU], "cannot run on the GPU: libonnxruntime_providers_cuda.so is not in this container"),
    ],
)
def test_a_provider_that_was_asked_for_and_not_obtained_is_a_failure(
    tmp_path: Path, cuda_build: CudaBuild, monkeypatch: pytest.MonkeyPatch, obtained: list[str], words: str
) -> None:
    monkeypatch.setattr(CudaSession, "get_providers", lambda session: obtained)
    monkeypatch.setattr(gpu_session, "LIBRARIES", tmp_path)
    with pytest.raises(GpuUnavailable, match=words):
        open_model(identity(tmp_path / "m.onnx"), ON_TENSORRT)


def test_without_onnxruntime_gpu_a_demanded_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    with pytest.raises(GpuUnavailable, match="install onnxruntime-gpu"):
        open_model(identity(tmp_path / "m.onnx"), ON_GPU)


@pytest.mark.parametrize("options", [EngineOptions(1, "cpu", gpu_usable=True), EngineOptions(1)], ids=["cpu", "auto"])
def test_on_the_cpu_nothing_of_cuda_is_touched(tmp_path: Path, cuda_build: CudaBuild, options: EngineOptions) -> None:
    engine = open_model(identity(tmp_path / "m.onnx"), options)
    assert engine.facts["execution_providers"] == [CPU]
    assert cuda_build.calls == []
