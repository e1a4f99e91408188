"""Arrays in page-locked memory, with a stand-in for CUDA's runtime library."""

from __future__ import annotations

import ctypes
import logging
import mmap
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

from byoc_server.engines.page_locked import PageLocked, page_locked_arrays
from tests.engines.fake_cuda import needs_gpu

FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)


class Runtime:
    """Keeps which memory is locked, like CUDA's runtime library."""

    def __init__(self, code: int = 0) -> None:
        self.locked: dict[int, int] = {}
        self.last_error = 0
        self._code = code

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802  # its name
        assert flags == 1
        assert address % mmap.PAGESIZE == size % mmap.PAGESIZE == 0, "these pages would be shared with other memory"
        self.last_error = self._code
        if not self._code:
            self.locked[address] = size
        return self._code

    def cudaGetLastError(self) -> int:  # noqa: N802  # its name
        error, self.last_error = self.last_error, 0
        return error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802  # its name
        del self.locked[address]
        return 0


def arrays(runtime: Runtime) -> PageLocked:
    return PageLocked(cast(ctypes.CDLL, runtime))


def test_memory_is_locked_as_long_as_the_array_lives() -> None:
    runtime = Runtime()
    array = arrays(runtime).empty((3, 4), FLOAT32)
    assert (array.shape, array.dtype) == ((3, 4), FLOAT32)
    assert runtime.locked == {array.ctypes.data: mmap.PAGESIZE}
    view = array[1:]
    del array
    assert len(runtime.locked) == 1
    del view
    assert runtime.locked == {}


def test_memory_is_locked_as_long_as_a_value_stands_on_it() -> None:
    runtime = Runtime()
    value = ort.OrtValue.ortvalue_from_numpy(arrays(runtime).empty((2, 2), FLOAT32))
    assert list(runtime.locked) == [value.data_ptr()]
    del value
    assert runtime.locked == {}


def test_memory_that_cannot_be_locked_serves_as_well(caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime(code=2)
    with caplog.at_level(logging.DEBUG):
        array = arrays(runtime).empty((2,), FLOAT32)
    array[:] = 1
    assert "bytes could not be page-locked: CUDA error 2" in caplog.text
    assert runtime.last_error == 0, "ONNX Runtime would find it behind its next kernel"


def test_there_is_nothing_to_lock_in_an_empty_array() -> None:
    runtime = Runtime()
    assert arrays(runtime).empty((0, 3), FLOAT32).shape == (0, 3)
    assert runtime.locked == {}


def test_the_runtime_library_is_that_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    register, unregister, last_error = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()

    def load(name: str) -> Any:
        names.append(name)
        return SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister, cudaGetLastError=last_error)

    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert page_locked_arrays() != np.empty
    assert names == ["libcudart.so.13"]
    assert register.argtypes == [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    assert unregister.argtypes == [ctypes.c_void_p]


@pytest.mark.parametrize("missing", ["library", "function"])
def test_without_the_runtime_library_memory_is_ordinary(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def load(name: str) -> Any:
        if missing == "library":
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert page_locked_arrays() is np.empty


@pytest.mark.parametrize("dtype", [np.bool_, np.float16, np.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1000, 7), ()])
def test_arrays_are_as_ordinary_ones(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    array = arrays(Runtime()).empty(shape, np.dtype(dtype))
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.gpu
@needs_gpu
def test_cuda_really_locks_pages_and_unlocks_them() -> None:
    ort.preload_dlls()
    empty = page_locked_arrays()
    assert empty is not np.empty
    library = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")
    for count in (1, 100, 1 << 20, 1 << 20):  # the same memory comes again, and is refused while it is still locked
        array = empty((count,), FLOAT32)
        address = ctypes.c_void_p(array.ctypes.data)
        assert library.cudaHostUnregister(address) == 0
        assert library.cudaHostRegister(address, ctypes.c_size_t(mmap.PAGESIZE), 1) == 0
        del array
