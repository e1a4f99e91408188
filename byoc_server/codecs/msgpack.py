"""``application/msgpack``: the documents of ``application/json`` in MessagePack (its specification, as of 2017).

Beside what JSON has, ``bin`` values stand for the bytes of a string, or for a whole value of a uint8 input; and arrays
may come as the package msgpack-numpy writes them: ``{"nd": true, "type": "<f4", "shape": [2, 4], "data": BIN}``.
Pickled arrays and extension types are refused, and timestamps fit no input.

Answers are plain lists: ``{"predictions": [...]}`` as in JSON, but NaN and infinities stay what they are.

Lists of floats, the usual case, are neither read nor written one by one: as each takes a marker and a fixed number of
bytes, they are the columns of a table.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import msgpack
import numpy as np
from msgpack.exceptions import OutOfData, StackError

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.values.conform import convert
from byoc_server.codecs.values.documents import FORMS, tensors_from_document
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_PREDICTIONS: bytes = b"\x81" + msgpack.packb("predictions")
_ROOTS = tuple(b"\x81" + msgpack.packb(key) for key in ("instances", "inputs", "features"))
_FLOATS: Mapping[int, np.dtype[Any]] = {0xCA: np.dtype(">f4"), 0xCB: np.dtype(">f8")}
"""Marker -> what follows it."""
_FEW = 200
"""Up to here it costs less to write floats one by one."""
_CONTAINERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""The bytes that lists and maps start with; others may look like them."""
_CONTAINER_BYTES = 64
"""What Python takes for a list of no items and the reference to it, with the collector's share."""
_BINS = b"\xc4\xc5\xc6"
_CONTAINERS_A_BIN = 3
"""Where they are values of uint8 inputs they become arrays, each of which takes as much as so many lists."""
_MAX_GROWTH = 32
_FREE_BYTES = 1024 * 1024
_MAX_RANK = 32
"""More than any operator takes; NumPy stops at 64."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read any of the request forms. See ``Codec.decode``."""
    spec = signature.sole_input
    if spec is not None and spec.dtype.kind == "f" and signature.batched:
        array = _float_records(body, spec, signature.record_shapes[spec.name])
        if array is not None:
            return {spec.name: array}
    return tensors_from_document(_document(body, signature), signature, options)


def _float_records(body: bytes, spec: TensorSpec, record_shape: tuple[int | None, ...]) -> Array | None:
    """Take the commonest body in the fewest steps: records as nested lists of floats of one width.

    Returns:
        Array of ``spec.dtype``, shape (N, *record_shape), or ``None`` when it is anything else, right or wrong.
    """
    start = at = next((len(root) for root in _ROOTS if body.startswith(root)), 0)
    lists: list[tuple[int, bytes]] = []
    for expected in (None, *record_shape):
        header = _list_header(body, at)
        if header is None or expected not in (None, header[0]):
            return None
        lists.append(header)
        at += len(header[1])
    number = _FLOATS.get(body[at]) if at < len(body) else None
    if number is None:
        return None
    sizes = [1 + number.itemsize]
    for length, header_bytes in reversed(lists):
        sizes.append(len(header_bytes) + length * sizes[-1])
    if start + sizes.pop() != len(body):
        return None
    cells = np.frombuffer(body, np.uint8, offset=start)
    for length, header_bytes in lists:
        cells = cells.reshape(-1, len(header_bytes) + length * sizes[-1])
        if (cells[:, : len(header_bytes)] != np.frombuffer(header_bytes, np.uint8)).any():
            return None
        cells = cells[:, len(header_bytes) :].reshape(-1, sizes.pop())
    if (cells[:, 0] != body[at]).any():
        return None
    numbers = np.ascontiguousarray(cells[:, 1:]).view(number)
    return convert(numbers.reshape([length for length, _ in lists]), spec.dtype)


def _list_header(body: bytes, at: int) -> tuple[int, bytes] | None:
    """Length of the list that starts at ``at`` and the bytes that say so; ``None`` if none does or it is empty."""
    marker = body[at : at + 1]
    if b"\x90" < marker <= b"\x9f":
        return marker[0] & 0x0F, marker
    size = {b"\xdc": 3, b"\xdd": 5}.get(marker)
    if size is None:
        return None
    length = int.from_bytes(body[at + 1 : at + size], "big")
    return (length, body[at : at + size]) if length else None


