"""The asyncio shell, with a real event loop and a real worker thread; the engine is a function."""

from __future__ import annotations

import asyncio
import logging
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from byoc_server.batching.batcher import Batcher
from byoc_server.batching.collate import Infer, RowCollation
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import DeviceScheduler
from byoc_server.batching.policy import BatchBounds, QueueLimits
from byoc_server.batching.worker_thread import WorkerThread
from byoc_server.errors import ByocError, DeadlineExceeded, GpuUnavailable, InferenceFailed, Overloaded
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec

FAST = ((1, 1e-6), (8, 2e-6))
SLOW = ((1, 0.01), (8, 0.02))
UNKNOWN = ()
EIGHT_ROWS = BatchBounds(8, 8)
FOREVER_S = 1e12

Rungs = tuple[tuple[int, float], ...]


def spec(*shape: int | None) -> Signature:
    f32 = np.dtype(np.float32)
    axis = BatchAxis.DYNAMIC if shape and shape[0] is None else BatchAxis.ABSENT
    return Signature((TensorSpec("x", f32, shape),), (TensorSpec("y", f32, shape),), axis)


def tensors(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


class Model:
    """Doubles its input and remembers what it was given; waits for ``gate`` on the worker thread if there is one."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()
        self.started = threading.Event()
        self.gate = gate

    def __call__(self, inputs: Tensors) -> Tensors:
        values = inputs["x"].ravel().tolist()
        self.batches.append(values)
        self.threads.add(threading.current_thread().name)
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if any(v < 0 for v in values):
            raise RuntimeError("negative")
        return {"y": inputs["x"] * 2}


def run(
    scenario: Callable[[Batcher], Awaitable[None]],
    *infers: Infer,
    rungs: Rungs = FAST,
    signature: Signature | None = None,
    collation: RowCollation | None = None,
    limits: QueueLimits | None = None,
    bounds: BatchBounds = EIGHT_ROWS,
    max_queue_delay_s: float = 0.0,
    clock: Callable[[], float] = lambda: 0.0,
) -> None:
    """Run a scenario with one lane for each of ``infers``. By the clock, batches take no time unless it says so."""

    async def main() -> None:
        workers = [WorkerThread(f"inference_{number}") for number in range(len(infers))]
        batcher = Batcher(
            infers,
            collation or RowCollation(signature or spec(None, 1)),
            limits or QueueLimits(1000, 10**6),
            bounds,
            CostModel(rungs),
            DeviceScheduler(workers, clock),
            max_queue_delay_s,
            clock,
        )
        await scenario(batcher)
        assert batcher.idle
        for worker in workers:
            worker.close(wait=True)

    asyncio.run(main())


class Answer:
    """Collects the outcome of one request."""

    def __init__(
        self,
        batcher: Batcher,
        inputs: Tensors,
        deadline_s: float = FOREVER_S,
        rows: int | None = None,
        urgent: bool = False,
    ) -> None:
        self.outcomes: list[Tensors | ByocError] = []
        self._event = asyncio.Event()
        self.cancel = batcher.submit(inputs, rows or len(inputs["x"]), self._take, deadline_s, urgent=urgent)

    def _take(self, outcome: Tensors | ByocError) -> None:
        self.outcomes.append(outcome)
        self.cause = outcome.__cause__ if isinstance(outcome, ByocError) else None
        self._event.set()

    async def wait(self) -> Tensors | ByocError:
        await asyncio.wait_for(self._event.wait(), 10)
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    async def values(self) -> list[float]:
        outcome = await self.wait()
        assert isinstance(outcome, dict), outcome
        values: list[float] = outcome["y"].ravel().tolist()
        return values


def test_requests_of_one_turn_run_as_one_batch_on_the_loop_thread() -> None:
    """Checklist 43: every request gets its own rows back."""
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, tensors(i, i + 0.5)) for i in range(4)]
        for i, answer in enumerate(answers):
            assert await answer.values() == [2 * i, 2 * i + 1]

    run(scenario, model)
    assert model.batches == [[0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]]
    assert model.threads == {"MainThread"}


def test_a_slow_model_runs_on_the_worker_thread_and_the_next_batch_grows_meanwhile() -> None:
    model = Model(gate := threading.Event())

    async def scenario(batcher: Batcher) -> None:
        first = Answer(batcher, tensors(1))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        later = [Answer(batcher, tensors(i)) for i in (2, 3, 4)]
        await asyncio.sleep(0.02)
        assert model.batches == [[1]]
        gate.set()
        assert await first.values() == [2]
        assert [await a.values() for a in later] == [[4], [6], [8]]

    run(scenario, model, rungs=SLOW)
    assert model.batches == [[1], [2, 3, 4]]
    assert model.threads == {"inference_0"}


def test_without_a_cost_model_nothing_runs_on_the_loop_thread() -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        assert await Answer(batcher, tensors(1)).values() == [2]

    run(scenario, model, rungs=UNKNOWN)
    assert model.threads == {"inference_0"}


def test_a_model_that_surprises_with_its_cost_leaves_the_event_loop_at_once_and_comes_back_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Checklist 20: a slow input may hold up a ping once, not every time."""
    threads: list[str] = []
    now = [0.0]

    def infer(inputs: Tensors) -> Tensors:
        threads.append(threading.current_thread().name)
        now[0] += 0.02 if inputs["x"][0, 0] == 2 else 1e-6
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        for value in (1, 2, *[3] * 65):
            assert await Answer(batcher, tensors(value)).values() == [value]

    with caplog.at_level(logging.INFO):
        run(scenario, infer, clock=lambda: now[0])
    assert threads == ["MainThread"] * 2 + ["inference_0"] * 64 + ["MainThread"]
    assert "held the event loop for 20.0 ms" in caplog.text


def test_a_model_that_turns_out_dearer_than_measured_leaves_the_event_loop() -> None:
    """Each batch is short enough to do no harm, and longer than what is worth the event loop."""
    threads: list[str] = []
    now = [0.0]

    def infer(inputs: Tensors) -> Tensors:
        threads.append(threading.current_thread().name)
        now[0] += 0.001
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        for _ in range(400):
            await Answer(batcher, tensors(1)).wait()

    run(scenario, infer, rungs=((1, 1e-5),), clock=lambda: now[0])
    assert set(threads[:50]) == {"MainThread"}
    assert threads[-1] == "inference_0"


def test_only_the_poisonous_entry_fails(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        good, bad, fine = (Answer(batcher, tensors(v)) for v in (1, -1, 3))
        assert await good.values() == [2]
        assert await fine.values() == [6]
        outcome = await bad.wait()
        assert isinstance(outcome, InferenceFailed)
        assert isinstance(bad.cause, RuntimeError)

    with caplog.at_level(logging.WARNING):
        run(scenario, model)
    assert model.batches == [[1, -1, 3], [1], [-1, 3], [-1], [3]]
    assert caplog.text.count("run again in halves") == 1


def test_one_poisonous_entry_among_many_costs_few_runs() -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, tensors(-1 if i == 50 else i)) for i in range(128)]
        for i, answer in enumerate(answers):
            outcome = await answer.wait()
            assert isinstance(outcome, InferenceFailed) if i == 50 else await answer.values() == [2 * i]

    run(scenario, model, bounds=BatchBounds(128, 128))
    assert len(model.batches) == 1 + 2 * 7


