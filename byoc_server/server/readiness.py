"""What the workers of one server know of each other: a few pages of memory they share from before the fork.

A ping that reaches a ready worker must not say 200 while the next invocation may reach one that still loads. So at
the first start all workers say 503 until the last one is ready. A worker that replaces a dead one loads first and
accepts connections after: the others answer meanwhile.

It also carries word to the parent: the reason why a worker could not start, which it says once for all of them, and
which core process has stopped to answer its fronts, which it then replaces.
"""

from __future__ import annotations

import mmap
import struct

_MOST_WORKERS = 4096
_MOST_CORES = 4096
_MOST_REASON_BYTES = 4096
_PID = struct.Struct("<I")


class ReadinessBoard:
    """One byte per worker, set once it is ready, and the reason of a failed start.

    Args:
        workers: how many there are at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._ready = mmap.mmap(-1, _MOST_WORKERS)
        self._silent = mmap.mmap(-1, _MOST_CORES * _PID.size)
        self._reason = mmap.mmap(-1, _MOST_REASON_BYTES)

    def set_ready(self, age: int) -> None:
        """Worker number ``age`` (counted from 1 over the life of the server) is ready."""
        self._ready[age % _MOST_WORKERS] = 1

    def set_gone(self, age: int) -> None:
        """Worker number ``age`` has died; until all were ready for the first time it no longer counts."""
        if not self.all_ready:
            self._ready[age % _MOST_WORKERS] = 0

    @property
    def any_ready(self) -> bool:
        """Whether some worker was ready."""
        return any(self._ready[:])

    @property
    def all_ready(self) -> bool:
        """Whether every worker of the first start has become ready."""
        return sum(self._ready[:]) >= self._workers

    def set_silent(self, index: int, pid: int) -> None:
        """Core number ``index``, the process ``pid``, does not answer."""
        _PID.pack_into(self._silent, index * _PID.size, pid)

    def is_silent(self, index: int, pid: int) -> bool:
        """Whether that was said of this process, and not of the one whose place it has taken."""
        return bool(_PID.unpack_from(self._silent, index * _PID.size) == (pid,))

    @property
    def failure(self) -> str:
        """Why a worker could not start; empty if none failed."""
        return self._reason[:].rstrip(b"\0").decode(errors="replace")

    @failure.setter
    def failure(self, reason: str) -> None:
        text = reason.encode()[:_MOST_REASON_BYTES]
        self._reason[: len(text)] = text
