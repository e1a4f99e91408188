"""``text/libsvm``: one sparse record a line, ``LABEL INDEX:VALUE INDEX:VALUE ...``; for requests only.

As XGBoost reads it ("Text Input Format of DMatrix", release 2.1): indices count from 0; ``qid:N`` and everything from
``#`` on are not looked at. Nor is the label, which may be missing, as in SageMaker's XGBoost container. What a record
does not name is 0. Within a line indices ascend. An empty line is an error, as in the other line formats; a line with
only a comment is no record.

Lines of plain numbers are taken apart many at a time: their blanks and colons are found in one pass, and the numbers
are parsed in another. Only lines that this leaves open, right or wrong, are read word by word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import cast

import numpy as np
import numpy.typing as npt
import orjson

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.values.conform import conform_array, convert
from byoc_server.codecs.values.walk import checked_leaf, shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_PLAIN_NUMBERS = b"0123456789+-.eE: \t\n"
_TO_COMMAS = bytes.maketrans(b": \t\n", b",,,,")
_DIGIT, _LINE_END, _BLANK, _COLON, _OTHER = range(5)
_CLASSES = bytes(
    {10: _LINE_END, 32: _BLANK, 9: _BLANK, 11: _BLANK, 12: _BLANK, 58: _COLON}.get(
        byte, _DIGIT if 48 <= byte <= 57 else _OTHER
    )
    for byte in range(256)
)
"""Byte -> what it is, as ``bytes.translate`` takes it."""
_COMMENT = re.compile(rb"^[ \t\v\f]*#[^\n]*(?:\n|\Z)|#[^\n]*", re.MULTILINE)
_QUERY_ID = re.compile(rb"^([^\s:]+ )?qid:[0-9]+(?: |$)", re.MULTILINE)
_MOST_EXACT = 2**53
"""From here on doubles do not hold every index; no tensor is that wide."""

_BLOCK_BYTES = 64 * 1024
"""So much text is taken apart at a time, rounded up to whole lines: it takes some fifty times its room."""

Places = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Entries:
    """All pairs of index and value of some lines, in order.

    Attributes:
        lines: for every record the number of its line.
        row: for every pair the number of its record, ascending.
        index: for every pair its column.
        value: doubles; or Python's own numbers, exactly as they came, and the text of what is none.
    """

    lines: Sequence[int]
    row: Places
    index: Places
    value: Doubles | list[object]


@dataclass(frozen=True, slots=True)
class _Part:
    """The entries of some records for one input: where they go, and what they are in its dtype."""

    row: Places
    index: Places
    value: Array


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one sparse record a line. See ``Codec.decode``."""
    shapes = [_line_shape(spec, signature) for spec in signature.inputs]
    if not body:
        raise InvalidPayload("body is empty", field="body", expected="at least one line", got="nothing")
    # one column more than there can be where their number is open
    widths = [_MOST_EXACT if None in shape else math.prod(cast(tuple[int, ...], shape)) for shape in shapes]
    parts: list[list[_Part]] = []
    rows = 0
    for text, line in _blocks(body):
        entries = _plain_entries(text)
        block = None if entries is None else _parts(entries, rows, widths, signature)
        if entries is None or block is None:
            entries = _read_entries(text, line)
            block = _parts(entries, rows, widths, signature)
        parts.append(cast(list[_Part], block))  # what was read exactly fits, or has been refused
        rows += len(entries.lines)
    if not rows:
        raise InvalidPayload("body holds only comments", field="body", expected="at least one record", got="none")
    return _tensors(parts, rows, shapes, signature, options)


