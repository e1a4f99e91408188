"""Arrays in page-locked memory, which a GPU reads and writes by itself, at the full speed of the bus.

From ordinary memory the driver copies through a buffer of its own, while the calling thread waits. ONNX Runtime has no
documented way to such memory for a program in Python: its allocator for it belongs to the CUDA provider, and
``OrtValue.ortvalue_from_shape_and_type(memory_info=...)`` reaches only providers that are plug-ins, which that of
``onnxruntime-gpu`` 1.31 is not. So the memory is NumPy's, and CUDA is told to lock its pages (CUDA Runtime API 13.0,
section Memory Management, ``cudaHostRegister``).
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from byoc_server.engines.onnx_runtime import ort
from byoc_server.types import Array

logger = logging.getLogger(__name__)

_PORTABLE = 1
"""``cudaHostRegisterPortable``: locked for every context of the process."""

Empty = Callable[[Sequence[int], np.dtype[np.generic]], Array]
"""Makes an array of a shape and dtype, its content undefined."""


def page_locked_arrays() -> Empty:
    """How to make such arrays here: of ordinary memory where CUDA's runtime library is not to be had."""
    name = f"libcudart.so.{str(getattr(ort, 'cuda_version', '')).partition('.')[0]}"
    try:
        library = ctypes.CDLL(name)  # loaded by now, by its name, together with the CUDA provider
        library.cudaHostRegister.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        library.cudaHostUnregister.argtypes = [ctypes.c_void_p]
        library.cudaGetLastError.argtypes = []
    except (OSError, AttributeError) as error:
        logger.debug("buffers are in ordinary memory: %s", error)
        return np.empty
    return PageLocked(library).empty


class PageLocked:
    """Makes arrays whose pages are locked as long as they live.

    Args:
        library: has ``cudaHostRegister``, ``cudaHostUnregister`` and ``cudaGetLastError``.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def empty(self, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
        """An array, its content undefined. Ordinary memory where the system does not let this one be locked."""
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        locked_bytes = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages, which it shares with nobody
        memory = np.empty(locked_bytes + mmap.PAGESIZE, np.uint8)
        start = -memory.ctypes.data % mmap.PAGESIZE
        address = memory.ctypes.data + start
        code = self._library.cudaHostRegister(address, locked_bytes, _PORTABLE)
        if code:  # mostly a limit of the container; copies are slower and nothing else
            logger.debug("%d bytes could not be page-locked: CUDA error %d", locked_bytes, code)
            self._library.cudaGetLastError()  # or ONNX Runtime would take it for the failure of its next kernel
        else:
            # The pages are unlocked before NumPy gives the memory back: weak references are told first.
            unlock = weakref.finalize(memory, self._library.cudaHostUnregister, address)
            unlock.atexit = False  # the process takes its pages with it, and CUDA may have gone by then
        return memory[start : start + size].view(dtype).reshape(shape)
