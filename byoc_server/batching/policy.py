"""Which entries wait, which form the next batch, which are refused. Pure: the time is an argument.

The rules:

1. *Admission.* An entry is refused when the queue is full (rows or bytes), or when by the cost model what waits
   before it would not be done by its deadline. An idle model refuses nothing: an estimate alone never starves.
2. *Order.* First come, first served. A batch is the oldest entry and those behind it that can share a batch with it
   (same key, i.e. the same record shapes), up to ``max_batch_size`` rows. Others keep their place.
3. *Leaving.* An entry that was cancelled or is past its deadline leaves the queue without running.

An entry never has more rows than ``max_batch_size``: the batcher cuts larger requests into parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice

from byoc_server.errors import ByocError, Overloaded
from byoc_server.types import Tensors

Reply = Callable[[Tensors | ByocError], None]
"""Takes the outputs of one request, or why there are none."""

_LOOKAHEAD = 256
"""How many entries are looked at for one batch, so that forming it stays cheap in a long queue."""


class Entry:
    """One request, or one part of a large one, on its way through the queue.

    Attributes:
        tensors: inputs, N rows each.
        rows: N.
        nbytes: size of the tensors.
        key: entries with equal keys can share a batch.
        deadline_s: when its time is over, in seconds of the monotonic clock.
        reply: called once with the outcome, unless the entry is cancelled before.
        done: answered or cancelled.
    """

    __slots__ = ("deadline_s", "done", "key", "nbytes", "reply", "rows", "tensors", "waiting")

    def __init__(
        self, tensors: Tensors, rows: int, nbytes: int, key: Hashable, deadline_s: float, reply: Reply
    ) -> None:
        self.tensors = tensors
        self.rows = rows
        self.nbytes = nbytes
        self.key = key
        self.deadline_s = deadline_s
        self.reply = reply
        self.done = False
        self.waiting = False


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait at most.

    Attributes:
        max_rows: rows that wait.
        max_bytes: bytes of tensors that wait.
        max_batch_size: rows of one batch.
    """

    max_rows: int
    max_bytes: int
    max_batch_size: int


class BatchQueue:
    """The waiting entries of one model."""

    def __init__(self, limits: QueueLimits, rows_per_s: float | None) -> None:
        self.limits = limits
        self.rows = 0
        self.nbytes = 0
        self._rows_per_s = rows_per_s
        self._entries: deque[Entry] = deque()

    def __bool__(self) -> bool:
        """Whether anything is left to look at."""
        return bool(self._entries)

    def admit(self, rows: int, nbytes: int, deadline_s: float, now_s: float, running_rows: int) -> None:
        """Check that so much more may join the queue.

        Args:
            rows: of the request as a whole.
            nbytes: of the request as a whole.
            deadline_s: when its time is over.
            now_s: the clock.
            running_rows: rows of the batch that runs at present, and of the one that stands ready behind it.

        Raises:
            Overloaded: the queue is full, or the deadline would be missed.
        """
        ahead = self.rows + running_rows
        if ahead == 0:
            return
        wait_s = ahead / self._rows_per_s if self._rows_per_s else 0.0
        if self.rows + rows > self.limits.max_rows or self.nbytes + nbytes > self.limits.max_bytes:
            raise Overloaded(f"the queue is full: {self.rows} records are waiting", retry_after_s=wait_s)
        if now_s + wait_s > deadline_s:
            raise Overloaded(
                f"{ahead} records are waiting, about {wait_s:.1f} s; this request would not be done in time",
                retry_after_s=now_s + wait_s - deadline_s,
            )

    def push(self, entry: Entry) -> None:
        """Append an entry that was admitted."""
        self._entries.append(entry)
        entry.waiting = True
        self.rows += entry.rows
        self.nbytes += entry.nbytes

    def cancel(self, entry: Entry) -> None:
        """Give up an entry: it will not run if it still waits, and its outcome is dropped if it runs already."""
        entry.done = True
        if entry.waiting:
            self._leave(entry)
            entry.tensors = {}  # its place in the queue stays until it is passed, its memory does not

    def next_batch(self, now_s: float) -> tuple[list[Entry], list[Entry]]:
        """Take the next batch out of the queue.

        Returns:
            The batch (empty when nothing can run), and the entries found past their deadline.
        """
        entries = self._entries
        batch: list[Entry] = []
        expired: list[Entry] = []
        skipped: list[Entry] = []
        room = self.limits.max_batch_size
        for _ in range(min(len(entries), _LOOKAHEAD)):
            entry = entries.popleft()
            if entry.done:
                continue
            if entry.deadline_s <= now_s:
                expired.append(entry)
            elif not batch or (entry.key == batch[0].key and entry.rows <= room):
                batch.append(entry)
                room -= entry.rows
            else:
                skipped.append(entry)
                continue
            self._leave(entry)
            if room == 0:
                break
        entries.extendleft(reversed(skipped))
        return batch, expired

    def expire(self, now_s: float) -> list[Entry]:
        """Take out the entries at the front that are past their deadline."""
        expired = []
        entries = self._entries
        while entries and (entries[0].done or entries[0].deadline_s <= now_s):
            entry = entries.popleft()
            if not entry.done:
                expired.append(entry)
                self._leave(entry)
        return expired

    def next_deadline_s(self) -> float | None:
        """The earliest deadline near the front; ``None`` when nothing waits."""
        return min((e.deadline_s for e in islice(self._entries, _LOOKAHEAD) if not e.done), default=None)

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self.rows -= entry.rows
        self.nbytes -= entry.nbytes
