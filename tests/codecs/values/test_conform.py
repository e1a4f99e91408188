"""Arrays brought to another dtype: what is copied, and what keeps its meaning."""

from __future__ import annotations

import numpy as np
import pytest

from byoc_server.codecs.values.conform import convert
from byoc_server.types import STRING, Array
from tests.codecs.signatures import assert_same, texts

NUMBERS = ["float16", "float32", "float64", "int8", "int64", "uint8", "uint64"]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_what_fits_already_is_not_copied(dtype: str) -> None:
    array: Array = np.frombuffer(np.arange(6).astype(dtype).tobytes(), dtype).reshape(2, 3)
    converted = convert(array, np.dtype(dtype))
    assert converted is array


@pytest.mark.parametrize("dtype", NUMBERS)
def test_what_lies_otherwise_in_memory_is_copied(dtype: str) -> None:
    expected = np.arange(6).astype(dtype).reshape(2, 3)
    swapped = expected.astype(expected.dtype.newbyteorder())
    unaligned = np.frombuffer(b"\0" + expected.tobytes(), dtype, offset=1).reshape(2, 3)
    for array in (np.asfortranarray(expected), np.repeat(expected, 2, axis=1)[:, ::2], swapped, unaligned):
        converted = convert(array, np.dtype(dtype))
        assert converted is not None
        assert_same(converted, expected)
        assert converted.flags.c_contiguous
        assert converted.flags.aligned
        assert converted.dtype.isnative


def test_bytes_of_booleans_are_made_0_and_1() -> None:
    array: Array = np.frombuffer(bytes([0, 1, 2]), np.bool_)
    for dtype in ("bool", "uint8", "float32"):
        converted = convert(array, np.dtype(dtype))
        assert converted is not None
        assert converted.view(np.uint8 if dtype != "float32" else dtype).tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_an_array_without_axes_stays_one(dtype: str) -> None:
    converted = convert(np.array(1, "uint8"), np.dtype(dtype))
    assert converted is not None
    assert_same(converted, np.array(1, dtype))


def test_texts_of_more_axes_than_numpy_walks() -> None:
    array = texts(["a"]).reshape((1,) * 40)
    assert convert(array, STRING) is array
    assert convert(np.array([1], object).reshape((1,) * 40), STRING) is None
