r"""``text/csv``: one record a line, cells in the order of the model's columns (RFC 4180, October 2005).

A model with one input has the columns of that input, in order; a model with several inputs the columns of the first,
then of the second, and so on. With ``header=present``, columns go by name instead if the model has several one-column
inputs, or if an input has names for its columns (``TensorSpec.columns``): it takes those, in its own order, wherever
they stand, or else the one column that is called like itself. A column that no input takes is refused; only where all
inputs come by the names of their columns, others, an id perhaps, are passed over: a misspelt one would be missing.
Media type parameters understood: ``header`` (``present`` or ``absent``), ``label_size`` (so many leading columns are
dropped), ``charset``.

An empty cell of a float column is NaN. Cells may be quoted, and a quoted cell may hold commas and line ends.
Answers have no header: the columns of all outputs side by side, NaN as ``nan``.

Plain numbers, the usual case, are read by a JSON parser, also with empty cells and ``nan`` among them in larger bodies;
what that refuses (``+1``, ``.5``, a quoted cell) goes the long way, through ``text.csv_rows``.
"""

from __future__ import annotations

import csv
import io
import math
import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, zip_longest
from typing import Any, cast

import numpy as np
import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.text.csv_layout import flat_shape, layout_of, reshaped
from byoc_server.codecs.text.csv_rows import Dialect, read_rows
from byoc_server.codecs.text.lines import join_lines, join_lines_each
from byoc_server.codecs.text.number_arrays import Column, read_cells
from byoc_server.codecs.text.number_text import NotPlainError
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, NotAcceptable, UnsupportedMediaType
from byoc_server.types import STRING, Array, Signature, Tensors

_CHARSETS = ("utf-8", "us-ascii", "iso-8859-1", "windows-1252")
_LIMIT = 2**53
"""Of numbers whose rounding does not count."""
_FEW_BYTES = 4096
"""Up to so many it is quicker to make objects of Python's than to set out to avoid them."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record a line. See ``Codec.decode``."""
    return decoder(signature, options)(body)


def decoder(signature: Signature, options: DecodeOptions) -> Callable[[bytes], Tensors]:
    """Read one record a line, again and again. See ``MakeDecoder``."""
    dialect = _parameters(options)
    few_numbers = None if dialect.has_header or dialect.label_columns else _few_numbers(signature)

    def read(body: bytes) -> Tensors:
        tensors = None
        if len(body) > _FEW_BYTES:
            tensors = _plain_numbers(body, signature, dialect)
        elif few_numbers is not None:
            tensors = few_numbers(body)
        return read_rows(body, signature, dialect) if tensors is None else tensors

    return read


def _parameters(options: DecodeOptions) -> Dialect:
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
    return Dialect(header == "present", int(label_size), charset)


def _few_numbers(signature: Signature) -> Callable[[bytes], Tensors | None] | None:
    """What reads a short body of plain numbers for one float input, and gives ``None`` if it is anything else.

    ``None`` for other models.
    """
    spec = signature.sole_input
    width = None if spec is None else flat_shape(spec, signature)
    if spec is None or not width or spec.dtype.kind != "f" or not signature.batched:
        return None

    def read(body: bytes) -> Tensors | None:
        if b"u" in body or b"s" in body:  # there may be true or false among the numbers, which would count as such
            return None
        lines = body.splitlines()
        if not lines:
            return None
        columns = lines[0].count(b",") + 1
        if width not in (columns, -1) or (len(lines) > 1 and {line.count(b",") for line in lines} != {columns - 1}):
            return None
        try:
            values = orjson.loads(b"[%b]" % b",".join(lines))
            if not -_LIMIT < min(values) <= max(values) < _LIMIT:
                return None
            packed = _packer(spec.dtype.char, len(lines) * columns).pack(*values)
        except (ValueError, TypeError, OverflowError, struct.error):
            return None
        array = np.frombuffer(packed, spec.dtype).reshape(len(lines), columns)
        return {spec.name: reshaped(array, spec, signature)}

    return read


@cache
def _packer(kind: str, count: int) -> struct.Struct:
    """Writes numbers as floats, and refuses what is none or beyond their range; NumPy's kinds are spelt the same."""
    return struct.Struct(f"={count}{kind}")


