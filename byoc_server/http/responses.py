"""Responses on their way out: an error as JSON, and a complete response over ASGI."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from starlette.types import Send

from byoc_server.errors import ByocError

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Response:
    """A complete answer."""

    status: int
    headers: list[Header]
    body: bytes


def error_response(error: ByocError, **details: object) -> Response:
    """Write an error as ``{"error": {"code", "message", ...}}``.

    Args:
        error: what went wrong.
        details: shown instead of the error's own details.
    """
    body = orjson.dumps({"error": {"code": error.code, "message": error.message, **(details or error.details)}})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *error.headers()]
    return Response(error.status, headers, body)


async def send_response(send: Send, response: Response) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
    await send({"type": "http.response.body", "body": response.body})
