"""Responses on their way out: an error as JSON, and a complete response over ASGI."""

from __future__ import annotations

from collections.abc import Sequence
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


EMPTY = Response(200, [(b"content-length", b"0")], b"")
"""Nothing to say but that all is well."""


def json_response(status: int, document: object, headers: Sequence[Header] = ()) -> Response:
    """Write a document as JSON."""
    body = orjson.dumps(document)
    entity_headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Response(status, [*entity_headers, *headers], body)


def error_response(error: ByocError, **details: object) -> Response:
    """Write an error as ``{"error": {"code", "message", ...}}``.

    Args:
        error: what went wrong.
        details: shown instead of the error's own details.
    """
    document = {"error": {"code": error.code, "message": error.message, **(details or error.details)}}
    return json_response(error.status, document, error.headers())


async def send_response(send: Send, response: Response) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
    await send({"type": "http.response.body", "body": response.body})
