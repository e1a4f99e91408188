"""Runs on buffers that are used again, on real sessions and I/O bindings of the CPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from byoc_server.engines import bound_runs
from byoc_server.engines.bound_runs import BoundRuns, undetermined_output
from byoc_server.engines.onnx_runtime import session_options, session_specs
from byoc_server.engines.providers import CPU
from byoc_server.types import Array, Tensors
from tests.engines.fake_cuda import CudaSession
from tests.onnx_models import identity, mlp, save, two_inputs, value


def session_of(path: Path) -> CudaSession:
    return CudaSession(str(path), session_options(1), providers=[CPU])


def bound(session: CudaSession, *, graphs: bool = False) -> BoundRuns:
    inputs, outputs = session_specs(session)
    return BoundRuns(session, inputs, outputs, np.empty, graphs=graphs, device="cpu")


def kinds(session: CudaSession) -> list[str]:
    return [kind for kind, _ in session.runs]


def x(rows: int, fill: float) -> Tensors:
    return {"x": np.full((rows, 4), fill, np.float32)}


@pytest.mark.parametrize("graphs", [False, True])
def test_answers_are_those_of_an_ordinary_run(tmp_path: Path, graphs: bool) -> None:
    path = mlp(tmp_path / "m.onnx", [4, 8, 3])
    session = session_of(path)
    runs, reference = bound(session, graphs=graphs), ort.InferenceSession(str(path), providers=[CPU])
    random = np.random.default_rng(0)
    for rows in (8, 1, 8, 1, 8, 3, 3, 1):
        batch: Tensors = {"input": random.standard_normal((rows, 4), dtype=np.float32)}
        (expected,) = reference.run(None, batch)
        np.testing.assert_array_equal(runs.run(batch)["probabilities"], expected)
    expected_kinds = {
        False: [*["run"] * 2, *["run_with_iobinding"] * 3, "run", *["run_with_iobinding"] * 2],
        True: [*["run", "run_with_iobinding"] * 2, *["run_with_iobinding"] * 3, "run", *["run_with_iobinding"] * 3],
    }
    assert kinds(session) == expected_kinds[graphs]


@pytest.mark.parametrize("graphs", [False, True])
def test_the_next_run_leaves_earlier_answers_alone(tmp_path: Path, graphs: bool) -> None:
    runs = bound(session_of(identity(tmp_path / "m.onnx")), graphs=graphs)
    answers = [runs.run(x(2, fill))["y"] for fill in range(5)]
    assert [answer[0, 0] for answer in answers] == [0, 1, 2, 3, 4]
    assert all(not np.shares_memory(a, b) for a in answers for b in answers if a is not b)


def test_several_inputs_and_outputs_are_not_mixed_up(tmp_path: Path) -> None:
    runs = bound(session_of(two_inputs(tmp_path / "m.onnx")))
    for _ in range(3):
        outputs = runs.run({"b": np.array([[1]], np.float32), "a": np.array([[3]], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"sum": [[4]], "difference": [[2]]}


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT16]
)
def test_every_kind_of_number_passes_through(tmp_path: Path, kind: int) -> None:
    runs = bound(session_of(identity(tmp_path / "m.onnx", kind, ("N", 2))))
    values = np.array([[0, 1], [1, 0]], helper.tensor_dtype_to_np_dtype(kind))
    for _ in range(3):
        output = runs.run({"x": values})["y"]
        assert output.dtype == values.dtype
        np.testing.assert_array_equal(output, values)


def test_the_buffers_of_the_shape_unused_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_runs, "MOST_SHAPES", 2)
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session)
    for rows in (1, 1, 2, 2, 1, 3, 3):
        runs.run(x(rows, rows))
    session.runs.clear()
    for rows in (1, 3, 2):
        runs.run(x(rows, rows))
    assert kinds(session) == ["run_with_iobinding", "run_with_iobinding", "run"]


def test_shapes_that_come_once_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_runs, "MOST_SHAPES", 2)
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session)
    for rows in (1, 2, 3, 1, 3):
        runs.run(x(rows, rows))
    assert kinds(session) == ["run"] * 4 + ["run_with_iobinding"]


def test_each_shape_has_a_graph_of_its_own(tmp_path: Path) -> None:
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session, graphs=True)
    for rows in (4, 2, 4, 2):
        assert runs.run(x(rows, rows))["y"].tolist() == [[rows] * 4] * rows
    plain, graph = "run", "run_with_iobinding"
    assert session.runs == [(plain, -1), (graph, 1), (plain, -1), (graph, 2), (graph, 1), (graph, 2)]


def test_nothing_is_captured_behind_warm_up(tmp_path: Path) -> None:
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session, graphs=True)
    runs.run(x(4, 4))
    runs.warmed_up()
    session.runs.clear()
    for rows in (3, 3, 3, 4):
        assert runs.run(x(rows, rows))["y"].tolist() == [[rows] * 4] * rows
    assert session.runs == [("run", -1)] * 3 + [("run_with_iobinding", 1)]


def test_without_graphs_shapes_get_buffers_while_serving(tmp_path: Path) -> None:
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session)
    runs.warmed_up()
    runs.run(x(2, 0))
    runs.run(x(2, 0))
    assert session.runs == [("run", None), ("run_with_iobinding", None)]


def test_graphs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_runs, "MOST_GRAPHS", 2)
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session, graphs=True)
    for rows in (1, 2, 3, 3, 3, 1, 2):
        assert runs.run(x(rows, rows))["y"].tolist() == [[rows] * 4] * rows
    assert session.captures == 2
    assert session.runs[4:] == [("run", -1)] * 3 + [("run_with_iobinding", 1), ("run_with_iobinding", 2)]


class FailingOnce:
    """Makes buffers, but for the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def empty(self, shape: Any, dtype: Any) -> Array:
        self.calls += 1
        if self.calls == 1:
            raise MemoryError("out of memory")
        return np.empty(shape, dtype)


