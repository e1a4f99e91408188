"""``application/x-npy``: NumPy's own array file (NEP 1, "A simple file format for NumPy arrays", versions 1.0 and 2.0).

A plain array is the one input or output; a structured array of shape (N,) has one field per input or output. Pickled
object arrays are never read: loading one runs code of the sender's choice.

The data is used where it lies in the body; only the header is parsed, and that once for all bodies that share it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy_format

from byoc_server.codecs.base import DecodeOptions, Decoder, EncodeOptions
from byoc_server.codecs.values.conform import conform_array, require_equal_rows, require_inputs
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import Array, Signature, Tensors

_MAGIC = b"\x93NUMPY"
_PREFIX_BYTES = {1: 10, 2: 12}
"""Major version -> bytes before the header text: magic, version, length of 2 or 4 bytes."""
_MAX_HEADER_BYTES = 16 * 1024
_SMALL_BYTES = 1024 * 1024
"""Of larger files the header is the least part, and a row of theirs may be larger than a dtype can be."""
_USUAL_HEADER_BYTES = 128
"""NumPy fills headers up to a multiple of 64, and needs more than one for most dtypes and shapes."""
_MOST_HEADERS = 32
"""Remembered; clients use a handful, an attacker gets no more."""
_MAX_RANK = 32
"""More than any operator takes; a field of a structured array may add its own to that, and NumPy stops at 64."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one array, or one structured array with a field per input. See ``Codec.decode``."""
    array = read_array(body)
    if array.dtype.names is not None:
        require_inputs(array.dtype.names, signature, "body")
        fields = cast(Any, array)
        tensors = {spec.name: conform_array(fields[spec.name], spec, signature, spec.name) for spec in signature.inputs}
        return require_equal_rows(tensors, signature)
    spec = signature.sole_input
    if spec is None:
        expected = "a structured array with the fields " + ", ".join(repr(s.name) for s in signature.inputs)
        raise InvalidPayload(
            f"the model has several inputs: expected {expected}", expected=expected, got="a plain array"
        )
    return {spec.name: conform_array(array, spec, signature, "body")}


def decoder(signature: Signature, options: DecodeOptions) -> Decoder:
    """Read one array, again and again. See ``MakeDecoder``.

    A client's arrays share one header, which is most of what there is to look at. Whether a view of the body will do
    follows from the header, too: the bytes of every ``bytes`` object lie aligned alike.
    """
    spec = signature.sole_input
    if spec is None:
        return partial(decode, signature=signature, options=options)
    name, frombuffer = spec.name, np.frombuffer
    known: dict[bytes, tuple[int, np.dtype[Any], int]] = {}

    def decode_known(body: bytes) -> Tensors:
        like = known.get(body[:_USUAL_HEADER_BYTES])
        if like is not None and like[0] == len(body):
            return {name: frombuffer(body, like[1], like[2], _USUAL_HEADER_BYTES)}
        tensors = decode(body, signature, options)
        array = tensors[name]
        base: object = array.base
        as_it_lies = base is body and array.flags.c_contiguous and array.ndim > 0 and len(body) < _SMALL_BYTES
        if as_it_lies and len(body) - array.nbytes == _USUAL_HEADER_BYTES and len(known) < _MOST_HEADERS:
            row = np.dtype((array.dtype, array.shape[1:]))  # the quickest way to an array of that shape
            known[body[:_USUAL_HEADER_BYTES]] = len(body), row, len(array)
        return tensors

    return decode_known


def read_array(data: bytes | bytearray, start: int = 0, end: int | None = None, *, empty: bool = False) -> Array:
    """Read one file, which is all or a part of ``data``.

    Args:
        data: where it lies.
        start: its first byte.
        end: the byte after its last one; the end of ``data`` by default.
        empty: whether an array without elements will do.

    Returns:
        Array of the dtype, byte order and shape the file declares: a view of ``data`` if it is aligned there, as
        vectorised code relies on that, else a copy.

    Raises:
        InvalidPayload: it is no such file, or its length is not what it declares; bytes are counted from ``start``.
    """
    size = (len(data) if end is None else end) - start
    magic = data[start : start + min(size, 6)]
    if magic != _MAGIC:
        raise InvalidPayload(
            "this is not an .npy file: it does not start with the bytes 93 4E 55 4D 50 59",
            field="byte 0",
            expected="the .npy magic",
            got=magic.hex(" ") or "nothing",
        )
    prefix = _PREFIX_BYTES.get(data[start + 6]) if size > 6 else None
    if prefix is None or size < prefix:
        raise InvalidPayload("this is not an .npy file of version 1 or 2", field="byte 6", expected="version 1 or 2")
    header = prefix + int.from_bytes(data[start + 8 : start + prefix], "little")
    if header > min(size, _MAX_HEADER_BYTES):
        raise InvalidPayload(
            f"the .npy header claims to end at byte {header}; the file has {size} bytes, "
            f"the limit is {_MAX_HEADER_BYTES}",
            field="byte 8",
        )
    shape, fortran_order, dtype = _parse_header(bytes(data[start : start + header]))
    count = math.prod(shape)
    if count * dtype.itemsize != size - header or (count == 0 and not empty):
        raise InvalidPayload(
            f"the .npy header declares shape {list(shape)} of {dtype.name}, {count * dtype.itemsize} bytes; "
            f"the file has {size - header}",
            field=f"byte {header}",
            expected=f"{count * dtype.itemsize} bytes" if count else "at least one element",
            got=f"{size - header} bytes",
        )
    array: Array = np.ndarray(shape, dtype, data, start + header, order="F" if fortran_order else "C")
    return array if array.flags.aligned else array.copy()


