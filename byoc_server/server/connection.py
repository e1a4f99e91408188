"""One HTTP connection: uvicorn's protocol on httptools, with bounds on what a client can make the server hold.

Given to uvicorn by its documented ``http`` setting. Beyond the base class it

* writes the head and the body of an answer with one system call (``transport.JoiningTransport``);
* cuts off a client that is silent, does not finish a head, or does not read its answer, after the keep-alive time;
* serves a request that offers an upgrade as if the offer were not there;
* knows when its last request has come, for the graceful end (``draining``).
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Sized

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from byoc_server.errors import ByocError, HeadTooLarge, RequestError
from byoc_server.http.responses import all_headers, error_response
from byoc_server.server.transport import JoiningTransport

_INVALID = "this is not a valid HTTP request"
_MAX_HEAD_BYTES = 64 * 1024
"""gunicorn takes 100 fields of 8 KiB, nginx 32 KiB in all, Apache 100 fields of 8 KiB."""
_HEAD_TOO_LARGE = "the head of the request is larger than 64 KiB"


class PipelineFlow(FlowControl):
    """Reads on only when no request is left that has been read already.

    The base class reads on whenever one request is done, so that a client which sends without end and reads nothing
    would be given memory without end.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, unless requests wait for their turn."""
        if self.read_paused and not self._pipeline:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One HTTP connection. See the module."""

    _running: RequestResponseCycle | None = None
    _head_begun = False
    _head_bytes: int | None = None
    """Of an unfinished head, without the read it begins in, which may hold all of earlier requests too."""
    _idle_since_s: float | None = None
    """When the last request was answered; ``None`` while there is one."""
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class does
        """Begin; a client that connects and sends nothing is closed like one that falls silent later."""
        super().connection_made(JoiningTransport(transport, self.loop, self.timeout_keep_alive))
        self.flow = PipelineFlow(self.transport, self.pipeline)
        self._await_request()
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

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._head_begun, self._head_bytes = True, None
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers come here too, and are dropped (RFC 9110, section 6.5.1): some come too late."""
        if self._head_begun:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, but for one that offers an upgrade: that one is parsed anew, see ``_decline_upgrade``."""
        if not self.parser.should_upgrade():
            self._head_begun = False
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body of the request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._idle_since_s = None
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._decline_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                self.logger.warning(_INVALID)
                self.send_400_response(_INVALID)
                return
            else:
                self._parsed(len(data))
                return

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            if self.flow.read_paused:
                self.flow.resume_reading()
            self._await_request()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for so long; while it is not, its next answer sets the timer anew."""
        self.timeout_keep_alive_task = None
        if self._idle_since_s is None:
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

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

    def _await_request(self) -> None:
        """Be idle. The timer is not set anew for every request: it looks itself whether it is due."""
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parsed(self, size: int) -> None:
        """So many bytes have been parsed, and were valid."""
        if self._head_begun or self.cycle is None or self.cycle.response_complete:
            self._watch_head(size)
        elif self._head_timer is not None:
            self._head_done()
        if self._draining:
            self._settle()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Serve a request as if its ``Upgrade`` were not there, as RFC 9110, section 7.8, allows.

        Some HTTP clients offer h2c with every request. httptools takes what follows such a head for another protocol,
        so the head is parsed again without the offer.

        Returns:
            What is to be parsed now; nothing if the request was refused.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response(_INVALID)
            return b""
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        lines += [b"connection: close"] * (not self.parser.should_keep_alive())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    def _watch_head(self, size: int) -> None:
        """Something came and is no complete head: it may take neither for ever nor all memory."""
        if self.transport.is_closing():
            return
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._head_overdue)
        if not self._head_begun:
            return
        self._head_bytes = 0 if self._head_bytes is None else self._head_bytes + size
        if self._head_bytes > _MAX_HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self._refuse(HeadTooLarge(_HEAD_TOO_LARGE))
            else:
                self.flow.pause_reading()  # the answer to the request before comes first, and resumes it

    def _refuse(self, error: ByocError) -> None:
        """Answer in place of the application, and close."""
        response = error_response(error)
        headers = [*self.server_state.default_headers, *all_headers(response), (b"connection", b"close")]
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self.transport.write(STATUS_LINE[response.status] + lines + b"\r\n" + response.body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        self._refuse(RequestError(msg))

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _head_done(self) -> None:
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
