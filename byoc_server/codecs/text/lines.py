"""Lines of the line-based formats (CSV, JSON Lines): taking a body apart and putting an answer together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from byoc_server.codecs.base import EncodeOptions
from byoc_server.errors import InvalidPayload


def body_lines(body: bytes) -> list[bytes]:
    r"""Split at ``\n``, ``\r\n`` or ``\r``; a final line end adds no line.

    Raises:
        InvalidPayload: there is no line, or one is empty.
    """
    lines = body.splitlines()
    if not lines:
        raise InvalidPayload("body is empty", field="body", expected="at least one line", got="nothing")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InvalidPayload(f"line {number} is empty", field=f"line {number}", expected="a record", got="nothing")
    return lines


def join_lines_each(lines: Sequence[bytes], options: EncodeOptions, counts: Sequence[int]) -> list[bytes]:
    """As ``join_lines``, so many lines each."""
    if len(lines) == len(counts):
        end = b"\n" if options.final_newline else b""
        return [line + end for line in lines]
    bounds = pairwise(accumulate(counts, initial=0))
    return [join_lines(lines[begin:end], options) for begin, end in bounds]


def join_lines(lines: Sequence[bytes], options: EncodeOptions) -> bytes:
    r"""Join with ``\n``, and end with one if the options say so.

    Whether SageMaker adds a line end of its own between the answers of a batch transform job (``AssembleWith=Line``)
    is documented and observed differently, hence the option.
    """
    return b"\n".join(lines) + (b"\n" if lines and options.final_newline else b"")
