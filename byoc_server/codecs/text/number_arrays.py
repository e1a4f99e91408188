"""Arrays from the tokens of ``number_text``: numbers, and marks for brackets and the ends of lines between them.

An array is regular if the marks stand where they stand in its first element, again and again; that is compared, and
then they are left out. It is *not plain*, beside what is so as a text, if it is not regular, if a number is 2^53 or
more (where it would count by which way a number is rounded; and the marks are such numbers), or if one does not convert
to the dtype of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import cast

import numpy as np

from byoc_server.codecs.text.number_text import (
    CLOSE,
    END,
    OPEN,
    NotPlainError,
    Numbers,
    NumberText,
    fill_cells,
    fill_nothing,
    fill_words,
)
from byoc_server.codecs.values.conform import convert
from byoc_server.types import Array

_LIMIT = 2.0**53
_MOST_AXES = 16
_LONG = 4096
"""Elements of more tokens are not put together before their marks are taken away."""


def read_array(
    body: bytes, start: int, end: int, dtype: np.dtype[np.generic], record_shape: tuple[int | None, ...]
) -> Array:
    """Read ``body[start:end]``, a JSON array of arrays of numbers; ``null`` and ``NaN`` are missing values.

    Args:
        body: the text around it, too.
        start: place of the first opening bracket.
        end: place behind the last closing bracket.
        dtype: that the array gets, of floats or integers.
        record_shape: of one record of the input; the array may be of another shape.

    Returns:
        Array of at least one axis and one element.

    Raises:
        NotPlainError: it is anything else, or a value would change its meaning.
    """
    text = NumberText(body, fill_words)
    tokens = text.array_tokens(start, end)
    first = next(tokens)
    depth = int(np.argmax(first != OPEN))  # 0 if there is nothing but opening brackets
    if not 0 < depth <= _MOST_AXES:
        raise NotPlainError
    waiting = [first[1:]]  # without the bracket of the array itself
    shape = record_shape[len(record_shape) + 1 - depth :] if depth <= len(record_shape) + 1 else (None,)
    if None in shape or 0 in shape:
        element = _FirstElement(depth)
        while not element.ends_in(waiting[-1]):
            waiting.append(_next(tokens))
        shape = element.shape()
    elements = cast(tuple[int, ...], shape)
    column = Column(dtype, elements, (end - start) // 2 + 1)
    for block in _blocks(text, chain(waiting, tokens), elements, is_bracketed=True, marks_outside=2):
        column.append(block)
    return column.array()


def _next(tokens: Iterator[Numbers]) -> Numbers:
    for part in tokens:
        return part
    raise NotPlainError


def read_lines(body: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Read lines of which each holds one JSON array of numbers, or one number.

    Args:
        body: all lines, the last one with or without a line end.
        shape: of the first line; no length is 0.
        dtype: that the array gets, of floats or integers.

    Returns:
        Array of shape (lines, *shape).

    Raises:
        NotPlainError: as ``read_array``.
    """
    text = NumberText(body, fill_words)
    column = Column(dtype, shape, len(body) // 2 + 1)
    for block in _blocks(text, text.line_tokens(0, is_bracketed=True), shape, is_bracketed=True, has_ends=True):
        column.append(block)
    return column.array()


def read_cells(body: bytes, start: int, width: int) -> Iterator[Numbers]:
    """Read lines of ``width`` cells each from ``start`` on; empty cells and ``nan`` are missing values.

    Yields:
        The lines, as many as were there at a time, as an array of shape (lines, width).

    Raises:
        NotPlainError: as ``read_array``; also for an empty cell where it is all of a line.
    """
    text = NumberText(body, fill_cells if width > 1 else fill_nothing)
    return _blocks(text, text.line_tokens(start, is_bracketed=False), (width,), is_bracketed=False, has_ends=True)


class Column:
    """An array that grows record by record.

    Args:
        dtype: of floats or integers.
        shape: of one record.
        most: numbers that can come at most; room for them is set aside, and memory taken only for those that come.
    """

    def __init__(self, dtype: np.dtype[np.generic], shape: tuple[int, ...], most: int) -> None:
        self._values: Array = np.empty(most, dtype)
        self._shape = shape
        self._count = 0

    def append(self, block: Numbers) -> None:
        """Add records.

        Args:
            block: shape (n, *shape), all below 2^53.

        Raises:
            NotPlainError: a value does not keep its meaning in this dtype.
        """
        dtype = self._values.dtype
        converted = cast(Array, block)
        if dtype not in (np.float32, np.float64):  # those take all that is below 2^53
            loose = convert(converted, dtype)
            if loose is None:
                raise NotPlainError
            converted = loose
        end = self._count + block.size
        self._values[self._count : end].reshape(block.shape)[...] = converted
        self._count = end

    def array(self) -> Array:
        """All records, shape (n, *shape).

        Raises:
            NotPlainError: there is none.
        """
        if not self._count:
            raise NotPlainError
        values = self._values
        values.resize(self._count, refcheck=False)  # gives back what was not needed, in place
        return values.reshape(-1, *self._shape)


class _FirstElement:
    """Finds out the shape of the first element of an array from the marks of its brackets.

    Args:
        depth: number of brackets that the array begins with, at least two.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._level = 1
        self._opened = np.zeros(depth + 1, np.int64)  # brackets by the level that they open
        self._tokens = 0

    def ends_in(self, part: Numbers) -> bool:
        """Take the next tokens; tell whether the element ends among them."""
        marks = np.flatnonzero(part >= OPEN)
        opens = part[marks] == OPEN
        levels = self._level + np.cumsum(np.where(opens, 1, -1))
        last = np.flatnonzero(levels == 1)[:1]
        seen = int(last[0]) + 1 if last.size else len(marks)
        opened = np.bincount(levels[:seen][opens[:seen]].clip(0), minlength=self._depth + 1)
        if len(opened) > self._depth + 1:
            raise NotPlainError
        self._opened += opened
        self._tokens += int(marks[seen - 1]) + 1 if last.size else len(part)
        if seen:
            self._level = int(levels[seen - 1])
        return bool(last.size)

    def shape(self) -> tuple[int, ...]:
        """The lengths that it has if it is regular."""
        counts = [*self._opened[2:].tolist(), self._tokens - 2 * int(self._opened.sum())]
        pairs = list(pairwise(counts))
        if any(not inner or inner % outer for outer, inner in pairs):
            raise NotPlainError
        return tuple(inner // outer for outer, inner in pairs)


def _blocks(
    text: NumberText,
    parts: Iterator[Numbers],
    shape: tuple[int, ...],
    *,
    is_bracketed: bool,
    has_ends: bool = False,
    marks_outside: int = 0,
) -> Iterator[Numbers]:
    """Check the marks and take them away.

    Args:
        text: that the parts are of.
        parts: numbers and marks.
        shape: of one element.
        is_bracketed: whether each axis of an element has brackets around it.
        has_ends: whether each element has the end of a line behind it.
        marks_outside: so many marks are not among the parts.

    Yields:
        Elements, shape (n, *shape), or, where they are long, parts of them.
    """
    size = math.prod(shape)
    length = _length(shape, is_bracketed) + has_ends
    marks = length - size
    if is_bracketed:
        if has_ends and length > _LONG:
            parts, length, has_ends = _unwrapped(parts, length, None, END), length - 1, False
        while shape and not has_ends and length > _LONG:
            parts, shape = _unwrapped(parts, length, OPEN, CLOSE), shape[1:]
            length = _length(shape, is_bracketed)
    waiting: list[Numbers] = []
    count = numbers = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= length:
            tokens = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            whole = count - count % length
            block = _without_marks(tokens[:whole].reshape(-1, length), shape, is_bracketed, has_ends)
            yield block
            numbers += block.size
            waiting = [tokens[whole:]]
            count -= whole
    if count or text.marks != numbers // size * marks + marks_outside:
        raise NotPlainError


def _length(shape: tuple[int, ...], is_bracketed: bool) -> int:
    """Numbers and marks of an element of this shape."""
    length = 1
    for size in reversed(shape):
        length = size * length + 2 * is_bracketed
    return length


def _unwrapped(parts: Iterator[Numbers], length: int, first: float | None, last: float) -> Iterator[Numbers]:
    """Take the first and the last mark off every ``length`` tokens."""
    inner = length - 1 - (first is not None)
    left = -1 if first is not None else inner  # inner tokens that are still to come; -1: the first mark is
    begin = left
    for part in parts:
        start = 0
        while start < len(part):
            if left > 0:
                inside = part[start : start + left]
                yield inside
                start += len(inside)
                left -= len(inside)
                continue
            if part[start] != (first if left else last):
                raise NotPlainError
            left = inner if left else begin
            start += 1
    if left != begin:
        raise NotPlainError


def _without_marks(tokens: Numbers, shape: tuple[int, ...], is_bracketed: bool, has_ends: bool) -> Numbers:
    """Elements of one row of tokens each, as a view without their marks."""
    is_regular = True
    if has_ends:
        is_regular = bool((tokens[..., -1] == END).all())
        tokens = tokens[..., :-1]
    for size in shape:
        if is_bracketed:
            is_regular &= bool((tokens[..., 0] == OPEN).all() and (tokens[..., -1] == CLOSE).all())
            tokens = tokens[..., 1:-1]
        tokens = tokens.reshape(*tokens.shape[:-1], size, -1)
    numbers = tokens[..., 0]
    if not is_regular or not is_small(numbers):
        raise NotPlainError
    return numbers


def is_small(numbers: Numbers) -> bool:
    """Whether all are below 2^53 or NaN."""
    if numbers.min() > -_LIMIT and numbers.max() < _LIMIT:
        return True
    return not (np.abs(numbers) >= _LIMIT).any()  # a NaN among them makes both comparisons above false