@lru_cache(maxsize=256)
def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse everything before the data with NumPy's own reader, which costs ten times the rest of a small request."""
    stream = io.BytesIO(head)
    try:
        version = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if version[0] == 1 else npy_format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # NumPy's reader lets out whatever its parsers raise at a hostile header
        raise InvalidPayload(
            f"the .npy header cannot be read: {shown(str(error))}", field="byte 8", expected="a NumPy array header"
        ) from None
    if dtype.hasobject:
        raise InvalidPayload(
            "the array holds pickled objects, which are never loaded; "
            "save strings with a fixed-width dtype such as '<U16'",
            field="dtype",
            expected="numbers, booleans or fixed-width strings",
            got="object",
        )
    if dtype.itemsize == 0 or dtype.subdtype or len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        raise InvalidPayload("the .npy header declares an impossible shape or dtype", field="byte 8")
    if max(shape, default=0) >= 2**63 or math.prod(shape) >= 2**63:  # an integer too long for a message
        raise InvalidPayload("the .npy header declares more elements than there can be", field="byte 8")
    return shape, fortran_order, dtype


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one array, or a structured array with a field per output. See ``Codec.encode``."""
    arrays = {spec.name: storable(tensors[spec.name]) for spec in signature.outputs}
    if len(arrays) == 1:
        (array,) = arrays.values()
        return file_header(array) + array.tobytes()
    rows = {a.shape[:1] if signature.batched else () for a in arrays.values()}
    if len(rows) > 1:
        raise NotAcceptable(
            "application/x-npy cannot carry outputs with different numbers of records", accepted=["application/json"]
        )
    try:
        "".join(arrays).encode("latin-1")  # versions 1 and 2 of the format, the ones everyone reads
    except UnicodeEncodeError:
        raise NotAcceptable(
            "application/x-npy cannot carry the names of these outputs", accepted=["application/json"]
        ) from None
    shape = rows.pop()
    table = np.empty(shape, [(name, a.dtype, a.shape[len(shape) :]) for name, a in arrays.items()])
    for name, array in arrays.items():
        table[name] = array
    stream = io.BytesIO()
    npy_format.write_array(stream, table, allow_pickle=False)
    return stream.getvalue()


def encode_each(
    tensors: Tensors, signature: Signature, options: EncodeOptions, counts: Sequence[int]
) -> list[bytes] | None:
    """Write several answers in one pass. See ``EncodeEach``."""
    if len(signature.outputs) > 1:
        return None
    array = tensors[signature.outputs[0].name]
    if array.dtype.hasobject:
        return None
    data, row_bytes = array.tobytes(), array.nbytes // len(array)
    dtype, record_shape = array.dtype.str, array.shape[1:]
    headers = {count: _header(dtype, (count, *record_shape)) for count in {*counts}}
    bounds = pairwise(accumulate(counts, initial=0))
    return [headers[end - begin] + data[begin * row_bytes : end * row_bytes] for begin, end in bounds]


def storable(array: Array) -> Array:
    """An array as a file can hold it: strings get a fixed width.

    Raises:
        NotAcceptable: a string would not come back as it was.
    """
    if not array.dtype.hasobject:
        return array
    if any(text.endswith("\0") for text in array.ravel().tolist()):
        raise NotAcceptable(
            "an .npy file cannot carry a string that ends with a zero character", accepted=["application/json"]
        )
    return array.astype(np.str_)


def file_header(array: Array) -> bytes:
    """What stands before the data, ``array.tobytes()``, of an array that is not structured."""
    return _header(array.dtype.str, array.shape)


@lru_cache(maxsize=1024)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    npy_format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()
