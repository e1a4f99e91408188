"""Responses on their way out: an error as JSON, and a complete response over ASGI.

``Content-Length`` follows from the body, so whoever writes a response adds it, behind the other headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from starlette.types import Send

from byoc_server.errors import ByocError

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Response:
    """A complete answer.

    Attributes:
        status: of HTTP.
        headers: all but ``Content-Length``. Shared by many answers, which are then quick to write.
        body: plain or coded, as the headers say.
    """

    status: int
    headers: tuple[Header, ...]
    body: bytes


EMPTY = Response(200, (), b"")
"""Nothing to say but that all is well."""


def json_response(status: int, document: object, headers: Sequence[Header] = ()) -> Response:
    """Write a document as JSON."""
    return Response(status, ((b"content-type", b"application/json"), *headers), orjson.dumps(document))


def error_response(error: ByocError, **details: object) -> Response:
    """Write an error as ``{"error": {"code", "message", ...}}``.

    Args:
        error: what went wrong.
        details: shown instead of the error's own details.
    """
    document = {"error": {"code": error.code, "message": error.message, **(details or error.details)}}
    return json_response(error.status, document, error.headers())


def all_headers(response: Response) -> list[Header]:
    """Those of a response, ``Content-Length`` among them."""
    return [*response.headers, (b"content-length", b"%d" % len(response.body))]


async def send_response(send: Send, response: Response) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": response.status, "headers": all_headers(response)})
    await send({"type": "http.response.body", "body": response.body})
