"""A batch of one model on its way: it is run, whose rows are whose, and who is told what."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from byoc_server.batching.collate import Collation, Infer, split
from byoc_server.batching.device import Source
from byoc_server.batching.entry import Entry, Together
from byoc_server.errors import ByocError, DeadlineExceeded, InferenceFailed
from byoc_server.types import Tensors

logger = logging.getLogger(__name__)


_Outcomes = list[tuple[Entry, Tensors | ByocError]]


class BatchSource(Source, Protocol):
    """What such batches come from."""

    def settle(self, batch: EntryBatch, held_s: float) -> None:
        """Take note of a batch that has run in a lane, and held it for so many seconds."""
        ...


class EntryBatch:
    """See ``device.Batch``. A batch that fails is run again in halves, so that only the poisonous entry fails.

    One such entry among n costs about 2 log2 n runs. What is done or past its deadline by then does not run again, and
    those that ran well are answered at once.

    Args:
        source: whose it is.
        entries: in the order of their rows.
        work: rows times the longest record.
        infers: of the model, one for each lane.
        collation: of the model.
        clock: seconds of a monotonic clock.
        call_on_loop: has a function called on the event loop, from whatever thread.

    Attributes:
        expected_s: seconds it should take.
        begun_s: when its latest run began, by the clock; ``None`` before the first. Set on the thread that runs it.
        seconds: it took by itself; ``None`` if it failed, or some of its entries had left.
    """

    __slots__ = (
        "_call_on_loop",
        "_clock",
        "_collation",
        "_infers",
        "_inputs",
        "_outcomes",
        "_shared",
        "begun_s",
        "entries",
        "expected_s",
        "seconds",
        "source",
        "work",
    )

    def __init__(
        self,
        source: BatchSource,
        entries: Sequence[Entry],
        work: int,
        infers: Sequence[Infer],
        collation: Collation,
        clock: Callable[[], float],
        call_on_loop: Callable[[Callable[[_Outcomes], None], _Outcomes], object],
    ) -> None:
        self.source = source
        self.entries = entries
        self.work = work
        self.expected_s: float | None = None
        self.begun_s: float | None = None
        self.seconds: float | None = None
        self._infers = infers
        self._collation = collation
        self._clock = clock
        self._inputs: Tensors | None = None
        self._call_on_loop = call_on_loop
        self._outcomes: _Outcomes = []
        self._shared: tuple[Together, Sequence[Entry], Tensors, Sequence[int]] | None = None

    def stack(self) -> None:
        """Stack the tensors ahead of time."""
        with contextlib.suppress(Exception):  # what fails here fails again in the run, where it is answered
            self._inputs = self._collation.stack([entry.tensors for entry in self.entries])

    def run(self, lane: int) -> None:
        """Run with the engine of a lane. The only method that is called off the event loop."""
        inputs, self._inputs = self._inputs, None
        pieces: deque[Sequence[Entry]] = deque([self.entries])
        while pieces:
            outcomes = self._run(pieces.popleft(), lane, inputs, pieces)
            inputs = None
            if not pieces:
                self._outcomes = outcomes
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                    self._call_on_loop(_answer_all, outcomes)

    def settle(self, held_s: float) -> None:
        """Tell whose it is that it has run, and held its lane for so many seconds."""
        self.source.settle(self, held_s)

    def answer(self) -> None:
        """Give every request its own rows, or what went wrong."""
        _answer_all(self._outcomes)
        shared, self._shared = self._shared, None
        if shared is not None:
            _answer_together(*shared)

    def _run(
        self, entries: Sequence[Entry], lane: int, inputs: Tensors | None, pieces: deque[Sequence[Entry]]
    ) -> _Outcomes:
        """Run some of the entries.

        Args:
            entries: in the order of their rows.
            lane: whose engine runs.
            inputs: of all these, if they were stacked before.
            pieces: get both halves if that fails. They stand behind what has yet to run: so most requests have their
                answers before the search for the poisonous one comes to its end.
        """
        now_s = self._clock()
        ready = [entry for entry in entries if entry.deadline_s > now_s and not entry.done]
        outcomes: _Outcomes = []
        if len(ready) < len(entries):  # some have left while it stood ready
            outcomes += [(entry, overdue()) for entry in entries if entry.deadline_s <= now_s]
            if not ready:
                return outcomes
        parts = [entry.tensors for entry in ready]
        try:
            if inputs is None or len(ready) < len(entries):
                inputs = self._collation.stack(parts)
            self.begun_s = begun_s = self._clock()
            outputs = self._infers[lane](inputs)
            seconds = self._clock() - begun_s
            counts = [entry.rows for entry in ready]
            together = _shared_by(ready) if entries is self.entries else None  # halves go their own way back
            if together is not None and self._collation.together(outputs, parts, counts):
                self._shared = together, ready, outputs, counts
            else:
                outcomes += zip(ready, self._collation.split(outputs, parts, counts), strict=True)
            if len(ready) == len(self.entries):
                self.seconds = seconds
        except Exception as error:
            if len(ready) == 1:
                outcomes.append((ready[0], _as_inference_failed(error)))
            else:
                middle = len(ready) // 2
                pieces += (ready[:middle], ready[middle:])
                if entries is self.entries:
                    logger.warning("a batch of %d requests failed and is run again in halves: %s", len(ready), error)
        return outcomes


def _shared_by(entries: Sequence[Entry]) -> Together | None:
    """What answers all of them together; ``None`` if nothing does."""
    together = entries[0].together
    if together is None or len(entries) == 1 or [entry for entry in entries if entry.together is not together]:
        return None
    return together


def _answer_together(together: Together, entries: Sequence[Entry], outputs: Tensors, counts: Sequence[int]) -> None:
    if [entry for entry in entries if entry.done]:
        for entry, own in zip(entries, split(outputs, counts), strict=True):
            answer(entry, own)
        return
    for entry in entries:
        entry.done = True  # as ``end`` does; none of them runs in parts
    try:
        together([entry.reply for entry in entries], outputs, counts)
    except Exception:  # it sees to each of them; whatever is wrong with it must not end the batcher's turn
        logger.exception("replies failed")


def _answer_all(outcomes: _Outcomes) -> None:
    for entry, outcome in outcomes:
        answer(entry, outcome)
    outcomes.clear()  # the traceback of an error among them leads here


def answer(entry: Entry, outcome: Tensors | ByocError) -> None:
    """Answer a request, unless it was answered or given up before."""
    if entry.done:
        return
    entry.end()
    try:
        entry.reply(outcome)
    except Exception:  # one request's reply must never keep its neighbours from theirs
        logger.exception("a reply failed")
    if isinstance(outcome, ByocError):
        outcome.__cause__ = None  # logged by now; its traceback leads to frames that lead to the entry and back here


def overdue() -> DeadlineExceeded:
    """What a request is answered whose time is over."""
    return DeadlineExceeded("the request was not done within its time")


def _as_inference_failed(error: Exception) -> ByocError:
    if isinstance(error, ByocError):
        return error
    failed = InferenceFailed("the model failed on this request")
    failed.__cause__ = error
    return failed