def _document(body: bytes, signature: Signature) -> object:
    """Parse the body.

    All of it is skipped over first, which takes no memory: from then on every list is known to have as many items as
    its header says. Without that, headers of a few bytes, one in the other, could each ask for a large list.

    Raises:
        InvalidPayload: it is not one MessagePack value, or holds what is not taken.
        TensorsTooLarge: so many lists, maps or arrays for its length that they would take a multiple of it.
    """
    if not body:
        raise InvalidPayload("body is empty", field="body", expected=FORMS, got="nothing")
    unpacker = msgpack.Unpacker(max_buffer_size=len(body))
    unpacker.feed(body)
    try:
        unpacker.skip()
    except OutOfData:
        place = f"byte {len(body)}"
        raise _invalid("it ends in the middle of a value", place) from None
    except StackError:
        raise _invalid("it is nested too deeply", f"byte {unpacker.tell()}") from None
    except ValueError as error:  # without its C part the library says more
        raise _invalid(str(error) or "0xc1 starts no value", f"byte {unpacker.tell()}") from None
    end = unpacker.tell()
    if end < len(body):
        raise _invalid(f"{len(body) - end} bytes follow the document", f"byte {end}")
    has_arrays = any(spec.dtype == np.uint8 for spec in signature.inputs)
    try:
        return cast(object, msgpack.unpackb(body, ext_hook=_extension, **_container_hooks(body, has_arrays)))
    except UnicodeDecodeError as error:
        reason = f"a string is not UTF-8: byte {error.start} of it is 0x{error.object[error.start]:02x}"
    except ValueError as error:
        reason = str(error)  # the text alone: the error leads to this frame, and the frame to the body
    raise _invalid(reason, "body")


def _container_hooks(body: bytes, has_arrays: bool) -> dict[str, Any]:
    """What the parser is to call for lists and maps: they are counted where there may be too many of them.

    A list of no items is one byte of the body and a hundred of memory, and to take a million of them keeps the
    interpreter busy for a second.

    Args:
        body: the whole of it.
        has_arrays: whether ``bin`` values may be arrays, and so are counted as well.
    """
    most = (_MAX_GROWTH * len(body) + _FREE_BYTES) // _CONTAINER_BYTES
    lookalikes = _number_of(_CONTAINERS, body) + _CONTAINERS_A_BIN * has_arrays * _number_of(_BINS, body)
    if lookalikes <= most:
        return {"object_pairs_hook": _object}
    left = most

    def count(bins: int) -> None:
        nonlocal left
        left -= 1 + _CONTAINERS_A_BIN * bins
        if left < 0:
            raise TensorsTooLarge(
                f"body holds more than {most} lists and maps in {len(body)} bytes: send longer rows as lists of "
                "floats, or arrays in the form of msgpack-numpy ('nd')",
                field="body",
                expected=f"at most {most} lists and maps",
                got="more",
            )

    def counted_list(items: list[object]) -> list[object]:
        count(sum([type(item) is bytes for item in items]) if has_arrays else 0)
        return items

    def counted_map(pairs: Sequence[tuple[str | bytes, Any]]) -> object:
        count(sum([type(item) is bytes for _, item in pairs]) if has_arrays else 0)
        return _object(pairs)

    return {"list_hook": counted_list, "object_pairs_hook": counted_map}


def _number_of(markers: bytes, body: bytes) -> int:
    return len(body) - len(body.translate(None, markers))


def _invalid(reason: str, place: str) -> InvalidPayload:
    return InvalidPayload(f"body is not valid MessagePack: {reason}", field=place, expected=FORMS)


def _extension(code: int, data: bytes) -> object:
    raise InvalidPayload(
        f"body holds a value of extension type {code}, which is not understood",
        field="body",
        expected="lists, maps, numbers, booleans, strings and bin",
        got=f"extension type {code}",
    )


