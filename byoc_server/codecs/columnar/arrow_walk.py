"""Looks through the messages of an Arrow IPC stream before pyarrow does (Arrow columnar format 1.5, "Serialization").

pyarrow allocates what a body declares: the length a compressed buffer says it will have, a field for every reference
to it, one dictionary more for every batch that changes it. Its memory pools have no limit that Python could set. So the
messages are read here first, only as far as it takes to know that pyarrow will need no more than a small multiple of
the body and of ``max_bytes``; what this module lets pass may still be wrong, and pyarrow says so.

Metadata is FlatBuffers: tables of optional fields that refer to each other by offset. Offsets may point at the same
place many times over, so what is counted is not the size of the metadata but that of everything it unfolds to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_FIXED_SHAPE_TENSOR = b"arrow.fixed_shape_tensor"
_MAX_DEPTH = 16
_MESSAGE_CHARACTERS = 200
_MAX_EXTENSION_BYTES = 4096
"""pyarrow parses the parameters of an extension type, JSON, with one stack frame a level."""
_MAX_CACHED_BYTES = 64 * 1024
_FIELD_BYTES = 16
"""Less than any field takes that shares nothing with others: an offset to it, its own table, an offset to its type."""
_REFUSED_TYPES = {
    7: "decimal",
    8: "date",
    9: "time",
    10: "timestamp",
    11: "interval",
    13: "struct",
    14: "union",
    17: "map",
    18: "duration",
    22: "run-end encoded",
    25: "list view",
    26: "large list view",
}
_READ_TYPES = frozenset((1, 2, 3, 4, 5, 6, 12, 15, 16, 19, 20, 21, 23, 24))
"""Null, int, float, binary, utf8, bool, list, fixed-size binary and list, large binary, utf8 and list, views."""


class _Malformed(Exception):
    """Metadata that no writer makes."""


@dataclass(slots=True)
class _Walk:
    """What is known so far of one stream."""

    body: bytes
    max_bytes: int
    dictionary_ids: tuple[int, ...] | None = None
    """For every dictionary-encoded field the id of its dictionary; ``None`` before the schema."""
    dictionary_bytes: dict[int, int] = field(default_factory=dict)
    unpacked_bytes: int = 0
    dictionary_work_bytes: int = 0


def check_stream(body: bytes, start: int, end: int, max_bytes: int) -> int | None:
    """Check the messages of ``body[start:end]``.

    Args:
        body: the request body.
        start: where the stream begins.
        end: where it ends at the latest.
        max_bytes: what compressed buffers may unpack to.

    Returns:
        The position behind the end-of-stream marker, or ``None`` if there is none.

    Raises:
        InvalidPayload: naming the byte where the message begins.
        TensorsTooLarge: compressed buffers declare more, or dictionaries are gone through too often.
    """
    walk = _Walk(body, max_bytes)
    position, stream_end = start, None
    while position < end and stream_end is None:
        try:
            size, metadata_start = _prefix(body, position)
            if size:
                position = _check_message(walk, metadata_start, size, end)
            else:
                stream_end = metadata_start
        except (_Malformed, struct.error, UnicodeDecodeError) as error:
            raise InvalidPayload(
                f"the Arrow message at byte {position} cannot be read: {first_line(error)}", field=f"byte {position}"
            ) from None
        except InvalidPayload as error:
            error.details.setdefault("field", f"byte {position}")
            raise
    if walk.dictionary_ids is None:
        raise InvalidPayload(
            "body is not an Arrow stream: it has no schema",
            field=f"byte {start}",
            expected="a schema message",
            got="nothing" if start >= end else body[start : start + 8].hex(" "),
        )
    return stream_end


def _prefix(body: bytes, position: int) -> tuple[int, int]:
    """Size of a message's metadata and where it begins; before Arrow 0.15 there was no continuation marker."""
    (size,) = struct.unpack_from("<I", body, position)
    if size != _CONTINUATION:
        return size, position + 4
    return struct.unpack_from("<I", body, position + 4)[0], position + 8


