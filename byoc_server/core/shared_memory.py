"""Memory that one process writes and another reads, for tensors too large to be worth copying through a socket.

A memory file (memfd_create(2)) belongs to the process that writes it: only it knows which places are free, so that
nothing is lost when the other one dies. It needs neither ``/dev/shm``, which is 64 MB in a container by default, nor
any folder that can be written. The file is as long as all that may ever wait, but takes memory only where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import weakref
from collections.abc import Callable
from functools import partial

import numpy as np

from byoc_server.core.frame import FrameError
from byoc_server.core.free_list import FreeList
from byoc_server.core.layout import Plan, TensorLayout
from byoc_server.types import Array, Tensors

_KEPT_BYTES = 16 * 1024 * 1024
"""Pages up to here stay for ever."""
_KEPT_S = 5.0
"""Others stay until nothing has used them for so long: new ones have to be zeroed, which takes longer than to copy."""

CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]
"""Calls a function after so many seconds, as an event loop does."""


class OwnMemory:
    """A memory file of this process.

    Args:
        size: in bytes.
        call_later: of the event loop.

    Attributes:
        descriptor: of the file, until ``sent`` is called.
    """

    def __init__(self, size: int, call_later: CallLater) -> None:
        size += -size % mmap.PAGESIZE
        self.descriptor = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            # A file that shrinks would kill whoever reads it.
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._map = mmap.mmap(self.descriptor, size)
        except BaseException:
            self.sent()
            raise
        self._places = FreeList(size)
        self._call_later = call_later
        self._timer: asyncio.TimerHandle | None = None
        self._paged_end = _KEPT_BYTES  # there are no pages behind this, unless the timer is set

    def __len__(self) -> int:
        """How many places are in use."""
        return len(self._places)

    def sent(self) -> None:
        """The other process has the descriptor, and nobody needs it here any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def holds(self, plan: Plan) -> bool:
        """Whether tensors of this size fit in at all."""
        return plan.spread_bytes <= len(self._map)

    def put(self, tensors: Tensors, layout: TensorLayout, plan: Plan) -> int | None:
        """Copy tensors to a free place; its offset, or ``None`` if there is none."""
        begin = self._places.allocate(plan.spread_bytes)
        if begin is not None:
            layout.spread(tensors, plan, np.frombuffer(self._map, np.uint8), begin)
            if self._timer is None and begin + plan.spread_bytes > self._paged_end:
                self._timer = self._call_later(_KEPT_S, self._give_back)
        return begin

    def free(self, begin: int) -> None:
        """Give a place back.

        Raises:
            KeyError: it is not in use.
        """
        self._places.free(begin)

    def close(self) -> None:
        """Let go of the file; it is gone when the other process has let go as well."""
        if self._timer is not None:
            self._timer.cancel()
        self.sent()
        self._map.close()

    def _give_back(self) -> None:
        """Give back the pages that nothing has used since this was called before."""
        self._timer = None
        high_water = self._places.take_high_water()
        kept_end = max(high_water + -high_water % mmap.PAGESIZE, _KEPT_BYTES)
        if kept_end < self._paged_end:
            self._map.madvise(mmap.MADV_REMOVE, kept_end, self._paged_end - kept_end)
        self._paged_end = kept_end
        if kept_end > _KEPT_BYTES:
            self._timer = self._call_later(_KEPT_S, self._give_back)


class PeerMemory:
    """The memory file of another process, to read from.

    Args:
        descriptor: of the file; closed here.
        on_free: told the offset of a place when the last array on it is gone, in whichever thread that happens.
    """

    def __init__(self, descriptor: int, on_free: Callable[[int], None]) -> None:
        self._map: mmap.mmap | None
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._on_free = on_free
        self._in_use: dict[int, weakref.ref[Array]] = {}

    def tensors(self, layout: TensorLayout, plan: Plan, begin: int) -> Tensors:
        """The tensors at an offset, as views that cannot be written to.

        Raises:
            FrameError: they do not fit there.
        """
        assert self._map is not None  # nothing comes once it is closed
        if begin + plan.spread_bytes > len(self._map):
            raise FrameError("tensors that reach behind the shared memory")
        # All views of this array, and views of views, lead to it as their base: when it goes, the last of them has.
        place = np.frombuffer(self._map, np.uint8, plan.spread_bytes, begin)
        self._in_use[begin] = weakref.ref(place, partial(self._gone, begin))
        return layout.spread_tensors(plan, place)

    def close(self) -> None:
        """Let go of the file, now or when the last array on it is gone; nobody is told any more."""
        self._in_use.clear()
        memory, self._map = self._map, None  # from here on only arrays lead to it, and the last of them ends it
        if memory is not None:
            with contextlib.suppress(BufferError):  # there are some
                memory.close()

    def _gone(self, begin: int, _: weakref.ref[Array]) -> None:
        if self._in_use.pop(begin, None) is not None:
            self._on_free(begin)
