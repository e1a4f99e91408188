"""Both lanes of a server in this process, without sockets and without a model: bytes in, bytes out.

Each conversation has a connection of its own, whose transport is made up. What is sent is cut exactly as asked, and
the event loop turns between two pieces until nothing is left to do, so a conversation goes the same way every time.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import numpy as np
from starlette.types import Receive, Scope, Send

from byoc_server.batching.entry import Reply, Together
from byoc_server.config import Settings
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.http import app
from byoc_server.http.watch import SWEEP_SECONDS
from byoc_server.models.adapter import Adapter
from byoc_server.server.state import WorkerState
from byoc_server.server.worker import uvicorn_config
from byoc_server.types import Signature, Tensors, TensorSpec

P = ParamSpec("P")
T = TypeVar("T")

_QUIET_TURNS = 30
"""Of the event loop, more than an inference takes: who writes nothing in so many waits for more bytes."""
_LEAVING_TURNS = 5
_LEAVING_S = 30.0
_DATE = re.compile(rb"\r\ndate: [^\r]*(?=\r\n)")


class EchoClient:
    """Gives the inputs back as outputs, at once or some turns of the event loop later."""

    def __init__(self) -> None:
        self.turns = 0
        self.status = ModelStatus(ModelState.READY)
        inputs = (TensorSpec("x", np.dtype(np.float32), (None, 2)),)
        signature = Signature(inputs, inputs)
        self.adapter = Adapter(signature, signature)

    def start(self) -> None:
        """There is nothing to load."""

    async def settled(self) -> None:
        """It is ready."""

    def close(self) -> bool:
        """There is nothing to let go of."""
        return True

    def infer(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Together | None = None,
    ) -> Callable[[], None]:
        """Run one request."""
        pending = [reply]

        def turn(left: int) -> None:
            if pending and left:
                asyncio.get_running_loop().call_soon(turn, left - 1)
            elif pending:
                pending.pop()(tensors)

        turn(self.turns)
        return pending.clear


class _AtOnce(Executor):
    """Does what it is given before it returns: threads would make a conversation go one way or another."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class MadeUpTransport(asyncio.Transport):
    """Keeps what is written.

    Args:
        room_bytes: how many bytes are taken before the client has to read; ``None`` = it reads all the time.
    """

    def __init__(self, room_bytes: int | None) -> None:
        super().__init__({"sockname": ("127.0.0.1", 8080), "peername": ("127.0.0.1", 1), "socket": None})
        self._room_bytes = room_bytes
        self._closing = False
        self.protocol: asyncio.Protocol | None = None
        self.written = bytearray()
        self.unread_bytes = 0
        self.most_unread_bytes = 0
        self.full = False
        self.reading_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes; without room the writer is told to pause."""
        if self._closing:
            return
        self.written += data
        if self._room_bytes is None:
            return
        self.unread_bytes += len(data)
        self.most_unread_bytes = max(self.most_unread_bytes, self.unread_bytes)
        if self.unread_bytes > self._room_bytes and not self.full:
            assert self.protocol is not None
            self.full = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Take several pieces."""
        self.write(b"".join(list_of_data))

    def read_all(self) -> None:
        """The client reads what there is."""
        self.unread_bytes, self.full = 0, False
        assert self.protocol is not None
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that nobody has read."""
        return self.unread_bytes

    def is_closing(self) -> bool:
        """Whether no more is taken."""
        return self._closing

    def close(self) -> None:
        """Take no more, and say in the next turn that the connection is gone."""
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lost)

    def abort(self) -> None:
        """The same: what was written counts as sent."""
        self.close()

    def pause_reading(self) -> None:
        """Hold back what the client sends."""
        self.reading_paused = True

    def resume_reading(self) -> None:
        """Let it come."""
        self.reading_paused = False

    def _lost(self) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(None)


@dataclass(frozen=True)
class Conversation:
    """What came of some bytes.

    Attributes:
        answered: what came back, without ``Date``.
        closed: the server has closed the connection.
        at_rest: nothing was left to do when the server had read all it wanted; else it waited for more.
        unsent_pieces: that the server did not want to read.
        most_unread_bytes: that were written at one time and not read by a client that is slow to read.
        left_behind: what the server still held of the connection once it was gone, in words.
        faults: that escaped to the event loop.
    """

    answered: bytes
    closed: bool
    at_rest: bool
    unsent_pieces: int
    most_unread_bytes: int
    left_behind: str
    faults: tuple[Exception, ...]


class Lane:
    """A worker with one of the lanes.

    Args:
        loop: where it runs.
        fast: whether it has the fast lane.

    Attributes:
        asgi_requests: that went to the application.
    """

    asgi_requests = 0

    def __init__(self, loop: asyncio.AbstractEventLoop, fast: bool) -> None:
        settings = Settings(request_log="off", max_payload_mib=1, fast_lane=fast)
        self._client = EchoClient()
        self._config = uvicorn_config(settings)
        self._app = app.App(settings, lambda: self._client)
        self._config.app = self._call
        self._config.load()
        self._state = WorkerState()
        self._state.default_headers = [(b"date", b"now")]
        self._lifespan: Any = self._config.lifespan_class(self._config)
        self._logger = logging.Logger("a logger of its own that nobody reads", logging.CRITICAL)
        with mock.patch.object(app, "ThreadPoolExecutor", return_value=_AtOnce()):
            loop.run_until_complete(self._lifespan.startup())
        atexit.register(lambda: loop.run_until_complete(self._lifespan.shutdown()))

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asgi_requests += scope["type"] == "http"
        await self._app(scope, receive, send)

    async def converse(self, pieces: Sequence[bytes], turns: int = 0, room_bytes: int | None = None) -> Conversation:
        """Send bytes on a connection of their own, and leave once nothing more comes back.

        Args:
            pieces: what the server reads, one after the other.
            turns: of the event loop that an inference takes.
            room_bytes: for answers, before the client has to read, which it does when the server reads no more;
                ``None`` = it reads all the time.
        """
        loop = asyncio.get_running_loop()
        faults: list[Exception] = []
        loop.set_exception_handler(lambda _, context: faults.append(_fault(context)))
        self._client.turns = turns
        connection: Any = self._config.http_protocol_class(  # type: ignore[call-arg]  # declared for any protocol
            config=self._config, server_state=self._state, app_state=self._lifespan.state, _loop=loop
        )
        connection.logger = self._logger
        transport = MadeUpTransport(room_bytes)
        transport.protocol = connection
        connection.connection_made(transport)
        waiting = list(reversed(pieces))
        at_rest = await self._settle(connection, transport)
        while not transport.is_closing():
            if waiting and not transport.reading_paused:
                connection.data_received(waiting.pop())
            elif transport.full:
                transport.read_all()
            else:
                break
            at_rest = await self._settle(connection, transport)
        closed = transport.is_closing()
        if not closed:
            connection.eof_received()
            transport.close()
        left_behind = await self._left_behind()
        return Conversation(
            _DATE.sub(b"", bytes(transport.written)),
            closed,
            at_rest,
            len(waiting),
            transport.most_unread_bytes,
            left_behind,
            tuple(faults),
        )

    async def _settle(self, connection: Any, transport: MadeUpTransport) -> bool:
        """Let the event loop turn until nothing is left to do; whether no request is under way then."""
        quiet, written = 0, len(transport.written)
        while self._is_busy(connection) and quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(transport.written) == written else 0
            written = len(transport.written)
        for _ in range(3):  # an answer is written by the end of the turn after; a close shows in the one after that
            await asyncio.sleep(0)
        return not self._is_busy(connection)

    def _is_busy(self, connection: Any) -> bool:
        """Whether a request is under way: a task in the ordinary lane, none in the fast one."""
        return bool(self._state.tasks) or (connection.cycle is not None and not connection.cycle.response_complete)

    async def _left_behind(self) -> str:
        """What there still is after a while, which is long enough for who looks whether a client has left."""
        state, loop = self._state, asyncio.get_running_loop()
        end_s = loop.time() + _LEAVING_S
        for _ in range(_LEAVING_TURNS):
            await asyncio.sleep(0)
        while (state.tasks or state.connections) and loop.time() < end_s:
            await asyncio.sleep(SWEEP_SECONDS / 4)
        if not state.tasks and not state.connections:
            return ""
        return f"{len(state.connections)} connections, {len(state.tasks)} requests"


def _fault(context: dict[str, Any]) -> Exception:
    fault = context.get("exception")
    return fault if isinstance(fault, Exception) else RuntimeError(context["message"])


@cache
def lanes() -> tuple[asyncio.AbstractEventLoop, Lane, Lane]:
    """An event loop, the fast lane and the ordinary lane; they live as long as this process."""
    loop = asyncio.new_event_loop()
    return loop, Lane(loop, fast=True), Lane(loop, fast=False)
