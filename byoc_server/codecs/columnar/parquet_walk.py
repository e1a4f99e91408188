"""Looks through a Parquet file before pyarrow does (Apache Parquet format 2.11, ``parquet.thrift``).

The footer says what each column chunk holds, the header before each page what that page does, and pyarrow allocates
what they declare: a kilobyte can stand for 2^31 values by run lengths, and for as many bytes by compression. Its memory
pools have no limit that Python could set, and asking its own metadata objects for the numbers ends the process where
they contradict each other. So footer and page headers are read here, and pyarrow sees the file if they add up.

Both are structs of the Thrift compact protocol: fields of a number, a type and a value, up to a zero byte. They must be
read just as pyarrow reads them, or a file could show one thing here and another there; what no writer makes (a field
twice, a number too long for its type, a list of other items than the format says) is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from byoc_server.codecs.columnar.arrow_walk import check_stream, first_line
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_MAX_VALUES = 200_000
"""In all headers together. pyarrow takes 650 bytes for what two of them declare; reading one here takes 0.5 us."""
_MAX_DEPTH = 16
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8, 6: 4, 7: 2}
"""Physical type -> what pyarrow takes for one value; byte arrays are read as places in a dictionary."""
_BYTE_ARRAY, _FIXED_BYTES = 6, 7
_LEVEL_BYTES = 4
_DICTIONARY_VALUE_BYTES = 16
_STRING_BYTES = 64
"""What a short string takes, of a dictionary page or of a plain one, once it is a ``str`` with a place in an array."""
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_PLAIN = 0
_READ_ENCODINGS = frozenset((0, 2, 3, 5, 8, 9))
"""PLAIN, PLAIN_DICTIONARY, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT."""
_DELTA_STRINGS = {6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY"}
"""A value may repeat the one before, so that a page grows to the square of its size."""
_I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = 3, 4, 5, 6, 7, 8, 9, 12
_FLOAT16 = 15 << 4 | _STRUCT
"""The field of a ``LogicalType`` that makes two fixed bytes a number."""
_BITS = {_I16: 16, _I32: 32, _I64: 64}

_Layout = Mapping[int, "tuple[int, _Layout]"]
"""Number of a field that is or holds a list -> type of its items, and the layout of those or of the struct itself."""
_FLAT: _Layout = {}
_PAIRS = (_STRUCT, _FLAT)
_SIZES: _Layout = {2: (_I64, _FLAT), 3: (_I64, _FLAT)}
_COLUMN: _Layout = {
    2: (_I32, _FLAT),
    3: (_BINARY, _FLAT),
    8: _PAIRS,
    13: (_STRUCT, _FLAT),
    16: (_STRUCT, _SIZES),
    17: (_STRUCT, {2: (_I32, _FLAT)}),
}
_ROW_GROUP: _Layout = {1: (_STRUCT, {3: (_STRUCT, _COLUMN)}), 4: (_STRUCT, _FLAT)}
_FOOTER: _Layout = {2: (_STRUCT, _FLAT), 4: (_STRUCT, _ROW_GROUP), 5: _PAIRS, 7: (_STRUCT, _FLAT)}


class _Malformed(Exception):
    """A header that no writer makes."""


def check_file(body: bytes, max_bytes: int) -> list[int]:
    """Read the footer and all page headers.

    Args:
        body: the file.
        max_bytes: what the pages may unpack to, values and bytes each.

    Returns:
        The numbers of the columns of strings, or lists of them, in the order of their leaves.

    Raises:
        InvalidPayload: no Parquet file, too many headers, types that are not read, headers that disagree.
        TensorsTooLarge: the pages unpack to more.
    """
    start, end = _footer_place(body)
    walk = _Walk(body, max_bytes)
    try:
        footer, stop = walk.read_struct(start, _FOOTER, _MAX_DEPTH)
        if stop > end:
            raise _Malformed("it is cut")
        for pair in _items(footer, 5):
            _check_arrow_schema(pair)
        kinds = _leaf_kinds(_items(footer, 2))
        groups = _items(footer, 4)
        if sum(_number(group, 3, _I64) for group in groups) != _number(footer, 3, _I64):
            raise _Malformed("the rows of its groups are not those of the file")
        for group in groups:
            columns = _items(group, 1)
            if len(columns) != len(kinds):
                raise _Malformed(f"a row group has {len(columns)} columns, the schema {len(kinds)}")
            for column, kind in zip(columns, kinds, strict=True):
                walk.check_chunk(column, kind, _number(group, 3, _I64))
    except (_Malformed, IndexError) as error:
        raise InvalidPayload(f"the Parquet footer cannot be read: {first_line(error)}", field=f"byte {start}") from None
    return [number for number, kind in enumerate(kinds) if kind == _BYTE_ARRAY]


def _footer_place(body: bytes) -> tuple[int, int]:
    if not body.startswith(_MAGIC) or not body.endswith(_MAGIC):
        place = len(body) - len(_MAGIC) if body.startswith(_MAGIC) else 0
        raise InvalidPayload(
            "body is not a Parquet file: it does not start and end with PAR1",
            field=f"byte {place}",
            expected="PAR1",
            got=body[place:][:4].hex(" ") or "nothing",
        )
    end = len(body) - _TAIL_BYTES
    size = int.from_bytes(body[max(end, 0) :][:4], "little")
    if size == 0 or size > end - len(_MAGIC):
        raise InvalidPayload(f"the Parquet footer claims {size} bytes of {len(body)}", field=f"byte {max(end, 0)}")
    return end - size, end


def _check_arrow_schema(pair: _Struct) -> None:
    """Check the schema that Arrow's writers leave among the keys and values: base64 of a schema message."""
    if pair.get(1 << 4 | _BINARY) != b"ARROW:schema":
        return
    try:
        schema = base64.b64decode(pair.get(2 << 4 | _BINARY, b""), validate=True)
    except binascii.Error:
        raise _Malformed("the value of ARROW:schema is not base64") from None
    check_stream(schema, 0, len(schema), 0)


