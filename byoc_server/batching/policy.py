"""Which entries wait, which form the next batch, which are refused. Pure: the time is an argument.

The rules:

1. *Admission.* An entry is refused when the queue is full (rows or bytes), or when by the cost model what waits
   before it would not be done by its deadline. An idle model refuses nothing: an estimate alone never starves.
2. *Order.* Urgent entries first, each level first come, first served. So that the others do not starve, every fourth
   batch begins with the oldest entry of all. A batch is its first entry and those behind it that can share a batch
   with it (same key), up to so many rows and so much work. Others keep their place.
3. *Leaving.* An entry that was cancelled or is past its deadline leaves the queue without running.

The work of a batch is its rows times its longest record. A request larger than a batch is cut as batches have room for
it, and what is left keeps its place; what is beyond the bounds all the same, such as one very long record, runs alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from byoc_server.batching.cost import CostModel
from byoc_server.batching.entry import Entry, LargeEntry
from byoc_server.errors import ByocError, Overloaded
from byoc_server.types import Tensors

_LOOKAHEAD = 256
"""How many entries of a level are looked at for one batch, so that forming it stays cheap in a long queue."""
_OLDEST_FIRST_EVERY = 4
_CALM_S = 0.05
"""While what waits takes no longer than that by any estimate, nobody who has more time than that looks closer."""
_HEADROOM = 1.25
"""A wait may turn out longer by a quarter. Without that, all that is accepted while there is too much would be
accepted at the very limit, and half of it expire."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait at most.

    Attributes:
        max_rows: rows that wait.
        max_bytes: bytes of tensors that wait.
    """

    max_rows: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """How large a batch may be.

    Attributes:
        max_rows: of a batch.
        max_work: rows times the longest record of a batch; ``None`` = as large as the cost model finds useful.
    """

    max_rows: int
    max_work: int | None


class BatchQueue:
    """The waiting entries of one model.

    Args:
        limits: of what waits.
        bounds: of a batch.
        cost: of a batch.
        uniform: any two entries can share a batch, and all records are one long.

    Attributes:
        rows: that wait.
        work: that waits, each entry by itself.
        nbytes: of tensors that wait.
        max_rows: of a batch.
        max_work: of a batch.
    """

    def __init__(self, limits: QueueLimits, bounds: BatchBounds, cost: CostModel, *, uniform: bool = False) -> None:
        self.rows = self.work = self.nbytes = 0
        self._uniform = uniform
        self.max_rows = bounds.max_rows
        self._limits = limits
        self._bounds = bounds
        self._cost = cost
        self._urgent: deque[Entry] = deque()
        self._normal: deque[Entry] = deque()
        self._urgent_work = 0
        self._contested = 0
        self._left_behind = 0
        self.follow_cost()

    def __bool__(self) -> bool:
        """Whether anything is left to look at."""
        return bool(self._normal or self._urgent)

    @property
    def full(self) -> bool:
        """Whether as much waits as a batch may hold."""
        return self.work >= self.max_work or self.rows >= self.max_rows

    def follow_cost(self) -> None:
        """Fit the bounds of a batch to what the cost model knows by now."""
        self.max_work = self._bounds.max_work or self._cost.best_work
        self._calm_work = self._cost.work_within(_CALM_S / _HEADROOM)

    def enter(self, entry: Entry, now_s: float, running_work: int = 0, contention: float = 1.0) -> None:
        """Let an entry join the queue.

        Args:
            entry: it.
            now_s: the clock.
            running_work: see ``admit``.
            contention: see ``admit``.

        Raises:
            Overloaded: see ``admit``.
        """
        ahead = self.work + running_work
        if ahead:
            limits = self._limits
            full = self.rows + entry.rows > limits.max_rows or self.nbytes + entry.nbytes > limits.max_bytes
            if full or ahead * contention > self._calm_work or entry.deadline_s - now_s < _CALM_S:
                self.admit(entry.rows, entry.nbytes, entry.deadline_s, now_s, running_work, contention, entry.urgent)
        self.push(entry)

    def admit(
        self,
        rows: int,
        nbytes: int,
        deadline_s: float,
        now_s: float,
        running_work: int = 0,
        contention: float = 1.0,
        urgent: bool = False,
    ) -> None:
        """Check that so much more may join the queue.

        Args:
            rows: of the request as a whole.
            nbytes: of the request as a whole.
            deadline_s: when its time is over.
            now_s: the clock.
            running_work: of the batches that run at present, and of those that stand ready behind them.
            contention: how many models that have work share how many lanes of the device.
            urgent: it will go before those that are not.

        Raises:
            Overloaded: the queue is full, or the deadline would be missed.
        """
        if self.work + running_work == 0:
            return
        if self.rows + rows > self._limits.max_rows or self.nbytes + nbytes > self._limits.max_bytes:
            wait_s = self._cost.wait_s(self.work + running_work, self.max_work) * contention
            raise Overloaded(f"the queue is full: {self.rows} records are waiting", retry_after_s=wait_s)
        waiting = self._urgent_work * _OLDEST_FIRST_EVERY // (_OLDEST_FIRST_EVERY - 1) if urgent else self.work
        ahead = waiting + running_work
        if self._cost.wait_at_most_s(ahead) * contention * _HEADROOM <= deadline_s - now_s:
            return
        wait_s = self._cost.wait_s(ahead, self.max_work) * contention
        if now_s + wait_s * _HEADROOM > deadline_s:
            raise Overloaded(
                f"what runs and waits takes about {wait_s:.1f} s; this request would not be done in time",
                retry_after_s=now_s + wait_s * _HEADROOM - deadline_s,
            )

    def push(self, entry: Entry) -> None:
        """Append an entry that was admitted."""
        if entry.urgent:
            self._urgent.append(entry)
            self._urgent_work += entry.work
        else:
            self._normal.append(entry)
        entry.queue = self
        entry.waiting = True
        self.rows += entry.rows
        self.work += entry.work
        self.nbytes += entry.nbytes

    def cancel(self, entry: Entry) -> None:
        """Give up an entry: it will not run if it still waits, and its outcome is dropped if it runs already."""
        entry.end()
        if not entry.waiting:
            return
        self._leave(entry)
        # Its place in the queue stays for a while. What it leads to does not: its tensors, and by the reply its client.
        entry.tensors = {}
        entry.reply = _nobody
        self._left_behind += 1
        if self._left_behind > max(_LOOKAHEAD, (len(self._normal) + len(self._urgent)) // 2):
            self._left_behind = 0
            self._normal = deque([other for other in self._normal if not other.done])
            self._urgent = deque([other for other in self._urgent if not other.done])

    def next_batch(self, now_s: float) -> tuple[list[Entry], int, list[Entry]]:
        """Take the next batch out of the queue.

        Returns:
            The batch (empty when nothing can run), its work, and the entries found past their deadline.
        """
        max_rows, max_work = self.max_rows, self.max_work
        if self._uniform and not self._urgent and self.rows <= min(max_rows, max_work):
            whole = self._whole_queue(now_s)
            if whole:
                return whole, sum([entry.work for entry in whole]), []
        batch: list[Entry] = []
        expired: list[Entry] = []
        rows = longest = 0
        for entries in self._levels():
            skipped: list[Entry] = []
            for _ in range(min(len(entries), _LOOKAHEAD)):
                entry = entries.popleft()
                if entry.done:
                    continue
                if entry.deadline_s <= now_s:
                    expired.append(entry)
                    self._leave(entry)
                    continue
                length = entry.length if entry.length > longest else longest
                if isinstance(entry, LargeEntry) and (not batch or entry.key == batch[0].key):
                    room = min(max_rows, max_work // length) - rows
                    if room > 0 or not batch:
                        part = entry.cut(max(1, room))
                        entry.waiting = entry.rows > 0
                        if entry.waiting:
                            skipped.append(entry)
                        entry = part
                all_rows = rows + entry.rows
                if batch and (entry.key != batch[0].key or all_rows > max_rows or all_rows * length > max_work):
                    skipped.append(entry)
                    continue
                batch.append(entry)
                self._leave(entry)
                rows, longest = all_rows, length
                if rows >= max_rows or rows * longest >= max_work:
                    break
            entries.extendleft(reversed(skipped))
            if rows >= max_rows or rows * longest >= max_work:
                break
        return batch, rows * longest, expired

    def _whole_queue(self, now_s: float) -> list[Entry]:
        """Take all that waits as one batch, in few steps; empty if some of it must be looked at more closely."""
        waiting = self._normal
        batch = [entry for entry in waiting if entry.deadline_s > now_s and not entry.done]
        if len(batch) < len(waiting) or [entry for entry in batch if isinstance(entry, LargeEntry)]:
            return []
        for entry in batch:
            entry.waiting = False
        waiting.clear()
        self.rows = self.work = self.nbytes = 0
        return batch

    def expire(self, now_s: float) -> list[Entry]:
        """Take out the entries that are past their deadline, as far as the next batches would look."""
        expired: list[Entry] = []
        for entries in (self._urgent, self._normal):
            stay: list[Entry] = []
            for _ in range(min(len(entries), _LOOKAHEAD)):
                entry = entries.popleft()
                if entry.done:
                    continue
                if entry.deadline_s <= now_s:
                    expired.append(entry)
                    self._leave(entry)
                else:
                    stay.append(entry)
            entries.extendleft(reversed(stay))
        return expired

    def next_deadline_s(self) -> float | None:
        """The earliest deadline, as far as the next batches would look; ``None`` when nothing waits."""
        ahead = (entry for entries in (self._urgent, self._normal) for entry in islice(entries, _LOOKAHEAD))
        return min((entry.deadline_s for entry in ahead if not entry.done), default=None)

    def oldest_s(self) -> float | None:
        """When the oldest entry arrived; ``None`` when nothing waits."""
        for entries in (self._urgent, self._normal):
            while entries and entries[0].done:
                entries.popleft()
        return min((entries[0].arrived_s for entries in (self._urgent, self._normal) if entries), default=None)

    def _levels(self) -> tuple[deque[Entry], ...]:
        """The two levels in the order in which the next batch is filled from them."""
        if not self._urgent or not self._normal:
            return (self._urgent or self._normal,)
        self._contested += 1
        if self._contested % _OLDEST_FIRST_EVERY == 0 and self._normal[0].arrived_s < self._urgent[0].arrived_s:
            return self._normal, self._urgent
        return self._urgent, self._normal

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self.rows -= entry.rows
        self.work -= entry.work
        self.nbytes -= entry.nbytes
        if entry.urgent:
            self._urgent_work -= entry.work


def _nobody(_: Tensors | ByocError) -> None:
    """The reply of a request that was given up."""