def _object(pairs: Sequence[tuple[str | bytes, Any]]) -> object:
    """One map: an array if it is one of msgpack-numpy's, whose keys may be ``bin``."""
    document = dict(pairs)
    if len(document) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidPayload(f"a map has the key {shown(twice)} twice", field=shown(twice), expected="unique keys")
    if b"nd" in document:
        return _array({key.decode("latin-1"): item for key, item in pairs if isinstance(key, bytes)})
    if isinstance(document.get("nd"), bool) and "data" in document:
        return _array(cast(dict[str, Any], document))
    return document


def _array(document: dict[str, Any]) -> object:
    """An array, using the bytes where they lie; a number or string if it has no axes."""
    shape, data = document.get("shape") if document.get("nd") is True else [], document.get("data")
    dtype = _dtype(document.get("type"))
    if not isinstance(data, bytes):
        raise _bad_array("'data'", "bin", shown(data))
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(d) is int and d > 0 for d in shape):
        raise _bad_array("'shape'", "a list of lengths from 1", shown(shape))
    count = math.prod(shape)
    if count * dtype.itemsize != len(data):
        size = f"{count * dtype.itemsize} bytes" if count < 2**63 else "more bytes than there can be"
        raise _bad_array("'data'", size, f"{len(data)} bytes")
    array: Array | None = np.frombuffer(data, dtype).reshape(shape)
    if dtype.kind in "US":
        array = convert(cast(Array, array), STRING)
        if array is None:
            raise _bad_array("'data'", "valid characters", "others")
    return array if shape else cast(Any, array).item()


def _dtype(name: object) -> np.dtype[Any]:
    dtype = _known_dtype(name) if isinstance(name, str | bytes) else None
    if dtype is None:
        raise _bad_array("'type'", "numbers, booleans or fixed-width strings, such as '<f4'", shown(name))
    return dtype


@lru_cache(maxsize=64)
def _known_dtype(name: str | bytes) -> np.dtype[Any] | None:
    """A dtype by the text of NumPy's array protocol; ``None`` for objects, which are pickled, and all others."""
    text = name if isinstance(name, str) else name.decode("latin-1")
    known = re.fullmatch("[<>|=]?(f[248]|[iu][1248]|b1|[US][1-9][0-9]{0,7})", text)
    return np.dtype(text) if known else None


def _bad_array(part: str, expected: str, got: str) -> InvalidPayload:
    return InvalidPayload(
        f"an array ('nd') with {part}: expected {expected}, got {got}", field=part, expected=expected, got=got
    )


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write ``{"predictions": [...]}``. See ``Codec.encode``."""
    arrays = {spec.name: tensors[spec.name] for spec in signature.outputs}
    if len(arrays) == 1:
        (array,) = arrays.values()
        return _PREDICTIONS + _packed(array)
    values = {name: array.tolist() for name, array in arrays.items()}
    rows = zip(*values.values(), strict=True) if signature.batched else []
    predictions = [dict(zip(values, row, strict=True)) for row in rows] if signature.batched else values
    return _PREDICTIONS + cast(bytes, msgpack.packb(predictions, use_single_float=_are_single(*arrays.values())))


def _are_single(*arrays: Array) -> bool:
    """Whether 32 bits hold the floats among them exactly."""
    return not any(array.dtype == np.float64 for array in arrays)


def _packed(array: Array) -> bytes:
    """Nested lists; floats have 64 bits if ``array`` has doubles, else 32."""
    is_single = _are_single(array)
    if array.dtype.kind != "f" or array.size < _FEW:
        return cast(bytes, msgpack.packb(array.tolist(), use_single_float=is_single))
    # The bytes of an item are a row of a table; then those of an innermost list, and so on.
    marker = 0xCA if is_single else 0xCB
    items = np.empty(array.size, [("marker", "u1"), ("number", _FLOATS[marker])])
    items["marker"], items["number"] = marker, array.ravel()
    table = items.view(np.uint8).reshape(array.size, -1)
    packer = msgpack.Packer()
    for length in reversed(array.shape):
        table = table.reshape(-1, length * table.shape[1])
        header = np.frombuffer(packer.pack_array_header(length), np.uint8)
        table = np.hstack([np.broadcast_to(header, (len(table), len(header))), table])
    return table.tobytes()
