r"""``text/csv``: one record a line, cells in the order of the model's columns (RFC 4180, October 2005).

A model with one input has the columns of that input, in order; a model with several inputs the columns of the first,
then of the second, and so on. With ``header=present`` and several one-column inputs, columns go by name instead.
Media type parameters understood: ``header`` (``present`` or ``absent``), ``label_size`` (so many leading columns are
dropped), ``charset``.

An empty cell of a float column is NaN. Cells may be quoted, and a quoted cell may hold commas and line ends.
Answers have no header: the columns of all outputs side by side, NaN as ``nan``.

Plain numbers, the usual case, are read by the JSON parser after a check that the body holds nothing but digits, signs,
dots, exponents and separators; whatever that parser refuses (``+1``, ``.5``, an empty cell) goes the long way.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.conform import conform_array, convert, records_to_array, require_inputs
from byoc_server.codecs.lines import join_lines
from byoc_server.codecs.walk import checked_leaf, shown
from byoc_server.errors import InvalidPayload, NotAcceptable, UnsupportedMediaType
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_PLAIN_NUMBERS = b"0123456789+-.eE, \t\r\n"
_CHARSETS = ("utf-8", "us-ascii", "iso-8859-1", "windows-1252")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record a line. See ``Codec.decode``."""
    has_header, label_columns, charset = _parameters(options)
    if not has_header and not label_columns:
        tensors = _plain_numbers(body, signature)
        if tensors is not None:
            return tensors
    rows, line_numbers = _rows(body, charset)
    names: list[str] = []
    if has_header:
        names = rows.pop(0)[label_columns:]
        line_numbers.pop(0)
        if not rows:
            raise InvalidPayload("body has a header but no records", expected="at least one record", got="none")
    if label_columns:
        for row, line in zip(rows, line_numbers, strict=True):
            if len(row) <= label_columns:
                expected = f"more than the {label_columns} columns of label_size"
                raise InvalidPayload(
                    f"line {line}: expected {expected}, got {len(row)}",
                    field=f"line {line}",
                    expected=expected,
                    got=f"{len(row)} columns",
                )
            del row[:label_columns]
    layout = _layout(names, rows[0], signature)
    return _tensors(rows, line_numbers, layout, signature, label_columns + 1)


def _parameters(options: DecodeOptions) -> tuple[bool, int, str]:
    parameters = options.parameters
    header = parameters.get("header", "absent").lower()
    if header not in ("present", "absent"):
        raise UnsupportedMediaType(
            f"text/csv parameter header={shown(header)} is not known", accepted=["header=present", "header=absent"]
        )
    label_size = parameters.get("label_size", "0")
    if not (label_size.isascii() and label_size.isdigit() and len(label_size) < 5):
        raise UnsupportedMediaType(
            f"text/csv parameter label_size={shown(label_size)} is not a number of columns", accepted=["label_size=0"]
        )
    charset = parameters.get("charset", "utf-8").lower()
    charset = {"utf8": "utf-8", "ascii": "us-ascii", "latin-1": "iso-8859-1", "latin1": "iso-8859-1"}.get(
        charset, charset
    )
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(
            f"text/csv parameter charset={shown(charset)} is not supported",
            accepted=[f"charset={name}" for name in _CHARSETS],
        )
    return header == "present", int(label_size), charset


def _plain_numbers(body: bytes, signature: Signature) -> Tensors | None:
    """Read a body of plain numbers for one float input; ``None`` if it is anything else, right or wrong."""
    spec = signature.sole_input
    if spec is None or spec.dtype.kind != "f" or not signature.batched or body.translate(None, _PLAIN_NUMBERS):
        return None
    lines = body.splitlines()
    if b"" in lines:
        return None
    try:
        array = np.array(orjson.loads(b"[[" + b"],[".join(lines) + b"]]"))
    except ValueError:  # not JSON numbers, or lines of different length
        return None
    if not array.size or _flat_shape(spec, signature) not in (-1, array.shape[1]):
        return None
    converted = convert(array, spec.dtype)
    return None if converted is None else {spec.name: _reshaped(converted, spec, signature)}


