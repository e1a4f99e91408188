from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from byoc_server.errors import GpuUnavailable
from byoc_server.models.warmup import make_example, warm_up
from byoc_server.types import STRING, BatchAxis, Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)


def signature(
    *shapes: tuple[int | None, ...], axis: BatchAxis = BatchAxis.DYNAMIC, size: int | None = None
) -> Signature:
    inputs = tuple(TensorSpec(f"x{i}", F32, shape) for i, shape in enumerate(shapes))
    return Signature(inputs, (TensorSpec("y", F32, (None,)),), axis, size)


class Clock:
    """Advances by what the engine says a run takes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Engine:
    """An engine whose time is its rows times ``row_s``, whose behaviour is told by ``outputs``."""

    def __init__(self, clock: Clock, row_s: float = 0.001, fixed_s: float = 0.01, fails_on: Sequence[int] = ()) -> None:
        self.clock, self.row_s, self.fixed_s, self.fails_on = clock, row_s, fixed_s, fails_on
        self.shapes: list[tuple[int, ...]] = []

    def outputs(self, rows: int) -> Tensors:
        return {"y": np.zeros(rows, F32)}

    def __call__(self, tensors: Tensors) -> Tensors:
        shape = tensors["x0"].shape
        self.shapes.append(shape)
        if shape[0] in self.fails_on:
            raise RuntimeError("cannot reshape\nmore")
        self.clock.now_s += self.fixed_s + shape[0] * self.row_s
        return self.outputs(shape[0])


def test_a_batching_model_is_measured_up_to_its_best_size() -> None:
    clock = Clock()
    warm = warm_up(Engine(clock), signature((None, 4)), 0, clock)
    assert warm.signature.batch_axis is BatchAxis.DYNAMIC
    assert warm.profile.seconds(1) == pytest.approx(0.011)
    assert warm.profile.best_batch_size >= 64


def test_no_batch_larger_than_the_users_limit_is_ever_measured() -> None:
    clock = Clock()
    engine = Engine(clock)
    warm_up(engine, signature((None, 4)), 6, clock)
    assert max(shape[0] for shape in engine.shapes) == 6


def test_a_graph_that_only_claims_to_batch_runs_record_by_record(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.WARNING):
        warm = warm_up(Engine(clock, fails_on=range(2, 999)), signature((None, 4)), 0, clock)
    assert (warm.signature.batch_axis, warm.signature.batch_size) == (BatchAxis.FIXED, 1)
    assert warm.infer({"x0": np.zeros((3, 4), F32)})["y"].shape == (3,)
    assert warm.profile.best_batch_size == 1
    assert "cannot reshape" in caplog.text
    assert "more" not in caplog.text.split("cannot reshape")[1]


@pytest.mark.parametrize("fails_on", [(), (2, 3)])
def test_outputs_that_do_not_follow_the_batch_mean_no_batch_axis(fails_on: Sequence[int]) -> None:
    clock = Clock()
    engine = Engine(clock, fails_on=fails_on)
    engine.outputs = lambda rows: {"y": np.zeros((5, 6), F32)}  # type: ignore[method-assign]  # a detector, say
    warm = warm_up(engine, signature((None, 4)), 0, clock)
    assert warm.signature.batch_axis is BatchAxis.ABSENT


def test_a_fixed_batch_size_is_measured_in_full_chunks() -> None:
    clock = Clock()
    engine = Engine(clock)
    warm = warm_up(engine, signature((4, 2), axis=BatchAxis.FIXED, size=4), 0, clock)
    assert {shape[0] for shape in engine.shapes} == {4}
    assert warm.profile.best_batch_size == 4


def test_open_axes_are_guessed_until_one_runs() -> None:
    clock = Clock()
    engine = Engine(clock)

    def infer(tensors: Tensors) -> Tensors:
        if tensors["x0"].shape[1] != 64:
            raise RuntimeError("needs 64")
        return engine(tensors)

    warm = warm_up(infer, signature((None, None)), 0, clock)
    assert warm.profile.rungs
    assert {shape[1] for shape in engine.shapes} == {64}


def test_a_model_that_takes_no_made_up_input_is_served_without_a_cost_model(caplog: pytest.LogCaptureFixture) -> None:
    def infer(tensors: Tensors) -> Tensors:
        raise RuntimeError("never")

    with caplog.at_level(logging.WARNING):
        warm = warm_up(infer, signature((None, None)), 0, Clock())
    assert warm.profile.rungs == ()
    assert "without a cost model" in caplog.text


def test_a_gpu_that_cannot_be_used_ends_warm_up() -> None:
    def infer(tensors: Tensors) -> Tensors:
        raise GpuUnavailable("CUDA failure 209")

    with pytest.raises(GpuUnavailable):
        warm_up(infer, signature((None, None)), 0, Clock())


def test_a_batch_too_large_for_the_memory_ends_the_climb_below_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    warm = warm_up(Engine(clock, fails_on=[16]), signature((None, 4)), 0, clock)
    assert [rows for rows, _ in warm.profile.rungs] == [1, 2, 4, 8]
    assert "a batch of 16 fails" in caplog.text


def test_examples_are_zeros_and_empty_strings_of_the_declared_shapes() -> None:
    inputs = (
        TensorSpec("ids", np.dtype(np.int64), (None, None)),
        TensorSpec("text", STRING, (None,)),
        TensorSpec("flag", np.dtype(np.bool_), (None, 1)),
    )
    example = make_example(Signature(inputs, inputs), rows=2, open_axis=5)
    assert {name: a.shape for name, a in example.items()} == {"ids": (2, 5), "text": (2,), "flag": (2, 1)}
    assert example["text"].tolist() == ["", ""]
    assert not example["ids"].any()
    absent = Signature(inputs, inputs, BatchAxis.ABSENT)
    assert make_example(absent, rows=1, open_axis=5)["ids"].shape == (5, 5)
