"""A model on the GPU: which way it runs there, and what its failures mean."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from byoc_server.engines.base import Engine, EngineOptions, GpuOptions
from byoc_server.engines.one_thread import OneThread
from byoc_server.engines.onnx import open_model
from byoc_server.errors import GpuUnavailable, ModelLoadError
from byoc_server.models.model import load_model
from byoc_server.types import Tensors
from tests.engines.fake_cuda import ON_GPU, CudaBuild, CudaSession
from tests.onnx_models import identity, mlp, save, value

WITH_GRAPHS = EngineOptions(1, "gpu", gpu=GpuOptions(cuda_graphs=True))


def x(rows: int, fill: float) -> Tensors:
    return {"x": np.full((rows, 4), fill, np.float32)}


def found(path: Path) -> Path:
    """Input ``x``, float32 (N, 4), output ``y``: the places of what is not zero, int64 (2, found)."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    outputs = [value("y", TensorProto.INT64, (2, "found"))]
    return save(path, [node], [value("x", TensorProto.FLOAT, ("N", 4))], outputs, [])


def test_a_shape_that_comes_again_runs_on_buffers(tmp_path: Path, cuda_build: CudaBuild) -> None:
    engine = open_model(identity(tmp_path / "m.onnx"), ON_GPU)
    for fill in range(3):
        assert engine.infer(x(2, fill))["y"].tolist() == [[fill] * 4] * 2
    assert [kind for kind, _ in cuda_build.sessions[0].runs] == ["run", "run_with_iobinding", "run_with_iobinding"]
    assert not engine.fixed_shapes


@pytest.mark.parametrize("kind", ["strings", "outputs that depend on values"])
def test_what_cannot_be_bound_runs_the_ordinary_way(tmp_path: Path, cuda_build: CudaBuild, kind: str) -> None:
    path = tmp_path / "m.onnx"
    if kind == "strings":
        engine = open_model(identity(path, TensorProto.STRING), ON_GPU)
        answers = [engine.infer({"x": np.array([["a", "b", "c", ""]], object)})["y"].tolist() for _ in range(3)]
        assert answers == [[["a", "b", "c", ""]]] * 3
    else:
        engine = open_model(found(path), ON_GPU)
        lengths = [engine.infer({"x": np.eye(4, dtype=np.float32)[:rows]})["y"].shape for rows in (3, 3, 2)]
        assert lengths == [(2, 3), (2, 3), (2, 2)]
    engine.warmed_up()
    assert [kind for kind, _ in cuda_build.sessions[0].runs] == ["run"] * 3
    engine.close()


@pytest.mark.parametrize("kind", ["strings", "outputs that depend on values"])
def test_a_graph_of_what_cannot_be_bound_is_refused(tmp_path: Path, cuda_build: CudaBuild, kind: str) -> None:
    path = tmp_path / "m.onnx"
    words = "strings" if kind == "strings" else "axis 1 of output 'y' is found, which is no axis of an input"
    identity(path, TensorProto.STRING) if kind == "strings" else found(path)
    with pytest.raises(ModelLoadError, match=rf"^cuda_graphs: .* {words}; --cuda-graphs false does without$"):
        open_model(path, WITH_GRAPHS)


