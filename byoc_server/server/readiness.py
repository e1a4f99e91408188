"""What the workers of one server know of each other: a few pages of memory they share from before the fork.

A ping that reaches a ready worker must not say 200 while the next invocation may reach one that still loads. So at
the first start all workers say 503 until the last one is ready. A worker that replaces a dead one loads first and
accepts connections after: the others answer meanwhile.

It also carries the reason why a worker could not start to the parent, which says it once for all of them.
"""

from __future__ import annotations

import mmap

_MOST_WORKERS = 4096
_MOST_REASON_BYTES = 4096


class ReadinessBoard:
    """One byte per worker, set while it is ready; whether all have been; and the reason of a failed start.

    Args:
        workers: how many there are at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._ready = mmap.mmap(-1, _MOST_WORKERS)
        self._all_were_ready = mmap.mmap(-1, 1)
        self._reason = mmap.mmap(-1, _MOST_REASON_BYTES)

    def set_ready(self, age: int) -> None:
        """Worker number ``age`` (counted from 1 over the life of the server) is ready."""
        self._ready[age % _MOST_WORKERS] = 1
        if sum(self._ready[:]) >= self._workers:
            self._all_were_ready[0] = 1

    def set_gone(self, age: int) -> None:
        """Worker number ``age`` has died."""
        self._ready[age % _MOST_WORKERS] = 0

    @property
    def any_ready(self) -> bool:
        """Whether some worker is ready."""
        return any(self._ready[:])

    @property
    def all_were_ready(self) -> bool:
        """Whether all workers have been ready at a time."""
        return bool(self._all_were_ready[0])

    @property
    def failure(self) -> str:
        """Why a worker could not start; empty if none failed."""
        return self._reason[:].rstrip(b"\0").decode(errors="replace")

    @failure.setter
    def failure(self, reason: str) -> None:
        text = reason.encode()[:_MOST_REASON_BYTES]
        self._reason[: len(text)] = text
