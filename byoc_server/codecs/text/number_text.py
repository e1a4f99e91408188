r"""Text that is nothing but numbers in brackets or lines, read in pieces and without an object for every number.

Reading such a text as nested lists takes about 30 bytes a number and holds the interpreter until the end. Here it is
cut at separators into pieces of some ten kilobytes, so that other threads get their turn between two of them, and the
number parser writes doubles. What else stands in the text becomes a number too, a *mark*: an opening bracket ``1e30``,
a closing one ``2e30``, a missing value ``3e30``, the end of a line ``4e30``. What comes out of the parser then is one
flat list of *tokens*, numbers and marks, and in a text of regular form the marks stand at regular distances. Spaces
around the marks keep their neighbours apart, so the parser finds every fault of grammar, and ``number_arrays`` every
other.

Whatever is not as expected is *not plain*, right or wrong: texts, words, a spelling that JSON does not have. The reader
of the format then takes its long way, which gives every message.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import orjson

FIRST_PIECE_BYTES = 32 * 1024
PIECE_TOKENS = 8 * 1024
"""So many the pieces after the first are to have, if their tokens are as long as before; that takes about 0.1 ms."""
_MOST_PIECE_BYTES = 256 * 1024
_MOST_CHARACTERS = 23

OPEN, CLOSE, END = 1e30, 2e30, 4e30
_OPEN_TEXT, _CLOSE_TEXT, _END_TEXT = b" 1e30,", b",2e30 ", b",4e30,"
_ADDED_BYTES = len(_OPEN_TEXT) - 1
"""What each of the three adds to the one byte that it stands for."""
_MISSING, _MISSING_TEXT = 3e30, b" 3e30 "

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

Fill = Callable[[bytes], tuple[bytes, int]]
"""Puts marks for missing values into a piece that does not parse without; gives their number, too."""


class NotPlainError(Exception):
    """The text is anything else than numbers of regular form, right or wrong."""


class NumberText:
    """Numbers and marks of one text, piece by piece; missing values are NaN.

    Args:
        body: the text.
        fill: see ``Fill``.

    Attributes:
        marks: so many brackets and line ends have been read. A number of the sender's may look like one.
    """

    def __init__(self, body: bytes, fill: Fill) -> None:
        self.marks = 0
        self._body = body
        self._fill = fill
        self._piece_bytes = FIRST_PIECE_BYTES

    def array_tokens(self, start: int, end: int) -> Iterator[Numbers]:
        """Read from an opening bracket to a closing one, which is left out.

        Raises:
            NotPlainError: from here as from the others, a piece is no list of numbers, brackets and missing values.
        """
        body, position = self._body, start
        while position < end:
            cut = body.find(b",", position + self._piece_bytes, end)
            if cut < 0:
                cut = end
            part = self._tokens(self._bracketed(body[position:cut]), cut - position)
            position = cut + 1
            yield part if position < end else part[:-1]

    def line_tokens(self, start: int, *, is_bracketed: bool) -> Iterator[Numbers]:
        """Read lines from ``start`` on; each gives a mark for its end, the last one also without a line end."""
        body, position = self._body, start
        end = len(body) - (2 if body.endswith(b"\r\n") else body.endswith((b"\n", b"\r")))
        while position <= end:
            # At the end of a line if there is one; long lines have commas.
            least = position + self._piece_bytes
            cut = body.find(b"\n", least, min(least + self._piece_bytes, end))
            is_line_end = cut >= 0
            if not is_line_end:
                cut = body.find(b",", least, end)
                if cut < 0:
                    cut, is_line_end = end, True
            piece = body[position : cut - (is_line_end and body[cut - 1 : cut + 1] == b"\r\n")]
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            text = piece.replace(b"\n", _END_TEXT)
            self.marks += (len(text) - len(piece)) // _ADDED_BYTES + is_line_end
            if is_bracketed:
                text = self._bracketed(text)
            yield self._tokens(text + _END_TEXT[:-1] if is_line_end else text, cut - position)
            position = cut + 1

    def _tokens(self, text: bytes, piece_bytes: int) -> Numbers:
        part = tokens(text, self._fill)
        self._piece_bytes = min(PIECE_TOKENS * (piece_bytes + 1) // len(part) + 1, _MOST_PIECE_BYTES)
        return part

    def _bracketed(self, piece: bytes) -> bytes:
        text = piece.replace(b"[", _OPEN_TEXT).replace(b"]", _CLOSE_TEXT)
        self.marks += (len(text) - len(piece)) // _ADDED_BYTES
        return text


def tokens(text: bytes, fill: Fill) -> Numbers:
    """Read JSON numbers (RFC 8259, section 6, December 2017) between commas.

    Args:
        text: of one piece.
        fill: see ``Fill``.

    Raises:
        NotPlainError: it is anything else.
    """
    parse = _parse_slowly if _has_long_numbers(text) else _parse
    try:
        return parse(text)
    except NotPlainError:
        text, missing = fill(text)
        if not missing:
            raise
    numbers = parse(text)
    is_missing = numbers == _MISSING
    if np.count_nonzero(is_missing) != missing:  # a number of the sender's looks like the mark
        raise NotPlainError
    return np.where(is_missing, math.nan, numbers)


def _has_long_numbers(text: bytes) -> bool:
    """Whether the second number, for one, has more digits than the fast parser is fast with: 19, as ``savetxt`` writes.

    What a double takes to be told from all others has 23 characters at most, mostly less.
    """
    start = text.find(b",") + 1
    return len(text[start : text.find(b",", start)].strip()) > _MOST_CHARACTERS


def fill_words(text: bytes) -> tuple[bytes, int]:
    """Put marks for ``null`` and ``NaN``."""
    missing = text.count(b"null") + text.count(b"NaN")
    return text.replace(b"null", _MISSING_TEXT).replace(b"NaN", _MISSING_TEXT), missing


def fill_cells(text: bytes) -> tuple[bytes, int]:
    """Put marks for empty cells and for ``nan``. To the marks of line ends it looks as if an empty line had a cell."""
    missing = text.count(b"nan") + text.count(b"NaN")
    text = text.replace(b"nan", _MISSING_TEXT).replace(b"NaN", _MISSING_TEXT)
    length = len(text)
    text = (_MISSING_TEXT if text[:1] in b"," else b"") + text + (_MISSING_TEXT if text[-1:] == b"," else b"")
    for _ in range(2):  # three commas in a row are two cells
        text = text.replace(b",,", b",%b," % _MISSING_TEXT)
    return text, missing + (len(text) - length) // len(_MISSING_TEXT)


def fill_nothing(text: bytes) -> tuple[bytes, int]:
    """Leave the text as it is."""
    return text, 0


def _parser_class() -> Callable[[], Any] | None:
    try:
        return cast(Callable[[], Any], importlib.import_module("simdjson").Parser)
    except (ImportError, RuntimeError):  # has no wheel for every Python; the numbers are the same, only slower
        return None


_Parser = _parser_class()


class _ParserOfThread(threading.local):
    """Keeps the parser's buffers from piece to piece."""

    def __init__(self) -> None:
        assert _Parser is not None
        self.parse: Callable[[bytes], Any] = _Parser().parse


_of_thread: Any = None if _Parser is None else _ParserOfThread()


def _parse_fast(text: bytes) -> Numbers:
    if b"[" in text:  # the parser would take the numbers out of it
        raise NotPlainError
    try:
        numbers = np.frombuffer(_of_thread.parse(b"".join((b"[", text, b"]"))).as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, RuntimeError):  # as the binding translates the parser's errors
        raise NotPlainError from None
    if not len(numbers):
        raise NotPlainError
    return numbers


def _parse_slowly(text: bytes) -> Numbers:
    try:
        values = orjson.loads(b"[%b]" % text)
    except ValueError:
        raise NotPlainError from None
    if not values or not set(map(type, values)) <= {int, float}:
        raise NotPlainError
    return np.array(values, np.float64)


_parse: Callable[[bytes], Numbers] = _parse_slowly if _Parser is None else _parse_fast
