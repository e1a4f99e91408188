"""Reading a request body from ASGI: bounded in bytes, and answered politely when it is too much."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from byoc_server.errors import InvalidPayload, Overloaded, PayloadTooLarge

_MAX_DISCARDED_BYTES = 256 * 1024 * 1024
_MAX_DISCARD_SECONDS = 5.0


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class BodyBudget:
    """Bytes that bodies still being received may hold, over all connections.

    Args:
        limit_bytes: of one body; ``None`` = no limit.
        total_bytes: of all of them together.
    """

    def __init__(self, limit_bytes: int | None, total_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._left_bytes = total_bytes
        self._total_bytes = total_bytes

    def check_length(self, length: int) -> None:
        """Refuse a body by its length. Raises ``PayloadTooLarge``."""
        if self.limit_bytes is not None and length > self.limit_bytes:
            raise PayloadTooLarge(
                f"the body is larger than the limit of {self.limit_bytes} bytes",
                limit_bytes=self.limit_bytes,
            )

    def take(self, size: int) -> None:
        """Reserve memory for ``size`` more bytes. Raises ``Overloaded``; a lone body larger than the total passes."""
        if size > self._left_bytes and self._left_bytes < self._total_bytes:
            raise Overloaded("too many large requests are being received")
        self._left_bytes -= size

    def give_back(self, size: int) -> None:
        """Release what was reserved."""
        self._left_bytes += size


def declared_length(value: bytes | None) -> int | None:
    """Parse ``Content-Length``; ``None`` when missing.

    Raises:
        InvalidPayload: not a number (the HTTP parser refuses most of these itself).
    """
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InvalidPayload("Content-Length is not a number of bytes", field="Content-Length")
    return int(value)


async def read_body(receive: Receive, length: int | None, budget: BodyBudget) -> bytes:
    """Read the whole body, chunked or not.

    Args:
        receive: of the ASGI connection.
        length: the declared length, ``None`` for a chunked body.
        budget: what may be held.

    Raises:
        PayloadTooLarge: before anything is buffered when the length is declared, else as soon as it shows.
        Overloaded: the server holds too many unfinished bodies.
        ClientGoneError: the connection ended.
    """
    if length is not None:
        budget.check_length(length)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        budget.check_length(len(body))
        return body
    return await _read_rest(receive, body, budget)


async def _read_rest(receive: Receive, first: bytes, budget: BodyBudget) -> bytes:
    chunks, size, held = [first], len(first), 0
    try:
        while True:
            budget.take(size - held)
            held = size
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            budget.check_length(size)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)
    finally:
        budget.give_back(held)


async def discard_body(receive: Receive) -> None:
    """Read and drop what the client still sends after it was refused.

    Closing at once would make the kernel reset the connection, and many clients would then never see the answer. It
    ends after a while: a client that goes on regardless is cut off.
    """
    size = 0
    try:
        async with asyncio.timeout(_MAX_DISCARD_SECONDS):
            while size < _MAX_DISCARDED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                size += len(message.get("body", b""))
    except TimeoutError:
        return