def _blocks(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Cut the body at line ends: some lines, the last without its end, and the number of the first of them."""
    text = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in body else body
    start, line = 0, 1
    while start < len(text):
        end = text.find(b"\n", start + _BLOCK_BYTES)
        block = text[start : end if end >= 0 else len(text) - text.endswith(b"\n")]
        yield block, line
        line += 1 + block.count(b"\n")
        start = end + 1 if end >= 0 else len(text)


def _line_shape(spec: TensorSpec, signature: Signature) -> tuple[int | None, ...]:
    """Shape of what one line holds of an input: a record, or without a batch axis a row of the only input."""
    rows = signature.batched or (signature.sole_input is not None and len(spec.shape) > 1)
    shape = spec.shape[1:] if rows else spec.shape
    is_open = None in shape and (shape != (None,) or signature.sole_input is None)
    if is_open or spec.dtype == STRING:
        why = "its number of columns is open" if is_open else "its values are strings"
        raise InvalidPayload(
            f"text/libsvm cannot carry input {spec.describe()}: {why}; use application/json",
            field=spec.name,
            expected="inputs of numbers with a fixed number of columns",
        )
    return shape


def _plain_entries(text: bytes) -> _Entries | None:
    """Take apart lines of numbers, blanks, colons, query ids and comments; ``None`` if they are anything else."""
    if b"#" in text:
        text = _COMMENT.sub(b"", text + b"\n")
        if not text:  # there are no other lines
            return _Entries((), *(np.empty(0, np.intp),) * 2, np.empty(0))
        text = text[:-1]
    if b"qid:" in text:
        text = _QUERY_ID.sub(rb"\1", text)
    found = _entries_of_block(text)
    # Nothing here is ever called by its line: the exact way knows the numbers.
    return None if found is None else _Entries(range(1 + text.count(b"\n")), *found)


def _entries_of_block(text: bytes) -> tuple[Places, Places, Doubles] | None:
    """Row, index and value of all entries. See ``_plain_entries``."""
    classes = np.frombuffer((b"\n" + text + b"\n").translate(_CLASSES), np.uint8)
    place = np.flatnonzero(classes)
    kind = classes[place]
    blank = kind <= _BLANK
    colon = np.flatnonzero(kind == _COLON)
    # An index is digits alone: before its colon comes a blank, and not at once.
    if not (blank[colon - 1] & (place[colon] - place[colon - 1] > 1)).all():
        return None
    start = np.flatnonzero(blank[:-1] & ~(blank[1:] & (place[1:] - place[:-1] == 1)))
    paired = kind[start + 1] == _COLON
    row = np.cumsum(kind == _LINE_END)[start] - 1
    steps = np.diff(row, prepend=-1, append=text.count(b"\n") + 1)
    if (steps > 1).any() or not (paired | (steps[:-1] > 0)).all():
        return None  # a line without a word, or a word without a colon that is not the first of its line
    numbers = _plain_numbers(text, len(start) + len(colon))
    if numbers is None:
        return None
    last = (np.cumsum(paired + 1) - 1)[paired]
    index, value = numbers[last - 1], numbers[last]
    if (index >= _MOST_EXACT).any() or np.isinf(value).any():
        return None
    return row[paired], index.astype(np.intp), value


def _plain_numbers(text: bytes, count: int) -> Doubles | None:
    """Read ``count`` numbers between blanks, colons and line ends; ``None`` if there are more, fewer, or others."""
    if not text.translate(None, _PLAIN_NUMBERS):
        try:
            tidy = (b"\n" + text).replace(b"\n+", b"\n").replace(b" \n", b"\n")[1:].rstrip()
            numbers = orjson.loads(b"[%b]" % tidy.translate(_TO_COMMAS))
            return np.array(numbers, np.float64) if len(numbers) == count else None
        except ValueError:  # not the numbers of JSON, as "+1", ".5" or two blanks
            pass
    words = text.replace(b":", b" ").split()
    if len(words) != count or b"_" in text:
        return None
    try:
        return np.fromiter(map(float, words), np.float64, count)
    except ValueError:
        return None


def _read_entries(text: bytes, first_line: int) -> _Entries:
    """Read word by word, exactly.

    Raises:
        InvalidPayload: naming the line.
    """
    lines: list[int] = []
    row: list[int] = []
    index: list[int] = []
    value: list[object] = []
    for line_number, line in enumerate(text.split(b"\n"), first_line):
        if not line.strip():
            where = f"line {line_number}"
            raise InvalidPayload(f"{where} is empty", field=where, expected="a record", got="nothing")
        words = _words(line)
        if words is None:
            continue
        for word in words:
            left, colon, right = word.partition(b":")
            digits = left.lstrip(b"0") or left[-1:]
            if not colon or not left.isdigit() or int(digits[:18]) >= _MOST_EXACT:
                where, got = f"line {line_number}", shown(word.decode("utf-8", "replace"))
                expected = "INDEX:VALUE with an index from 0"
                raise InvalidPayload(
                    f"{where}: expected {expected}, got {got}", field=where, expected=expected, got=got
                )
            row.append(len(lines))
            index.append(int(digits))
            value.append(_number(right))
        lines.append(line_number)
    return _Entries(lines, np.array(row, np.intp), np.array(index, np.intp), value)


def _words(line: bytes) -> list[bytes] | None:
    """The words of a line without its label, query id and comment; ``None`` if it is only a comment."""
    text, comment, _ = line.partition(b"#")
    words = text.split()
    if comment and not words:
        return None
    if words and b":" not in words[0] and isinstance(_number(words[0]), float | int):
        del words[0]
    if words and words[0].startswith(b"qid:") and words[0][4:].isdigit():
        del words[0]
    return words


def _number(word: bytes) -> object:
    """A number as it came; its text if it is none, too large, or spelt as only Python spells numbers."""
    text = word.decode("utf-8", "replace")
    if b"_" in word:
        return text
    for parse in (int, float):
        try:
            number = parse(word)
        except ValueError:
            continue
        return text if number in (math.inf, -math.inf) and word[-1:].isdigit() else number
    return text


def _parts(entries: _Entries, rows: int, widths: Sequence[int], signature: Signature) -> list[_Part] | None:
    """The entries of some lines, input by input, that follow ``rows`` records.

    Returns:
        ``None`` if values that were read as doubles do not fit, or indices beside them: they must be read exactly.
    """
    if not _check_indices(entries, sum(widths)):
        return None
    parts = []
    first = 0
    for spec, width in zip(signature.inputs, widths, strict=True):
        mine = entries if len(widths) == 1 else _part(entries, first, first + width)
        values = _values(mine, spec, first)
        if values is None:
            return None
        parts.append(_Part(mine.row + rows, mine.index, values))
        first += width
    return parts


def _tensors(
    parts: Sequence[Sequence[_Part]],
    rows: int,
    shapes: Sequence[tuple[int | None, ...]],
    signature: Signature,
    options: DecodeOptions,
) -> Tensors:
    """Fill the inputs."""
    if shapes == [(None,)]:
        shapes = [(max(int(part.index.max(initial=-1)) for (part,) in parts) + 1,)]
    widths = [math.prod(cast(tuple[int, ...], shape)) for shape in shapes]
    size = rows * sum(w * spec.dtype.itemsize for w, spec in zip(widths, signature.inputs, strict=True))
    if size > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"{rows} records of {sum(widths)} columns are too large when dense",
            field="body",
            expected=f"at most {options.max_tensor_bytes} bytes",
            got=f"{size} bytes",
        )
    tensors: Tensors = {}
    for number, (spec, width, shape) in enumerate(zip(signature.inputs, widths, shapes, strict=True)):
        array = np.zeros((rows, width), spec.dtype)
        for block in parts:
            part = block[number]
            array[part.row, part.index] = part.value
        tensors[spec.name] = _reshaped(array, shape, spec, signature)
    return tensors


def _check_indices(entries: _Entries, width: int) -> bool:
    """Whether indices ascend within each record and there are such columns; of exact entries only if they do.

    Raises:
        InvalidPayload: they do not, naming the line.
    """
    row, index = entries.row, entries.index
    beyond = np.flatnonzero(index >= width)
    fallen = np.flatnonzero((index[1:] <= index[:-1]) & (row[1:] == row[:-1]))
    if not isinstance(entries.value, list):
        return not beyond.size and not fallen.size
    if beyond.size:
        where, got = f"line {entries.lines[row[beyond[0]]]}", f"index {index[beyond[0]]}"
        expected = f"indices from 0 to {width - 1}"
        raise InvalidPayload(f"{where}: expected {expected}, got {got}", field=where, expected=expected, got=got)
    if fallen.size:
        where, got = f"line {entries.lines[row[fallen[0]]]}", f"index {index[fallen[0] + 1]}"
        expected = f"an index above {index[fallen[0]]}"
        raise InvalidPayload(
            f"{where}: indices must ascend: expected {expected}, got {got}", field=where, expected=expected, got=got
        )
    return True


def _part(entries: _Entries, first: int, end: int) -> _Entries:
    """The entries of some columns, which then count from 0."""
    chosen = (entries.index >= first) & (entries.index < end)
    value = entries.value
    kept = list(compress(value, chosen)) if isinstance(value, list) else value[chosen]
    return _Entries(entries.lines, entries.row[chosen], entries.index[chosen] - first, kept)


def _values(entries: _Entries, spec: TensorSpec, first: int) -> Array | None:
    """The values in the dtype of the input; ``None`` if they must be read exactly for that.

    Raises:
        InvalidPayload: naming line and index of one that does not fit.
    """
    value = entries.value
    if isinstance(value, list):
        places = zip(entries.row.tolist(), entries.index.tolist(), strict=True)
        leaves = [
            checked_leaf(item, spec, f"line {entries.lines[row]}, index {index + first}")
            for item, (row, index) in zip(value, places, strict=True)
        ]
        return np.array(leaves, spec.dtype)
    if spec.dtype.kind == "b":
        return np.array(value, spec.dtype) if ((value == 0) | (value == 1)).all() else None
    return convert(value, spec.dtype)


def _reshaped(array: Array, shape: tuple[int | None, ...], spec: TensorSpec, signature: Signature) -> Array:
    """Bring lines, shape (N, columns), to the shape of the input."""
    rows = array.reshape(len(array), *cast(tuple[int, ...], shape))
    if signature.batched:
        return rows
    if len(spec.shape) > len(shape):
        return conform_array(rows, spec, signature, "body")
    if len(rows) > 1:
        raise InvalidPayload(
            f"the model takes one record per request, got {len(rows)}", expected="1 record", got=str(len(rows))
        )
    return np.asarray(rows[0])
