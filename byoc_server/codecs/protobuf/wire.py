"""The wire format of Protocol Buffers, as far as messages of numbers and texts need it, without the library.

Source: protobuf.dev, "Encoding". A message is a sequence of fields: a tag (number and wire type), then a varint, 4 or 8
bytes, or a length and so many bytes. Nothing is allocated by what a message declares: a field is a range within the
body, and every range is checked against the one around it. Groups, which no current schema has, are refused, so there
is no nesting but that of the schema.

A repeated number may be packed (one field, values back to back), not packed (a field per value) or a mixture. The bytes
of the values, joined, are the packed form in each case, and that is what the readers here hand on: as a range of the
body where it stands in one piece there, without copying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types. 3 and 4 are groups, 6 and 7 are not assigned."""

_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_VARINT_BYTES = 10
_LARGEST_FIELD_NUMBER = 2**29 - 1
_NOT_LAST_BYTES = bytes(range(0x80, 0x100))
"""Bytes of a varint after which it goes on."""
_KINDS_OF_BYTES = bytes([0, 0, *[1] * 0x7E, *[2] * 0x80])
"""Byte of a varint -> 2 if it goes on; else whether there is more in it than one bit."""
_TOO_LONG = (b"\2" * _VARINT_BYTES, b"\2" * (_VARINT_BYTES - 1) + b"\1")
_BLOCK_BYTES = 64 * 1024
"""Varints are decoded in blocks of about this size, as each byte needs some 40 while that is done."""


