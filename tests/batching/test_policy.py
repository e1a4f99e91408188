"""The batch policy under a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from byoc_server.batching.cost import CostModel
from byoc_server.batching.join import Join
from byoc_server.batching.policy import BatchBounds, BatchQueue, Entry, QueueLimits, _nobody
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