def _check_message(walk: _Walk, start: int, size: int, end: int) -> int:
    """Check one message; return where it ends."""
    if size > end - start:
        raise _Malformed(f"it declares {size} bytes of metadata, {end - start} are left")
    metadata = walk.body[start : start + size]
    message = _Table.root(metadata)
    kind = message.number(1, "<B")
    body_start, body_bytes = start + size, message.number(3, "<q")
    if not 0 <= body_bytes <= end - body_start:
        raise _Malformed(f"it declares {shown(body_bytes)} bytes of data, {end - body_start} are left")
    if kind == _SCHEMA:
        if walk.dictionary_ids is not None:
            raise _Malformed("it is a second schema")
        walk.dictionary_ids = check_schema(metadata)
        return body_start + body_bytes
    header = message.table(2)
    if walk.dictionary_ids is None or header is None:
        raise _Malformed("expected a schema first" if walk.dictionary_ids is None else "it is empty")
    _Budget(size).take_pairs(message.tables(4))
    if kind == _RECORD_BATCH:
        _check_batch(walk, header, body_start, body_bytes)
        walk.dictionary_work_bytes += sum(walk.dictionary_bytes.get(i, 0) for i in walk.dictionary_ids)
        if walk.dictionary_work_bytes > walk.max_bytes:
            raise TensorsTooLarge("too many record batches for dictionaries of this size; send fewer, larger batches")
    elif kind == _DICTIONARY_BATCH:
        batch = header.table(1)
        if batch is None:
            raise _Malformed("it is a dictionary without values")
        if header.number(2, "<B"):
            raise InvalidPayload("delta dictionaries are not read; write whole dictionaries")
        walk.dictionary_bytes[header.number(0, "<q")] = body_bytes + _check_batch(walk, batch, body_start, body_bytes)
    else:
        raise _Malformed(f"it is of kind {kind}, neither schema, dictionary nor record batch")
    return body_start + body_bytes


def _check_batch(walk: _Walk, batch: _Table, body_start: int, body_bytes: int) -> int:
    """Add up what the compressed buffers of a batch say they unpack to, and return it.

    Each begins with that length, or with -1 if it is stored as it is (``Message.fbs``, ``BodyCompression``).
    """
    if batch.table(3) is None:
        return 0
    total = 0
    for offset, length in batch.structs(2, "<qq"):
        if length == 0:
            continue
        if not (offset >= 0 and 8 <= length <= body_bytes - offset):
            raise _Malformed("one of its buffers lies outside of it")
        (size,) = struct.unpack_from("<q", walk.body, body_start + offset)
        if size < -1:
            raise _Malformed("one of its buffers has a negative length")
        total += max(size, 0)
    walk.unpacked_bytes += total
    if walk.unpacked_bytes > walk.max_bytes:
        raise TensorsTooLarge(
            f"the compressed buffers declare {walk.unpacked_bytes} bytes, the limit is {walk.max_bytes}",
            expected=f"at most {walk.max_bytes} bytes",
            got=f"{walk.unpacked_bytes} bytes",
        )
    return total


def check_schema(metadata: bytes) -> tuple[int, ...]:
    """Check the metadata of a schema message.

    Returns:
        For every dictionary-encoded field the id of its dictionary.

    Raises:
        InvalidPayload: a type that is not read, nested too deep, or it unfolds to far more than its own size.
    """
    try:
        return _known_schema(metadata) if len(metadata) <= _MAX_CACHED_BYTES else _check_schema(metadata)
    except (_Malformed, struct.error, UnicodeDecodeError) as error:
        raise InvalidPayload(f"the Arrow schema cannot be read: {first_line(error)}") from None


def _check_schema(metadata: bytes) -> tuple[int, ...]:
    message = _Table.root(metadata)
    schema = message.table(2)
    if schema is None:
        raise _Malformed("it is empty")
    budget = _Budget(len(metadata))
    budget.take_pairs(message.tables(4))
    budget.take_pairs(schema.tables(2))
    dictionary_ids: list[int] = []
    for column in schema.tables(1):
        _check_field(column, column.text(0).decode(), 0, budget, dictionary_ids)
    return tuple(dictionary_ids)


_known_schema = lru_cache(maxsize=64)(_check_schema)