def test_those_beside_a_poisonous_entry_need_not_wait_until_it_is_found() -> None:
    """The half without it is answered while the other is searched."""
    answered = threading.Event()
    batches: list[list[float]] = []

    def infer(inputs: Tensors) -> Tensors:
        values = inputs["x"].ravel().tolist()
        batches.append(values)
        if values == [1, -1]:
            assert answered.wait(20)
        if -1 in values:
            raise RuntimeError("negative")
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, tensors(value)) for value in (1, -1, *range(2, 8))]
        for value, answer in enumerate(answers[4:], 4):
            assert await answer.values() == [value]
        answered.set()
        assert isinstance(await answers[1].wait(), InferenceFailed)

    run(scenario, infer, rungs=SLOW)
    assert batches == [[1, -1, *range(2, 8)], [1, -1, 2, 3], [4, 5, 6, 7], [1, -1], [2, 3], [1], [-1]]


def test_a_search_that_outlives_the_event_loop_ends_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(gate := threading.Event())

    async def main() -> WorkerThread:
        worker = WorkerThread("inference")
        limits = QueueLimits(1000, 10**6)
        collation, device = RowCollation(spec(None, 1)), DeviceScheduler([worker])
        batcher = Batcher([model], collation, limits, EIGHT_ROWS, CostModel(SLOW), device)
        for value in (1, -1):
            Answer(batcher, tensors(value))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        return worker

    worker = asyncio.run(main())
    gate.set()
    done = threading.Event()
    worker.submit(done.set)
    assert done.wait(20)
    worker.close(wait=True)
    assert model.batches == [[1, -1], [1], [-1]]
    assert "Traceback" not in caplog.text


