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
import logging
import signal
import socket
import struct
import termios
import time
from collections.abc import Generator, Sequence
from typing import Any

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import HANDLED_SIGNALS, ServerState

from byoc_server.errors import StartupError

_INVALID = "Invalid HTTP request received."
_MAX_HEAD_BYTES = 64 * 1024
_HEAD_TOO_LARGE = b'{"error":{"code":"head_too_large","message":"the head of the request is larger than 64 KiB"}}'

logger = logging.getLogger(__name__)


class DrainingState(ServerState):
    """uvicorn's state shared by all connections, and whether the server is about to end."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = False


class DrainingProtocol(HttpToolsProtocol):
    """One HTTP connection that knows when its last request has come, and bounds what its client can make it hold.

    A client that is silent, does not finish a head, or does not read its answer is cut off after the keep-alive time.
    """

    _running: RequestResponseCycle | None = None
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class does
        """Begin; a client that connects and sends nothing is closed like one that falls silent later."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._draining:
            self.loop.call_soon(self._settle)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let go of the timers: they would keep the memory of a connection that was reset."""
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:  # the base class tells the last request that came
            running.disconnected = True
            running.message_event.set()
        self._unset_keepalive_if_required()
        self._head_done()
        self.resume_writing()

    def on_headers_complete(self) -> None:
        """Begin the request, but for one that offers an upgrade: that one is parsed anew, see ``_decline_upgrade``."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body of the request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.scope is not self.scope:
            self._watch_head(len(data))
        elif self._head_timer is not None:
            self._head_done()
        if self._draining:
            self._settle()

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def shutdown(self) -> None:
        """Called by the server for every connection when it is about to end."""
        self._settle()

    @property
    def _draining(self) -> bool:
        return getattr(self.server_state, "draining", False)

    @property
    def _head_begun(self) -> bool:
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Serve a request as if its ``Upgrade`` were not there, as RFC 9110, section 7.8, allows.

        Some HTTP clients offer h2c with every request. httptools takes what follows such a head for another protocol,
        so the head is parsed again without the offer.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response(_INVALID)
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        lines += [b"connection: close"] * (not self.parser.should_keep_alive())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _watch_head(self, size: int) -> None:
        """Something came and is no complete head: it may take neither for ever nor all memory."""
        if self.transport.is_closing():
            return
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._head_overdue)
        if self._head_begun:
            self._head_bytes += size
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
                    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(_HEAD_TOO_LARGE), _HEAD_TOO_LARGE)
                )
                self.transport.close()

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _head_done(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.timeout_keep_alive, self._check_reader, left)

    def _check_reader(self, left_before: int) -> None:
        if self.transport.get_write_buffer_size() < left_before:
            self._watch_reader()
        else:
            self.transport.abort()

    def _settle(self) -> None:
        """Close the connection, or mark its last request, once all that had been sent has been read."""
        if self.transport.is_closing() or self._unread_bytes():
            return  # with unread bytes data_received follows, and calls this again
        if self._head_begun:
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
        start_s = time.monotonic()
        open_connections = len(self.server_state.connections)
        logger.info("stopping: no new connections", extra={"event": "stop", "connections": open_connections})
        await super().shutdown(sockets)
        lost = len(self.server_state.connections)
        level = logging.WARNING if lost else logging.INFO
        drain_s = round(time.monotonic() - start_s, 3)
        logger.log(level, "stopped", extra={"event": "stop", "connections_cut": lost, "drain_s": drain_s})

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
