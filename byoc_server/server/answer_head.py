"""The head of an answer as uvicorn writes it: status line, default headers, the answer's own, its length."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from byoc_server.http.responses import Header, Response

_CLOSE = b"\r\nconnection: close\r\n\r\n"
_END = b"\r\n\r\n"
_MOST_KNOWN = 256
"""Answers that echo what a client sent are all different, and so may be their lengths."""


class _Heads:
    """The heads of answers that differ in their lengths alone.

    Attributes:
        status: of the answers.
        headers: of the answers.
        beginning: all that stands before the length.
        by_length: whole heads of answers after which the connection is kept open, by the bytes of the body.
    """

    __slots__ = ("beginning", "by_length", "headers", "status")

    def __init__(self, status: int, headers: tuple[Header, ...], beginning: bytes) -> None:
        self.status = status
        self.headers = headers
        self.beginning = beginning
        self.by_length: dict[int, bytes] = {}


class AnswerHeads:
    """Writes heads, and keeps them until uvicorn renews the default headers.

    Args:
        server_state: has the default headers: a new list every second, as the date is one of them.
    """

    def __init__(self, server_state: ServerState) -> None:
        self._server_state = server_state
        self._defaults: list[Header] | None = None
        self._known: dict[tuple[int, tuple[Header, ...]], _Heads] = {}
        self._latest = _Heads(0, (), b"")

    def write(self, response: Response, keep_alive: bool) -> bytes:
        """Write the head of an answer, whose headers are its own and need no check."""
        if self._server_state.default_headers is not self._defaults:
            self._defaults = self._server_state.default_headers
            self._known.clear()
            self._latest = _Heads(0, (), b"")
        latest = self._latest
        if response.headers is not latest.headers or response.status != latest.status:
            latest = self._latest = self._known.get((response.status, response.headers)) or self._begin(response)
        length = len(response.body)
        if not keep_alive:
            return b"%b%d%b" % (latest.beginning, length, _CLOSE)
        head = latest.by_length.get(length)
        if head is None:
            head = b"%b%d%b" % (latest.beginning, length, _END)
            if len(latest.by_length) < _MOST_KNOWN:
                latest.by_length[length] = head
        return head

    def _begin(self, response: Response) -> _Heads:
        assert self._defaults is not None
        lines = [b"%b: %b\r\n" % header for header in (*self._defaults, *response.headers)]
        beginning = b"".join([STATUS_LINE[response.status], *lines, b"content-length: "])
        heads = _Heads(response.status, response.headers, beginning)
        if len(self._known) < _MOST_KNOWN:
            self._known[response.status, response.headers] = heads
        return heads
