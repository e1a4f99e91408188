"""The head of an answer as uvicorn writes it: status line, default headers, the answer's own, its length."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from byoc_server.http.responses import Header, Response

_CLOSE = b"\r\nconnection: close\r\n\r\n"
_END = b"\r\n\r\n"
_MOST_KNOWN = 256
"""Answers that echo what a client sent are all different."""


class AnswerHeads:
    """Writes heads. All but the length is kept until uvicorn renews the default headers.

    Args:
        server_state: has the default headers: a new list every second, as the date is one of them.
    """

    def __init__(self, server_state: ServerState) -> None:
        self._server_state = server_state
        self._defaults: list[Header] | None = None
        self._known: dict[tuple[int, tuple[Header, ...]], bytes] = {}
        self._latest: tuple[Header, ...] | None = None
        self._latest_status = 0
        self._latest_beginning = b""

    def write(self, response: Response, keep_alive: bool) -> bytes:
        """Write the head of an answer, whose headers are its own and need no check."""
        if self._server_state.default_headers is not self._defaults:
            self._defaults = self._server_state.default_headers
            self._known.clear()
            self._latest = None
        if response.headers is not self._latest or response.status != self._latest_status:
            known = self._known.get((response.status, response.headers))
            self._latest_beginning = known or self._begin(response)
            self._latest, self._latest_status = response.headers, response.status
        return b"%b%d%b" % (self._latest_beginning, len(response.body), _END if keep_alive else _CLOSE)

    def _begin(self, response: Response) -> bytes:
        """Write all that stands before the length."""
        assert self._defaults is not None
        lines = [b"%b: %b\r\n" % header for header in (*self._defaults, *response.headers)]
        beginning = b"".join([STATUS_LINE[response.status], *lines, b"content-length: "])
        if len(self._known) < _MOST_KNOWN:
            self._known[response.status, response.headers] = beginning
        return beginning
