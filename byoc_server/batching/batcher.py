"""The asyncio shell around the batch policy: runs batches, one at a time, and hands every request its own rows.

Work-conserving: as soon as nothing runs, what waits runs. Requests that arrive in one turn of the event loop meet in
one batch, because the first of them only *schedules* the run for the end of the turn; while a batch runs the next one
grows.

A batch that takes less than ``INLINE_SECONDS`` by the cost model runs right on the event loop, a longer one on the
worker thread. The worker thread gets its next batch ahead of time once as many rows wait as are running, so that it
does not stand still while the event loop writes answers. A batch that fails is run again entry by entry, so that only
the poisonous entry fails.

Everything but the engine call happens on the event loop thread, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from functools import partial

from byoc_server.batching.collate import Infer, slice_rows, split, stack
from byoc_server.batching.policy import BatchQueue, Entry, QueueLimits, Reply
from byoc_server.batching.profile import INLINE_SECONDS, BatchProfile
from byoc_server.errors import ByocError, DeadlineExceeded, InferenceFailed
from byoc_server.types import Signature, Tensors, tensor_bytes

logger = logging.getLogger(__name__)

Outcomes = list[tuple[Entry, Tensors | ByocError]]

Cancel = Callable[[], None]
"""Gives a request up. Calling it late or twice does no harm."""

_INLINE_SURPRISE_SECONDS = 25 * INLINE_SECONDS
_STACKED_ON_LOOP_BYTES = 1024 * 1024
_EXPIRED = "the request was not done within its time"


class Batcher:
    """Batches the requests for one model.

    Args:
        infer: runs one batch; called on the event loop or on the worker thread, never twice at the same time.
        signature: of the model.
        limits: of the queue.
        profile: cost model of the model.
        executor: one worker thread.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        infer: Infer,
        signature: Signature,
        limits: QueueLimits,
        profile: BatchProfile,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._infer = infer
        self._signature = signature
        self._batched = signature.batched
        self._one_key = signature.record_shape_is_fixed
        self._max_batch_size = limits.max_batch_size
        self._queue = BatchQueue(limits, profile.rows_per_s)
        self._profile = profile
        self._executor = executor
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._inline = True
        self._handed_over: deque[Sequence[Entry]] = deque()  # to the worker thread: the one that runs, and one ahead
        self._handed_over_rows = 0
        self._deadline_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._queue and not self._handed_over

    def submit(self, tensors: Tensors, rows: int, reply: Reply, deadline_s: float) -> Cancel:
        """Queue one request.

        Args:
            tensors: inputs that fit the signature.
            rows: records in them.
            reply: called once on the event loop, with the outputs of just these records or with what went wrong.
            deadline_s: when its time is over, on the batcher's clock.

        Raises:
            Overloaded: refused at once.
        """
        nbytes = tensor_bytes(tensors)
        self._queue.admit(rows, nbytes, deadline_s, self._clock(), self._handed_over_rows)
        key: Hashable = None if self._one_key else tuple([array.shape[1:] for array in tensors.values()])
        if rows > self._max_batch_size:
            return self._submit_parts(tensors, key, reply, deadline_s)
        entry = Entry(tensors, rows, nbytes, key, deadline_s, reply)
        self._queue.push(entry)
        self._schedule()
        return partial(self._queue.cancel, entry)

    def _submit_parts(self, tensors: Tensors, key: Hashable, reply: Reply, deadline_s: float) -> Cancel:
        slices = slice_rows(tensors, self._max_batch_size)
        join = _Join(len(slices), reply, self._queue.cancel)
        for number, part in enumerate(slices):
            rows = self._signature.row_count(part)
            entry = Entry(part, rows, tensor_bytes(part), key, deadline_s, partial(join.take, number))
            join.entries.append(entry)
            self._queue.push(entry)
        self._schedule()
        return join.cancel

    def _schedule(self) -> None:
        if not self._scheduled and self._may_run:
            self._scheduled = True
            self._loop.call_soon(self._run_next)

    @property
    def _may_run(self) -> bool:
        """Whether another batch may be formed: nothing runs, or enough waits to form one ahead."""
        if not self._handed_over:
            return True
        return len(self._handed_over) == 1 and self._queue.rows >= min(self._handed_over_rows, self._max_batch_size)

    def _run_next(self) -> None:
        self._scheduled = False
        batch, expired = self._queue.next_batch(self._clock())
        for entry in expired:
            _answer(entry, DeadlineExceeded(_EXPIRED))
        if not batch:
            if self._queue:
                self._schedule()
            return
        rows = sum([entry.rows for entry in batch])
        seconds = self._profile.seconds(rows)
        if self._inline and seconds is not None and seconds <= INLINE_SECONDS and not self._handed_over:
            outcomes = self._infer_inline(batch)
            if self._queue:
                self._schedule()
            _answer_all(outcomes)
            return
        # Stacking gives way to other threads at every piece: with small pieces the worker thread would spend longer on
        # getting the interpreter back than on copying. Large ones would keep the event loop from its pings.
        is_small = sum([entry.nbytes for entry in batch]) <= _STACKED_ON_LOOP_BYTES
        inputs = stack([entry.tensors for entry in batch]) if is_small and self._batched else None
        running = self._executor.submit(self._infer_batch, batch, inputs)
        self._handed_over.append(batch)
        self._handed_over_rows += rows
        self._watch_deadlines()
        running.add_done_callback(self._on_thread_done)

    def _infer_inline(self, batch: Sequence[Entry]) -> Outcomes:
        """Run a batch on the event loop, for the last time if it took far longer than the cost model said.

        CPU time is what counts: wall time also grows when the machine is busy with something else.
        """
        start_s = time.thread_time()
        outcomes = self._infer_batch(batch)
        used_s = time.thread_time() - start_s
        if used_s > _INLINE_SURPRISE_SECONDS:
            self._inline = False
            logger.warning(
                "a batch took %.1f ms of CPU instead of under %.1f: the model's cost depends on its input, so it runs "
                "on the worker thread from now on",
                used_s * 1000,
                INLINE_SECONDS * 1000,
                extra={"event": "slow_inline"},
            )
        return outcomes

    def _infer_batch(self, batch: Sequence[Entry], inputs: Tensors | None = None) -> Outcomes:
        """Run a batch; on failure its entries one by one. The only method that runs off the event loop.

        Args:
            batch: its entries.
            inputs: their tensors, if they have been stacked already.
        """
        entries = [entry for entry in batch if not entry.done]  # some may have left while the batch stood ready
        if not entries:
            return []
        try:
            if not self._batched:
                return [(entries[0], self._infer(entries[0].tensors))]
            if inputs is None or len(entries) < len(batch):
                inputs = stack([entry.tensors for entry in entries])
            outputs = self._infer(inputs)
            return list(zip(entries, split(outputs, [entry.rows for entry in entries]), strict=True))
        except Exception as error:
            if len(entries) == 1:
                return [(entries[0], _as_inference_failed(error))]
            logger.warning("a batch of %d requests failed and is run again one by one: %s", len(entries), error)
        return [outcome for entry in entries for outcome in self._infer_batch([entry])]

    def _on_thread_done(self, future: Future[Outcomes]) -> None:
        if future.cancelled():  # the server ends, and nobody waits any more
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone, and so are the clients
            self._loop.call_soon_threadsafe(self._finish, future.result())

    def _finish(self, outcomes: Outcomes) -> None:
        """Take back the batch that ran longest; the worker thread is one, so batches come back in order."""
        self._handed_over_rows -= sum([entry.rows for entry in self._handed_over.popleft()])
        self._watch_deadlines()
        try:
            if self._queue and self._may_run and not self._scheduled:
                self._run_next()  # before the answers are written, or the worker thread waits for that
        finally:
            _answer_all(outcomes)

    def _watch_deadlines(self) -> None:
        """Look again when the first entry that waits or runs is out of time; it must not wait for the batch to end."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if not self._handed_over:
            return
        deadlines = [entry.deadline_s for batch in self._handed_over for entry in batch if not entry.done]
        waiting = self._queue.next_deadline_s()
        if waiting is not None:
            deadlines.append(waiting)
        # With nobody left to answer, entries that arrive meanwhile are looked at within a second.
        delay_s = min(deadlines) - self._clock() if deadlines else 1.0
        self._deadline_timer = self._loop.call_later(max(delay_s, 0.001), self._on_deadline)

    def _on_deadline(self) -> None:
        now_s = self._clock()
        handed_over = [entry for batch in self._handed_over for entry in batch]
        overdue = [entry for entry in handed_over if not entry.done and entry.deadline_s <= now_s]
        for entry in (*overdue, *self._queue.expire(now_s)):
            _answer(entry, DeadlineExceeded(_EXPIRED))
        self._watch_deadlines()


class _Join:
    """Puts the outcomes of the parts of one large request back together, in order."""

    def __init__(self, count: int, reply: Reply, cancel: Callable[[Entry], None]) -> None:
        self.entries: list[Entry] = []
        self._outputs: list[Tensors] = [{}] * count
        self._left = count
        self._reply = reply
        self._cancel = cancel

    def take(self, number: int, outcome: Tensors | ByocError) -> None:
        """Take the outcome of part ``number``; the first error ends the whole request."""
        if isinstance(outcome, ByocError):
            self.cancel()
            self._reply(outcome)
            return
        self._outputs[number] = outcome
        self._left -= 1
        if self._left == 0:
            outputs = stack(self._outputs)
            self.cancel()
            self._reply(outputs)

    def cancel(self) -> None:
        """Give up all parts that have not been answered, and let go of all: they lead back here."""
        entries, self.entries, self._outputs = self.entries, [], []
        for entry in entries:
            self._cancel(entry)


def _answer_all(outcomes: Outcomes) -> None:
    for entry, outcome in outcomes:
        _answer(entry, outcome)


def _answer(entry: Entry, outcome: Tensors | ByocError) -> None:
    if entry.done:
        return
    entry.done = True
    try:
        entry.reply(outcome)
    except Exception:  # one request's reply must never keep its neighbours from theirs
        logger.exception("a reply failed")
    if isinstance(outcome, ByocError):
        outcome.__cause__ = None  # logged by now; its traceback leads to frames that lead to the entry and back here


def _as_inference_failed(error: Exception) -> ByocError:
    if isinstance(error, ByocError):
        return error
    failed = InferenceFailed("the model failed on this request")
    failed.__cause__ = error
    return failed
