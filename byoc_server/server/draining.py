"""A graceful end that loses no request whose bytes had reached the server when it was told to stop.

uvicorn's own shutdown closes every connection that is not in the middle of a request. On a busy server that cuts some
that are: a keep-alive connection whose next request lies unread in the kernel, and a connection that waits in the
backlog of the listening socket with its request already sent. So before anything is closed:

* connections in the backlog are accepted;
* a connection is closed only when the kernel holds no unread bytes of it and no request has begun;
* the last request of a connection is answered with ``Connection: close``, so that its client does not send another.

The connection's part of this is in ``connection``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import time
from collections.abc import Generator, Sequence
from typing import Any, cast

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from byoc_server.errors import StartupError
from byoc_server.server.connection import Connection
from byoc_server.server.state import WorkerState

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn's server with the graceful end described above, and an exit code of its own.

    Attributes:
        failure: why it ended by itself, if it did.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state: WorkerState = WorkerState()
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
        connection_class = cast("type[Connection]", self.config.http_protocol_class)
        new_protocol: functools.partial[Any] = functools.partial(
            connection_class, self.config, self.server_state, self.lifespan.state, loop
        )
        for listener in duplicates:
            listener.setblocking(False)
            with listener, contextlib.suppress(OSError):  # BlockingIOError: the backlog is empty
                while True:
                    connection, _ = listener.accept()
                    await loop.connect_accepted_socket(new_protocol, connection)
