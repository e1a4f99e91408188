"""Tensor data of the Open Inference Protocol: its datatypes, and one tensor in JSON or in raw bytes.

In JSON data is a list of the elements in row-major order, or lists in lists as deep as the shape has axes (Open
Inference Protocol, version 2, "Tensor Data"). Raw data is little-endian and row-major without gaps; a string is its
length in 4 bytes and then its bytes (Triton Inference Server, "Binary Tensor Data Extension").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import cast

import numpy as np

from byoc_server.codecs.values.conform import records_to_array, shape_text
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Array, TensorSpec

DATATYPES: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": STRING,
}
"""Datatype as the protocol calls it -> dtype in the server. ``BF16`` is missing: NumPy has no such dtype."""

DATATYPE_NAMES: Mapping[np.dtype[np.generic], str] = {dtype: name for name, dtype in DATATYPES.items()}

_RAW_DTYPES = {dtype: dtype.newbyteorder("<") for dtype in DATATYPES.values() if dtype != STRING}
_LENGTH = struct.Struct("<I")
_NATIVE_KINDS = "fiub"


def data_from_json(values: object, spec: TensorSpec, shape: tuple[int, ...], field: str) -> Array:
    """Read the data of one tensor as it stands in JSON.

    Args:
        values: what the parser made of it, or an array of the dtype declared.
        spec: of what the request declares: its name, its dtype.
        shape: that the request declares, of at least one element.
        field: how error messages call the values.

    Returns:
        Array of the dtype and shape declared.

    Raises:
        InvalidPayload: it is no list, not of that shape, or an element is not of that dtype.
    """
    if isinstance(values, np.ndarray) and values.shape in (shape, (math.prod(shape),)):
        return values.reshape(shape)
    if type(values) is not list:
        raise InvalidPayload(f"{field}: expected a list, got {shown(values)}", field=field, expected="a list")
    nested = len(shape) > 1 and bool(values) and type(values[0]) is list
    length = shape[0] if nested else math.prod(shape)
    if len(values) != length:
        wanted = f"{length} lists" if nested else f"{length} values"
        raise InvalidPayload(
            f"{field}: expected {wanted} for shape {shape_text(shape)}, got {len(values)}",
            field=field,
            expected=wanted,
            got=str(len(values)),
        )
    array = records_to_array(values, spec, shape[1:] if nested else (), lambda i: f"{field}[{i}]")
    return array.reshape(shape)


def data_from_bytes(body: bytes, start: int, size: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """Read the data of one tensor as it stands in ``body[start : start + size]``.

    Args:
        body: of the request.
        start: first byte of the data.
        size: bytes of the data, all of which are there; for numbers just what they take.
        dtype: that the request declares.
        shape: that the request declares, of at least one element.

    Returns:
        Array of the dtype and shape declared: for numbers a view of ``body`` if it is aligned there, as vectorised
        code relies on that, else a copy.

    Raises:
        InvalidPayload: the strings do not end where they should, or are not UTF-8.
    """
    count = math.prod(shape)
    if dtype == STRING:
        return _texts(body, start, start + size, count).reshape(shape)
    if dtype.kind == "b":  # the bytes may be others than 0 and 1
        truths: Array = np.frombuffer(body, np.uint8, count, start) != 0
        return truths.reshape(shape)
    array: Array = np.frombuffer(body, _RAW_DTYPES[dtype], count, start).reshape(shape)
    return array if array.flags.aligned and array.dtype.isnative else array.astype(dtype)


def _texts(body: bytes, start: int, end: int, count: int) -> Array:
    """Read ``count`` strings, each behind its length; shape (count,)."""
    texts: list[str] = []
    at = start
    try:
        for _ in range(count):
            text_at = at + _LENGTH.size
            at = text_at + _LENGTH.unpack_from(body, at)[0]
            texts.append(body[text_at:at].decode())
    except (struct.error, UnicodeDecodeError):
        at = -1
    if at != end:  # places only grow: if the last is right, all are
        raise _no_texts(body, start, end, count)
    array = np.empty(count, dtype=object)
    array[:] = texts
    return array


def _no_texts(body: bytes, start: int, end: int, count: int) -> InvalidPayload:
    """Why these bytes are not ``count`` strings."""
    at = start
    for number in range(1, count + 1):
        text_at = at + _LENGTH.size
        length = _LENGTH.unpack_from(body, at)[0] if text_at <= end else 0
        if text_at + length > end:
            return InvalidPayload(
                f"byte {at}: string {number} of {count} goes beyond the end of the tensor's data",
                field=f"byte {at}",
                expected="a length of 4 bytes and as many bytes",
            )
        try:
            body[text_at : text_at + length].decode()
        except UnicodeDecodeError as error:
            place = f"byte {text_at + error.start}"
            return InvalidPayload(f"{place} of the body is not UTF-8", field=place, expected="UTF-8")
        at = text_at + length
    return InvalidPayload(
        f"byte {at}: the {count} strings end here, {end - at} bytes before the tensor's data does",
        field=f"byte {at}",
        expected="the end of the tensor's data",
        got=f"{end - at} more bytes",
    )


def data_to_json(array: Array) -> object:
    """The elements in row-major order, as the JSON writer takes them; NaN and infinities leave as ``null``."""
    flat = array.ravel()
    return flat if flat.dtype.kind in _NATIVE_KINDS else flat.tolist()


def data_to_bytes(array: Array) -> memoryview | bytes:
    """The elements in row-major order as raw bytes.

    Raises:
        UnicodeEncodeError: a string is not Unicode.
    """
    if array.dtype != STRING:
        flat = array.astype(array.dtype.newbyteorder("<"), copy=False).ravel()
        return flat.view(np.uint8).data
    encoded = [cast(str, text).encode() for text in array.ravel().tolist()]
    return b"".join([part for text in encoded for part in (_LENGTH.pack(len(text)), text)])
