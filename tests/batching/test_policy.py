"""The batch policy under a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from byoc_server.batching.cost import CostModel
from byoc_server.batching.entry import Entry
from byoc_server.batching.join import Join
from byoc_server.batching.policy import BatchBounds, BatchQueue, QueueLimits, _nobody
from byoc_server.errors import ByocError, InferenceFailed, Overloaded
from byoc_server.types import Tensors

LIMITS = QueueLimits(max_rows=10, max_bytes=1000)
WIDE_LIMITS = QueueLimits(10**6, 10**9)
FOUR_ROWS = BatchBounds(max_rows=4, max_work=4)
UNKNOWN = CostModel()


def entry(
    rows: int = 1,
    key: object = None,
    deadline_s: float = 100.0,
    nbytes: int = 8,
    length: int = 1,
    arrived_s: float = 0.0,
    urgent: bool = False,
) -> Entry:
    tensors: Tensors = {"x": np.zeros((rows, length))}
    return Entry(tensors, rows, length, nbytes, key, arrived_s, deadline_s, lambda outcome: None, urgent)


def queue(
    *entries: Entry, limits: QueueLimits = LIMITS, bounds: BatchBounds = FOUR_ROWS, cost: CostModel = UNKNOWN
) -> BatchQueue:
    waiting = BatchQueue(limits, bounds, cost)
    for e in entries:
        waiting.push(e)
    return waiting


def batch_of(waiting: BatchQueue, now_s: float = 0.0) -> list[Entry]:
    return waiting.next_batch(now_s)[0]


def test_the_oldest_entries_form_the_batch_up_to_its_size() -> None:
    entries = [entry() for _ in range(6)]
    waiting = queue(*entries)
    assert waiting.next_batch(0.0) == (entries[:4], 4, [])
    assert waiting.next_batch(0.0) == (entries[4:], 2, [])
    assert waiting.next_batch(0.0) == ([], 0, [])
    assert not waiting


def test_an_entry_that_does_not_fit_keeps_its_place_and_a_smaller_one_fills_the_room() -> None:
    first, large, small = entry(3), entry(2), entry(1)
    waiting = queue(first, large, small)
    assert batch_of(waiting) == [first, small]
    assert batch_of(waiting) == [large]


def test_only_entries_of_one_key_share_a_batch() -> None:
    a1, b1, a2, b2 = entry(key="a"), entry(key="b"), entry(key="a"), entry(key="b")
    waiting = queue(a1, b1, a2, b2)
    assert batch_of(waiting) == [a1, a2]
    assert batch_of(waiting) == [b1, b2]


def test_the_first_entry_is_never_passed_over() -> None:
    """Whatever stands behind it, the oldest entry is in the next batch, so nothing starves."""
    odd = entry(key="odd")
    waiting = queue(odd, *[entry(key="usual") for _ in range(5)])
    assert batch_of(waiting) == [odd]


def test_a_cancelled_entry_never_runs_and_frees_its_place_at_once() -> None:
    gone, stays = entry(4, nbytes=900), entry()
    waiting = queue(gone, stays)
    waiting.cancel(gone)
    assert (waiting.rows, waiting.nbytes) == (1, 8)
    assert gone.tensors == {}
    assert waiting.next_batch(0.0) == ([stays], 1, [])


def test_cancelling_after_the_batch_was_taken_changes_no_count() -> None:
    taken = entry()
    waiting = queue(taken)
    waiting.next_batch(0.0)
    waiting.cancel(taken)
    assert (waiting.rows, waiting.nbytes) == (0, 0)


def test_an_entry_past_its_deadline_expires_wherever_it_stands() -> None:
    fresh, stale = entry(deadline_s=9.0), entry(deadline_s=5.0)
    waiting = queue(fresh, stale)
    assert waiting.next_batch(5.0) == ([fresh], 1, [stale])


def test_expired_entries_can_be_taken_out_without_forming_a_batch() -> None:
    gone, stale, fresh, urgent = entry(), entry(deadline_s=5.0), entry(deadline_s=9.0), entry(2, urgent=True)
    waiting = queue(gone, fresh, stale, urgent)
    waiting.cancel(gone)
    assert waiting.next_deadline_s() == 5.0
    assert waiting.expire(6.0) == [stale]
    assert waiting.next_deadline_s() == 9.0
    assert (waiting.rows, waiting.work, waiting.nbytes) == (3, 3, 16)
    assert batch_of(waiting) == [urgent, fresh]
    assert waiting.next_deadline_s() is None


def test_an_idle_model_refuses_nothing() -> None:
    """An estimate alone never refuses: the first request always runs, however large or hopeless."""
    queue(cost=CostModel(((1, 1000.0),))).admit(10_000, 10**9, deadline_s=1.0, now_s=0.0)


@pytest.mark.parametrize(("rows", "nbytes"), [(2, 8), (1, 2000)])
def test_a_full_queue_refuses(rows: int, nbytes: int) -> None:
    waiting = queue(entry(9), cost=CostModel(((1, 1 / 3), (4, 4 / 3))))
    with pytest.raises(Overloaded, match="queue is full") as refused:
        waiting.admit(rows, nbytes, deadline_s=100.0, now_s=0.0)
    assert refused.value.retry_after_s == 3


def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    """A quarter is left for what may take longer than expected."""
    waiting = queue(entry(6), cost=CostModel(((1, 1.0), (4, 4.0))))
    with pytest.raises(Overloaded, match="would not be done in time") as refused:
        waiting.admit(1, 8, deadline_s=5.0, now_s=0.0, running_work=4)
    assert refused.value.retry_after_s == 8
    waiting.admit(1, 8, deadline_s=13.0, now_s=0.0, running_work=4)
    waiting.admit(1, 8, deadline_s=100.0, now_s=0.0, running_work=4)


def test_the_wait_is_that_of_batches_and_not_of_single_records() -> None:
    waiting = queue(entry(8), cost=CostModel(((1, 1.0), (4, 1.0))))
    waiting.admit(1, 8, deadline_s=2.6, now_s=0.0)
    with pytest.raises(Overloaded):
        waiting.admit(1, 8, deadline_s=2.4, now_s=0.0)


def test_the_wait_is_longer_where_models_share_the_device_and_shorter_with_more_lanes() -> None:
    waiting = queue(entry(8), cost=CostModel(((1, 1.0), (4, 1.0))))
    waiting.admit(1, 8, deadline_s=1.3, now_s=0.0, contention=0.5)
    with pytest.raises(Overloaded):
        waiting.admit(1, 8, deadline_s=2.6, now_s=0.0, contention=2.0)


def test_an_urgent_request_waits_for_the_urgent_ones_only() -> None:
    waiting = queue(entry(8), cost=CostModel(((1, 1.0), (4, 1.0))))
    waiting.admit(1, 8, deadline_s=0.1, now_s=0.0, urgent=True)
    waiting.push(entry(1, urgent=True))
    with pytest.raises(Overloaded):
        waiting.admit(1, 8, deadline_s=0.1, now_s=0.0, urgent=True)


def test_with_unknown_speed_only_the_limits_refuse() -> None:
    queue(entry(6)).admit(1, 8, deadline_s=1.1, now_s=1.0, running_work=4)


def test_a_batch_is_bounded_by_its_rows_times_the_longest_record() -> None:
    short, long, other = entry(2, length=2), entry(1, length=8), entry(2, length=3)
    waiting = queue(short, long, other, bounds=BatchBounds(8, 16))
    assert waiting.next_batch(0.0) == ([short, other], 12, [])
    assert waiting.next_batch(0.0) == ([long], 8, [])


def test_an_entry_beyond_the_bounds_runs_alone() -> None:
    """Bounds may shrink while entries wait that were cut to the larger ones."""
    large, small = entry(3, length=9), entry()
    waiting = queue(large, small, bounds=BatchBounds(8, 16))
    assert waiting.next_batch(0.0) == ([large], 27, [])
    assert batch_of(waiting) == [small]


def test_a_large_request_is_cut_to_the_room_there_is() -> None:
    waiting = queue(entry(2, length=2), bounds=BatchBounds(8, 16))
    tensors: Tensors = {"x": np.zeros((5, 8), np.float32)}
    waiting.push(Join(tensors, 5, 8, 160, None, 0.0, 100.0, lambda outcome: None))
    sizes = []
    while waiting:
        batch, work, _ = waiting.next_batch(0.0)
        sizes.append(([part.rows for part in batch], work))
        assert waiting.rows == 7 - sum(sum(rows) for rows, _ in sizes)
    assert sizes == [([2], 4), ([2], 16), ([2], 16), ([1], 8)]
    assert (waiting.work, waiting.nbytes) == (0, 0)


def test_bounds_follow_the_cost_model_where_the_user_sets_none() -> None:
    cost = CostModel(((1, 1.0), (2, 1.0), (4, 4.0)))
    waiting = queue(bounds=BatchBounds(100, None), cost=cost)
    assert waiting.max_work == 2
    cost.best_work = 4
    waiting.follow_cost()
    assert waiting.max_work == 4
    assert queue(cost=cost).max_work == 4


def test_urgent_entries_go_first_and_fill_up_with_others() -> None:
    normal, urgent = [entry() for _ in range(3)], [entry(urgent=True) for _ in range(2)]
    waiting = queue(*normal, *urgent)
    assert batch_of(waiting) == [*urgent, *normal[:2]]


def test_every_fourth_batch_begins_with_the_oldest_of_all() -> None:
    normal = [entry(4, arrived_s=number) for number in range(3)]
    waiting = queue(*normal, limits=WIDE_LIMITS)
    order = []
    for number in range(12):
        waiting.push(entry(4, arrived_s=10 + number, urgent=True))
        waiting.push(entry(4, arrived_s=10 + number, urgent=True))
        order += [e.urgent for e in batch_of(waiting)]
    assert order == [True, True, True, False] * 3


def test_of_two_levels_the_urgent_one_keeps_its_turn_where_it_is_the_older() -> None:
    urgent = [entry(4, arrived_s=0.0, urgent=True) for _ in range(5)]
    waiting = queue(entry(4, arrived_s=1.0), *urgent, limits=WIDE_LIMITS)
    for expected in urgent:
        assert batch_of(waiting) == [expected]


def test_the_oldest_of_both_levels_tells_how_long_was_waited() -> None:
    gone, normal, urgent = entry(arrived_s=1.0), entry(arrived_s=3.0), entry(arrived_s=2.0, urgent=True)
    waiting = queue(gone, normal, urgent)
    assert waiting.oldest_s() == 1.0
    waiting.cancel(gone)
    assert waiting.oldest_s() == 2.0
    batch_of(waiting)
    assert waiting.oldest_s() is None


@pytest.mark.parametrize(
    ("entries", "full"),
    [([], False), ([entry(3)], False), ([entry(4)], True), ([entry(1, length=4)], True), ([entry(2)] * 2, True)],
)
def test_it_knows_when_a_batch_would_be_full(entries: list[Entry], full: bool) -> None:
    assert queue(*entries).full is full


def test_looking_for_company_has_an_end() -> None:
    """A long queue of other keys costs a bounded look, and order holds after it."""
    odd = [entry(key=i) for i in range(600)]
    waiting = queue(*odd, limits=WIDE_LIMITS)
    order = []
    while waiting:
        order += batch_of(waiting)
    assert order == odd


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens, every entry leaves exactly once and the counts agree with what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue(limits=WIDE_LIMITS, bounds=BatchBounds(5, 12))
        self.waiting: list[Entry] = []
        self.now_s = 0.0

    @rule(
        rows=st.integers(1, 5),
        length=st.integers(1, 4),
        key=st.sampled_from("ab"),
        life_s=st.floats(0.1, 5),
        urgent=st.booleans(),
    )
    def push(self, rows: int, length: int, key: str, life_s: float, urgent: bool) -> None:
        e = entry(rows, key, self.now_s + life_s, 8, length, self.now_s, urgent)
        self.queue.push(e)
        self.waiting.append(e)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            e = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
            self.queue.cancel(e)

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def take(self) -> None:
        batch, work, expired = self.queue.next_batch(self.now_s)
        assert sum(e.rows for e in batch) <= 5
        assert work == sum(e.rows for e in batch) * max((e.length for e in batch), default=0)
        assert work <= 12 or len(batch) == 1
        assert len({e.key for e in batch}) <= 1
        assert all(e.deadline_s <= self.now_s for e in expired)
        assert all(e.deadline_s > self.now_s for e in batch)
        alive = [e for e in self.waiting if e not in expired]
        levels = [[e for e in alive if e.urgent is urgent] for urgent in (True, False)]
        assert not alive or any(level[0] in batch for level in levels if level)
        for e in (*batch, *expired):
            self.waiting.remove(e)

    @rule()
    def expire(self) -> None:
        for e in self.queue.expire(self.now_s):
            self.waiting.remove(e)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.rows == sum(e.rows for e in self.waiting)
        assert self.queue.work == sum(e.rows * e.length for e in self.waiting)
        assert self.queue.nbytes == sum(e.nbytes for e in self.waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, deadline=None)


@given(st.lists(st.integers(1, 4), max_size=40))
def test_every_row_runs_exactly_once(sizes: list[int]) -> None:
    entries = [entry(n) for n in sizes]
    waiting = queue(*entries, limits=WIDE_LIMITS)
    ran: list[Entry] = []
    while waiting:
        ran += batch_of(waiting)
    assert sorted(map(id, ran)) == sorted(map(id, entries))


def test_what_was_given_up_leaves_nothing_behind() -> None:
    """Clients may come and go without end while one long batch runs; only their number counts, not who they were."""
    waiting = queue(entry(), limits=WIDE_LIMITS)
    for _ in range(10_000):
        gone = entry()
        waiting.push(gone)
        waiting.cancel(gone)
        assert gone.tensors == {}
        assert gone.reply is _nobody
    assert len(waiting._normal) < 300
    assert (waiting.rows, len(batch_of(waiting))) == (1, 1)


def test_the_reply_of_a_part_that_cannot_be_put_in_place_is_an_error() -> None:
    """No other part may come to bring one."""
    outcomes: list[Tensors | ByocError] = []
    tensors: Tensors = {"x": np.zeros((2, 1))}
    waiting = queue(limits=WIDE_LIMITS, bounds=BatchBounds(1, 1))
    waiting.push(Join(tensors, 2, 1, 16, None, 0.0, 100.0, outcomes.append))
    (first,), (second,) = batch_of(waiting), batch_of(waiting)
    first.reply({"y": np.zeros((1, 1))})
    second.reply({"z": np.zeros((1, 1))})  # of another name
    (failed,) = outcomes
    assert isinstance(failed, InferenceFailed)
    assert isinstance(failed.__cause__, KeyError)


def test_an_entry_is_given_up_wherever_it_is() -> None:
    """Before it waits, while it does, while it runs, and when it is all over: the counts stay right."""
    early, waits, runs, done, stays = (entry(2, nbytes=10) for _ in range(5))
    early.cancel()
    assert early.done
    waiting = queue(runs, done)
    batch_of(waiting)
    done.end()
    waiting.push(waits)
    waiting.push(stays)
    for given_up in (early, waits, runs, done) * 2:
        given_up.cancel()
        assert given_up.done
        assert (waiting.rows, waiting.work, waiting.nbytes) in {(4, 4, 20), (2, 2, 10)}
    assert (waits.tensors, waits.reply) == ({}, _nobody)
    assert "x" in runs.tensors  # the batch that holds it may still be read
    assert waiting.next_batch(0.0) == ([stays], 2, [])
    assert (waiting.rows, waiting.work, waiting.nbytes) == (0, 0, 0)


def test_an_urgent_entry_that_is_given_up_makes_others_wait_no_longer() -> None:
    gone = entry(8, urgent=True)
    waiting = queue(gone, entry(1), cost=CostModel(((1, 1.0), (4, 1.0))))
    gone.cancel()
    waiting.admit(1, 8, deadline_s=0.1, now_s=0.0, urgent=True)


@pytest.mark.parametrize("cut", [False, True])
def test_a_large_request_that_is_given_up_leaves_with_all_its_parts(cut: bool) -> None:
    outcomes: list[Tensors | ByocError] = []
    tensors: Tensors = {"x": np.zeros((9, 1))}
    waiting = queue(limits=WIDE_LIMITS)
    large = Join(tensors, 9, 1, 72, None, 0.0, 100.0, outcomes.append)
    waiting.push(large)
    parts = batch_of(waiting) if cut else []
    large.cancel()
    assert all(part.done for part in parts)
    assert (waiting.rows, waiting.work, waiting.nbytes, outcomes) == (0, 0, 0, [])
    assert waiting.next_batch(0.0) == ([], 0, [])


class Watched(BatchQueue):
    """Counts how often it is looked more closely at whether an entry may join."""

    looks = 0

    def admit(self, *arguments: Any, **keywords: Any) -> None:
        self.looks += 1
        super().admit(*arguments, **keywords)


MILLISECOND_A_ROW = ((1, 0.001), (8, 0.008))
"""40 ms, the calm 50 ms without the headroom, are those of 39 rows and one run."""


def looks(
    waits: int,
    runs: int = 0,
    contention: float = 1.0,
    time_s: float = 10.0,
    rungs: Sequence[tuple[int, float]] = MILLISECOND_A_ROW,
    limits: QueueLimits = WIDE_LIMITS,
) -> int:
    """How often it is looked at one more entry, which is not refused."""
    waiting = Watched(limits, FOUR_ROWS, CostModel(rungs))
    if waits:
        waiting.push(entry(waits))
    waiting.enter(last := entry(deadline_s=100 + time_s), 100.0, runs, contention)
    assert waiting.rows == waits + 1
    assert last.waiting
    return waiting.looks


@pytest.mark.parametrize(
    ("waits", "runs", "contention", "time_s", "expected"),
    [
        (0, 0, 1.0, 0.0, 0),  # an idle model refuses nothing
        (0, 0, 8.0, -1.0, 0),
        (39, 0, 1.0, 10.0, 0),
        (40, 0, 1.0, 10.0, 1),
        (0, 39, 1.0, 10.0, 0),
        (0, 40, 1.0, 10.0, 1),
        (20, 19, 1.0, 10.0, 0),
        (20, 20, 1.0, 10.0, 1),
        (20, 0, 2.0, 10.0, 1),
        (78, 0, 0.5, 10.0, 0),
        (79, 0, 0.5, 10.0, 1),
        (1, 0, 1.0, 0.0625, 0),
        (1, 0, 1.0, 0.03125, 1),
    ],
)
def test_while_it_is_calm_nobody_looks_whether_there_is_time(
    waits: int, runs: int, contention: float, time_s: float, expected: int
) -> None:
    assert looks(waits, runs, contention, time_s) == expected


def test_with_unknown_speed_it_is_looked_at_a_short_time_only() -> None:
    assert looks(10**5, rungs=()) == 0
    assert looks(10**5, rungs=(), time_s=0.0) == 1


def test_it_is_looked_again_as_soon_as_the_model_turns_out_dear() -> None:
    cost = CostModel(MILLISECOND_A_ROW)
    waiting = Watched(WIDE_LIMITS, FOUR_ROWS, cost)
    waiting.push(entry(30))
    waiting.enter(entry(), 0.0)
    assert waiting.looks == 0
    for _ in range(100):
        cost.observe(1, 0.002)
    waiting.follow_cost()
    waiting.enter(entry(), 0.0)
    assert waiting.looks == 1


@pytest.mark.parametrize(("rows", "nbytes", "refused"), [(7, 900, False), (8, 900, True), (7, 901, True)])
def test_calm_or_not_a_full_queue_takes_nothing(rows: int, nbytes: int, refused: bool) -> None:
    waiting = queue(entry(3, nbytes=100), cost=CostModel(MILLISECOND_A_ROW))
    last = entry(rows, nbytes=nbytes)
    if not refused:
        waiting.enter(last, 0.0)
        assert (waiting.rows, waiting.nbytes) == (10, 1000)
        return
    with pytest.raises(Overloaded, match="the queue is full: 3 records are waiting"):
        waiting.enter(last, 0.0)
    assert (waiting.rows, waiting.work, waiting.nbytes) == (3, 3, 100)
    assert not last.waiting


def test_a_full_queue_takes_what_runs_next_to_nothing() -> None:
    """What no queue could hold may run on an idle model, and not beside anything that runs."""
    large = entry(100, nbytes=10**6)
    queue().enter(large, 0.0)
    with pytest.raises(Overloaded):
        queue().enter(entry(100, nbytes=10**6), 0.0, running_work=1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    waits=st.integers(0, 30),
    urgent_waits=st.integers(0, 30),
    runs=st.integers(0, 30),
    rows=st.integers(1, 8),
    nbytes=st.integers(1, 80),
    time_s=st.floats(0, 0.2),
    contention=st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]),
    first_s=st.floats(1e-4, 0.1),
    gain=st.floats(0.1, 1.0),
    urgent=st.booleans(),
)
def test_who_may_not_join_is_who_a_closer_look_refuses(
    waits: int,
    urgent_waits: int,
    runs: int,
    rows: int,
    nbytes: int,
    time_s: float,
    contention: float,
    first_s: float,
    gain: float,
    urgent: bool,
) -> None:
    """Whatever the short way leaves out changes nothing, for the same reason and the same time to come again."""
    cost = CostModel(((1, first_s), (8, max(1.0, 8 * gain) * first_s)))
    limits = QueueLimits(max_rows=60, max_bytes=100)
    waiting = queue(limits=limits, cost=cost)
    for count, is_urgent in ((waits, False), (urgent_waits, True)):
        if count:
            waiting.push(entry(count, urgent=is_urgent))
    refusals: list[tuple[str, int | None] | None] = []
    last = entry(rows, nbytes=nbytes, deadline_s=50 + time_s, urgent=urgent)
    ways: list[Callable[[], None]] = [
        lambda: waiting.admit(rows, nbytes, 50 + time_s, 50.0, runs, contention, urgent),
        lambda: waiting.enter(last, 50.0, runs, contention),
    ]
    for join in ways:
        try:
            join()
        except Overloaded as refusal:
            refusals.append((refusal.message, refusal.retry_after_s))
        else:
            refusals.append(None)
    assert refusals[0] == refusals[1]
    assert last.waiting is (refusals[1] is None)


class WholeQueueMachine(RuleBasedStateMachine):
    """All that waits is taken at once where that may be; the closer look at the same entries finds the same."""

    def __init__(self) -> None:
        super().__init__()
        bounds = BatchBounds(6, 8)
        self.queues = [BatchQueue(WIDE_LIMITS, bounds, UNKNOWN, uniform=uniform) for uniform in (True, False)]
        self.entries: list[list[Entry]] = [[], []]
        self.now_s = 0.0

    def join(self, twins: Sequence[Entry]) -> None:
        for number, (waiting, twin) in enumerate(zip(self.queues, twins, strict=True)):
            waiting.push(twin)
            self.entries[number].append(twin)

    @rule(rows=st.integers(1, 7), life_s=st.floats(0.1, 5), urgent=st.sampled_from([False, False, False, True]))
    def push(self, rows: int, life_s: float, urgent: bool) -> None:
        self.join([entry(rows, None, self.now_s + life_s, 8, 1, self.now_s, urgent) for _ in self.queues])

    @rule(rows=st.integers(1, 14), life_s=st.floats(0.1, 5))
    def push_large(self, rows: int, life_s: float) -> None:
        tensors: Tensors = {"x": np.zeros((rows, 1), np.float32)}
        end_s = self.now_s + life_s
        self.join([Join(tensors, rows, 1, 4 * rows, None, self.now_s, end_s, _nobody) for _ in self.queues])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.entries[0]:
            number = data.draw(st.integers(0, len(self.entries[0]) - 1))
            for entries in self.entries:
                entries[number].cancel()

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def take(self) -> None:
        taken = []
        for waiting, entries in zip(self.queues, self.entries, strict=True):
            batch, work, expired = waiting.next_batch(self.now_s)
            numbers = {id(one): number for number, one in enumerate(entries)}
            shown = [[(numbers.get(id(one), -1), one.rows, one.waiting) for one in some] for some in (batch, expired)]
            taken.append((shown, work, bool(waiting)))
        assert taken[0] == taken[1]

    @invariant()
    def counts_agree(self) -> None:
        counts = [(waiting.rows, waiting.work, waiting.nbytes, waiting.full) for waiting in self.queues]
        assert counts[0] == counts[1]

    def teardown(self) -> None:
        self.now_s += 10
        for waiting in self.queues:
            while waiting:
                waiting.next_batch(self.now_s)
            assert (waiting.rows, waiting.work, waiting.nbytes) == (0, 0, 0)


TestWholeQueueMachine = WholeQueueMachine.TestCase
TestWholeQueueMachine.settings = settings(max_examples=60, deadline=None, derandomize=True)


def uniform(*entries: Entry, bounds: BatchBounds = FOUR_ROWS) -> BatchQueue:
    waiting = BatchQueue(WIDE_LIMITS, bounds, UNKNOWN, uniform=True)
    for one in entries:
        waiting.push(one)
    return waiting


def test_all_that_waits_is_one_batch_where_it_fits() -> None:
    entries = [entry(2), entry(1), entry(1)]
    waiting = uniform(*entries)
    assert waiting.next_batch(0.0) == (entries, 4, [])
    assert not waiting
    assert (waiting.rows, waiting.work, waiting.nbytes) == (0, 0, 0)
    assert not any(one.waiting for one in entries)
    for one in entries:  # gone from the queue: it is not counted twice
        one.cancel()
    waiting.push(last := entry())
    assert (waiting.rows, waiting.work, waiting.nbytes) == (1, 1, 8)
    assert waiting.next_batch(0.0) == ([last], 1, [])
    assert waiting.next_batch(0.0) == ([], 0, [])


@pytest.mark.parametrize("bounds", [BatchBounds(3, 100), BatchBounds(100, 3)])
def test_more_than_a_batch_is_not_one(bounds: BatchBounds) -> None:
    entries = [entry(2), entry(2)]
    waiting = uniform(*entries, bounds=bounds)
    assert waiting.next_batch(0.0) == (entries[:1], 2, [])
    assert waiting.rows == 2


@pytest.mark.parametrize("what", ["given up", "too late", "urgent", "large"])
def test_what_must_be_looked_at_is_not_taken_as_it_is(what: str) -> None:
    first, last = entry(), entry()
    tensors: Tensors = {"x": np.zeros((2, 1))}
    odd = entry(2, deadline_s=5.0, urgent=what == "urgent")
    if what == "large":
        odd = Join(tensors, 2, 1, 16, None, 0.0, 100.0, _nobody)
    waiting = uniform(first, odd, last)
    if what == "given up":
        odd.cancel()
    batch, work, expired = waiting.next_batch(5.0 if what == "too late" else 0.0)
    assert expired == ([odd] if what == "too late" else [])
    assert work == (4 if what in ("urgent", "large") else 2)
    if what == "large":
        assert [one.rows for one in batch] == [1, 2, 1]
        assert odd not in batch  # but a part of it
    else:
        assert batch == ([odd, first, last] if what == "urgent" else [first, last])
    assert not waiting
    assert (waiting.rows, waiting.work, waiting.nbytes) == (0, 0, 0)
