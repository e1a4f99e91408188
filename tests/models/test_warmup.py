from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from byoc_server.errors import GpuUnavailable
from byoc_server.models.warmup import make_example, record_infer, warm_copy, warm_up
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

    def __init__(
        self,
        clock: Clock,
        row_s: float = 0.001,
        fixed_s: float = 0.01,
        fails_on: Sequence[int] = (),
        error: Exception | None = None,
    ) -> None:
        self.clock, self.row_s, self.fixed_s, self.fails_on = clock, row_s, fixed_s, fails_on
        self.error = error or RuntimeError("cannot reshape\nmore")
        self.shapes: list[tuple[int, ...]] = []

    def outputs(self, rows: int) -> Tensors:
        return {"y": np.zeros(rows, F32)}

    def __call__(self, tensors: Tensors) -> Tensors:
        shape = tensors["x0"].shape
        self.shapes.append(shape)
        if shape[0] in self.fails_on:
            raise self.error
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


@pytest.mark.parametrize("fails_on", [(), (2, 4)])
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


def test_the_ladder_is_run_from_the_largest_down() -> None:
    clock = Clock()
    engine = Engine(clock)
    warm = warm_up(engine, signature((None, 4)), 0, clock)
    ladder = [shape[0] for shape in engine.shapes]
    assert [rows for rows, _ in warm.profile.rungs] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert sorted(ladder[ladder.index(256) :], reverse=True) == ladder[ladder.index(256) :]


def test_a_slow_model_is_not_tried_in_batches_that_take_longer_than_half_a_second() -> None:
    clock = Clock()
    engine = Engine(clock, row_s=0.1, fixed_s=0.0)
    warm = warm_up(engine, signature((None, 4)), 0, clock)
    assert [rows for rows, _ in warm.profile.rungs] == [1, 2, 4]
    assert clock.now_s < 10


@pytest.mark.parametrize(("max_batch_size", "top"), [(0, 256), (64, 64)])
def test_a_slow_model_whose_batches_take_no_longer_is_measured_in_large_ones(max_batch_size: int, top: int) -> None:
    """Or the time of a batch of 64 would be taken as that of 64 runs, and requests be refused for it."""
    clock = Clock()
    warm = warm_up(Engine(clock, row_s=0.0, fixed_s=0.45), signature((None, 4)), max_batch_size, clock)
    assert warm.profile.best_batch_size == top
    assert warm.profile.seconds(64) == pytest.approx(0.45)
    assert clock.now_s < 10


@pytest.mark.parametrize("error", [RuntimeError("BFCArena: no room\nmore"), GpuUnavailable("no room", lasting=False)])
def test_a_batch_too_large_for_the_memory_is_left_out(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    engine = Engine(clock, fails_on=range(16, 999), error=error)
    warm = warm_up(engine, signature((None, 4)), 0, clock)
    assert [rows for rows, _ in warm.profile.rungs] == [1, 2, 4, 8]
    assert warm.profile.fits == 8
    assert "a batch of 32 fails" in caplog.text
    assert "a batch of 16 fails" in caplog.text
    assert "more" not in caplog.text


def test_a_gpu_that_is_lost_while_a_batch_is_tried_ends_warm_up() -> None:
    clock = Clock()
    engine = Engine(clock, fails_on=[256], error=GpuUnavailable("CUDA failure 700"))
    with pytest.raises(GpuUnavailable):
        warm_up(engine, signature((None, 4)), 0, clock)


def test_an_engine_that_wants_fixed_shapes_meets_none_but_those_of_warm_up() -> None:
    clock = Clock()
    engine = Engine(clock)
    warm = warm_up(engine, signature((None, 4)), 6, clock, fixed_shapes=True)
    met = set(engine.shapes)
    for rows in (1, 3, 5, 6, 13):
        assert warm.infer({"x0": np.zeros((rows, 4), F32)})["y"].shape == (rows,)
    assert set(engine.shapes) == met == {(1, 4), (2, 4), (4, 4), (6, 4)}


@pytest.mark.parametrize(
    ("fixed_shapes", "sizes"),
    [(False, [256, 128, 64, 32, 16, 8, 4, 2, 1, 3]), (True, [256, 128, 64, 32, 16, 8, 4, 2, 1, 4])],
)
def test_a_copy_is_warmed_up_with_what_is_known_of_the_first(fixed_shapes: bool, sizes: list[int]) -> None:
    clock = Clock()
    warm = warm_up(Engine(clock), signature((None, 4)), 0, clock)
    copy = Engine(clock)
    run = warm_copy(copy, warm, fixed_shapes=fixed_shapes)
    assert run({"x0": np.zeros((3, 4), F32)})["y"].shape == (3,)
    assert [shape[0] for shape in copy.shapes] == sizes


def test_a_copy_of_a_model_that_takes_no_made_up_input_is_not_run() -> None:
    def infer(tensors: Tensors) -> Tensors:
        raise RuntimeError("never")

    warm = warm_up(infer, signature((None, None)), 0, Clock(), fixed_shapes=True)
    assert warm_copy(infer, warm, fixed_shapes=True) is infer


def test_without_known_sizes_or_with_a_fixed_one_rows_are_what_the_graph_wants() -> None:
    seen: list[int] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(len(tensors["x0"]))
        return tensors

    fixed = record_infer(infer, signature((4, 2), axis=BatchAxis.FIXED, size=4))
    fixed({"x0": np.zeros((5, 2), F32)})
    assert seen == [4, 4]
    assert record_infer(infer, signature((2,), axis=BatchAxis.ABSENT)) is infer


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
