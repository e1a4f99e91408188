"""The lanes of one device, and whose batch runs next in which.

A lane is a worker thread and, for each model, a copy of its engine. It has up to two batches in hand: the one that
runs, and one ahead, so that it does not stand still while the event loop writes answers. A batch goes ahead once as
much waits as is running; before that it had better grow. Nor does it wait for more than that until it is too late:
where a certain number of clients wait for their answers, the larger batch of two that take turns would always find the
smaller one waiting. So when half of the time of a batch is over, whatever waits goes ahead.

Models that share the device take turns by what their batches really cost (see ``turns``). When it is the turn of one
that may not go ahead yet, the place stays free for it: another model's long batch must not slip in.

All methods are called on the event loop thread; only ``Batch.run`` is called on a lane's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from byoc_server.batching.turns import DeficitRoundRobin
from byoc_server.batching.worker_thread import Worker

_QUANTUM_S = 0.002
_IN_HAND = 2
_LATE = 0.5
"""Share of its time after which what waits behind a batch goes ahead."""
_SHORTEST_TIMER_S = 0.001
"""Timers of the event loop see no less."""


class Batch(Protocol):
    """What runs in a lane."""

    @property
    def source(self) -> Source:
        """Whose it is."""
        ...

    @property
    def work(self) -> int:
        """Its rows times its longest record."""
        ...

    @property
    def expected_s(self) -> float | None:
        """Seconds it should take; ``None`` when unknown."""
        ...

    @property
    def begun_s(self) -> float | None:
        """When its latest run began, by the clock of the device; ``None`` before the first."""
        ...

    def run(self, lane: int) -> None:
        """Run in a lane, off the event loop. Raises nothing."""
        ...

    def settle(self, held_s: float) -> None:
        """Take note that it has run, and held its lane for so many seconds."""
        ...

    def answer(self) -> None:
        """Hand out what came of it."""
        ...


class Source(Protocol):
    """What batches of one model come from."""

    @property
    def waiting(self) -> bool:
        """Whether a batch could be formed that is to run in a lane."""
        ...

    def may_go_ahead(self, of: Batch) -> bool:
        """Whether enough waits to stand ready behind a batch that has just begun to run."""
        ...

    def take(self) -> Batch | None:
        """Form the next batch; ``None`` if nothing is left to run."""
        ...

    def proceed(self) -> None:
        """Go on with what waits, now that a batch of this source has run."""
        ...


class _Lane:
    """One worker thread and what it has in hand: the batch that runs comes first."""

    __slots__ = ("in_hand", "number", "since_s", "worker")

    def __init__(self, number: int, worker: Worker) -> None:
        self.number = number
        self.worker = worker
        self.in_hand: deque[Batch] = deque()
        self.since_s = 0.0

    @property
    def begun_s(self) -> float:
        """When the run in progress began."""
        begun_s = self.in_hand[0].begun_s
        return self.since_s if begun_s is None else begun_s


class DeviceScheduler:
    """Runs the batches of several models on one device.

    Args:
        workers: one for each lane.
        clock: seconds of a monotonic clock.

    Attributes:
        has_idle_lane: a lane has nothing in hand.
        has_room: a lane would take a batch, if only ahead.
        contention: how many sources that have work share a lane.
    """

    def __init__(self, workers: Sequence[Worker], clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = [_Lane(number, worker) for number, worker in enumerate(workers)]
        self._turns: DeficitRoundRobin[Source] = DeficitRoundRobin(_QUANTUM_S)
        self._sources: list[Source] = []
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._take_stock()

    def add(self, source: Source) -> None:
        """Let a source take part."""
        self._sources.append(source)
        self._turns.join(source)

    def running_s(self, source: Source) -> float:
        """How long the oldest run of a source has been going on, in seconds; 0 when none does.

        A batch that fails is run again in pieces: each is a run of its own, or all together would look like one that
        hangs.
        """
        begun = [lane.begun_s for lane in self._lanes if lane.in_hand and lane.in_hand[0].source is source]
        return self._clock() - min(begun) if begun else 0.0

    def dispatch(self) -> None:
        """Fill the lanes with what waits: first those that stand still, then the places ahead."""
        for in_hand in range(_IN_HAND):
            for lane in self._lanes:
                if len(lane.in_hand) == in_hand and not self._fill(lane):
                    break

    def _fill(self, lane: _Lane) -> bool:
        """Hand one batch to a lane; returns False if there is nothing for any."""
        while waiting := [source for source in self._sources if source.waiting]:
            source = waiting[0] if len(self._sources) == 1 else self._turns.choose(waiting)
            if lane.in_hand and not self._is_late(lane) and not source.may_go_ahead(lane.in_hand[0]):
                return True  # nothing for this lane, maybe for another whose batch is smaller
            batch = source.take()
            if batch is not None:
                self._hand_over(lane, batch)
                return True
        return False

    def _hand_over(self, lane: _Lane, batch: Batch) -> None:
        lane.in_hand.append(batch)
        if len(lane.in_hand) == 1:
            self._begin(lane, self._clock())
        self._charge(batch.source, batch.expected_s or 0.0)
        self._take_stock()
        lane.worker.submit(partial(self._run, lane, batch))

    def _begin(self, lane: _Lane, now_s: float) -> None:
        """Take note that the first batch in hand runs from now on, and look again when half of its time is over."""
        lane.since_s = now_s
        late_s = _LATE * (lane.in_hand[0].expected_s or 0.0)
        if late_s >= _SHORTEST_TIMER_S:
            self._loop.call_later(late_s, self.dispatch)

    def _is_late(self, lane: _Lane) -> bool:
        """Whether half of the time of the batch that runs is over."""
        expected_s = lane.in_hand[0].expected_s
        return expected_s is not None and self._clock() - lane.since_s >= _LATE * expected_s

    def _run(self, lane: _Lane, batch: Batch) -> None:
        """Run a batch, on the thread of its lane."""
        batch.run(lane.number)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone, and so are the clients
            self._loop.call_soon_threadsafe(self._finish, lane, batch)

    def _finish(self, lane: _Lane, batch: Batch) -> None:
        """Take back the batch that ran longest in its lane: batches come back in order."""
        lane.in_hand.popleft()
        now_s = self._clock()
        held_s = now_s - lane.since_s
        if lane.in_hand:
            self._begin(lane, now_s)
        self._charge(batch.source, held_s - (batch.expected_s or 0.0))
        self._take_stock()
        batch.settle(held_s)
        try:
            batch.source.proceed()  # before the answers are written, or the lane waits for that
            self.dispatch()
        finally:
            batch.answer()

    def _charge(self, source: Source, seconds: float) -> None:
        if len(self._sources) > 1:  # who is alone owes nothing to those who come later
            self._turns.charge(source, seconds)

    def _take_stock(self) -> None:
        fewest = min([len(lane.in_hand) for lane in self._lanes])
        self.has_idle_lane = fewest == 0
        self.has_room = fewest < _IN_HAND
        busy = 1
        if len(self._sources) > 1:
            running = {id(batch.source) for lane in self._lanes for batch in lane.in_hand}
            busy = max(1, len([s for s in self._sources if s.waiting or id(s) in running]))
        self.contention = busy / len(self._lanes)