def _leaf_kinds(elements: Sequence[_Struct]) -> list[int]:
    """The physical types of the leaves of the schema: a tree, written down depth first."""
    kinds = []
    for element in elements[1:]:
        kind = element.get(1 << 4 | _I32)
        if element.get(5 << 4 | _I32, 0) or kind is None:
            continue
        name = shown(element.get(4 << 4 | _BINARY, b"").decode(errors="replace"))
        float16 = element.get(2 << 4 | _I32) == 2 and _FLOAT16 in element.get(10 << 4 | _STRUCT, ())
        if kind not in _VALUE_BYTES or (kind == _FIXED_BYTES and not float16):
            raise InvalidPayload(
                f"column {name} holds 96-bit times, decimals or fixed-size binary, which are not read; "
                "cast it to numbers, booleans or strings",
                field=name,
            )
        kinds.append(kind)
    return kinds


class _Walk:
    """Reads the structs of one file and adds up what they declare."""

    def __init__(self, body: bytes, max_bytes: int) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._unpacked_bytes = self._value_bytes = self._values = 0

    def check_chunk(self, chunk: _Struct, kind: int, rows: int) -> None:
        """Check the pages of one column chunk."""
        meta = chunk.get(3 << 4 | _STRUCT)
        if meta is None or 1 << 4 | _BINARY in chunk or 8 << 4 | _STRUCT in chunk:
            raise _Malformed("a column is encrypted or lies in another file")
        name = "column " + shown(b".".join(meta.get(3 << 4 | _LIST, [])).decode(errors="replace"))
        values = _number(meta, 5, _I64)
        if values == rows == 0:
            return
        start = _number(meta, 9, _I64)
        if 0 < meta.get(11 << 4 | _I64, 0) < start:
            start = meta[11 << 4 | _I64]
        end = start + _number(meta, 7, _I64)
        if not len(_MAGIC) <= start <= end <= len(self._body) - _TAIL_BYTES:
            raise InvalidPayload(f"{name}: its pages lie outside of the file", field=name)
        # pyarrow takes room for as many rows as there are said to be, and stops reading pages at this number of values
        if rows < 0 or values < rows:
            raise InvalidPayload(f"{name}: {values} values are declared for {rows} rows", field=name)
        self._take(values * (_VALUE_BYTES[kind] + _LEVEL_BYTES), 0, name)
        while values > 0:
            if start >= end:
                raise InvalidPayload(f"{name}: {values} of its values are in no page", field=name)
            try:
                start, seen = self._check_page(start, end, kind, name)
            except (_Malformed, IndexError) as error:
                raise InvalidPayload(
                    f"{name}: the page at byte {start} cannot be read: {first_line(error)}", field=f"byte {start}"
                ) from None
            values -= seen
        if values < 0:
            raise InvalidPayload(f"{name}: its pages hold more values than the footer declares", field=name)

    def _check_page(self, start: int, end: int, column_kind: int, name: str) -> tuple[int, int]:
        """Check one page; return where it ends and how many values it adds."""
        header, data_start = self.read_struct(start, _FLAT, _MAX_DEPTH)
        kind, unpacked, packed = (_number(header, field, _I32) for field in (1, 2, 3))
        if not (unpacked >= 0 and 0 <= packed <= end - data_start):
            raise _Malformed(f"it declares {unpacked} bytes in {packed}, {max(end - data_start, 0)} are left")
        inner = header.get({_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}.get(kind, 0) << 4 | _STRUCT)
        if inner is None:
            raise _Malformed("it has no header of its kind")
        values, encoding = _number(inner, 1, _I32), _number(inner, 4 if kind == _DATA_PAGE_V2 else 2, _I32)
        if encoding in _DELTA_STRINGS:
            raise InvalidPayload(
                f"{name}: the encoding {_DELTA_STRINGS[encoding]} is not read; write plain or dictionary pages",
                field=name,
                expected="PLAIN or RLE_DICTIONARY",
                got=_DELTA_STRINGS[encoding],
            )
        if values < 0 or encoding not in _READ_ENCODINGS:
            raise _Malformed(f"it declares {values} values in encoding {encoding}")
        if kind == _DICTIONARY_PAGE:
            item_bytes = _STRING_BYTES if column_kind == _BYTE_ARRAY else _DICTIONARY_VALUE_BYTES
            self._take(values * item_bytes, unpacked, name)
            return data_start + packed, 0
        self._take(values * _STRING_BYTES if column_kind == _BYTE_ARRAY and encoding == _PLAIN else 0, unpacked, name)
        return data_start + packed, values

    def _take(self, value_bytes: int, unpacked_bytes: int, name: str) -> None:
        self._value_bytes += value_bytes
        self._unpacked_bytes += unpacked_bytes
        largest = max(self._value_bytes, self._unpacked_bytes)
        if largest > self._max_bytes:
            raise TensorsTooLarge(
                f"{name}: the file unpacks to {largest} bytes or more, the limit is {self._max_bytes}",
                field=name,
                expected=f"at most {self._max_bytes} bytes",
                got=f"{largest} bytes",
            )

    def read_struct(self, position: int, layout: _Layout, depth: int) -> tuple[_Struct, int]:
        """Read one struct; ``IndexError`` if the body ends before it does."""
        if depth == 0:
            raise _Malformed("it is nested too deep")
        body = self._body
        fields: _Struct = {}
        number = 0
        while True:
            byte = body[position]
            position += 1
            kind = byte & 0x0F
            if kind == 0:
                self._count(1 + len(fields))
                return fields, position
            if byte >> 4:
                number += byte >> 4
            else:
                number, position = _integer(body, position, 16)
            key = number << 4 | kind
            if not 0 <= number < 2**15 or key in fields:
                raise _Malformed(f"field {number} is there twice")
            result: Any = None
            if kind in _BITS or kind == _BINARY:
                result, position = self._read_value(position, kind, _FLAT, depth)
            elif kind == _STRUCT:
                _, inner = layout.get(number, _PAIRS)
                result, position = self.read_struct(position, inner, depth - 1)
            elif kind == _LIST:
                result, position = self._read_list(position, layout.get(number), depth)
            elif kind in (_I8, _DOUBLE):
                position += 1 if kind == _I8 else 8
            elif kind > 2:  # 1 and 2 are the booleans
                raise _Malformed(f"field {number} has the unknown type {kind}")
            fields[key] = result

    def _read_list(self, position: int, items: tuple[int, _Layout] | None, depth: int) -> tuple[list[Any], int]:
        byte = self._body[position]
        position += 1
        size = byte >> 4
        if size == 15:
            size, position = _varint(self._body, position, 31)
        if items is None or byte & 0x0F != items[0]:
            raise _Malformed("a list is not where or what it should be")
        self._count(size)
        result = []
        for _ in range(size):
            value, position = self._read_value(position, items[0], items[1], depth)
            result.append(value)
        return result, position

    def _read_value(self, position: int, kind: int, layout: _Layout, depth: int) -> tuple[Any, int]:
        if kind == _STRUCT:
            return self.read_struct(position, layout, depth - 1)
        value = self._body[position]
        position += 1
        if value >= 0x80:
            value, position = _varint(self._body, position - 1, _BITS.get(kind, 31))
        if kind == _BINARY:
            return self._body[position : position + value], position + value
        return value >> 1 ^ -(value & 1), position

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > _MAX_VALUES:
            raise InvalidPayload(
                f"footer and page headers of the Parquet file hold more than {_MAX_VALUES} values; "
                "write fewer row groups or fewer columns",
                field="footer",
            )


_Struct = dict[int, Any]
"""16 times the field number and the type -> value. As for pyarrow a field of another type is another field."""


def _number(struct: _Struct, field: int, kind: int) -> int:
    value = struct.get(field << 4 | kind)
    if value is None:
        raise _Malformed(f"field {field} is missing")
    return int(value)


def _items(struct: _Struct, field: int) -> list[_Struct]:
    items: list[_Struct] = struct.get(field << 4 | _LIST, [])
    return items


def _integer(data: bytes, position: int, bits: int) -> tuple[int, int]:
    """Read a signed integer: zigzag, then a varint."""
    value, position = _varint(data, position, bits)
    return value >> 1 ^ -(value & 1), position


def _varint(data: bytes, position: int, bits: int) -> tuple[int, int]:
    value = data[position]
    position += 1
    if value >= 0x80:
        value &= 0x7F
        shift = 7
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise _Malformed("a number is too long")
        if value >> bits:
            raise _Malformed("a number is too large for its type")
    return value, position
