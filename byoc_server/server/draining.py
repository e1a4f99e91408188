"""A graceful end that loses no request whose bytes had reached the server when it was told to stop.

uvicorn's own shutdown closes every connection that is not in the middle of a request. On a busy server that cuts some
that are: a keep-alive connection whose next request lies unread in the kernel, and a connection that waits in the
backlog of the listening socket with its request already sent. So before anything is closed:

* connections in the backlog are accepted;
* a connection is closed only when the kernel holds no unread bytes of it and no request has begun;
* the last request of a connection is answered with ``Connection: close``, so that its client does not send another.

Both classes are given to uvicorn by its documented ways (the ``http`` setting; a subclass of ``Server``).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import signal
import socket
import struct
import termios
from collections.abc import Generator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import HANDLED_SIGNALS, ServerState

from byoc_server.errors import StartupError


class DrainingState(ServerState):
    """uvicorn's state shared by all connections, and whether the server is about to end."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = False


class DrainingProtocol(HttpToolsProtocol):
    """One HTTP connection that knows when its last request has come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class does
        """Begin; a client that connects and sends nothing is closed like one that falls silent later."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._draining:
            self.loop.call_soon(self._settle)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        super().data_received(data)
        if self._draining:
            self._settle()

    def shutdown(self) -> None:
        """Called by the server for every connection when it is about to end."""
        self._settle()

    @property
    def _draining(self) -> bool:
        return getattr(self.server_state, "draining", False)

    def _settle(self) -> None:
        """Close the connection, or mark its last request, once all that had been sent has been read."""
        if self.transport.is_closing() or self._unread_bytes():
            return  # with unread bytes data_received follows, and calls this again
        head_begun = self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)
        if head_begun:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _unread_bytes(self) -> int:
        """Bytes of this connection that the kernel has received and nobody has read (tcp(7), FIONREAD)."""
        connection = self.transport.get_extra_info("socket")
        try:
            answer = fcntl.ioctl(connection.fileno(), termios.FIONREAD, struct.pack("i", 0))
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])


class DrainingServer(uvicorn.Server):
    """uvicorn's server with the graceful end described above, and an exit code of its own.

    Attributes:
        failure: why it ended by itself, if it did.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = DrainingState()
        self.failure: StartupError | None = None

    def fail(self, error: StartupError) -> None:
        """End because the server can never become ready."""
        self.failure = error
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGTERM and SIGINT while serving.

        The base class raises the signal again at the end, which makes the exit status one of a killed process;
        SageMaker and everybody's scripts take 0 as the sign of an orderly end.
        """
        originals = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in originals.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let all requests that have arrived finish, end."""
        assert isinstance(self.server_state, DrainingState)
        self.server_state.draining = True
        await self._accept_backlog(sockets or [])
        await super().shutdown(sockets)

    async def _accept_backlog(self, listeners: Sequence[socket.socket]) -> None:
        """Take over what the kernel has already connected; closing the listening socket would reset it."""
        duplicates = [listener.dup() for listener in listeners]  # a duplicate outlives what the loop closes
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        new_protocol: functools.partial[Any] = functools.partial(
            DrainingProtocol, self.config, self.server_state, self.lifespan.state, loop
        )
        for listener in duplicates:
            listener.setblocking(False)
            with listener, contextlib.suppress(OSError):  # BlockingIOError: the backlog is empty
                while True:
                    connection, _ = listener.accept()
                    await loop.connect_accepted_socket(new_protocol, connection)
