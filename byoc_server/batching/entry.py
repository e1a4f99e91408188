"""One request on its way through a queue and a batch, and who is told what comes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from byoc_server.errors import ByocError
from byoc_server.types import Tensors

Reply = Callable[[Tensors | ByocError], None]
"""Takes the outputs of one request, or why there are none."""

Together = Callable[[Sequence[Reply], Tensors, Sequence[int]], None]
"""Answers several requests at once, which costs less than one by one: takes their replies, outputs that hold the rows
of all of them in that order, and how many rows each has. Sees to it that none keeps another from its answer, and that
none is answered that is given up meanwhile."""


class Queue(Protocol):
    """Where entries wait."""

    def cancel(self, entry: Entry) -> None:
        """Give up an entry."""
        ...


class Entry:
    """One request, or a part of a large one, on its way through the queue. Called to give it up, as ``cancel``.

    Attributes:
        tensors: inputs, N rows each.
        rows: N.
        length: positions of each record.
        work: rows times length.
        nbytes: size of the tensors.
        key: entries with equal keys can share a batch.
        arrived_s: when it came, in seconds of the monotonic clock.
        deadline_s: when its time is over, likewise.
        reply: called once with the outcome, unless the entry is cancelled before.
        urgent: it goes before those that are not.
        together: answers it together with others that have the same; ``None`` if it is answered alone.
        done: answered or cancelled.
    """

    __slots__ = (
        "arrived_s",
        "deadline_s",
        "done",
        "key",
        "length",
        "nbytes",
        "queue",
        "reply",
        "rows",
        "tensors",
        "together",
        "urgent",
        "waiting",
        "work",
    )

    def __init__(
        self,
        tensors: Tensors,
        rows: int,
        length: int,
        nbytes: int,
        key: Hashable,
        arrived_s: float,
        deadline_s: float,
        reply: Reply,
        urgent: bool = False,
        together: Together | None = None,
    ) -> None:
        self.tensors = tensors
        self.rows = rows
        self.length = length
        self.work = rows * length
        self.nbytes = nbytes
        self.key = key
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.reply = reply
        self.urgent = urgent
        self.together = together
        self.queue: Queue | None = None
        self.done = False
        self.waiting = False

    def end(self) -> None:
        """Take note that it is answered or given up."""
        self.done = True

    def __call__(self) -> None:
        """See ``cancel``: an entry is its own ``Cancel``, as one more object a request would cost."""
        self.cancel()

    def cancel(self) -> None:
        """Give it up. Late or twice does no harm."""
        if self.queue is None:
            self.end()
        else:
            self.queue.cancel(self)


class LargeEntry(Entry):
    """A request larger than a batch, which runs in parts. It waits with the rows that have not been cut off."""

    __slots__ = ()

    @abstractmethod
    def cut(self, rows: int) -> Entry:
        """Take so many rows, or what is left, off its front, as an entry that runs in its stead."""
        ...