def test_what_is_done_or_overdue_by_then_does_not_run_again() -> None:
    batches: list[list[float]] = []
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        def infer_fails() -> None:
            gone.cancel()
            now[0] = 2.0

        fails.append(infer_fails)
        stale = Answer(batcher, tensors(1), deadline_s=1.0)
        gone, fresh = Answer(batcher, tensors(2)), Answer(batcher, tensors(3))
        assert await fresh.values() == [3]
        assert isinstance(await stale.wait(), DeadlineExceeded)
        assert gone.outcomes == []

    fails: list[Callable[[], None]] = []

    def infer(inputs: Tensors) -> Tensors:
        batches.append(inputs["x"].ravel().tolist())
        if fails:
            fails.pop()()
            raise RuntimeError("once")
        return {"y": inputs["x"]}

    run(scenario, infer, clock=lambda: now[0])
    assert batches == [[1, 2, 3], [3]]


def test_outputs_that_do_not_follow_the_batch_axis_fail_cleanly() -> None:
    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, tensors(1)), Answer(batcher, tensors(2, 3))]
        assert isinstance(await answers[1].wait(), InferenceFailed)
        assert await answers[0].values() == [7]

    run(scenario, lambda inputs: {"y": np.full((1, 1), 7, np.float32)})


def test_a_request_larger_than_a_batch_is_cut_and_rejoined_in_order() -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        large = Answer(batcher, tensors(*range(21)))
        small = Answer(batcher, tensors(100))
        assert await large.values() == [2 * i for i in range(21)]
        assert await small.values() == [200]

    run(scenario, model)
    assert [len(b) for b in model.batches] == [8, 8, 6]


def test_what_is_left_of_a_large_request_keeps_its_place_before_those_that_came_later() -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        small = Answer(batcher, tensors(50))
        large = Answer(batcher, tensors(*range(20)))
        later = Answer(batcher, tensors(100))
        assert await large.values() == [2 * i for i in range(20)]
        assert await small.values() == [100]
        assert await later.values() == [200]

    run(scenario, model)
    assert model.batches == [[50, *range(7)], [*range(7, 15)], [*range(15, 20), 100]]


