"""``application/x-recordio-protobuf``: SageMaker's records in RecordIO frames.

Sources: SageMaker Developer Guide, "Common data formats for training", for the ``Record`` message; dmlc-core,
``recordio.h`` and ``recordio.cc``, for the frames.

A frame is a magic number, a word of 3 bits flag and 29 bits length, the data, and padding to a multiple of 4. A writer
that finds the magic number within the data leaves it out and makes several frames of the record: flag 1 on the first,
2 on those between, 3 on the last. A body of one bare ``Record`` without a frame is read as well: Batch Transform takes
the frames off when it sends records singly.

A record has its values under ``features``: one named ``values`` (or as the input) for a model with one input, else one
per input. In answers the outputs stand under ``label``, as built-in algorithms put them: the only one as ``score``,
several by name. What else a record has is not looked at.

The records of one body mostly differ in nothing but their numbers. Then only the first is parsed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
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
    FIXED64,
    LENGTH,
    VARINT,
    WireError,
    count_varints,
    encode_varints,
    field,
    field_head,
    fields,
    read_entry,
    read_repeated,
    read_texts,
)
from byoc_server.codecs.values.conform import require_inputs
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import STRING, Array, Signature, Tensors

_MAGIC = struct.pack("<I", 0xCED7230A)
"""As a ``Record`` these bytes would begin with a field of a wire type that there is not: nothing begins like both."""
_HEAD_BYTES = 8
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)

_FEATURES, _LABEL = 1, 2
_VALUES, _KEYS, _SHAPE = 1, 2, 3
_TENSORS = {
    2: Kind("float32_tensor", np.dtype("<f4"), FIXED32),
    3: Kind("float64_tensor", np.dtype("<f8"), FIXED64),
    7: Kind("int32_tensor", np.dtype(np.int32), VARINT),
}
_BYTES = 9
_TEXTS = Kind("bytes", STRING, LENGTH)
_MAX_RANK = 32
"""More than any operator takes."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record a frame. See ``Codec.decode``."""
    columns = _equal_records(body, signature) or _columns(body, signature)
    return tensors_from_columns(columns, signature, options)


def _columns(body: bytes, signature: Signature) -> dict[str, Column]:
    columns = columns_for(signature)
    hint = "" if body.startswith(_MAGIC) else f"; nor does the body begin with the magic number {_MAGIC.hex(' ')}"
    for number, (data, start, end) in enumerate(_records(body)):
        for name, value in _values_by_input(data, start, end, [], signature, number, hint).items():
            columns[name].add(value)
    return columns