@pytest.mark.parametrize("graphs", [False, True])
def test_buffers_that_cannot_be_had_fail_one_run_alone(tmp_path: Path, graphs: bool) -> None:
    session = session_of(identity(tmp_path / "m.onnx"))
    inputs, outputs = session_specs(session)
    runs = BoundRuns(session, inputs, outputs, FailingOnce().empty, graphs=graphs, device="cpu")
    if not graphs:
        runs.run(x(2, 1))
    with pytest.raises(MemoryError):
        runs.run(x(2, 1))
    for fill in (3, 4, 5):
        assert runs.run(x(2, fill))["y"][0, 0] == fill
    assert session.captures == graphs


def test_a_bound_run_that_fails_gives_its_buffers_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number would be taken by a graph that was never captured."""
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session, graphs=True)
    with monkeypatch.context() as patch:
        patch.setattr(CudaSession, "run_with_iobinding", fail)
        with pytest.raises(RuntimeError, match="CUDA failure 2"):
            runs.run(x(2, 2))
    for fill in (3, 4, 5):
        assert runs.run(x(2, fill))["y"][0, 0] == fill
    assert session.runs == [("run", -1)] * 2 + [("run_with_iobinding", 2)] * 3


def fail(*_: Any) -> None:
    raise RuntimeError("x.cc:1 CUDA failure 2: out of memory ; GPU=0 ;")


@pytest.mark.parametrize(("rows", "width"), [(0, 4), (2, 0)])
def test_empty_tensors_get_no_buffers(tmp_path: Path, rows: int, width: int) -> None:
    session = session_of(identity(tmp_path / "m.onnx", TensorProto.FLOAT, ("N", "M")))
    runs = bound(session)
    for _ in range(3):
        assert runs.run({"x": np.zeros((rows, width), np.float32)})["y"].shape == (rows, width)
    assert kinds(session) == ["run"] * 3


def model(path: Path, node: str, output: tuple[str | int | None, ...], **attributes: Any) -> Path:
    kind = TensorProto.INT64 if node == "NonZero" else TensorProto.FLOAT
    return save(
        path,
        [helper.make_node(node, ["x"], ["y"], **attributes)],
        [value("x", TensorProto.FLOAT, ("N", 4))],
        [value("y", kind, output)],
        [],
    )


@pytest.mark.parametrize(
    ("node", "output", "words"),
    [
        ("Relu", ("N", 4), ""),
        ("Relu", (3, 4), ""),
        ("NonZero", (2, "found"), "axis 1 of output 'y' is found, which is no axis of an input"),
        ("NonZero", (2, None), "axis 1 of output 'y' is open, which is no axis of an input"),
    ],
)
def test_outputs_whose_shape_depends_on_more_than_the_inputs_are_found(
    tmp_path: Path, node: str, output: tuple[str | int | None, ...], words: str
) -> None:
    assert undetermined_output(session_of(model(tmp_path / "m.onnx", node, output))) == words


def test_an_output_of_unknown_rank_gets_no_buffers(tmp_path: Path) -> None:
    """Its shape depends on values, which nothing that the model declares tells."""
    x_info, s_info = value("x", TensorProto.FLOAT, ("N", 4)), value("s", TensorProto.INT64, ("K",))
    y_info = helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "s"], ["y"])], "test", [x_info, s_info], [y_info])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    session = session_of(path)
    runs = bound(session)
    for shape in ([8, 1], [2, 4], [1, 8]):
        assert runs.run({**x(2, 7), "s": np.array(shape)})["y"].shape == tuple(shape)
    assert kinds(session) == ["run"] * 3


def test_another_thread_would_capture_again(tmp_path: Path) -> None:
    """Which is why there is ``OneThread``."""
    session = session_of(identity(tmp_path / "m.onnx"))
    runs = bound(session, graphs=True)
    runs.run(x(2, 0))
    other = threading.Thread(target=runs.run, args=(x(2, 0),))
    other.start()
    other.join()
    assert session.captures == 2