def _plain_numbers(body: bytes, signature: Signature, dialect: Dialect) -> Tensors | None:
    """Read a body of plain numbers, maybe under a header; ``None`` if it is anything else, right or wrong."""
    if not all(spec.dtype.kind in "fiu" for spec in signature.inputs):
        return None
    try:
        start, names = _header(body, dialect) if dialect.has_header else (0, [])
        width = _first_width(body, start)
        skipped = dialect.label_columns
        layout = layout_of(names[skipped:], width - skipped, signature)
        if layout.width != width - skipped:
            return None
        most = (len(body) - start) // width + 1
        columns = [
            (Column(spec.dtype, (len(places),), most * len(places)), _chosen(places, skipped))
            for spec, places in layout.columns
        ]
        for block in read_cells(body, start, width):
            for column, chosen in columns:
                column.append(block[:, chosen])
        return {
            spec.name: reshaped(column.array(), spec, signature)
            for (spec, _), (column, _) in zip(layout.columns, columns, strict=True)
        }
    except (NotPlainError, InvalidPayload, UnicodeDecodeError):
        return None


def _header(body: bytes, dialect: Dialect) -> tuple[int, list[str]]:
    """Where the first record starts, and the names above it."""
    start = body.find(b"\n") + 1
    line = body[:start].removesuffix(b"\n").removesuffix(b"\r")
    text = line.decode("utf-8-sig" if dialect.charset == "utf-8" else dialect.charset)
    if not text or '"' in text or "\r" in text:
        raise NotPlainError
    return start, text.split(",")


def _first_width(body: bytes, start: int) -> int:
    """Columns of the line that starts there."""
    end = len(body)
    for line_end in (b"\n", b"\r"):
        found = body.find(line_end, start, end)
        end = end if found < 0 else found
    return body.count(b",", start, end) + 1


def _chosen(places: Sequence[int], skipped: int) -> slice | list[int]:
    """An index for these columns behind the skipped ones, if possible one that copies nothing."""
    if isinstance(places, range):
        return slice(places.start + skipped, places.stop + skipped)
    return [place + skipped for place in places]


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one line a record. See ``Codec.encode``."""
    return join_lines(_lines(tensors, signature), options)


def encode_each(tensors: Tensors, signature: Signature, options: EncodeOptions, counts: Sequence[int]) -> list[bytes]:
    """Write several answers in one pass. See ``EncodeEach``."""
    return join_lines_each(_lines(tensors, signature), options, counts)


def _lines(tensors: Tensors, signature: Signature) -> list[bytes]:
    arrays = [tensors[spec.name] for spec in signature.outputs]
    if not signature.batched:
        # Without a batch axis one answer is one line, but for a single matrix, whose rows are lines.
        arrays = [a if len(arrays) == 1 and a.ndim > 1 else a.reshape(1, -1) for a in arrays]
    elif len({len(a) for a in arrays}) > 1:
        raise NotAcceptable(
            "text/csv cannot carry outputs with different numbers of records", accepted=["application/json"]
        )
    arrays = [a.reshape(len(a), math.prod(a.shape[1:])) for a in arrays]
    columns = [_column_lines(a) for a in arrays]
    return columns[0] if len(columns) == 1 else [b",".join(cells) for cells in zip(*columns, strict=True)]


def _column_lines(array: Array) -> list[bytes]:
    """Lines of an array of shape (N, columns), cells separated by commas."""
    if array.size == 0:
        return [b""] * len(array)
    if array.dtype == STRING:
        return [_quoted_line(row) for row in array]
    # ``[[1,2],[3,4]]``: two characters before each line, and two brackets behind the last one
    return [line[2:] for line in _numbers_text(array).split(b"]")[:-2]]


def _numbers_text(array: Array) -> bytes:
    """Numbers of shape (N, columns) in brackets: the digits of the JSON writer, and words for what it has none for."""
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"n" not in text:  # no null
        return text
    numbers = cast(Any, array)
    words = [str(number).encode() for number in numbers[~np.isfinite(numbers)].tolist()]
    return b"".join(chain.from_iterable(zip_longest(text.split(b"null"), words, fillvalue=b"")))


def _quoted_line(cells: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # cells that hold a character of it are quoted
    return line.getvalue()[:-2].encode()