def test_a_large_request_of_several_lanes_and_dtypes_comes_back_in_order() -> None:
    """The second lane is the first to be done; strings keep their places too."""
    second_done = threading.Event()

    def outputs(inputs: Tensors) -> Tensors:
        words = np.array([str(int(v)) for v in inputs["x"].ravel()], dtype=object)
        return {"y": inputs["x"] * 2, "words": words, "wide": np.repeat(inputs["x"], 3, axis=1).astype(np.int8)}

    def first(inputs: Tensors) -> Tensors:
        assert second_done.wait(20)
        return outputs(inputs)

    def second(inputs: Tensors) -> Tensors:
        second_done.set()
        return outputs(inputs)

    async def scenario(batcher: Batcher) -> None:
        outcome = await Answer(batcher, tensors(*range(21))).wait()
        assert isinstance(outcome, dict)
        assert outcome["y"].ravel().tolist() == [2 * i for i in range(21)]
        assert outcome["words"].tolist() == [str(i) for i in range(21)]
        assert outcome["wide"].dtype == np.int8
        assert outcome["wide"].tolist() == [[i] * 3 for i in range(21)]

    run(scenario, first, second, rungs=SLOW)


def test_a_large_request_at_its_deadline_is_answered_once_and_what_is_left_does_not_run() -> None:
    model = Model(gate := threading.Event())
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        large = Answer(batcher, tensors(*range(40)), deadline_s=0.02)
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        now[0] = 1.0
        assert isinstance(await large.wait(), DeadlineExceeded)
        gate.set()
        assert await Answer(batcher, tensors(5)).values() == [10]
        assert len(large.outcomes) == 1

    run(scenario, model, rungs=SLOW, clock=lambda: now[0])
    assert model.batches == [list(range(8)), [5]]


def test_a_request_counts_as_a_whole_while_it_runs_in_parts() -> None:
    model = Model(gate := threading.Event())

    async def scenario(batcher: Batcher) -> None:
        large = Answer(batcher, tensors(*range(40)))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded):
            Answer(batcher, tensors(*range(30)))
        gate.set()
        await large.wait()

    run(scenario, model, rungs=SLOW, limits=QueueLimits(50, 10**6))


def test_a_request_of_very_many_rows_takes_little_more_memory_than_its_outputs() -> None:
    """A million parts: made all at once they would be some hundred bytes each."""
    rows = 1_000_000

    async def scenario(batcher: Batcher) -> None:
        inputs: Tensors = {"x": np.zeros((rows, 1), np.float32)}
        outputs = inputs["x"].nbytes
        tracemalloc.start()
        answer = Answer(batcher, inputs, rows=rows)
        assert tracemalloc.get_traced_memory()[0] < 100_000
        for _ in range(100):
            await asyncio.sleep(0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < outputs + 200_000
        answer.cancel()
        await Answer(batcher, tensors(1)).wait()

    run(scenario, Model(), bounds=BatchBounds(1, 1), limits=QueueLimits(10**7, 10**9))


@pytest.mark.parametrize("rows", [9, 3])
def test_records_whose_outputs_differ_in_shape_between_parts_fail_by_name(rows: int) -> None:
    def infer(inputs: Tensors) -> Tensors:
        longest = int(inputs["x"].max()) + 1
        return {"y": np.zeros((len(inputs["x"]), longest), np.float32)}

    async def scenario(batcher: Batcher) -> None:
        outcome = await Answer(batcher, tensors(*range(rows))).wait()
        if rows > 8:
            assert isinstance(outcome, InferenceFailed)
            assert outcome.message == "output 'y' has records of shapes [8] and [9] in parts of one request"
        else:
            assert isinstance(outcome, dict)

    run(scenario, infer)


def test_outputs_without_room_in_memory_fail_cleanly() -> None:
    """More than any machine addresses: 2**40 records of 8 KiB."""
    rows = 2**40
    inputs: Tensors = {"x": np.broadcast_to(np.zeros((1, 1), np.float32), (rows, 1))}

    def infer(inputs: Tensors) -> Tensors:
        return {"y": np.zeros((len(inputs["x"]), 2**10))}

    async def scenario(batcher: Batcher) -> None:
        outcome = await Answer(batcher, inputs, rows=rows).wait()
        assert isinstance(outcome, InferenceFailed)
        assert outcome.message == f"there is no memory for the outputs of {rows} records"

    run(scenario, infer)


def test_a_failing_part_fails_the_whole_large_request_once_and_the_rest_does_not_run() -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        values = [0.0] * 40
        values[10] = -1
        assert isinstance(await Answer(batcher, tensors(*values)).wait(), InferenceFailed)
        await asyncio.sleep(0.01)

    run(scenario, model)
    assert [len(b) for b in model.batches] == [8, 8]


def test_a_large_request_can_be_cancelled_as_a_whole() -> None:
    model = Model(gate := threading.Event())

    async def scenario(batcher: Batcher) -> None:
        large = Answer(batcher, tensors(*range(40)))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        large.cancel()
        gate.set()
        assert await Answer(batcher, tensors(5)).values() == [10]
        assert large.outcomes == []

    run(scenario, model, rungs=SLOW)
    assert model.batches == [list(range(8)), [5]]


def test_records_of_different_shapes_never_share_a_batch() -> None:
    shapes: list[tuple[int, ...]] = []

    def infer(inputs: Tensors) -> Tensors:
        shapes.append(inputs["x"].shape)
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, {"x": np.zeros((1, n), np.float32)}) for n in (3, 5, 3)]
        for answer in answers:
            await answer.wait()

    run(scenario, infer, signature=spec(None, None))
    assert shapes == [(2, 3), (1, 5)]


