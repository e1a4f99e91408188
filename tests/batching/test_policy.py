"""The batch policy under a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from byoc_server.batching.policy import BatchQueue, Entry, QueueLimits
from byoc_server.errors import Overloaded

LIMITS = QueueLimits(max_rows=10, max_bytes=1000, max_batch_size=4)


def entry(rows: int = 1, key: object = None, deadline_s: float = 100.0, nbytes: int = 8) -> Entry:
    return Entry({"x": np.zeros((rows, 1))}, rows, nbytes, key, deadline_s, lambda outcome: None)


def queue(*entries: Entry, limits: QueueLimits = LIMITS, rows_per_s: float | None = None) -> BatchQueue:
    waiting = BatchQueue(limits, rows_per_s)
    for e in entries:
        waiting.push(e)
    return waiting


def test_the_oldest_entries_form_the_batch_up_to_its_size() -> None:
    entries = [entry() for _ in range(6)]
    waiting = queue(*entries)
    assert waiting.next_batch(0.0) == (entries[:4], [])
    assert waiting.next_batch(0.0) == (entries[4:], [])
    assert waiting.next_batch(0.0) == ([], [])
    assert not waiting


def test_an_entry_that_does_not_fit_keeps_its_place_and_a_smaller_one_fills_the_room() -> None:
    first, large, small = entry(3), entry(2), entry(1)
    waiting = queue(first, large, small)
    assert waiting.next_batch(0.0)[0] == [first, small]
    assert waiting.next_batch(0.0)[0] == [large]


def test_only_entries_of_one_key_share_a_batch() -> None:
    a1, b1, a2, b2 = entry(key="a"), entry(key="b"), entry(key="a"), entry(key="b")
    waiting = queue(a1, b1, a2, b2)
    assert waiting.next_batch(0.0)[0] == [a1, a2]
    assert waiting.next_batch(0.0)[0] == [b1, b2]


def test_the_first_entry_is_never_passed_over() -> None:
    """Whatever stands behind it, the oldest entry is in the next batch, so nothing starves."""
    odd = entry(key="odd")
    waiting = queue(odd, *[entry(key="usual") for _ in range(5)])
    assert waiting.next_batch(0.0)[0] == [odd]


def test_a_cancelled_entry_never_runs_and_frees_its_place_at_once() -> None:
    gone, stays = entry(4, nbytes=900), entry()
    waiting = queue(gone, stays)
    waiting.cancel(gone)
    assert (waiting.rows, waiting.nbytes) == (1, 8)
    assert gone.tensors == {}
    assert waiting.next_batch(0.0) == ([stays], [])


def test_cancelling_after_the_batch_was_taken_changes_no_count() -> None:
    taken = entry()
    waiting = queue(taken)
    waiting.next_batch(0.0)
    waiting.cancel(taken)
    assert (waiting.rows, waiting.nbytes) == (0, 0)


def test_an_entry_past_its_deadline_expires_wherever_it_stands() -> None:
    fresh, stale = entry(deadline_s=9.0), entry(deadline_s=5.0)
    waiting = queue(fresh, stale)
    assert waiting.next_batch(5.0) == ([fresh], [stale])


def test_expire_looks_at_the_front_only() -> None:
    gone, stale, fresh = entry(), entry(deadline_s=5.0), entry(deadline_s=9.0)
    waiting = queue(gone, stale, fresh)
    waiting.cancel(gone)
    assert waiting.next_deadline_s() == 5.0
    assert waiting.expire(6.0) == [stale]
    assert waiting.next_deadline_s() == 9.0


def test_an_idle_model_refuses_nothing() -> None:
    """An estimate alone never refuses: the first request always runs, however large or hopeless."""
    queue(rows_per_s=0.001).admit(10_000, 10**9, deadline_s=1.0, now_s=0.0, running_rows=0)


@pytest.mark.parametrize(("rows", "nbytes"), [(2, 8), (1, 2000)])
def test_a_full_queue_refuses(rows: int, nbytes: int) -> None:
    waiting = queue(entry(9), rows_per_s=3.0)
    with pytest.raises(Overloaded, match="queue is full") as refused:
        waiting.admit(rows, nbytes, deadline_s=100.0, now_s=0.0, running_rows=0)
    assert refused.value.retry_after_s == 3


def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    waiting = queue(entry(6), rows_per_s=1.0)
    with pytest.raises(Overloaded, match="would not be done in time") as refused:
        waiting.admit(1, 8, deadline_s=5.0, now_s=0.0, running_rows=4)
    assert refused.value.retry_after_s == 5
    waiting.admit(1, 8, deadline_s=10.5, now_s=0.0, running_rows=4)


def test_with_unknown_speed_only_the_limits_refuse() -> None:
    queue(entry(6)).admit(1, 8, deadline_s=1.1, now_s=1.0, running_rows=4)


def test_looking_for_company_has_an_end() -> None:
    """A long queue of other keys costs a bounded look, and order holds after it."""
    odd = [entry(key=i) for i in range(600)]
    waiting = queue(*odd, limits=QueueLimits(10_000, 10**6, 4))
    order = []
    while waiting:
        order += waiting.next_batch(0.0)[0]
    assert order == odd


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens, every entry leaves exactly once and the counts agree with what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = BatchQueue(QueueLimits(10**6, 10**9, 5), 10.0)
        self.waiting: list[Entry] = []
        self.now_s = 0.0

    @rule(rows=st.integers(1, 5), key=st.sampled_from("ab"), life_s=st.floats(0.1, 5))
    def push(self, rows: int, key: str, life_s: float) -> None:
        e = entry(rows, key, self.now_s + life_s)
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
        batch, expired = self.queue.next_batch(self.now_s)
        assert sum(e.rows for e in batch) <= 5
        assert len({e.key for e in batch}) <= 1
        assert all(e.deadline_s <= self.now_s for e in expired)
        assert all(e.deadline_s > self.now_s for e in batch)
        alive = [e for e in self.waiting if e not in expired]
        assert not alive or alive[0] in batch
        for e in (*batch, *expired):
            self.waiting.remove(e)

    @rule()
    def expire(self) -> None:
        for e in self.queue.expire(self.now_s):
            self.waiting.remove(e)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.rows == sum(e.rows for e in self.waiting)
        assert self.queue.nbytes == sum(e.nbytes for e in self.waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, deadline=None)


@given(st.lists(st.integers(1, 4), max_size=40))
def test_every_row_runs_exactly_once(sizes: list[int]) -> None:
    entries = [entry(n) for n in sizes]
    waiting = queue(*entries, limits=QueueLimits(10**6, 10**9, 4))
    ran: list[Entry] = []
    while waiting:
        ran += waiting.next_batch(0.0)[0]
    assert sorted(map(id, ran)) == sorted(map(id, entries))
