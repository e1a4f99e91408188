"""The head of an answer as uvicorn writes it: status line, default headers, the answer's own, ``Connection: close``."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from byoc_server.http.responses import Header, Response

_CLOSE = b"connection: close\r\n\r\n"
_END = b"\r\n"


class AnswerHeads:
    """Writes heads. What all answers of a status begin with is kept until uvicorn renews the default headers.

    Args:
        server_state: has the default headers: a new list every second, as the date is one of them.
    """

    def __init__(self, server_state: ServerState) -> None:
        self._server_state = server_state
        self._defaults: list[Header] | None = None
        self._beginnings: dict[int, bytes] = {}

    def write(self, response: Response, *, keep_alive: bool) -> bytes:
        """Write the head of an answer, whose headers are its own and need no check."""
        if self._server_state.default_headers is not self._defaults:
            self._defaults = self._server_state.default_headers
            self._beginnings.clear()
        beginning = self._beginnings.get(response.status) or self._begin(response.status)
        lines = [b"%b: %b\r\n" % header for header in response.headers]
        return b"".join([beginning, *lines, _END if keep_alive else _CLOSE])

    def _begin(self, status: int) -> bytes:
        assert self._defaults is not None
        lines = [b"%b: %b\r\n" % header for header in self._defaults]
        beginning = self._beginnings[status] = b"".join([STATUS_LINE[status], *lines])
        return beginning