class WireError(ValueError):
    """The bytes are not a message.

    Attributes:
        offset: where, in the bytes that were read.
    """

    def __init__(self, offset: int, message: str) -> None:
        """Keep place and reason."""
        super().__init__(message)
        self.offset = offset
        self.message = message


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk over the fields of the message ``data[start:end]``.

    Yields:
        Number, wire type, and the range of the value, for ``LENGTH`` without the length.

    Raises:
        WireError: a field that is cut off, reaches beyond the message, or is none.
    """
    position = start
    while position < end:
        begin = position
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = read_varint(data, begin, end)
        number, wire_type = tag >> 3, tag & 7
        value = position
        if wire_type == LENGTH:
            length, value = read_varint(data, position, end)
            position = value + length
        elif wire_type == VARINT:
            _, position = read_varint(data, position, end)
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise WireError(begin, f"a field of wire type {wire_type}")
        if not 0 < number <= _LARGEST_FIELD_NUMBER:
            raise WireError(begin, "a field whose number is none")
        if position > end:
            raise WireError(begin, f"a field of {position - value} bytes where {max(end - value, 0)} are left")
        yield number, wire_type, value, position


def read_varint(data: bytes | bytearray, start: int, end: int) -> tuple[int, int]:
    """Read one number of up to 64 bits.

    Returns:
        The number, and where it ends.

    Raises:
        WireError: cut off, or too long.
    """
    if start < end and data[start] < 0x80:
        return data[start], start + 1
    number = shift = 0
    for position in range(start, min(end, start + _VARINT_BYTES)):
        byte = data[position]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, position + 1
        shift += 7
    if end - start < _VARINT_BYTES:
        raise WireError(start, "a number that is cut off")
    raise WireError(start, "a number of more than 64 bits")


@dataclass(slots=True)
class Packed:
    """Values back to back, ``data[start:end]``."""

    data: bytes | bytearray = b""
    start: int = 0
    end: int = 0

    def append(self, other: Packed) -> None:
        """Take in the values of another; linear in all that is ever appended."""
        if isinstance(self.data, bytes):
            self.data = bytearray(memoryview(self.data)[self.start : self.end])
            self.start = 0
        self.data += memoryview(other.data)[other.start : other.end]
        self.end = len(self.data)

    def small(self) -> Iterator[int]:
        """Decode varints one by one: a handful are read before NumPy gets going."""
        position = self.start
        while position < self.end:
            number, position = read_varint(self.data, position, self.end)
            yield number

    def tobytes(self) -> bytes:
        """A copy of the bytes."""
        return bytes(memoryview(self.data)[self.start : self.end])


def read_repeated(data: bytes, start: int, end: int, wire_types: Mapping[int, int]) -> dict[int, Packed]:
    """Read a message of repeated numbers; other fields are skipped.

    Args:
        data: has the message.
        start: of the message.
        end: of the message.
        wire_types: field number -> wire type of one value that is not packed.

    Returns:
        Field number -> values, for fields that are there.

    Raises:
        WireError: not a message, or values of another type.
    """
    found: dict[int, Packed] = {}
    for number, wire_type, value, stop in fields(data, start, end):
        expected = wire_types.get(number)
        if expected is None:
            continue
        if wire_type == LENGTH:
            _check_packed(data, value, stop, expected)
        elif wire_type != expected:
            raise WireError(value, f"a value of wire type {wire_type} instead of {expected}")
        if number in found:
            found[number].append(Packed(data, value, stop))
        else:
            found[number] = Packed(data, value, stop)
    return found


def read_entry(data: bytes, wire_type: int, start: int, end: int) -> tuple[str, int, int]:
    """Read one field of a ``map<string, SomeMessage>``.

    Returns:
        The key, and the range of the message.

    Raises:
        WireError: not such an entry; key or message stands there twice.
    """
    if wire_type != LENGTH:
        raise WireError(start, "a number in the place of a map entry")
    ranges = {1: (start, start), 2: (end, end)}
    seen = set()
    for number, inner_type, value, stop in fields(data, start, end):
        if number in ranges:
            if inner_type != LENGTH or number in seen:
                raise WireError(value, "a map entry that is not one key and one message")
            seen.add(number)
            ranges[number] = value, stop
    return _text(data, *ranges[1]), *ranges[2]


def read_texts(data: bytes, start: int, end: int) -> list[str]:
    """Read the texts of field 1 of a message; other fields are skipped.

    Raises:
        WireError: not a message, or a text that is not UTF-8.
    """
    texts = []
    for number, wire_type, value, stop in fields(data, start, end):
        if number == 1:
            if wire_type != LENGTH:
                raise WireError(value, "a number in the place of a text")
            texts.append(_text(data, value, stop))
    return texts


def _text(data: bytes, start: int, end: int) -> str:
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise WireError(start + error.start, "a text that is not UTF-8") from None


def _check_packed(data: bytes, start: int, end: int, wire_type: int) -> None:
    if wire_type != VARINT:
        if (end - start) % _FIXED_BYTES[wire_type]:
            raise WireError(start, f"{end - start} bytes of packed values of {_FIXED_BYTES[wire_type]} bytes each")
        return
    if end > start and data[end - 1] >= 0x80:
        raise WireError(start, "packed values of which the last one is cut off")
    if has_long_varint(data[start:end]):
        raise WireError(start, "packed values of which one has more than 64 bits")


def has_long_varint(values: bytes) -> bool:
    """Whether one of the varints back to back has more than 64 bits."""
    kinds = values.translate(_KINDS_OF_BYTES)
    return any(sequence in kinds for sequence in _TOO_LONG)


def count_varints(packed: Packed) -> int:
    """Number of varints, without decoding them."""
    return len(packed.tobytes().translate(None, _NOT_LAST_BYTES))


def decode_varints(packed: Packed) -> npt.NDArray[np.uint64]:
    """Decode varints back to back, all complete and of no more than 64 bits, as ``read_repeated`` hands them on."""
    source = np.frombuffer(packed.data, np.uint8, packed.end - packed.start, packed.start)
    if not (source >= 0x80).any():
        return source.astype(np.uint64)
    numbers = np.empty(np.count_nonzero(source < 0x80), np.uint64)
    done = first = 0
    while first < len(source):
        # A block ends with the last varint that ends within it; none is as long as a block.
        block = source[first : first + _BLOCK_BYTES]
        ends = np.flatnonzero(block < 0x80) + 1
        lengths = np.diff(ends, prepend=0)
        starts = ends - lengths
        decoded = numbers[done : done + len(ends)]
        decoded[:] = block[starts] & 0x7F
        for place in range(1, int(lengths.max())):
            longer = np.flatnonzero(lengths > place)
            decoded[longer] |= (block[starts[longer] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
        done += len(ends)
        first += int(ends[-1])
    return numbers


def encode_varint(number: int) -> bytes:
    """Write one number of 0 to 2^64 - 1."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_varints(numbers: npt.NDArray[np.uint64]) -> tuple[bytes, npt.NDArray[np.intp]]:
    """Write many numbers back to back.

    Args:
        numbers: shape (N,).

    Returns:
        The bytes, and how many each number takes, shape (N,).
    """
    places = np.arange(_VARINT_BYTES, dtype=np.uint64) * np.uint64(7)
    groups: npt.NDArray[Any] = numbers[:, np.newaxis] >> places  # of 7 bits and what is above them
    used = groups != 0
    used[:, 0] = True
    more = groups > 0x7F
    encoded = (groups & np.uint64(0x7F)).astype(np.uint8) | more.astype(np.uint8) << np.uint8(7)
    return encoded[used].tobytes(), used.sum(axis=1)


def field(number: int, content: bytes) -> bytes:
    """One field of wire type ``LENGTH``."""
    return field_head(number, len(content)) + content


def field_head(number: int, length: int) -> bytes:
    """What comes before ``length`` bytes of content."""
    return encode_varint(number << 3 | LENGTH) + encode_varint(length)
