"""Many records in JSON or JSON Lines, parsed some at a time.

Parsing a large body at once takes many times its memory and holds the interpreter until the end. Here it is cut between
two records, or lines, into pieces of some ten kilobytes. Where each piece is a list of values, the whole is the list of
all of them; so it need not be known whether a cut is within a text or a record, as no such piece parses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import orjson

from byoc_server.codecs.base import DecodeOptions
from byoc_server.errors import TensorsTooLarge

LARGE_BYTES = 256 * 1024
"""Smaller bodies are parsed at once."""

PIECE_BYTES = 64 * 1024
"""Takes about a millisecond to become tensors."""

_MOST_BYTES_AROUND = 4 * 1024
_BORDER = re.compile(rb"\}\s*,\s*\{")
_OBJECT = re.compile(rb"\s*\{")
_CONTAINER_BYTES = 64
"""What an empty list or object and the reference to it take; what is made of them takes about as much again."""


class RecordList(NamedTuple):
    """A list of objects in a JSON document.

    Attributes:
        document: what is around it, with ``PLACEHOLDER`` in its place.
        start: place behind its opening bracket.
        end: place of its closing bracket.
    """

    document: object
    start: int
    end: int


PLACEHOLDER = "\0"


def find_records(body: bytes) -> RecordList | None:
    """Find the list of objects that a document is, or that is nearly all of it; ``None`` if there is none.

    What stands between the brackets may yet be no list.
    """
    start, end = body.find(b"[") + 1, body.rfind(b"]")
    if not 0 < start <= _MOST_BYTES_AROUND or len(body) - end > _MOST_BYTES_AROUND or not _OBJECT.match(body, start):
        return None
    before, after = body[: start - 1], body[end + 1 :]
    if b"\\" in before + after:  # else no text of the sender's is the placeholder
        return None
    try:
        return RecordList(orjson.loads(before + b'"\\u0000"' + after), start, end)
    except orjson.JSONDecodeError:
        return None


def record_pieces(body: bytes, start: int, end: int) -> Iterator[bytes]:
    """Cut the objects in ``body[start:end]`` into JSON lists of some of them each."""
    while start < end:
        border = _BORDER.search(body, start + PIECE_BYTES, end)
        cut = body.index(b",", border.start()) if border else end
        yield b"[%b]" % body[start:cut]
        start = cut + 1


def line_pieces(body: bytes) -> Iterator[bytes]:
    r"""Cut a body behind some of its ``\n``."""
    start = 0
    while start < len(body):
        cut = body.find(b"\n", start + PIECE_BYTES) + 1 or len(body)
        yield body[start:cut]
        start = cut


def require_parsed_bytes(body: bytes, options: DecodeOptions) -> None:
    """Check that a body may be parsed at once: ``[],`` takes 46 times its three bytes.

    Brackets in texts count, too.

    Raises:
        TensorsTooLarge: its lists and objects would take more than all tensors may.
    """
    size = (body.count(b"[") + body.count(b"{")) * _CONTAINER_BYTES
    if size > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"the lists and objects in the JSON take {size} bytes or more once parsed, more than "
            f"{options.max_tensor_bytes}",
            expected=f"at most {options.max_tensor_bytes // _CONTAINER_BYTES} lists and objects",
            got=f"{size // _CONTAINER_BYTES} lists and objects",
        )
