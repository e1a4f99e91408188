"""Arrays that lie one behind the other in memory already make up a batch: it need not be copied together. Pure.

That is so for large records from another process: they lie in its memory file in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from byoc_server.types import Array

WORTHWHILE_BYTES = 32 * 1024
"""Of one array. Smaller ones are copied in the time it takes to look."""


def joined(arrays: Sequence[Array]) -> Array | None:
    """One array over all, which share dtype and record shape; ``None`` if they do not lie one behind the other.

    It does not keep their memory from being used for something else: whoever holds it has to hold them as well.
    """
    first = arrays[0]
    memory = _memory(first)
    if memory is None:
        return None
    begin = end = _address(first)
    rows = 0
    for array in arrays:
        other = _memory(array)
        if other is None or other.obj is not memory.obj or _address(array) != end or not array.flags.c_contiguous:
            return None
        end += array.nbytes
        rows += len(array)
    offset = begin - _address(np.frombuffer(memory, np.uint8))
    return np.ndarray((rows, *first.shape[1:]), first.dtype, memory, offset)


def _memory(array: Array) -> memoryview | None:
    """All of the memory that an array lies in, if it belongs to something that is no array."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, memoryview) else None


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
