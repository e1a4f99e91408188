"""A core process' side: runs the requests of all front processes with one client, and so with one batcher."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import orjson

from byoc_server.batching.batcher import Cancel
from byoc_server.batching.collate import split
from byoc_server.batching.entry import Reply, Together
from byoc_server.core.client import ModelState
from byoc_server.core.frame import URGENT, Frame, Kind, frame
from byoc_server.core.handshake import HandshakeError, introduce, meet
from byoc_server.core.link import Link
from byoc_server.core.local import LocalClient
from byoc_server.core.tensor_channel import TensorChannel
from byoc_server.core.wire import write_error, write_signature, write_status
from byoc_server.errors import ByocError, InferenceFailed
from byoc_server.types import Tensors

logger = logging.getLogger(__name__)

_TICK_S = 1.0
"""How often it is looked whether the model can still be run."""


class CoreService:
    """Serves the model to front processes.

    Args:
        client: runs the model.
        listener: where front processes connect.
        secret: of the processes of this server.
        memory_bytes: of large outputs on their way to each front process.
        longest_run_s: a batch that runs for longer will never end.
        on_loss: told on the event loop when the model can never be run again by this process, and why.
    """

    def __init__(
        self,
        client: LocalClient,
        listener: socket.socket,
        secret: bytes,
        memory_bytes: int,
        longest_run_s: float,
        on_loss: Callable[[str], None],
    ) -> None:
        self._client = client
        self._listener = listener
        self._secret = secret
        self._memory_bytes = memory_bytes
        self._longest_run_s = longest_run_s
        self._on_loss = on_loss
        self._fronts: set[asyncio.Task[None]] = set()
        self._strangers: set[asyncio.Task[None]] = set()  # who has not introduced itself yet
        self._told: set[_Front] = set()  # who hears of the status of the model
        self._was_ready = False

    async def serve(self, stopped: asyncio.Event) -> None:
        """Serve until stopped, and on until the last front process that is connected has gone."""
        loop = asyncio.get_running_loop()
        accepting, *others = [loop.create_task(work) for work in (self._accept(), self._tick(), self._settle())]
        self._client.start()
        try:
            await stopped.wait()
            accepting.cancel()
            for task in self._strangers:
                task.cancel()
            while self._fronts:
                await asyncio.wait(self._fronts)
        finally:
            for task in (accepting, *others):
                task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._serve_front(connection))
            self._fronts.add(task)
            self._strangers.add(task)
            task.add_done_callback(self._fronts.discard)
            task.add_done_callback(self._strangers.discard)

    async def _settle(self) -> None:
        await self._client.settled()
        self._was_ready = self._client.status.state is ModelState.READY
        for front in self._told:
            front.send_status()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            status = self._client.status
            if self._was_ready and status.state is ModelState.FAILED:
                self._on_loss(status.reason)
            elif self._client.running_s > self._longest_run_s:
                self._on_loss(f"a batch has been running for {self._client.running_s:.0f} s")

    async def _serve_front(self, connection: socket.socket) -> None:
        """Serve one front process until it ends."""
        front = _Front(self._client)
        try:
            peer_descriptor = await meet(connection, self._secret)
            task = asyncio.current_task()
            assert task is not None
            self._strangers.discard(task)
            front.channel.open_peer(peer_descriptor)
            front.channel.open_own(self._memory_bytes, partial(introduce, connection, self._secret))
            await front.link.open(connection)
            front.send_status()
            self._told.add(front)
            await front.link.closed
        except (HandshakeError, TimeoutError, OSError) as error:
            logger.debug("a front process did not stay: %s", error)
        finally:
            self._told.discard(front)
            front.end()
            connection.close()


class _Reply:
    """Takes the outcome of one request of a front process."""

    __slots__ = ("_front", "number")

    def __init__(self, front: _Front, number: int) -> None:
        self._front = front
        self.number = number

    def __call__(self, outcome: Tensors | ByocError) -> None:
        self._front.reply(self.number, outcome)


class _Front:
    """One front process: its requests and their answers."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._requests: dict[int, Cancel] = {}
        self._together: Together = self.reply_together
        self.link = Link(self._on_frame)
        self.channel = TensorChannel(Kind.OUTPUTS, self.link)

    def send_status(self) -> None:
        """Tell the state of the model; requests come once it is ready."""
        client = self._client
        wire: dict[str, Any] = write_status(client.status)
        if client.status.state is ModelState.READY:
            signature = client.adapter.model_signature
            self.channel.understand(signature)
            wire["signature"] = write_signature(signature)
            wire["load_s"] = client.load_s
        self.link.send(frame(Kind.STATUS, orjson.dumps(wire)))

    def _on_frame(self, received: Frame) -> None:
        kind, flags, rows, number, _, _, _, _, _, _ = received
        if kind == Kind.INFER:
            infer, requests, urgent = self._client.infer, self._requests, bool(flags & URGENT)
            for number, deadline_s, tensors in self.channel.receive(received):
                try:
                    reply = _Reply(self, number)
                    requests[number] = infer(tensors, rows, reply, deadline_s, urgent, self._together)
                except ByocError as error:
                    self._send_error(number, error)
        elif kind == Kind.CANCEL:
            cancel = self._requests.pop(number, None)
            if cancel is not None:
                cancel()
        elif kind == Kind.FREE:
            self.channel.free(number)

    def end(self) -> None:
        """The front process has gone, and with it all its clients."""
        self.link.abort()
        requests, self._requests = self._requests, {}
        for cancel in requests.values():
            cancel()
        self.channel.close()

    def reply(self, number: int, outcome: Tensors | ByocError) -> None:
        """Send the outcome of a request; one that was given up has none."""
        self._requests.pop(number, None)
        if isinstance(outcome, ByocError):
            self._send_error(number, outcome)
            return
        try:
            self.channel.send(outcome, number, wait_in_frames=True)
        except Exception as error:  # whatever is wrong with them: somebody waits for an answer
            failed = InferenceFailed("the model failed on this request")
            failed.__cause__ = error
            self._send_error(number, failed)

    def reply_together(self, replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        """Send the outputs of several requests, if they are alike. See ``Together``."""
        numbers = [reply.number for reply in cast(Sequence[_Reply], replies)]
        rows = counts[0]
        if not [count for count in counts if count != rows] and self._send_stacked(numbers, outputs, rows):
            for number in numbers:
                del self._requests[number]
            return
        for number, own in zip(numbers, split(outputs, counts), strict=True):
            self.reply(number, own)

    def _send_stacked(self, numbers: Sequence[int], outputs: Tensors, rows: int) -> bool:
        try:
            return self.channel.send_stacked(numbers, outputs, rows)
        except Exception:  # one by one, only those that cannot be sent get an error
            return False

    def _send_error(self, number: int, error: ByocError) -> None:
        self.link.send(frame(Kind.ERROR, write_error(error), number=number))