def _rows(body: bytes, charset: str) -> tuple[list[list[str]], list[int]]:
    """Split into cells; give the line number of each row for messages."""
    try:
        text = body.decode("utf-8-sig" if charset == "utf-8" else charset)
    except UnicodeDecodeError as error:
        raise InvalidPayload(
            f"body is not {charset}: byte {error.start} is 0x{body[error.start]:02x}",
            field=f"byte {error.start}",
            expected=charset,
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, numbers = [], []
    try:
        for row in reader:
            if not row:
                raise InvalidPayload(
                    f"line {reader.line_num} is empty",
                    field=f"line {reader.line_num}",
                    expected="a record",
                    got="nothing",
                )
            rows.append(row)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise InvalidPayload(
            f"line {reader.line_num} is not valid CSV: {error}", field=f"line {reader.line_num}"
        ) from None
    if not rows:
        raise InvalidPayload("body is empty", field="body", expected="at least one record", got="nothing")
    return rows, numbers


def _flat_shape(spec: TensorSpec, signature: Signature) -> int | None:
    """Columns that one record of ``spec`` takes; -1 for any number, ``None`` if lines of cells cannot carry it."""
    shape = signature.record_shapes[spec.name]
    if shape == (None,):
        return -1
    return None if None in shape else math.prod(cast(tuple[int, ...], shape))


Layout = list[tuple[TensorSpec, list[int]]]
"""For every input the columns it takes."""


def _layout(names: Sequence[str], first: Sequence[str], signature: Signature) -> Layout:
    known = signature.input_by_name
    widths = [_flat_shape(spec, signature) for spec in signature.inputs]
    stripped = [name.strip() for name in names]
    if len(known) > 1 and all(width in (1, -1) for width in widths) and not known.keys().isdisjoint(stripped):
        require_inputs(stripped, signature, "header")
        if len(set(stripped)) < len(stripped):
            raise InvalidPayload("header: a column name stands there twice", field="header", expected="unique names")
        return [(spec, [stripped.index(spec.name)]) for spec in signature.inputs]
    if len(known) == 1 and (widths == [-1] or not signature.batched):
        widths = [len(first)]
    layout, start = [], 0
    for spec, width in zip(signature.inputs, widths, strict=True):
        if width is None or width < 0:
            raise InvalidPayload(
                f"text/csv cannot carry input {spec.describe()}: its number of columns is open; use application/json",
                field=spec.name,
                expected="inputs with a fixed number of columns",
            )
        layout.append((spec, list(range(start, start + width))))
        start += width
    return layout


def _tensors(
    rows: list[list[str]], line_numbers: list[int], layout: Layout, signature: Signature, first_column: int
) -> Tensors:
    """Read the cells of all rows; ``first_column`` is the number that the first of them has in the body."""
    width = sum(len(columns) for _, columns in layout)
    for row, line in zip(rows, line_numbers, strict=True):
        if len(row) != width:
            raise InvalidPayload(
                f"line {line}: expected {width} column{'s' * (width != 1)}, got {len(row)}",
                field=f"line {line}",
                expected=f"{width} columns ({', '.join(spec.describe() for spec in signature.inputs)})",
                got=f"{len(row)} columns",
            )
    tensors: Tensors = {}
    for spec, columns in layout:
        largest = float(np.finfo(cast(Any, spec.dtype)).max) if spec.dtype.kind == "f" else 0.0
        values: list[Sequence[object]] = []
        for row, line in zip(rows, line_numbers, strict=True):
            cells = [row[c] for c in columns]
            values.append(
                (_floats(cells, largest) if largest else None)
                or [_cell(cell, spec, line, c + first_column) for c, cell in zip(columns, cells, strict=True)]
            )
        array = records_to_array(values, spec, (len(columns),), lambda i: f"line {line_numbers[i]}")
        tensors[spec.name] = _reshaped(array, spec, signature)
    return tensors


def _reshaped(array: Array, spec: TensorSpec, signature: Signature) -> Array:
    """Bring lines of cells, shape (N, columns), to the shape of the input."""
    if not signature.batched:
        if len(array) == 1 and array.shape[1] == _flat_shape(spec, signature):
            return array.reshape(cast(tuple[int, ...], spec.shape))
        return conform_array(array[0] if len(array) == len(spec.shape) == 1 else array, spec, signature, "body")
    shape = signature.record_shapes[spec.name]
    return array if len(shape) == 1 else array.reshape(len(array), *cast(tuple[int, ...], shape))


def _floats(cells: Sequence[str], largest: float) -> list[float] | None:
    """Read a row of numbers up to ``largest``, or nothing for NaN; ``None`` if a cell is else, right or wrong."""
    text = "".join(cells)
    if not text.isascii() or "_" in text:
        return None
    try:
        numbers = [float(cell or "nan") for cell in cells]
    except ValueError:
        return None
    return None if any(n > largest or n < -largest for n in numbers) else numbers


def _cell(text: str, spec: TensorSpec, line: int, column: int) -> object:
    """Read one cell.

    Raises:
        InvalidPayload: naming line and column.
    """
    if spec.dtype == STRING:
        return text
    where = f"line {line}, column {column}"
    word = text.strip()
    value: object = word
    if spec.dtype.kind == "b":
        value = _BOOLEANS.get(word.lower(), word)
    elif spec.dtype.kind == "f":
        value = _number(word, float) if word else math.nan
        if value is None:
            expected = f"a number within the range of {spec.dtype_name}"
            raise InvalidPayload(
                f"{where}: expected {expected}, got {shown(word)}", field=where, expected=expected, got=shown(word)
            )
    else:
        value = next((n for n in (_number(word, int), _number(word, float)) if n is not None), word)
    return checked_leaf(value, spec, where)


def _number(word: str, parse: Callable[[str], float]) -> float | None:
    """Read a number; ``None`` for what is none, is too large, or is spelt as only Python spells numbers."""
    if not word.isascii() or "_" in word:
        return None
    try:
        number = parse(word)
    except ValueError:
        return None
    return None if word[-1].isdigit() and number in (math.inf, -math.inf) else number


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one line a record. See ``Codec.encode``."""
    arrays = [tensors[spec.name] for spec in signature.outputs]
    if not signature.batched:
        # Without a batch axis one answer is one line, but for a single matrix, whose rows are lines.
        arrays = [a if len(arrays) == 1 and a.ndim > 1 else a.reshape(1, -1) for a in arrays]
    elif len({len(a) for a in arrays}) > 1:
        raise NotAcceptable(
            "text/csv cannot carry outputs with different numbers of records", accepted=["application/json"]
        )
    columns = [_column_lines(a.reshape(len(a), math.prod(a.shape[1:]))) for a in arrays]
    lines = columns[0] if len(columns) == 1 else [b",".join(cells) for cells in zip(*columns, strict=True)]
    return join_lines(lines, options)


def _column_lines(array: Array) -> list[bytes]:
    """Lines of an array of shape (N, columns), cells separated by commas."""
    if array.size == 0:
        return [b""] * len(array)
    if array.dtype == STRING:
        return [_quoted_line(row) for row in array]
    numbers = cast(Any, array)
    if array.dtype.kind == "f" and not np.isfinite(numbers).all():
        return [",".join(str(item) for item in row).encode() for row in array]
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].split(b"],[")


def _quoted_line(cells: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # cells that hold a character of it are quoted
    return line.getvalue()[:-2].encode()
