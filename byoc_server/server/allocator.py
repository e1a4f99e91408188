"""Keeping the memory of large bodies from one request to the next."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
"""The most that glibc takes, and what it comes to by itself where so large a block was freed once."""
_TRIM_THRESHOLD_BYTES = 2 * _MMAP_THRESHOLD_BYTES
"""By glibc's own rule: twice the other one."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have the C library keep up to 64 MiB of freed memory at the end of its heap, and map only blocks over 32 MiB.

    glibc begins with 128 KiB for both (mallopt(3)), and raises them when it frees a larger block. So a process that
    has never had a large one gives the memory of every large body back to the kernel, and the next body waits until
    each of its pages has been mapped and zeroed: at 600 KB that takes longer than everything else that is done for the
    request. A process that has loaded a model seldom does so: the model was such a block.

    Does nothing with a C library that has no such thresholds, as musl.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
