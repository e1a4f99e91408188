"""CSV as it may be: quoted cells, texts, words for numbers; the reader that gives every message.

Rows are read and converted block by block, so that memory is taken for a few thousand cells, and not for all of them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import numpy as np

from byoc_server.codecs.text.csv_layout import Layout, layout_of, reshaped
from byoc_server.codecs.text.number_arrays import is_small
from byoc_server.codecs.text.number_text import NotPlainError, fill_cells, tokens
from byoc_server.codecs.values.conform import convert
from byoc_server.codecs.values.walk import checked_leaf, shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_BLOCK_CELLS = 4096
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class Dialect(NamedTuple):
    """What the media type parameters say about a body.

    Attributes:
        has_header: whether the first line has names.
        label_columns: so many leading columns are dropped.
        charset: a codec of Python's that has ASCII in it.
    """

    has_header: bool
    label_columns: int
    charset: str


class _Row(NamedTuple):
    line: int
    cells: list[str]


def read_rows(body: bytes, signature: Signature, dialect: Dialect) -> Tensors:
    """Read a body.

    Raises:
        InvalidPayload: naming line and column of a fault. One of the form goes before one in a cell.
    """
    try:
        parts: dict[str, list[Array]] = {spec.name: [] for spec in signature.inputs}
        for layout, block in _blocks(body, signature, dialect):
            for spec, places in layout.columns:
                parts[spec.name].append(_converted(block, spec, places, dialect.label_columns + 1))
        return {spec.name: reshaped(_joined(parts.pop(spec.name)), spec, signature) for spec in signature.inputs}
    except InvalidPayload:
        for rows in (_rows(body, dialect), _records(body, dialect), _blocks(body, signature, dialect)):
            for _ in rows:  # a fault of the form, wherever it is, raises here
                pass
        raise


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows(body: bytes, dialect: Dialect) -> Iterator[_Row]:
    """Split into cells.

    Raises:
        InvalidPayload: it is not of this charset, no CSV, or a line is empty.
    """
    charset = "utf-8-sig" if dialect.charset == "utf-8" else dialect.charset
    if not body.isascii():
        try:
            body.decode(charset)
        except UnicodeDecodeError as error:
            raise InvalidPayload(
                f"body is not {dialect.charset}: byte {error.start} is 0x{body[error.start]:02x}",
                field=f"byte {error.start}",
                expected=dialect.charset,
            ) from None
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(body), charset, newline=""), strict=True)
    is_empty = True
    try:
        for cells in reader:
            if not cells:
                raise InvalidPayload(
                    f"line {reader.line_num} is empty",
                    field=f"line {reader.line_num}",
                    expected="a record",
                    got="nothing",
                )
            is_empty = False
            yield _Row(reader.line_num, cells)
    except csv.Error as error:
        raise InvalidPayload(
            f"line {reader.line_num} is not valid CSV: {error}", field=f"line {reader.line_num}"
        ) from None
    if is_empty:
        raise InvalidPayload("body is empty", field="body", expected="at least one record", got="nothing")


def _records(body: bytes, dialect: Dialect) -> Iterator[_Row]:
    """Rows without the header and without the columns of the label.

    Raises:
        InvalidPayload: there is none, or a row has nothing behind its label.
    """
    rows = _rows(body, dialect)
    if dialect.has_header:
        next(rows)
    skipped, is_empty = dialect.label_columns, True
    for row in rows:
        if skipped:
            if len(row.cells) <= skipped:
                expected = f"more than the {skipped} columns of label_size"
                raise InvalidPayload(
                    f"line {row.line}: expected {expected}, got {len(row.cells)}",
                    field=f"line {row.line}",
                    expected=expected,
                    got=f"{len(row.cells)} columns",
                )
            del row.cells[:skipped]
        is_empty = False
        yield row
    if is_empty:
        raise InvalidPayload("body has a header but no records", expected="at least one record", got="none")


def _blocks(body: bytes, signature: Signature, dialect: Dialect) -> Iterator[tuple[Layout, list[_Row]]]:
    """Records, some at a time, and the layout, which is the same for all.

    Raises:
        InvalidPayload: the columns do not fit the model, or a record has another number of them.
    """
    names: list[str] = []
    if dialect.has_header:
        names = next(_rows(body, dialect)).cells[dialect.label_columns :]
    layout: Layout | None = None
    block: list[_Row] = []
    for row in _records(body, dialect):
        if layout is None:
            layout = layout_of(names, len(row.cells), signature)
        width = layout.width
        if len(row.cells) != width:
            raise InvalidPayload(
                f"line {row.line}: expected {width} column{'s' * (width != 1)}, got {len(row.cells)}",
                field=f"line {row.line}",
                expected=f"{width} columns ({', '.join(spec.describe() for spec in signature.inputs)})",
                got=f"{len(row.cells)} columns",
            )
        block.append(row)
        if len(block) * width >= _BLOCK_CELLS:
            yield layout, block
            block = []
    if block:
        assert layout is not None
        yield layout, block


def _converted(rows: list[_Row], spec: TensorSpec, places: Sequence[int], first_column: int) -> Array:
    """The columns of one input, shape (rows, columns); ``first_column`` is the number in the body of the first."""
    cells = [row.cells[place] for row in rows for place in places]
    array = np.empty(len(cells), spec.dtype)
    for start in range(0, len(cells), _BLOCK_CELLS):  # one row may have more
        part = cells[start : start + _BLOCK_CELLS]
        values: Array | Sequence[object] | None = part if spec.dtype == STRING else _numbers(part, spec.dtype)
        if values is None:
            values = [
                _cell(cell, spec, rows[number // len(places)].line, places[number % len(places)] + first_column)
                for number, cell in enumerate(part, start)
            ]
        array[start : start + len(part)] = cast(Any, values)
    return array.reshape(len(rows), len(places))


def _numbers(cells: list[str], dtype: np.dtype[np.generic]) -> Array | Sequence[object] | None:
    """Read cells all at once; ``None`` if one is else than a number or, for floats, nothing, right or wrong."""
    if dtype.kind == "b":
        return None
    with suppress(NotPlainError):
        numbers = tokens(",".join(cells).encode(), fill_cells)
        if len(numbers) == len(cells) and is_small(numbers):  # else a quoted cell has commas
            return convert(numbers, dtype)
    return _floats(cells, float(np.finfo(cast(Any, dtype)).max)) if dtype.kind == "f" else None


def _floats(cells: Sequence[str], largest: float) -> list[float] | None:
    """Read numbers up to ``largest`` in the spellings of Python; ``None`` if a cell is else, right or wrong."""
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