def _check_field(column: _Table, name: str, depth: int, budget: _Budget, dictionary_ids: list[int]) -> None:
    budget.take(_FIELD_BYTES + len(column.text(0)))
    extension = budget.take_pairs(column.tables(6))
    if extension is not None and extension != _FIXED_SHAPE_TENSOR:
        raise _refused(name, f"the extension type {shown(extension.decode())}")
    kind = column.number(2, "<B")
    if kind not in _READ_TYPES:
        raise _refused(name, _REFUSED_TYPES.get(kind, f"type {kind}"))
    if depth > _MAX_DEPTH:
        raise InvalidPayload(f"column {shown(name)} is nested more than {_MAX_DEPTH} deep", field=name)
    dictionary = column.table(4)
    if dictionary is not None:
        dictionary_ids.append(dictionary.number(0, "<q"))
    for child in column.tables(5):
        _check_field(child, name, depth + 1, budget, dictionary_ids)


def _refused(name: str, what: str) -> InvalidPayload:
    expected = "numbers, booleans, strings, or lists of them"
    return InvalidPayload(
        f"column {shown(name)} holds {what}, which is not read; cast it to {expected}",
        field=name,
        expected=expected,
        got=what,
    )


def first_line(error: Exception) -> str:
    """What an error says, short enough for the message of another."""
    return str(error).partition("\n")[0][:_MESSAGE_CHARACTERS]


class _Budget:
    """Counts what metadata unfolds to; without parts that are referred to twice that is less than its size."""

    def __init__(self, size: int) -> None:
        self._left = 2 * size  # some writers refer to equal strings twice

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Malformed("it refers to the same parts too often")

    def take_pairs(self, pairs: Iterator[_Table]) -> bytes | None:
        """Count a list of keys and values; return the name of the extension type, if it has one."""
        extension = None
        for pair in pairs:
            key, value = pair.text(0), pair.text(1)
            self.take(_FIELD_BYTES + len(key) + len(value))
            if key == b"ARROW:extension:name":
                extension = value
            elif key == b"ARROW:extension:metadata" and len(value) > _MAX_EXTENSION_BYTES:
                raise _Malformed("the parameters of its extension type are too long")
        return extension


class _Table:
    """One FlatBuffers table: a signed offset back to the list of where its fields are, then the fields.

    Reading past the end raises ``struct.error``; so does anything below that follows a wrong offset.
    """

    __slots__ = ("_data", "_fields", "_position")

    def __init__(self, data: bytes, position: int) -> None:
        (back,) = struct.unpack_from("<i", data, position)
        offsets = position - back
        if offsets < 0:  # struct would count it from the end
            raise _Malformed("an offset points outside")
        (size,) = struct.unpack_from("<H", data, offsets)
        if size < 4 or size % 2:
            raise _Malformed("a table has no fields")
        self._data, self._position = data, position
        self._fields: tuple[int, ...] = struct.unpack_from(f"<{(size - 4) // 2}H", data, offsets + 4)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def _at(self, index: int) -> int:
        """Where a field is; 0 if the table does not have it."""
        offset = self._fields[index] if index < len(self._fields) else 0
        return self._position + offset if offset else 0

    def _target(self, index: int) -> int:
        position = self._at(index)
        return position + struct.unpack_from("<I", self._data, position)[0] if position else 0

    def number(self, index: int, code: str) -> int:
        position = self._at(index)
        return int(struct.unpack_from(code, self._data, position)[0]) if position else 0

    def table(self, index: int) -> _Table | None:
        target = self._target(index)
        return _Table(self._data, target) if target else None

    def text(self, index: int) -> bytes:
        target = self._target(index)
        if not target:
            return b""
        (size,) = struct.unpack_from("<I", self._data, target)
        if size > len(self._data) - target - 4:
            raise _Malformed("a text is longer than the message")
        return self._data[target + 4 : target + 4 + size]

    def tables(self, index: int) -> Iterator[_Table]:
        start, count = self._vector(index)
        for place in range(start, start + 4 * count, 4):
            yield _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def structs(self, index: int, code: str) -> Iterator[tuple[int, int]]:
        start, count = self._vector(index)
        read: Callable[[bytes, int], tuple[int, int]] = struct.Struct(code).unpack_from
        size = struct.calcsize(code)
        for place in range(start, start + size * count, size):
            yield read(self._data, place)

    def _vector(self, index: int) -> tuple[int, int]:
        """Where the items of a list begin, and how many there are."""
        target = self._target(index)
        return (target + 4, struct.unpack_from("<I", self._data, target)[0]) if target else (0, 0)
