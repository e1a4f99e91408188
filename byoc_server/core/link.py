"""One end of a connection between a front process and a core process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from byoc_server.core.frame import Frame, FrameError, FrameReader
from byoc_server.core.tensor_frame import TensorFrame

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Beyond what the kernel holds."""

logger = logging.getLogger(__name__)


class Link(asyncio.Protocol):
    """Sends and receives frames. Those of one turn of the event loop leave with one system call.

    Args:
        on_frame: takes each frame that comes.

    Attributes:
        closed: done when the connection has ended.
        congested: the other end does not take what is sent; what is sent all the same waits in memory.
    """

    def __init__(self, on_frame: Callable[[Frame], None]) -> None:
        self._on_frame = on_frame
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._outgoing: list[bytes | TensorFrame] = []
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.congested = False

    async def open(self, connection: socket.socket) -> None:
        """Begin to send and receive."""
        await self._loop.connect_accepted_socket(lambda: self, connection)

    def send(self, frame: bytes | TensorFrame) -> None:
        """Send a frame, with all that it will hold, at the end of this turn.

        Nothing happens when the connection has ended.
        """
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(frame)

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(MOST_WAITING_BYTES)

    def pause_writing(self) -> None:
        """More than may wait does."""
        self.congested = True

    def resume_writing(self) -> None:
        """The other end has taken some."""
        self.congested = False

    def data_received(self, data: bytes) -> None:
        """Hand on the frames that are complete."""
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
        except Exception as error:  # what makes no sense shows in many ways, and what is wrong here ends no more
            known = isinstance(error, FrameError)
            text = "a process of this server sent nonsense: %s"
            logger.error(text, error, exc_info=None if known else error, extra={"event": "frame_error"})
            self.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """Tell who waits."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def _flush(self) -> None:
        frames, self._outgoing = self._outgoing, []
        data = b"".join([frame if isinstance(frame, bytes) else frame.take() for frame in frames])
        if self._transport is not None:
            self._transport.write(data)
