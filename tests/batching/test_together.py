"""Requests of one batch that are answered together, and all that must be answered one by one."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from byoc_server.batching.batch import BatchSource, EntryBatch, answer, overdue
from byoc_server.batching.batcher import Batcher
from byoc_server.batching.collate import Collation, Infer, RowCollation
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import DeviceScheduler
from byoc_server.batching.entry import Entry, Reply
from byoc_server.batching.lengths import PaddedCollation, PaddedInput, Padding
from byoc_server.batching.policy import BatchBounds, QueueLimits
from byoc_server.batching.worker_thread import WorkerThread
from byoc_server.errors import ByocError, DeadlineExceeded, InferenceFailed
from byoc_server.types import Array, BatchAxis, Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)
FAST = ((1, 1e-6), (8, 2e-6))
SLOW = ((1, 0.01), (8, 0.02))
LANES = pytest.mark.parametrize("rungs", [FAST, SLOW], ids=["on the loop", "on a thread"])
FOREVER_S = 1e12


def signature(*shape: int | None) -> Signature:
    axis = BatchAxis.DYNAMIC if shape and shape[0] is None else BatchAxis.ABSENT
    return Signature((TensorSpec("x", F32, shape),), (TensorSpec("y", F32, shape),), axis)


ROWS = RowCollation(signature(None, 1))


class Client:
    """Sends some values, and is the reply to them.

    Attributes:
        outcomes: what it was told by itself.
    """

    def __init__(self, *values: float) -> None:
        self.tensors: Tensors = {"x": np.array(values, np.float32).reshape(-1, 1)}
        self.outcomes: list[Tensors | ByocError] = []

    def __call__(self, outcome: Tensors | ByocError) -> None:
        self.outcomes.append(outcome)

    @property
    def values(self) -> list[float]:
        """What came back for it alone."""
        (outcome,) = self.outcomes
        assert isinstance(outcome, dict), outcome
        return flat(outcome["y"])

    @property
    def error(self) -> ByocError:
        """What went wrong for it."""
        (outcome,) = self.outcomes
        assert isinstance(outcome, ByocError), outcome
        return outcome


class Group:
    """A ``together`` that takes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Reply], Array, list[int]]] = []
        self.threads: list[str] = []

    def __call__(self, replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        self.calls.append((list(replies), outputs["y"], list(counts)))
        self.threads.append(threading.current_thread().name)

    @property
    def answers(self) -> list[tuple[Reply, list[float]]]:
        """Everyone's own rows, by the counts."""
        answers = []
        for replies, outputs, counts in self.calls:
            assert sum(counts) == len(outputs)
            parts = np.split(outputs, np.cumsum(counts)[:-1])
            answers += [(reply, flat(part)) for reply, part in zip(replies, parts, strict=True)]
        return answers


def flat(array: Array) -> list[float]:
    return cast(list[float], array.ravel().tolist())


def double(inputs: Tensors) -> Tensors:
    return {"y": cast(Any, inputs["x"]) * 2}


def entry(client: Client, together: Any = None, deadline_s: float = FOREVER_S) -> Entry:
    rows = len(client.tensors["x"])
    return Entry(client.tensors, rows, 1, rows * 4, None, 0.0, deadline_s, client, False, together)


def run_batch(
    entries: Sequence[Entry],
    infer: Infer = double,
    collation: Collation = ROWS,
    clock: Callable[[], float] = lambda: 0.0,
) -> EntryBatch:
    """Run a batch and answer it, without an event loop."""
    source = cast(BatchSource, None)  # it is told nothing but what ``settle`` is
    work = sum(one.work for one in entries)
    batch = EntryBatch(source, entries, work, [infer], collation, clock, lambda call, outcomes: call(outcomes))
    batch.run(0)
    batch.answer()
    return batch


def test_a_batch_is_answered_with_one_call() -> None:
    """In the order of its rows, with the outputs as the model made them; nobody gets a reply of their own."""
    group, clients = Group(), [Client(1), Client(2, 3), Client(4, 5, 6)]
    made: list[Array] = []

    def infer(inputs: Tensors) -> Tensors:
        made.append(double(inputs)["y"])
        return {"y": made[0]}

    entries = [entry(client, group) for client in clients]
    batch = run_batch(entries, infer)
    ((replies, outputs, counts),) = group.calls
    assert (replies, counts) == (clients, [1, 2, 3])
    assert outputs is made[0]
    assert flat(outputs) == [2, 4, 6, 8, 10, 12]
    assert all(one.done for one in entries)
    assert [client.outcomes for client in clients] == [[], [], []]
    assert batch.seconds == 0.0


def test_nobody_is_answered_before_the_batch_is() -> None:
    """What runs on a thread tells nobody: that is for the event loop."""
    group = Group()
    entries = [entry(Client(1), group), entry(Client(2), group)]
    batch = EntryBatch(cast(BatchSource, None), entries, 2, [double], ROWS, lambda: 0.0, lambda call, outcomes: None)
    batch.run(0)
    assert not group.calls
    assert not any(one.done for one in entries)
    batch.answer()
    batch.answer()
    assert len(group.calls) == 1


ONE, OTHER = Group(), Group()


@pytest.mark.parametrize(
    "groups",
    [
        [ONE, OTHER],
        [OTHER, ONE, ONE],
        [ONE, OTHER, ONE],
        [ONE, ONE, OTHER],
        [ONE, None],
        [ONE, None, ONE],
        [None, ONE, ONE],
        [None, None],
        [ONE],
    ],
    ids=lambda groups: " ".join("-" if group is None else "one" if group is ONE else "other" for group in groups),
)
def test_without_one_way_for_all_each_gets_its_own_reply(groups: Sequence[Group | None]) -> None:
    """Nor is there anything to gain for a request that is alone."""
    clients = [Client(number, 10 + number) for number in range(len(groups))]
    batch = run_batch([entry(client, group) for client, group in zip(clients, groups, strict=True)])
    assert [client.values for client in clients] == [[2 * n, 20 + 2 * n] for n in range(len(groups))]
    assert batch.seconds == 0.0
    assert not ONE.calls
    assert not OTHER.calls


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_when_one_has_left_while_the_batch_ran_the_others_get_just_their_rows(gone: int) -> None:
    group, clients = Group(), [Client(1), Client(2, 3), Client(4)]
    entries = [entry(client, group) for client in clients]

    def infer(inputs: Tensors) -> Tensors:
        entries[gone].cancel()
        return double(inputs)

    run_batch(entries, infer)
    assert not group.calls
    assert clients[gone].outcomes == []
    expected = [[2], [4, 6], [8]]
    assert [client.values for client in clients if client.outcomes] == expected[:gone] + expected[gone + 1 :]


def test_one_whose_time_ended_while_the_batch_ran_is_not_answered_twice() -> None:
    group, late, others = Group(), Client(1), [Client(2), Client(3)]
    entries = [entry(client, group) for client in (late, *others)]

    def infer(inputs: Tensors) -> Tensors:
        answer(entries[0], overdue())
        return double(inputs)

    run_batch(entries, infer)
    assert isinstance(late.error, DeadlineExceeded)
    assert [client.values for client in others] == [[4], [6]]
    assert not group.calls


@pytest.mark.parametrize("leaves", ["by itself", "its time is over"])
def test_of_those_that_are_left_when_the_batch_begins_the_answers_go_together(leaves: str) -> None:
    """They run without the rows of the one that has left, also where all were stacked before."""
    group, gone, others = Group(), Client(7, 8), [Client(1), Client(2)]
    entries = [entry(others[0], group), entry(gone, group, deadline_s=1.0), entry(others[1], group)]
    batch = EntryBatch(cast(BatchSource, None), entries, 4, [double], ROWS, lambda: 1.0, lambda call, outcomes: None)
    if leaves == "by itself":
        entries[1].deadline_s = FOREVER_S
        entries[1].cancel()
    batch.stack()
    batch.run(0)
    batch.answer()
    assert group.answers == [(others[0], [2]), (others[1], [4])]
    assert batch.seconds is None  # of another batch than was formed
    if leaves == "by itself":
        assert gone.outcomes == []
    else:
        assert isinstance(gone.error, DeadlineExceeded)
    assert [client.outcomes for client in others] == [[], []]


def test_the_last_one_that_is_left_gets_its_own_reply() -> None:
    group, late, last = Group(), Client(1), Client(2)
    run_batch([entry(late, group, deadline_s=0.0), entry(last, group)])
    assert isinstance(late.error, DeadlineExceeded)
    assert last.values == [4]
    assert not group.calls


def test_where_all_have_left_nothing_runs() -> None:
    group, client = Group(), Client(1)
    entries = [entry(client, group), entry(Client(2), group)]
    for one in entries:
        one.cancel()
    run_batch(entries, infer=lambda inputs: pytest.fail("it ran"))
    assert not group.calls
    assert client.outcomes == []


def negative(inputs: Tensors) -> Tensors:
    if cast(Any, inputs["x"]).min() < 0:
        raise RuntimeError("negative")
    return double(inputs)


def test_what_is_run_again_in_halves_is_answered_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """Each half has its own outputs, and may be answered while the other still runs."""
    group, clients = Group(), [Client(1), Client(-1), Client(3, 4), Client(5)]
    with caplog.at_level(logging.WARNING):
        batch = run_batch([entry(client, group) for client in clients], negative)
    assert isinstance(clients[1].error, InferenceFailed)
    assert [client.values for client in clients if client is not clients[1]] == [[2], [6, 8], [10]]
    assert not group.calls
    assert batch.seconds is None
    assert caplog.text.count("a batch of 4 requests failed") == 1


def test_outputs_without_the_rows_that_went_in_are_nobodys() -> None:
    """Nothing is handed to anyone unless every output has one row for each record."""
    group, clients = Group(), [Client(1), Client(2)]

    def infer(inputs: Tensors) -> Tensors:
        return {"y": np.zeros((3, 1), np.float32)}

    run_batch([entry(client, group) for client in clients], infer)
    assert all(isinstance(client.error, InferenceFailed) for client in clients)
    assert not group.calls


PADDING = Padding({"x": PaddedInput(1, 0.0)}, {"y": [1]})


def words(*lengths: int) -> list[Client]:
    """Clients with one record each, as long as they are told."""
    clients = []
    for number, length in enumerate(lengths, 1):
        client = Client()
        client.tensors = {"x": np.full((1, length), number, np.float32)}
        clients.append(client)
    return clients


def test_records_of_one_length_are_answered_together() -> None:
    group, clients = Group(), words(3, 3)
    run_batch([entry(client, group) for client in clients], collation=PaddedCollation(PADDING))
    ((replies, outputs, counts),) = group.calls
    assert (replies, counts) == (clients, [1, 1])
    assert outputs.tolist() == [[2, 2, 2], [4, 4, 4]]


@pytest.mark.parametrize(("lengths", "to_bucket"), [((3, 2), False), ((3, 3), True), ((2, 3), True)])
def test_outputs_that_have_to_be_cut_are_answered_one_by_one(lengths: tuple[int, int], to_bucket: bool) -> None:
    """Nobody sees what was computed for the padding."""
    group, clients = Group(), words(*lengths)
    collation = PaddedCollation(PADDING, to_bucket=to_bucket)
    run_batch([entry(client, group) for client in clients], collation=collation)
    assert [client.values for client in clients] == [[2] * lengths[0], [4] * lengths[1]]
    assert not group.calls


@pytest.mark.parametrize("groups", [1, 2], ids=["together", "one by one"])
def test_a_batch_that_was_answered_holds_none_of_its_outputs(groups: int) -> None:
    """Nor do its requests stay without it: nothing of them leads back to itself."""
    made: list[weakref.ref[Array]] = []

    def infer(inputs: Tensors) -> Tensors:
        outputs = double(inputs)
        made.append(weakref.ref(outputs["y"]))
        return outputs

    told, clients = [Group() for _ in range(groups)], [Client(1), Client(2)]
    gone = [weakref.ref(client) for client in clients]
    gc.disable()
    try:
        batch = run_batch([entry(client, group) for client, group in zip(clients, told * 2, strict=False)], infer)
        for group in told:
            group.calls.clear()
        for client in clients:
            client.outcomes.clear()
        assert made[0]() is None
        del batch, client
        clients.clear()
        assert [client() for client in gone] == [None, None]
    finally:
        gc.enable()


def run(
    scenario: Callable[[Batcher], Awaitable[None]],
    infer: Infer = double,
    rungs: Sequence[tuple[int, float]] = FAST,
    collation: Collation = ROWS,
    bounds: BatchBounds = BatchBounds(8, 8),  # noqa: B008  # frozen
    clock: Callable[[], float] = lambda: 0.0,
) -> None:
    """Run a scenario on an event loop, with one lane."""

    async def main() -> None:
        worker = WorkerThread("lane")
        device, limits = DeviceScheduler([worker], clock), QueueLimits(1000, 10**6)
        batcher = Batcher([infer], collation, limits, bounds, CostModel(rungs), device, clock=clock)
        await scenario(batcher)
        assert batcher.idle
        worker.close(wait=True)

    asyncio.run(main())


def submit(batcher: Batcher, client: Client, together: Any, deadline_s: float = FOREVER_S) -> Callable[[], None]:
    rows = len(client.tensors["x"])
    return batcher.submit(client.tensors, rows, client, deadline_s, together=together)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@LANES
def test_requests_of_one_turn_are_answered_together_on_the_event_loop(rungs: Sequence[tuple[int, float]]) -> None:
    group, clients = Group(), [Client(1), Client(2, 3), Client(4)]

    async def scenario(batcher: Batcher) -> None:
        for client in clients:
            submit(batcher, client, group)
        await until(lambda: group.calls)

    run(scenario, rungs=rungs)
    assert group.answers == [(clients[0], [2]), (clients[1], [4, 6]), (clients[2], [8])]
    assert group.threads == ["MainThread"]
    assert [client.outcomes for client in clients] == [[], [], []]


def test_who_gives_up_while_the_batch_is_on_a_thread_is_not_answered() -> None:
    group, clients = Group(), [Client(1), Client(2, 3), Client(4)]
    began, goes_on = threading.Event(), threading.Event()

    def infer(inputs: Tensors) -> Tensors:
        began.set()
        assert goes_on.wait(20)
        return double(inputs)

    async def scenario(batcher: Batcher) -> None:
        give_up = [submit(batcher, client, group) for client in clients][1]
        await until(began.is_set)
        give_up()
        goes_on.set()
        await until(lambda: clients[0].outcomes and clients[2].outcomes)

    run(scenario, infer, SLOW)
    assert (clients[0].values, clients[1].outcomes, clients[2].values) == ([2], [], [8])
    assert not group.calls


def test_whose_time_ends_while_the_batch_is_on_a_thread_need_not_wait_for_it() -> None:
    group, late, other = Group(), Client(1), Client(2)
    now, goes_on = [0.0], threading.Event()

    def infer(inputs: Tensors) -> Tensors:
        now[0] = 1.0
        assert goes_on.wait(20)
        return double(inputs)

    async def scenario(batcher: Batcher) -> None:
        submit(batcher, late, group, deadline_s=0.01)
        submit(batcher, other, group)
        await until(lambda: late.outcomes)
        goes_on.set()
        await until(lambda: other.outcomes)

    run(scenario, infer, SLOW, clock=lambda: now[0])
    assert isinstance(late.error, DeadlineExceeded)
    assert other.values == [4]
    assert not group.calls


@LANES
def test_a_request_larger_than_a_batch_has_its_own_reply_beside_the_others(rungs: Sequence[tuple[int, float]]) -> None:
    """Those that share a batch with a part of it are answered one by one, those of the next batch together again."""
    batches: list[list[float]] = []

    def infer(inputs: Tensors) -> Tensors:
        batches.append(flat(inputs["x"]))
        return double(inputs)

    group, large = Group(), Client(*range(10, 16))
    before, after, last = [Client(1, 2), Client(3)], [Client(4), Client(5)], [Client(6), Client(7)]

    async def scenario(batcher: Batcher) -> None:
        for client in (*before, large, *after):
            submit(batcher, client, group)
        await until(lambda: large.outcomes and all(client.outcomes for client in (*before, *after)))
        for client in last:
            submit(batcher, client, group)
        await until(lambda: group.calls)

    run(scenario, infer, rungs, bounds=BatchBounds(4, 4))
    assert batches == [[1, 2, 3, 10], [11, 12, 13, 14], [15, 4, 5], [6, 7]]
    assert large.values == [20, 22, 24, 26, 28, 30]
    assert [client.values for client in (*before, *after)] == [[2, 4], [6], [8], [10]]
    assert group.answers == [(last[0], [12]), (last[1], [14])]


def test_requests_to_a_model_without_a_batch_axis_have_their_own_replies() -> None:
    group, clients = Group(), [Client(1), Client(2)]

    async def scenario(batcher: Batcher) -> None:
        for client in clients:
            batcher.submit(client.tensors, 1, client, FOREVER_S, together=group)
        await until(lambda: all(client.outcomes for client in clients))

    run(scenario, collation=RowCollation(signature(1, 1)), bounds=BatchBounds(1, 1))
    assert [client.values for client in clients] == [[2], [4]]
    assert not group.calls


@LANES
def test_who_is_answered_together_may_ask_again_at_once(rungs: Sequence[tuple[int, float]]) -> None:
    """As a connection does whose next request has come already."""
    again, group = [Client(10), Client(20)], Group()

    async def scenario(batcher: Batcher) -> None:
        def ask_again(replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
            for client in again:
                submit(batcher, client, group)

        for value in (1, 2):
            submit(batcher, Client(value), ask_again)
        await until(lambda: group.calls)

    run(scenario, rungs=rungs)
    assert group.answers == [(again[0], [20]), (again[1], [40])]


@LANES
def test_a_way_to_answer_that_fails_does_not_end_the_batcher(
    rungs: Sequence[tuple[int, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log; what comes next is served."""
    group, clients = Group(), [Client(3), Client(4)]

    def broken(replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        raise ValueError("broken")

    async def scenario(batcher: Batcher) -> None:
        for value in (1, 2):
            submit(batcher, Client(value), broken)
        for client in clients:  # in the same turn, and yet in another batch
            submit(batcher, client, group)
        await until(lambda: group.calls)

    run(scenario, rungs=rungs, bounds=BatchBounds(2, 2))
    assert "ValueError: broken" in caplog.text
    assert group.answers == [(clients[0], [6]), (clients[1], [8])]
