"""Reading a request body from ASGI: bounded in bytes, and answered politely when it is too much."""

from __future__ import annotations

import asyncio
import threading

from starlette.types import Message, Receive

from byoc_server.errors import InvalidPayload, Overloaded, PayloadTooLarge

_MAX_DISCARDED_BYTES = 256 * 1024 * 1024
_MAX_DISCARD_SECONDS = 5.0


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class BodyBudget:
    """Bytes that large bodies may hold, over all connections, until their requests are answered.

    Args:
        limit_bytes: of one body, as it comes and decoded; ``None`` = no limit as it comes.
        total_bytes: of all of them together. A body that is alone passes even if it is larger.
    """

    def __init__(self, limit_bytes: int | None, total_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.total_bytes = total_bytes
        self.held_bytes = 0
        self.lock = threading.Lock()

    @property
    def decoded_limit_bytes(self) -> int:
        """Largest body once its content codings are undone: never without a limit, as a few bytes can become many."""
        return self.total_bytes if self.limit_bytes is None else self.limit_bytes

    def check_length(self, length: int) -> None:
        """Refuse a body by its length. Raises ``PayloadTooLarge``."""
        if self.limit_bytes is not None and length > self.limit_bytes:
            raise PayloadTooLarge(
                f"the body is larger than the limit of {self.limit_bytes} bytes",
                limit_bytes=self.limit_bytes,
            )


class BodyLease:
    """What one body holds of the budget. It grows on any thread."""

    def __init__(self, budget: BodyBudget) -> None:
        self.budget = budget
        self._received_bytes = 0
        self._held_bytes = 0
        self._released = False

    def grow_to(self, size: int) -> None:
        """Hold ``size`` bytes as they come.

        Raises:
            PayloadTooLarge: that is over the limit of one body.
            Overloaded: others hold too much already.
        """
        self.budget.check_length(size)
        self._received_bytes = size
        self._hold(size)

    def grow_decoded_to(self, size: int) -> None:
        """Hold ``size`` decoded bytes beside those that came.

        Raises:
            Overloaded: others hold too much already.
            ClientGoneError: the lease was released: nobody waits for this body any more.
        """
        self._hold(self._received_bytes + size)

    def release(self) -> None:
        """Hold nothing any more."""
        with self.budget.lock:
            self._released = True
            self.budget.held_bytes -= self._held_bytes
            self._held_bytes = 0

    def _hold(self, size: int) -> None:
        budget = self.budget
        with budget.lock:
            if self._released:
                raise ClientGoneError
            others_bytes = budget.held_bytes - self._held_bytes
            if others_bytes and others_bytes + size > budget.total_bytes:
                raise Overloaded("too many large requests are under way")
            budget.held_bytes = others_bytes + size
            self._held_bytes = size


def declared_length(value: bytes) -> int:
    """Parse ``Content-Length``.

    Raises:
        InvalidPayload: not a number (the HTTP parser refuses most of these itself).
    """
    if not value.isdigit() or len(value) > 18:
        raise InvalidPayload("Content-Length is not a number of bytes", field="Content-Length")
    return int(value)


async def read_rest(receive: Receive, first: Message, lease: BodyLease) -> bytes:
    """Read on until the body is whole.

    Args:
        receive: of the ASGI connection.
        first: the message that came first.
        lease: grows with the body; the caller releases it, whatever happens.

    Returns:
        The whole body.

    Raises:
        PayloadTooLarge: as soon as it shows.
        Overloaded: the server holds too many large bodies.
        ClientGoneError: the connection ended.
    """
    message, chunks, size = first, [], 0
    while message["type"] != "http.disconnect":
        chunk = message.get("body", b"")
        size += len(chunk)
        lease.grow_to(size)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()
    raise ClientGoneError


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
