"""Signatures for codec tests, in one line each."""

from __future__ import annotations

import numpy as np

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.types import STRING, Array, BatchAxis, Signature, TensorSpec

Shape = tuple[int | None, ...]

OPTIONS = DecodeOptions({})
ENCODE = EncodeOptions()
ABSENT = BatchAxis.ABSENT


def spec(name: str, dtype: str, shape: Shape) -> TensorSpec:
    """An input or output; ``dtype`` is a NumPy name or ``string``."""
    return TensorSpec(name, STRING if dtype == "string" else np.dtype(dtype), shape)


def one(dtype: str = "float32", shape: Shape = (None, 4), batch_axis: BatchAxis = BatchAxis.DYNAMIC) -> Signature:
    """One input ``x`` and one output ``y`` of the same kind."""
    size = shape[0] if batch_axis is BatchAxis.FIXED else None
    return Signature((spec("x", dtype, shape),), (spec("y", dtype, shape),), batch_axis, size)


def several(*tensors: tuple[str, str, Shape], batch_axis: BatchAxis = BatchAxis.DYNAMIC) -> Signature:
    """Inputs as listed, and outputs of the same names and kinds."""
    specs = tuple(spec(*tensor) for tensor in tensors)
    return Signature(specs, specs, batch_axis)


def texts(values: object) -> Array:
    """A string array."""
    return np.array(values, dtype=object)


def assert_same(actual: Array, expected: Array) -> None:
    """Same dtype, shape and values, NaN equal to NaN."""
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)
