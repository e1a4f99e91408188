"""``application/x-tfexample``: serialised ``tf.train.Example`` messages, in a TFRecord file or one of them bare.

Sources: TensorFlow, ``tensorflow/core/example/example.proto`` and ``feature.proto``; TensorFlow guide, "TFRecord and
tf.train.Example", for the file: 8 bytes length, CRC of them, the data, CRC of it. Both checksums are verified: 6 MB of
data take some 10 ms, less than the rest of the way through the server.

Each feature is an input of the model by name. It has no shape of its own; its values fill the input in order, and where
the input has one open axis their number tells its length.

The records of one body mostly differ in nothing but their numbers. Then only the first is parsed.
"""

from __future__ import annotations

import struct
from array import array

import numpy as np

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.protobuf.crc32c import I64, masked_crc32c
from byoc_server.codecs.protobuf.flat import (
    Column,
    FlatValue,
    Kind,
    columns_for,
    columns_from_equal_records,
    record_label,
    tensors_from_columns,
)
from byoc_server.codecs.protobuf.wire import (
    FIXED32,
    LENGTH,
    VARINT,
    WireError,
    fields,
    read_entry,
    read_repeated,
    read_texts,
)
from byoc_server.codecs.values.conform import require_inputs
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Signature, Tensors

_HEAD = struct.Struct("<QI")
"""Length of the data, CRC of the length."""
_LENGTH_BYTES = 8
_CRC_BYTES = 4
_FIRST_START = np.zeros(1, np.int64)

_BYTES_LIST = 1
_TEXTS = Kind("bytes_list", STRING, LENGTH)
_NUMBERS = {
    2: Kind("float_list", np.dtype("<f4"), FIXED32),
    3: Kind("int64_list", np.dtype(np.int64), VARINT),
}


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record an ``Example``. See ``Codec.decode``."""
    if not body:
        raise InvalidPayload("body is empty", field="body", expected="at least one record", got="nothing")
    if not _is_framed(body):
        columns = _columns(body, _FIRST_START, _FIRST_START + len(body), signature, "; nor is the body a TFRecord file")
    else:
        starts, ends = _records(body)
        columns = _equal_records(body, starts, ends, signature) or _columns(body, starts, ends, signature)
    return tensors_from_columns(columns, signature, options)


def _is_framed(body: bytes) -> bool:
    """Whether it begins with a length and its CRC; that an ``Example`` does by chance is one in four billion."""
    return (
        len(body) >= _HEAD.size
        and _HEAD.unpack_from(body)[1] == masked_crc32c(body, _FIRST_START, _FIRST_START + _LENGTH_BYTES)[0]
    )


def _records(body: bytes) -> tuple[I64, I64]:
    """Where the data of each record begins and ends, both CRCs verified."""
    starts, ends = array("q"), array("q")
    position = 0
    fault: tuple[int, str, str] | None = None
    while position < len(body):
        start = position + _HEAD.size
        if start > len(body):
            fault = position, f"{_HEAD.size} bytes of length and CRC", str(len(body) - position)
            break
        end = start + _HEAD.unpack_from(body, position)[0]
        starts.append(start)
        if end + _CRC_BYTES > len(body):
            fault = position, f"{end + _CRC_BYTES - start} bytes of data and CRC", str(len(body) - start)
            break
        ends.append(end)
        position = end + _CRC_BYTES
    data_starts = np.array(starts, np.int64)
    heads = data_starts - _HEAD.size
    _verify(body, heads, heads + _LENGTH_BYTES, "length")
    if fault is not None:
        offset, expected, got = fault
        where = f"{record_label(len(ends))}, byte {offset}"
        raise InvalidPayload(f"{where}: expected {expected}, got {got}", field=where, expected=expected, got=got)
    data_ends = np.array(ends, np.int64)
    _verify(body, data_starts, data_ends, "data")
    return data_starts, data_ends


def _verify(body: bytes, starts: I64, ends: I64, what: str) -> None:
    """Compare the CRC of each range with the one that follows it."""
    places = ends[:, np.newaxis] + np.arange(_CRC_BYTES)
    given = np.frombuffer(body, np.uint8)[places].view("<u4").ravel()
    wrong = np.flatnonzero(masked_crc32c(body, starts, ends) != given)
    if wrong.size:
        number = int(wrong[0])
        where = f"{record_label(number)}, byte {ends[number]}"
        raise InvalidPayload(
            f"{where}: the CRC-32C of the {what} does not match",
            field=where,
            expected="the masked CRC-32C",
            got="another",
        )


def _columns(body: bytes, starts: I64, ends: I64, signature: Signature, hint: str = "") -> dict[str, Column]:
    columns = columns_for(signature)
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        for name, value in _values_by_input(body, start, end, signature, number, hint).items():
            columns[name].add(value)
    return columns


def _equal_records(body: bytes, starts: I64, ends: I64, signature: Signature) -> dict[str, Column] | None:
    """Read records that differ in nothing but their numbers; ``None`` for any other body, right or wrong."""
    rows = len(starts)
    stride, rest = divmod(len(body), rows)
    start, end = int(starts[0]), int(ends[0])
    if rows < 2 or rest or stride != end + _CRC_BYTES:
        return None
    first = _values_by_input(body, start, end, signature, 0)
    return columns_from_equal_records(body, rows, stride, first, [(end, stride)], signature)


def _values_by_input(
    data: bytes, start: int, end: int, signature: Signature, number: int, hint: str = ""
) -> dict[str, FlatValue]:
    try:
        features = _features(data, start, end, len(signature.inputs))
    except WireError as error:
        where = f"{record_label(number)}, byte {error.offset}"
        raise InvalidPayload(
            f"{where}: not an Example: {error.message}{hint}",
            field=where,
            expected="a tf.train.Example",
            got=error.message,
        ) from None
    require_inputs(list(features), signature, record_label(number))
    return features


def _features(data: bytes, start: int, end: int, most: int) -> dict[str, FlatValue]:
    """Read an ``Example``: its ``features``, and their ``feature`` map."""
    features: dict[str, FlatValue] = {}
    inner: tuple[int, int] | None = None
    for number, wire_type, value, stop in fields(data, start, end):
        if number == 1:
            if wire_type != LENGTH or inner is not None:
                raise WireError(value, "a second 'features'" if inner else "a number in the place of 'features'")
            inner = value, stop
    for number, wire_type, value, stop in fields(data, *(inner or (end, end))):
        if number == 1:
            name, *feature = read_entry(data, wire_type, value, stop)
            if name in features:
                raise WireError(value, f"the feature {name[:40]!r} for the second time")
            features[name] = _feature(data, *feature)
            if len(features) > most:
                break  # there is one too many already
    return features


def _feature(data: bytes, start: int, end: int) -> FlatValue:
    """Read a ``Feature``: just one of its lists."""
    found: FlatValue | None = None
    for number, wire_type, value, stop in fields(data, start, end):
        kind = _NUMBERS.get(number)
        if kind is None and number != _BYTES_LIST:
            continue
        if wire_type != LENGTH or found is not None:
            raise WireError(
                value, "a second list of one feature" if found is not None else "a number in the place of a list"
            )
        if kind is None:
            found = FlatValue(_TEXTS, texts=read_texts(data, value, stop))
        else:
            found = FlatValue(kind)
            found.values = read_repeated(data, value, stop, {1: kind.wire_type}).get(1, found.values)
    if found is None:
        raise WireError(start, "a feature without a list")
    return found