def _equal_records(body: bytes, signature: Signature) -> dict[str, Column] | None:
    """Read records that differ in nothing but their numbers; ``None`` for any other body, right or wrong."""
    if len(body) < _HEAD_BYTES or not body.startswith(_MAGIC):
        return None
    (word,) = struct.unpack_from("<I", body, 4)
    end = _HEAD_BYTES + word  # with a flag it is beyond any body
    rows, rest = divmod(len(body), end + -end % 4)
    if rows < 2 or rest:
        return None
    free: list[tuple[int, int]] = []
    first = _values_by_input(body, _HEAD_BYTES, end, free, signature, 0)
    return columns_from_equal_records(body, rows, len(body) // rows, first, free, signature)


def _records(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Split into records: what holds each one, and where in it."""
    if not body:
        raise InvalidPayload("body is empty", field="body", expected="at least one record", got="nothing")
    if not body.startswith(_MAGIC):
        yield body, 0, len(body)
        return
    position = number = 0
    parts: list[bytes] = []
    while position < len(body):
        head = body[position : position + _HEAD_BYTES]
        if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
            raise _frame_error(number, position, f"the magic number {_MAGIC.hex(' ')} and a length", head[:4].hex(" "))
        (word,) = struct.unpack_from("<I", head, 4)
        flag, length = word >> _LENGTH_BITS, word & (1 << _LENGTH_BITS) - 1
        start = position + _HEAD_BYTES
        end = start + length
        if end > len(body):
            raise _frame_error(number, position + 4, f"{length} bytes", f"{len(body) - start}")
        if flag not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            expected = "the next part of a record" if parts else "the start of a record"
            raise _frame_error(number, position + 4, expected, f"a frame with flag {flag}")
        if flag == _WHOLE:
            yield body, start, end
        else:
            parts.append(body[start:end])
            if flag == _LAST:
                record = _MAGIC.join(parts)
                parts = []
                yield record, 0, len(record)
        number += flag in (_WHOLE, _LAST)
        position = end + -end % 4  # the last frame of a body may go without its padding
    if parts:
        raise _frame_error(number, len(body), "the last part of a record", "the end of the body")


def _frame_error(number: int, offset: int, expected: str, got: str) -> InvalidPayload:
    where = f"{record_label(number)}, byte {offset}"
    got = got or "nothing"
    return InvalidPayload(f"{where}: expected {expected}, got {got}", field=where, expected=expected, got=got)


def _values_by_input(
    data: bytes,
    start: int,
    end: int,
    free: list[tuple[int, int]],
    signature: Signature,
    number: int,
    hint: str = "",
) -> dict[str, FlatValue]:
    """What a record has for each input; ``free`` gets the ranges of it that are not looked at."""
    try:
        features = _features(data, start, end, free, len(signature.inputs))
    except WireError as error:
        where = f"{record_label(number)}, byte {error.offset}"
        raise InvalidPayload(
            f"{where}: not a Record: {error.message}{hint}", field=where, expected="a Record", got=error.message
        ) from None
    sole = signature.sole_input
    if sole is not None and features.keys() == {"values"}:
        return {sole.name: features["values"]}
    require_inputs(list(features), signature, record_label(number))
    return features


def _features(data: bytes, start: int, end: int, free: list[tuple[int, int]], most: int) -> dict[str, FlatValue]:
    features: dict[str, FlatValue] = {}
    for number, wire_type, value, stop in fields(data, start, end):
        if number != _FEATURES:
            if wire_type == LENGTH:
                free.append((value, stop))
            continue
        name, inner, inner_end = read_entry(data, wire_type, value, stop)
        if name in features:
            raise WireError(value, f"the feature {name[:40]!r} for the second time")
        features[name] = _value(data, inner, inner_end)
        if len(features) > most:
            break  # there is one too many already
    return features


def _value(data: bytes, start: int, end: int) -> FlatValue:
    """Read a ``Value``: just one of its tensors or ``bytes``."""
    found: FlatValue | None = None
    for number, wire_type, value, stop in fields(data, start, end):
        kind = _TENSORS.get(number)
        if kind is None and number != _BYTES:
            continue
        if wire_type != LENGTH or found is not None:
            raise WireError(
                value, "a second tensor of one feature" if found is not None else "a number in the place of a tensor"
            )
        found = _tensor(kind, data, value, stop) if kind else FlatValue(_TEXTS, texts=read_texts(data, value, stop))
    if found is None:
        raise WireError(start, "a feature without a tensor")
    return found


def _tensor(kind: Kind, data: bytes, start: int, end: int) -> FlatValue:
    repeated = read_repeated(data, start, end, {_VALUES: kind.wire_type, _KEYS: VARINT, _SHAPE: VARINT})
    result = FlatValue(kind)
    if _VALUES in repeated:
        result.values = repeated[_VALUES]
    keys = repeated.get(_KEYS)
    if keys is not None and keys.end > keys.start:
        result.keys = keys
    shape = repeated.get(_SHAPE)
    if shape is not None:
        axes = count_varints(shape)
        if axes > _MAX_RANK:
            raise WireError(start, f"a shape of {axes} axes")
        result.shape = tuple(shape.small())
    return result


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one record a frame. See ``Codec.encode``."""
    outputs = [tensors[spec.name] for spec in signature.outputs]
    outputs = outputs if signature.batched else [array[np.newaxis] for array in outputs]
    if len({len(array) for array in outputs}) > 1:
        raise _not_acceptable("outputs with different numbers of records")
    names = ["score"] if len(outputs) == 1 else [spec.name for spec in signature.outputs]
    entries = [
        _Entry(name, array, spec.name) for name, array, spec in zip(names, outputs, signature.outputs, strict=True)
    ]
    sizes = np.stack([entry.sizes for entry in entries], axis=1)
    if (sizes == sizes[:1]).all():
        return _equal_frames(entries, sizes)
    frames = []
    constants: dict[tuple[int, ...], list[bytes]] = {}
    position = [0] * len(entries)
    for row in map(tuple, sizes.tolist()):
        if row not in constants:
            constants[row] = _constant_parts(entries, row)
        frames.append(constants[row][0])
        for number, (entry, size) in enumerate(zip(entries, row, strict=True)):
            frames.append(entry.values[position[number] : position[number] + size])
            frames.append(constants[row][number + 1])
            position[number] += size
    return b"".join(frames)


class _Entry:
    """One output on its way into records.

    Args:
        name: in the records.
        array: of shape (N, ...).
        output: its name in the model, for error messages.

    Attributes:
        values: of all records, back to back; for texts fields of wire type ``LENGTH``.
        sizes: bytes of ``values`` that each record has, shape (N,).
    """

    def __init__(self, name: str, array: Array, output: str) -> None:
        self._name = name.encode()
        self._shape = array.shape[1:]
        flat = array.reshape(len(array), math.prod(self._shape))
        if array.dtype == STRING:
            if len(self._shape) > 1:
                raise _not_acceptable(f"strings of more than one axis, as output {output!r} has")
            self._number = _BYTES
            texts = [[field(1, text.encode()) for text in row] for row in flat.tolist()]
            self.values = b"".join([text for row in texts for text in row])
            self.sizes = np.array([sum(map(len, row)) for row in texts], np.intp)
            return
        self._number, dtype = _tensor_for(array.dtype)
        if dtype.kind == "f":
            self.values = np.ascontiguousarray(flat, dtype).tobytes()
            self.sizes = np.full(len(flat), flat.shape[1] * dtype.itemsize)
            return
        info = np.iinfo(np.int32)
        numbers = cast(Any, flat)
        if numbers.size and (numbers.min() < info.min or numbers.max() > info.max):
            raise _not_acceptable(f"whole numbers of more than 32 bits, as output {output!r} has")
        self.values, lengths = encode_varints(flat.astype(np.int64).view(np.uint64).ravel())
        self.sizes = lengths.reshape(flat.shape).sum(axis=1)

    def wrapped(self, size: int) -> tuple[bytes, bytes]:
        """What stands before and after ``size`` bytes of values in the entry of a record."""
        after = b""
        before = b""
        if self._number != _BYTES:
            before = field_head(_VALUES, size)
            if len(self._shape) > 1:
                after = field(_SHAPE, encode_varints(np.array(self._shape, np.uint64))[0])
        for number, prefix in ((self._number, b""), (2, field(1, self._name)), (_LABEL, b"")):
            before = prefix + field_head(number, len(before) + size + len(after)) + before
        return before, after


def _tensor_for(dtype: np.dtype[np.generic]) -> tuple[int, np.dtype[Any]]:
    """Which tensor of a ``Value`` carries a dtype, and the dtype to write."""
    if dtype == np.float64:
        return 3, np.dtype("<f8")
    return (2, np.dtype("<f4")) if dtype.kind == "f" else (7, np.dtype(np.int32))


def _constant_parts(entries: Sequence[_Entry], sizes: Sequence[int]) -> list[bytes]:
    """What stands before, between and after the values in the frame of a record with values of these sizes."""
    parts = [b""]
    for entry, size in zip(entries, sizes, strict=True):
        before, after = entry.wrapped(size)
        parts[-1] += before
        parts.append(after)
    length = sum(map(len, parts)) + sum(sizes)
    if length >> _LENGTH_BITS:
        raise _not_acceptable("a record of 512 MiB or more")
    parts[0] = _MAGIC + struct.pack("<I", length) + parts[0]
    parts[-1] += bytes(-length % 4)
    return parts


def _equal_frames(entries: Sequence[_Entry], sizes: Any) -> bytes:
    """Write records that differ in nothing but their values, all at once."""
    rows = len(sizes)
    if not rows:
        return b""
    parts = _constant_parts(entries, sizes[0].tolist())
    columns = [np.broadcast_to(np.frombuffer(parts[0], np.uint8), (rows, len(parts[0])))]
    for entry, part in zip(entries, parts[1:], strict=True):
        columns.append(np.frombuffer(entry.values, np.uint8).reshape(rows, -1))
        columns.append(np.broadcast_to(np.frombuffer(part, np.uint8), (rows, len(part))))
    return np.concatenate(columns, axis=1).tobytes()


def _not_acceptable(what: str) -> NotAcceptable:
    return NotAcceptable(f"application/x-recordio-protobuf cannot carry {what}", accepted=["application/json"])
