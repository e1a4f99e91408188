"""Whether a batch may run on the event loop. Pure.

By the cost model a short batch may. But the cost of some models depends on the values of their inputs, and while a
batch runs on the event loop nothing else does, pings included. So one batch that holds it for too long takes the model
off it at once. It comes back after a number of batches in a row that would not have held it, which doubles with every
time it has to go.
"""

from __future__ import annotations

INLINE_SECONDS = 0.0002
"""A batch this short runs on the event loop: handing it to a thread and back costs about as much."""
TOO_LONG_SECONDS = 25 * INLINE_SECONDS
_FIRST_PATIENCE, _LONGEST_PATIENCE = 64, 65536


class LoopGuard:
    """Knows whether the model of one batcher may use the event loop.

    Attributes:
        open: it may.
    """

    def __init__(self) -> None:
        self.open = True
        self._patience = _FIRST_PATIENCE
        self._harmless = 0

    def saw_inline(self, seconds: float) -> bool:
        """Take note of a batch that ran on the event loop; returns whether it was the last one for now."""
        if seconds <= TOO_LONG_SECONDS:
            return False
        self.open = False
        self._harmless = 0
        return True

    def saw_threaded(self, seconds: float) -> None:
        """Take note of a batch that ran elsewhere."""
        if self.open:
            return
        self._harmless = self._harmless + 1 if seconds <= TOO_LONG_SECONDS else 0
        if self._harmless >= self._patience:
            self.open = True
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
