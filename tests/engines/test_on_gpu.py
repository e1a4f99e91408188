"""On a real GPU. What TensorRT needs beside it is skipped where it is not installed."""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from byoc_server.device.nvml import read_nvml
from byoc_server.engines import bound_runs
from byoc_server.engines.base import EngineOptions, GpuOptions
from byoc_server.engines.onnx import open_model
from byoc_server.engines.providers import CPU, CUDA, TENSORRT
from byoc_server.errors import GpuUnavailable, ModelLoadError
from tests.engines.fake_cuda import ON_GPU, needs_gpu
from tests.onnx_models import identity, mlp, save, two_inputs, value

pytestmark = [pytest.mark.gpu, needs_gpu]


def on_gpu(**options: object) -> EngineOptions:
    return EngineOptions(1, "gpu", gpu=dataclasses.replace(GpuOptions(), **options))  # type: ignore[arg-type]  # the fields


def answers_of(path: Path, batches: list[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    session = ort.InferenceSession(str(path), providers=[CPU])
    return [session.run(None, {"input": batch})[0] for batch in batches]


def batches_of(rows: list[int]) -> list[npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((count, 64), dtype=np.float32) for count in rows]


def test_a_model_really_runs_on_the_gpu(tmp_path: Path) -> None:
    engine = open_model(two_inputs(tmp_path / "m.onnx"), ON_GPU)
    assert (engine.facts["device"], engine.facts["execution_providers"]) == ("gpu", [CUDA, CPU])
    outputs = engine.infer({"a": np.array([[3]], np.float32), "b": np.array([[1]], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"sum": [[4]], "difference": [[2]]}
    engine.close()


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_shapes_in_any_order_are_answered_as_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """Buffers that are used again, evicted and made anew, and graphs replayed in turns."""
    monkeypatch.setattr(bound_runs, "MOST_SHAPES", 3)
    path = mlp(tmp_path / "m.onnx", [64, 128, 10])
    engine = open_model(path, on_gpu(cuda_graphs=graphs))
    for batch in batches_of([32, 8, 1]):
        engine.infer({"input": batch})
    engine.warmed_up()
    batches = batches_of([32, 1, 8, 5, 32, 5, 8, 5, 1, 7, 32, 7, 9, 9, 9, 32])
    answers = [engine.infer({"input": batch})["probabilities"] for batch in batches]
    for answer, expected in zip(answers, answers_of(path, batches), strict=True):
        np.testing.assert_allclose(np.asarray(answer, np.float32), expected, atol=2e-3)  # TF32 has ten bits
    engine.close()


def test_a_graph_of_control_flow_is_refused(tmp_path: Path) -> None:
    """Which branch is taken would be the one of the capture."""
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [value("t", 1, ("N", 4))])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "else", [], [value("o", 1, ("N", 4))])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    path = save(tmp_path / "m.onnx", nodes, [value("x", 1, ("N", 4))], [value("y", 1, ("N", 4))], [zero])
    with pytest.raises(ModelLoadError, match="cuda_graphs: the model has control flow"):
        open_model(path, on_gpu(cuda_graphs=True))


def test_a_graph_with_operators_that_run_on_the_cpu_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Det", ["double"], ["det"]),
        helper.make_node("Cast", ["det"], ["y"], to=TensorProto.FLOAT),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", 1, ("N", 2, 2))], [value("y", 1, ("N",))], [])
    with pytest.raises(ModelLoadError, match=r"cuda_graphs: .*not been partitioned"):
        open_model(path, on_gpu(cuda_graphs=True))


def test_a_batch_too_large_for_the_memory_harms_no_other(tmp_path: Path) -> None:
    engine = open_model(mlp(tmp_path / "m.onnx", [64, 4096, 10]), on_gpu(memory_limit_bytes=64 * 2**20))
    (small,) = batches_of([4])
    before = engine.infer({"input": small})["probabilities"]
    for _ in range(2):
        with pytest.raises(Exception, match="memory") as failure:  # ONNX Runtime's have no class of their own
            engine.infer({"input": np.zeros((100_000, 64), np.float32)})
        assert not (isinstance(failure.value, GpuUnavailable) and failure.value.lasting)
    np.testing.assert_array_equal(engine.infer({"input": small})["probabilities"], before)
    engine.close()


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_memory_stays_flat_over_batches_of_mixed_size(tmp_path: Path, graphs: bool) -> None:
    engine = open_model(mlp(tmp_path / "m.onnx", [64, 1024, 10]), on_gpu(cuda_graphs=graphs))
    random = np.random.default_rng(1)

    def run(count: int) -> int:
        for rows in random.integers(1, 65, count):
            engine.infer({"input": np.zeros((int(rows), 64), np.float32)})
        return read_used_bytes()

    engine.infer({"input": np.zeros((64, 64), np.float32)})
    run(200)
    engine.warmed_up()
    settled = run(300)
    assert run(1000) <= settled + 4 * 2**20  # what the driver rounds up to
    engine.close()


def read_used_bytes() -> int:
    import pynvml  # type: ignore[import-untyped]  # it has no type information

    assert read_nvml().gpus
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


@pytest.mark.parametrize("precision", ["model", "fp16"])
def test_tensorrt_answers_as_the_cpu_does_and_keeps_its_engines(tmp_path: Path, precision: str) -> None:
    (tmp_path / "model").mkdir()
    path = mlp(tmp_path / "model" / "m.onnx", [64, 128, 10])
    cache = tmp_path / "cache"
    options = on_gpu(
        execution_provider="tensorrt",
        tensorrt_precision=precision,
        tensorrt_cache_dir=str(cache),
        largest_batch_rows=32,
    )
    try:
        engine = open_model(path, options)
    except GpuUnavailable as error:
        pytest.skip(error.message)
    assert engine.facts["execution_providers"] == [TENSORRT, CUDA, CPU]
    assert engine.fixed_shapes
    batches = batches_of([32, 32, 1, 8, 1, 32])
    answers = [engine.infer({"input": batch})["probabilities"] for batch in batches]
    for answer, expected in zip(answers, answers_of(path, batches), strict=True):
        np.testing.assert_allclose(np.asarray(answer, np.float32), expected, atol=1e-2)
    engine.close()
    engines = {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.engine")}
    assert len(engines) == 1  # one for all sizes of a batch
    open_model(path, options).infer({"input": batches[0]})
    assert {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.engine")} == engines


def test_tensorrt_that_is_missing_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_libs") or ctypes.util.find_library("nvinfer"):
        pytest.skip("TensorRT is installed")
    with pytest.raises(GpuUnavailable, match=r"libnvinfer\.so\.10 is not in this container"):
        open_model(identity(tmp_path / "m.onnx"), on_gpu(execution_provider="tensorrt"))