def test_without_a_batch_axis_every_request_is_one_run_of_its_own_shape() -> None:
    shapes: list[tuple[int, ...]] = []

    def infer(inputs: Tensors) -> Tensors:
        shapes.append(inputs["x"].shape)
        return {"y": inputs["x"].sum(keepdims=True)}

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, {"x": np.ones(4, np.float32)}, rows=1) for _ in range(2)]
        for answer in answers:
            assert await answer.values() == [4]

    run(scenario, infer, signature=spec(4), bounds=BatchBounds(1, None))
    assert shapes == [(4,), (4,)]


def test_one_record_longer_than_a_batch_is_one_run() -> None:
    shapes: list[tuple[int, ...]] = []

    def infer(inputs: Tensors) -> Tensors:
        shapes.append(inputs["x"].shape)
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        assert await Answer(batcher, {"x": np.ones((2, 9), np.float32)}, rows=1).values() == [1] * 18

    run(scenario, infer, signature=spec(2, None), bounds=BatchBounds(1, None))
    assert shapes == [(2, 9)]


def test_a_cancelled_entry_never_runs_and_is_never_answered() -> None:
    model = Model(gate := threading.Event())

    async def scenario(batcher: Batcher) -> None:
        running = Answer(batcher, tensors(1))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        gone, stays = Answer(batcher, tensors(2)), Answer(batcher, tensors(3))
        gone.cancel()
        running.cancel()
        gone.cancel()
        gate.set()
        assert await stays.values() == [6]
        assert gone.outcomes == running.outcomes == []

    run(scenario, model, rungs=SLOW)
    assert model.batches == [[1], [3]]


def test_only_cancelled_entries_left_means_idle() -> None:
    async def scenario(batcher: Batcher) -> None:
        Answer(batcher, tensors(1)).cancel()
        await asyncio.sleep(0.01)

    model = Model()
    run(scenario, model)
    assert model.batches == []


def test_the_deadline_is_kept_while_the_engine_is_busy() -> None:
    """A request that runs too long, and one that waits behind it, are answered at their deadline, not after the run."""
    model = Model(gate := threading.Event())
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        running = Answer(batcher, tensors(1), deadline_s=0.02)
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        waiting = Answer(batcher, tensors(2), deadline_s=0.03)
        patient = Answer(batcher, tensors(3), deadline_s=100.0)
        now[0] = 1.0
        assert isinstance(await running.wait(), DeadlineExceeded)
        assert isinstance(await waiting.wait(), DeadlineExceeded)
        await asyncio.sleep(0.01)
        gate.set()
        assert await patient.values() == [6]

    run(scenario, model, rungs=SLOW, clock=lambda: now[0])
    assert model.batches == [[1], [3]]


