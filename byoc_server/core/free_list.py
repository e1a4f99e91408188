"""Which parts of a piece of memory are free. Pure.

Lowest place first: what is in use stays together at the begin, on pages that have been touched before, and requests
that come one after the other lie side by side.
"""

from __future__ import annotations

from bisect import bisect_left

UNIT_BYTES = 64
"""Places begin at multiples of this: a cache line, and enough for every instruction a kernel may use."""


class FreeList:
    """The free places of one piece of memory.

    Args:
        size: of the memory in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[tuple[int, int]] = [(0, size)] if size else []  # begin and length, in ascending order
        self._used: dict[int, int] = {}
        self._high_water = 0

    def __len__(self) -> int:
        """How many places are in use."""
        return len(self._used)

    def allocate(self, size: int) -> int | None:
        """Take a place of ``size`` bytes; its offset, or ``None`` if there is none of that length."""
        size = max(size + -size % UNIT_BYTES, UNIT_BYTES)
        for index, (begin, length) in enumerate(self._free):
            if length >= size:
                if length == size:
                    del self._free[index]
                else:
                    self._free[index] = begin + size, length - size
                self._used[begin] = size
                self._high_water = max(self._high_water, begin + size)
                return begin
        return None

    def free(self, begin: int) -> None:
        """Give a place back.

        Raises:
            KeyError: it is not in use.
        """
        length = self._used.pop(begin)
        index = bisect_left(self._free, (begin, 0))
        if index < len(self._free) and self._free[index][0] == begin + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == begin:
            index -= 1
            begin, before = self._free.pop(index)
            length += before
        self._free.insert(index, (begin, length))

    def take_high_water(self) -> int:
        """Where the last place ended of all that were in use since this was asked before."""
        high_water = self._high_water
        begin, length = self._free[-1] if self._free else (0, 0)
        self._high_water = begin if begin + length == self._size else self._size
        return high_water
