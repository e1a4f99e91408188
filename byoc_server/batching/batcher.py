"""The asyncio shell around the batch policy of one model: runs batches, and hands every request its own rows.

Work-conserving: as soon as nothing runs, what waits runs. Requests that arrive in one turn of the event loop meet in
one batch, because the first of them only *schedules* the run for the end of the turn; while a batch runs the next one
grows. With a ``max_queue_delay_s`` a batch that is not full yet is held back until its oldest request has waited so
long.

A batch that takes less than ``INLINE_SECONDS`` by the cost model runs right on the event loop, a longer one in a lane
of the device (see ``device``). A batch that fails is run again in halves, so that only the poisonous entry fails.

Everything but the engine call happens on the event loop thread, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

from byoc_server.batching.batch import EntryBatch, answer, overdue
from byoc_server.batching.collate import Collation, Infer
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import Batch, DeviceScheduler
from byoc_server.batching.entry import Entry, Reply, Together
from byoc_server.batching.join import Join
from byoc_server.batching.loop_guard import INLINE_SECONDS, LoopGuard
from byoc_server.batching.policy import BatchBounds, BatchQueue, QueueLimits
from byoc_server.types import Tensors, tensor_bytes

logger = logging.getLogger(__name__)

Cancel = Callable[[], None]
"""Gives a request up. Calling it late or twice does no harm."""

_STACKED_ON_LOOP_BYTES = 1024 * 1024
_SOONEST_LOOK_S = 0.001


class Batcher:
    """Batches the requests for one model.

    Args:
        infers: each runs one batch with one copy of the engine, one for each lane of the device. The first is called
            on the event loop too. None is called twice at the same time.
        collation: of the model.
        limits: of the queue.
        bounds: of a batch.
        cost: cost model of the model.
        device: what the batches run on.
        max_queue_delay_s: how long a request may wait for others although it could run.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        infers: Sequence[Infer],
        collation: Collation,
        limits: QueueLimits,
        bounds: BatchBounds,
        cost: CostModel,
        device: DeviceScheduler,
        max_queue_delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._infers = infers
        self._collation = collation
        self._record_bytes = collation.record_bytes
        self._queue = BatchQueue(limits, bounds, cost, uniform=collation.record_bytes > 0)
        self._cost = cost
        self._device = device
        self._max_queue_delay_s = max_queue_delay_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._guard = LoopGuard()
        self._scheduled = False
        self._in_hand: list[EntryBatch] = []
        self._in_hand_work = 0
        self._ahead_work = 0
        self._look_s = math.inf
        self._look_timer: asyncio.TimerHandle | None = None
        self._delay_timer: asyncio.TimerHandle | None = None
        device.add(self)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._queue and not self._in_hand

    @property
    def running_s(self) -> float:
        """How long the oldest run of the model has been going on, in seconds; 0 when none does."""
        return self._device.running_s(self)

    def submit(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Together | None = None,
    ) -> Cancel:
        """Queue one request.

        Args:
            tensors: inputs that fit the signature.
            rows: records in them.
            reply: called once on the event loop, with the outputs of just these records or with what went wrong.
            deadline_s: when its time is over, on the batcher's clock.
            urgent: it goes before those that are not.
            together: called in place of ``reply``, and of those of others with the same, where they share a batch.

        Raises:
            Overloaded: refused at once.
        """
        queue, clock = self._queue, self._clock
        now_s = clock()
        key, length, nbytes = None, 1, rows * self._record_bytes
        if not nbytes:
            collation = self._collation
            key, length, nbytes = collation.key(tensors), collation.length(tensors), tensor_bytes(tensors)
        entry: Entry
        if rows == 1 or (rows <= queue.max_rows and rows * length <= queue.max_work):
            entry = Entry(tensors, rows, length, nbytes, key, now_s, deadline_s, reply, urgent, together)
        else:
            entry = Join(tensors, rows, length, nbytes, key, now_s, deadline_s, reply, urgent)
        queue.enter(entry, now_s, self._in_hand_work, self._device.contention)
        if deadline_s < self._look_s:
            self._look_at(deadline_s, now_s)
        if not self._scheduled:
            self._schedule()
        return entry

    @property
    def waiting(self) -> bool:
        """See ``device.Source``."""
        return bool(self._queue) and self._is_due() and not self._fits_loop()

    def may_go_ahead(self, of: Batch) -> bool:
        """See ``device.Source``: a batch as long as the one that runs, or a full one."""
        work = self._queue.work
        if self._queue.full:
            return True
        if of.source is self:
            return work >= of.work
        seconds = self._cost.seconds(max(1, work))
        return seconds is not None and of.expected_s is not None and seconds >= of.expected_s

    def take(self) -> Batch | None:
        """See ``device.Source``."""
        batch = self._form()
        if batch is None:
            return None
        batch.expected_s = self._cost.seconds(batch.work)
        # Stacking gives way to other threads at every piece: with small pieces a worker thread would spend longer on
        # getting the interpreter back than on copying. Large ones would keep the event loop from its pings.
        if sum([entry.nbytes for entry in batch.entries]) <= _STACKED_ON_LOOP_BYTES:
            batch.stack()
        self._in_hand.append(batch)
        self._count_in_hand()
        return batch

    def proceed(self) -> None:
        """See ``device.Source``: run on the event loop what may."""
        if not self._queue:
            return
        if not self._is_due():
            self._wake_when_due()
        elif self._fits_loop():
            self._run_on_loop()

    def _schedule(self) -> None:
        device = self._device
        if not self._in_hand or device.has_idle_lane or (device.has_room and self._queue.work >= self._ahead_work):
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self.proceed()
        if self._queue:
            self._device.dispatch()

    def _is_due(self) -> bool:
        """Whether what waits need not wait for more."""
        if not self._max_queue_delay_s or self._queue.full:
            return True
        oldest_s = self._queue.oldest_s()
        return oldest_s is None or oldest_s + self._max_queue_delay_s <= self._clock()

    def _wake_when_due(self) -> None:
        oldest_s = self._queue.oldest_s()
        if self._delay_timer is None and oldest_s is not None:
            delay_s = oldest_s + self._max_queue_delay_s - self._clock()
            self._delay_timer = self._loop.call_later(delay_s, self._on_due)

    def _on_due(self) -> None:
        self._delay_timer = None
        self._turn()

    def _fits_loop(self) -> bool:
        """Whether the next batch is to run on the event loop."""
        if self._in_hand or not self._guard.open:
            return False
        seconds = self._cost.seconds(min(self._queue.work, self._queue.max_work))
        return seconds is not None and seconds <= INLINE_SECONDS

    def _run_on_loop(self) -> None:
        batch = self._form()
        if batch is not None:
            batch.run(0)
            self._learn(batch)
            if batch.seconds is not None and self._guard.saw_inline(batch.seconds):
                text = "a batch held the event loop for %.1f ms: the model runs on the worker thread for now"
                logger.info(text, batch.seconds * 1000, extra={"event": "slow_inline"})
        if self._queue and not self._scheduled:
            self._schedule()
        if batch is not None:
            batch.answer()

    def _form(self) -> EntryBatch | None:
        """Take a batch out of the queue; answers what has expired."""
        entries, work, expired = self._queue.next_batch(self._clock())
        for entry in expired:
            answer(entry, overdue())
        if not entries:
            return None
        on_loop = self._loop.call_soon_threadsafe
        return EntryBatch(self, entries, work, self._infers, self._collation, self._clock, on_loop)

    def settle(self, batch: EntryBatch, held_s: float) -> None:
        """Take note of a batch that has run in a lane, and held it for so many seconds."""
        self._in_hand.remove(batch)
        self._count_in_hand()
        if batch.seconds is not None:
            self._guard.saw_threaded(batch.seconds)
            if batch.expected_s is not None:
                self._cost.observe_service(batch.expected_s, held_s)
        self._learn(batch)

    def _learn(self, batch: EntryBatch) -> None:
        if batch.seconds is not None:
            self._cost.observe(batch.work, batch.seconds)
            self._queue.follow_cost()

    def _count_in_hand(self) -> None:
        self._in_hand_work = sum([batch.work for batch in self._in_hand])
        self._ahead_work = min([self._queue.max_work, *[batch.work for batch in self._in_hand]])

    def _look_at(self, deadline_s: float, now_s: float) -> None:
        """Look for overdue entries at a deadline; it must not wait for a batch to end."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_s = deadline_s
        self._look_timer = self._loop.call_later(max(deadline_s - now_s, _SOONEST_LOOK_S), self._on_deadline)

    def _on_deadline(self) -> None:
        now_s = self._clock()
        running = [entry for batch in self._in_hand for entry in batch.entries if not entry.done]
        late = [entry for entry in running if entry.deadline_s <= now_s]
        for entry in (*late, *self._queue.expire(now_s)):
            answer(entry, overdue())
        self._look_s, self._look_timer = math.inf, None
        deadlines = [entry.deadline_s for entry in running if not entry.done]
        waiting_s = self._queue.next_deadline_s()
        if waiting_s is not None:
            deadlines.append(waiting_s)
        if deadlines:
            self._look_at(min(deadlines), now_s)