def test_graphs_are_captured_in_warm_up_by_one_thread_and_replayed_by_it(tmp_path: Path, cuda_build: CudaBuild) -> None:
    engine = open_model(identity(tmp_path / "m.onnx"), WITH_GRAPHS)
    assert isinstance(engine, OneThread)
    assert engine.fixed_shapes
    assert engine.facts["cuda_graphs"] is True
    for rows in (4, 2, 4):
        engine.infer(x(rows, 0))
    engine.warmed_up()
    with ThreadPoolExecutor(1) as serving:
        for rows in (2, 4, 3, 3, 3):
            assert serving.submit(engine.infer, x(rows, rows)).result()["y"].tolist() == [[rows] * 4] * rows
    (session,) = cuda_build.sessions
    assert session.captures == 2
    assert session.runs[5:] == [("run_with_iobinding", 2), ("run_with_iobinding", 1)] + [("run", -1)] * 3
    engine.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_loaded_model_replays_batches_of_any_size(tmp_path: Path, cuda_build: CudaBuild, sessions: int) -> None:
    """Warm-up meets every size that serving rounds up to, and records come back as they went in."""
    model = load_model(mlp(tmp_path / "m.onnx", [4, 8, 3]), WITH_GRAPHS, 8, sessions=sessions)
    reference = load_model(tmp_path / "m.onnx", EngineOptions(1, "cpu"), 8)
    assert len(cuda_build.sessions) == len(model.infers) == sessions
    for session in cuda_build.sessions:
        session.runs.clear()
    random = np.random.default_rng(0)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 1):
        batch: Tensors = {"input": random.standard_normal((rows, 4), dtype=np.float32)}
        (expected,) = reference.infers[0](batch).values()
        for infer in model.infers:
            answer = infer(batch)["probabilities"]
            assert len(answer) == rows
            np.testing.assert_allclose(np.asarray(answer, np.float32), np.asarray(expected, np.float32), rtol=1e-5)
    for session in cuda_build.sessions:
        assert {kind for kind, _ in session.runs} == {"run_with_iobinding"}
        assert session.captures == 4  # 1, 2, 4 and 8 rows
    model.close()


@pytest.mark.parametrize("options", [ON_GPU, WITH_GRAPHS], ids=["plain", "graphs"])
@pytest.mark.parametrize("failing", ["run", "run_with_iobinding"])
@pytest.mark.parametrize(
    ("words", "expected", "lasting"),
    [
        ("x.cc:98 CUDA failure 209: no kernel image is available ; GPU=0 ;", GpuUnavailable, True),
        ("x.cc:98 CUDA failure 700: an illegal memory access was encountered ; GPU=0 ;", GpuUnavailable, True),
        ("x.cc:98 CUDA failure 2: out of memory ; GPU=0 ;", GpuUnavailable, False),
        ("x.cc:98 CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ;", GpuUnavailable, False),
        ("x.cc:98 CUDA failure 900: operation not permitted when stream is capturing ; GPU=0 ;", GpuUnavailable, True),
        ("Failed to allocate memory for requested buffer of size 1234", RuntimeError, None),
        ("Got invalid dimensions for input: x", RuntimeError, None),
    ],
)
def test_a_run_that_fails_is_told_from_a_gpu_that_fails(
    tmp_path: Path,
    cuda_build: CudaBuild,
    monkeypatch: pytest.MonkeyPatch,
    options: EngineOptions,
    failing: str,
    words: str,
    expected: type[Exception],
    lasting: bool | None,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    engine = open_model(identity(tmp_path / "m.onnx"), options)
    if failing == "run_with_iobinding" and options is ON_GPU:
        engine.infer(x(1, 0))
    with monkeypatch.context() as patch:
        patch.setattr(CudaSession, failing, fail)
        with pytest.raises(expected) as failure:
            engine.infer(x(1, 0))
    assert getattr(failure.value, "lasting", None) is lasting
    assert engine.infer(x(1, 5))["y"][0, 0] == 5  # a batch too large for the memory harms no other
    engine.close()


@pytest.mark.parametrize("options", [ON_GPU, WITH_GRAPHS], ids=["plain", "graphs"])
def test_a_closed_engine_has_let_go_of_its_session(
    tmp_path: Path, cuda_build: CudaBuild, options: EngineOptions
) -> None:
    engine: Engine = open_model(identity(tmp_path / "m.onnx"), options)
    for _ in range(2):
        engine.infer(x(1, 0))
    session = weakref.ref(cuda_build.sessions.pop())
    engine.close()
    with pytest.raises((AttributeError, RuntimeError)):
        engine.infer(x(1, 0))
    if isinstance(engine, OneThread):
        engine._thread.shutdown(wait=True)
    gc.collect()
    assert session() is None