def test_ending_the_worker_thread_drops_the_batch_that_stands_ready_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Model(gate := threading.Event())

    async def main() -> None:
        worker = WorkerThread("inference")
        device = DeviceScheduler([worker])
        limits = QueueLimits(1000, 10**6)
        batcher = Batcher([model], RowCollation(spec(None, 1)), limits, EIGHT_ROWS, CostModel(SLOW), device)
        Answer(batcher, tensors(1))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        Answer(batcher, tensors(2))
        await asyncio.sleep(0.01)
        worker.close(wait=False)
        gate.set()
        worker.close(wait=True)

    asyncio.run(main())
    assert model.batches == [[1]]
    assert caplog.text == ""


def test_what_is_overdue_when_its_turn_comes_does_not_run() -> None:
    model = Model()
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        stale = Answer(batcher, tensors(1), deadline_s=1.0)
        now[0] = 2.0
        assert isinstance(await stale.wait(), DeadlineExceeded)

    run(scenario, model, clock=lambda: now[0])
    assert model.batches == []


def test_a_long_queue_of_overdue_entries_does_not_stop_the_batcher() -> None:
    model = Model()
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        stale = [Answer(batcher, tensors(i), deadline_s=1.0) for i in range(400)]
        fresh = Answer(batcher, tensors(5), deadline_s=100.0)
        now[0] = 2.0
        assert await fresh.values() == [10]
        for answer in stale:
            assert isinstance(await answer.wait(), DeadlineExceeded)

    run(scenario, model, clock=lambda: now[0])
    assert model.batches == [[5]]


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    model = Model(gate := threading.Event())

    async def scenario(batcher: Batcher) -> None:
        first = Answer(batcher, tensors(1))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        queued = [Answer(batcher, tensors(i)) for i in (2, 3)]
        with pytest.raises(Overloaded):
            Answer(batcher, tensors(4))
        gate.set()
        for answer in (first, *queued):
            await answer.wait()
        assert await Answer(batcher, tensors(5)).values() == [10]

    run(scenario, model, rungs=SLOW, limits=QueueLimits(2, 10**6))


def test_a_reply_that_fails_does_not_keep_its_neighbours_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(batcher: Batcher) -> None:
        def broken(outcome: object) -> None:
            raise ValueError("broken reply")

        batcher.submit(tensors(1), 1, broken, FOREVER_S)
        assert await Answer(batcher, tensors(2)).values() == [4]

    run(scenario, Model())
    assert "broken reply" in caplog.text


class BrokenCollation(RowCollation):
    """Stacks nothing that holds a negative number."""

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        if any(min(part["x"].ravel().tolist()) < 0 for part in parts):
            raise ValueError("negative")
        return super().stack(parts)


@pytest.mark.parametrize("rungs", [FAST, SLOW])
def test_what_cannot_be_stacked_fails_alone(rungs: Rungs) -> None:
    model = Model()

    async def scenario(batcher: Batcher) -> None:
        good, bad = Answer(batcher, tensors(1)), Answer(batcher, tensors(-1))
        assert await good.values() == [2]
        assert isinstance(await bad.wait(), InferenceFailed)

    run(scenario, model, rungs=rungs, collation=BrokenCollation(spec(None, 1)))
    assert model.batches == [[1]]


def test_after_inference_without_room_everything_goes_on() -> None:
    """What the engine says of its memory reaches the client, and the next request runs."""
    errors = [GpuUnavailable("out of memory", lasting=False)] * 3

    def infer(inputs: Tensors) -> Tensors:
        if errors:
            raise errors.pop()
        return {"y": inputs["x"]}

    async def scenario(batcher: Batcher) -> None:
        answers = [Answer(batcher, tensors(1)) for _ in range(2)]
        for answer in answers:
            assert isinstance(await answer.wait(), GpuUnavailable)
        assert await Answer(batcher, tensors(1)).values() == [1]

    run(scenario, infer, rungs=SLOW)
