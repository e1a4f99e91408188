"""A core process' side: runs the requests of all front processes with one client, and so with one batcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from byoc_server.batching.batcher import Cancel
from byoc_server.core.client import ModelState
from byoc_server.core.core_link import SHARED_FROM_BYTES
from byoc_server.core.frame import SHARED, URGENT, Frame, Kind, frame, tensor_frame
from byoc_server.core.handshake import HandshakeError, introduce, meet
from byoc_server.core.layout import TensorLayout
from byoc_server.core.link import Link
from byoc_server.core.local import LocalClient
from byoc_server.core.shared_memory import OwnMemory, PeerMemory
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
        self._links: set[Link] = set()
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

    @property
    def _status_frame(self) -> bytes:
        wire: dict[str, Any] = write_status(self._client.status)
        if self._client.status.state is ModelState.READY:
            wire["signature"] = write_signature(self._client.adapter.model_signature)
            wire["load_s"] = self._client.load_s
        return frame(Kind.STATUS, orjson.dumps(wire))

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
        for link in self._links:
            link.send(self._status_frame)

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
        link = front.link = Link(front.on_frame)
        own = peer = None
        try:
            peer_descriptor = await meet(connection, self._secret)
            task = asyncio.current_task()
            assert task is not None
            self._strangers.discard(task)
            peer = front.peer = PeerMemory(peer_descriptor, front.free_peer)
            own = front.own = OwnMemory(self._memory_bytes)
            introduce(connection, self._secret, own.descriptor)
            own.sent()
            await link.open(connection)
            link.send(self._status_frame)
            self._links.add(link)
            await link.closed
        except (HandshakeError, TimeoutError, OSError) as error:
            logger.debug("a front process did not stay: %s", error)
        finally:
            self._links.discard(link)
            front.end()
            link.abort()
            connection.close()
            for memory in (own, peer):
                if memory is not None:
                    memory.close()


class _Front:
    """One front process: its requests and their answers."""

    peer: PeerMemory
    own: OwnMemory
    link: Link

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, Cancel] = {}
        self._inputs: TensorLayout | None = None
        self._outputs: TensorLayout | None = None

    def on_frame(self, received: Frame) -> None:
        """Take a frame of the front process."""
        kind, flags, rows, descriptor_bytes, number, deadline_s, buffer, begin, end = received
        if kind == Kind.INFER:
            try:
                layout = self._inputs or self._layouts()[0]
                plan = layout.read_plan(buffer[begin : begin + descriptor_bytes])
                begin += descriptor_bytes
                if flags & SHARED:
                    tensors = self.peer.tensors(layout, plan, int.from_bytes(buffer[begin : begin + 8], "little"))
                else:
                    tensors = layout.tensors(plan, buffer, begin, end)
                reply = partial(self._reply, number, rows)
                urgent = bool(flags & URGENT)
                self._requests[number] = self._client.infer(tensors, rows, reply, deadline_s, urgent=urgent)
            except ByocError as error:
                self._send_error(number, error)
        elif kind == Kind.CANCEL:
            cancel = self._requests.pop(number, None)
            if cancel is not None:
                cancel()
        elif kind == Kind.FREE:
            self.own.free(number)

    def free_peer(self, place: int) -> None:
        """Nobody reads this place of the front's memory any more; told in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.link.send, frame(Kind.FREE, number=place))

    def end(self) -> None:
        """The front process has gone, and with it all its clients."""
        requests, self._requests = self._requests, {}
        for cancel in requests.values():
            cancel()

    def _layouts(self) -> tuple[TensorLayout, TensorLayout]:
        """Those of inputs and outputs. Raises ``Unavailable`` while the model is loading."""
        if self._inputs is None or self._outputs is None:
            signature = self._client.adapter.model_signature
            self._inputs = TensorLayout([spec.name for spec in signature.inputs])
            self._outputs = TensorLayout([spec.name for spec in signature.outputs])
        return self._inputs, self._outputs

    def _reply(self, number: int, rows: int, outcome: Tensors | ByocError) -> None:
        if self._requests.pop(number, None) is None:
            return
        if isinstance(outcome, ByocError):
            self._send_error(number, outcome)
            return
        try:
            self._send_outputs(number, rows, outcome)
        except Exception as error:  # whatever is wrong with them: somebody waits for an answer
            failed = InferenceFailed("the model failed on this request")
            failed.__cause__ = error
            self._send_error(number, failed)

    def _send_outputs(self, number: int, rows: int, outputs: Tensors) -> None:
        layout = self._outputs or self._layouts()[1]
        plan = layout.plan(outputs)
        place = None
        if plan.nbytes is not None and plan.nbytes >= SHARED_FROM_BYTES:
            place = self.own.put(outputs, layout, plan)
        if place is None:
            data, flags = layout.data(outputs, plan), 0
        else:
            data, flags = place.to_bytes(8, "little"), SHARED
        self.link.send(tensor_frame(Kind.OUTPUTS, flags, rows, number, 0.0, plan.descriptor, data))

    def _send_error(self, number: int, error: ByocError) -> None:
        self.link.send(frame(Kind.ERROR, write_error(error), number=number))
