"""A batch of one model on its way: it is run, whose rows are whose, and who is told what."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from byoc_server.batching.collate import Collation, Infer
from byoc_server.batching.device import Source
from byoc_server.batching.policy import Entry
from byoc_server.errors import ByocError, InferenceFailed
from byoc_server.types import Tensors

logger = logging.getLogger(__name__)


class BatchSource(Source, Protocol):
    """What such batches come from."""

    def settle(self, batch: EntryBatch, held_s: float) -> None:
        """Take note of a batch that has run in a lane, and held it for so many seconds."""
        ...


class EntryBatch:
    """See ``device.Batch``. A batch that fails is run again entry by entry, so that only the poisonous entry fails.

    Args:
        source: whose it is.
        entries: in the order of their rows.
        work: rows times the longest record.
        infers: of the model, one for each lane.
        collation: of the model.
        clock: seconds of a monotonic clock.

    Attributes:
        expected_s: seconds it should take.
        seconds: it took by itself; ``None`` if it failed, or some of its entries had left.
    """

    __slots__ = (
        "_clock",
        "_collation",
        "_infers",
        "_inputs",
        "_outcomes",
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
    ) -> None:
        self.source = source
        self.entries = entries
        self.work = work
        self.expected_s: float | None = None
        self.seconds: float | None = None
        self._infers = infers
        self._collation = collation
        self._clock = clock
        self._inputs: Tensors | None = None
        self._outcomes: list[tuple[Entry, Tensors | ByocError]] = []

    def stack(self) -> None:
        """Stack the tensors ahead of time."""
        with contextlib.suppress(Exception):  # what fails here fails again in the run, where it is answered
            self._inputs = self._collation.stack([entry.tensors for entry in self.entries])

    def run(self, lane: int) -> None:
        """Run with the engine of a lane. The only method that is called off the event loop."""
        entries = [entry for entry in self.entries if not entry.done]  # some may have left while it stood ready
        inputs, self._inputs = self._inputs, None
        if not entries:
            return
        complete = len(entries) == len(self.entries)
        parts = [entry.tensors for entry in entries]
        try:
            if inputs is None or not complete:
                inputs = self._collation.stack(parts)
            start_s = self._clock()
            outputs = self._infers[lane](inputs)
            if complete:
                self.seconds = self._clock() - start_s
            counts = [entry.rows for entry in entries]
            self._outcomes = list(zip(entries, self._collation.split(outputs, parts, counts), strict=True))
        except Exception as error:
            self.seconds = None
            if len(entries) > 1:
                logger.warning("a batch of %d requests failed and is run again one by one: %s", len(entries), error)
                self._outcomes = [(entry, self._run_alone(entry, lane)) for entry in entries]
            else:
                self._outcomes = [(entries[0], _as_inference_failed(error))]

    def settle(self, held_s: float) -> None:
        """Tell whose it is that it has run, and held its lane for so many seconds."""
        self.source.settle(self, held_s)

    def answer(self) -> None:
        """Give every request its own rows, or what went wrong."""
        for entry, outcome in self._outcomes:
            answer(entry, outcome)

    def _run_alone(self, entry: Entry, lane: int) -> Tensors | ByocError:
        try:
            outputs = self._infers[lane](self._collation.stack([entry.tensors]))
            return self._collation.split(outputs, [entry.tensors], [entry.rows])[0]
        except Exception as error:
            return _as_inference_failed(error)


def answer(entry: Entry, outcome: Tensors | ByocError) -> None:
    """Answer a request, unless it was answered or given up before."""
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
