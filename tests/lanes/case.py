"""One case of the corpus: what a client sends, byte for byte, and which statuses come back.

A case never asks how long to wait. It ends when the server closes the connection, and one that should be left open is
closed by a last request that says so: whatever the server still had to say has come by then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

LAST = b"GET /ping HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
"""Follows where the connection should be open still: its answer is the last that comes."""


class Wait(enum.Enum):
    """What a client does in between."""

    CONTINUE = "until the server says 100 Continue"
    TAKEN = "until the server has read all that was sent"
    HALF_CLOSED = "not at all: it tells the server that it sends nothing more, and reads on"


@dataclass(frozen=True)
class Answers:
    """Waits until so many answers have come, interim ones too."""

    count: int


Step = bytes | Answers | Wait


@dataclass(frozen=True, repr=False)
class Case:
    """What a client does on one connection, after which it reads to the end.

    Attributes:
        name: of the case.
        steps: bytes to send and what to wait for, in turn.
        statuses: of all that comes back, interim answers too.
        kept: the case ends with ``LAST``, whose 200 is not among ``statuses``.
        cut_anywhere: the answer does not depend on where TCP cuts what is sent.
    """

    name: str
    steps: tuple[Step, ...]
    statuses: tuple[int, ...]
    kept: bool = False
    cut_anywhere: bool = True

    def __repr__(self) -> str:
        return f"<{self.name}>"


def keeps(name: str, raw: bytes, *statuses: int) -> Case:
    """Its connection stays open once it is answered."""
    return again(name, raw, *statuses, times=1)


def again(name: str, raw: bytes, *statuses: int, times: int = 3) -> Case:
    """Its connection stays open, and it is sent as often as said, each time once it is answered."""
    steps = [step for time in range(times) for step in (raw, Answers((time + 1) * len(statuses)))]
    return Case(name, (*steps, LAST), statuses * times, kept=True)


def joined(name: str, raw: bytes, *statuses: int) -> Case:
    """Its connection stays open; ``LAST`` is sent together with it."""
    return Case(name, (raw + LAST,), statuses, kept=True)


def closes(name: str, raw: bytes, *statuses: int, cut_anywhere: bool = True) -> Case:
    """The server closes the connection by itself."""
    return Case(name, (raw,), statuses, cut_anywhere=cut_anywhere)


def ends(name: str, raw: bytes, *statuses: int) -> Case:
    """The client closes its side once it is answered, or at once if no answer is due."""
    return Case(name, (raw, Answers(len(statuses)), Wait.HALF_CLOSED), statuses)


def request(
    *lines: bytes, body: bytes = b"", start: bytes = b"POST /invocations HTTP/1.1", length: bool | None = None
) -> bytes:
    """A request.

    Args:
        lines: of the head, after the first and ``Host``.
        body: what follows the head.
        start: the first line.
        length: whether ``Content-Length`` is sent; ``None`` where there is a body.
    """
    declared = [b"Content-Length: %d" % len(body)] if (bool(body) if length is None else length) else []
    return b"\r\n".join([start, b"Host: test", *lines, *declared]) + b"\r\n\r\n" + body


def invocation(row: int = 1, *lines: bytes) -> bytes:
    """The model looks ``row`` up in 10, 20, 30, 40; it fails where there is no such row."""
    return request(b"Content-Type: application/json", *lines, body=b"[[%d]]" % row)
