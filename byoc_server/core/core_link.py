"""A front process' side of one core process: connects, sends requests, hands out answers, and notices when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial

import orjson

from byoc_server.batching.batcher import Cancel
from byoc_server.batching.policy import Reply
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.core.frame import SHARED, URGENT, Frame, Kind, frame, tensor_frame
from byoc_server.core.handshake import HandshakeError, connect, introduce, meet
from byoc_server.core.layout import TensorLayout
from byoc_server.core.link import Link
from byoc_server.core.shared_memory import OwnMemory, PeerMemory
from byoc_server.core.wire import read_error, read_signature, read_status
from byoc_server.errors import ByocError, NotReady, Overloaded
from byoc_server.types import Signature, Tensors

logger = logging.getLogger(__name__)

SHARED_FROM_BYTES = 32 * 1024
"""Larger tensors go through shared memory: two copies by the kernel cost more than one place found and given back."""
_RETRY_S = 0.1


class CoreLink:
    """The way to one core process, and to whichever takes its place.

    Args:
        address: where it listens.
        secret: of the processes of this server.
        memory_bytes: of large inputs on their way.
        on_change: told on the event loop when the status has changed.

    Attributes:
        status: of its model.
        signature: of its model; ``None`` until it was ready for the first time.
        rows: of the requests it has.
    """

    def __init__(
        self,
        address: bytes,
        secret: bytes,
        memory_bytes: int,
        on_change: Callable[[], None],
    ) -> None:
        self._address = address
        self._secret = secret
        self._memory_bytes = memory_bytes
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self.status = ModelStatus(ModelState.LOADING, "the model is loading")
        self.signature: Signature | None = None
        self.rows = 0
        self._load_s = 1.0
        self._link: Link | None = None
        self._pending: dict[int, tuple[Reply, int]] = {}
        self._number = 0
        self._inputs = TensorLayout(())
        self._outputs = TensorLayout(())
        self._own: OwnMemory | None = None
        self._peer: PeerMemory | None = None

    async def run(self) -> None:
        """Stay connected, for ever."""
        while True:
            try:
                await self._connected()
            except (HandshakeError, OSError) as error:
                logger.debug("no core process at %r: %s", self._address, error)
            except Exception:  # without a connection this process is of no use, and with the next one it may be
                logger.exception("the connection to a core process failed")
            await asyncio.sleep(_RETRY_S)

    async def _connected(self) -> None:
        """Connect and serve the connection until it ends."""
        connection = await connect(self._address)
        link = Link(self._on_frame)
        own = peer = None
        try:
            own = OwnMemory(self._memory_bytes)
            introduce(connection, self._secret, own.descriptor)
            own.sent()
            peer = PeerMemory(await meet(connection, self._secret, None), partial(self._free_peer, link))
            self._link, self._own, self._peer = link, own, peer
            await link.open(connection)
            await link.closed
        finally:
            self._link = self._own = self._peer = None
            link.abort()
            connection.close()
            for memory in (own, peer):
                if memory is not None:
                    memory.close()
            self._lost()

    def infer(self, tensors: Tensors, rows: int, reply: Reply, deadline_s: float, urgent: bool) -> Cancel:
        """Send one request. See ``InferenceClient.infer``."""
        link = self._link
        if link is None or self.status.state is not ModelState.READY:
            raise self.status.refusal()
        if link.congested:
            raise Overloaded("the process that runs the model does not keep up")
        layout = self._inputs
        plan = layout.plan(tensors)
        flags = URGENT if urgent else 0
        own = self._own
        if plan.nbytes is not None and plan.nbytes >= SHARED_FROM_BYTES and own is not None and own.holds(plan):
            place = own.put(tensors, layout, plan)
            if place is None:
                raise Overloaded("the memory for requests on their way to the model is full")
            flags |= SHARED
            data = place.to_bytes(8, "little")
        else:
            data = layout.data(tensors, plan)
        self._number = number = self._number + 1
        link.send(tensor_frame(Kind.INFER, flags, rows, number, deadline_s, plan.descriptor, data))
        self._pending[number] = reply, rows
        self.rows += rows
        return partial(self._cancel, number)

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link.abort()

    def _cancel(self, number: int) -> None:
        if self._done(number) is not None and self._link is not None:
            self._link.send(frame(Kind.CANCEL, number=number))

    def _done(self, number: int) -> Reply | None:
        pending = self._pending.pop(number, None)
        if pending is None:  # given up
            return None
        self.rows -= pending[1]
        return pending[0]

    def _on_frame(self, received: Frame) -> None:
        kind, flags, _, descriptor_bytes, number, _, buffer, begin, end = received
        if kind == Kind.OUTPUTS:
            plan = self._outputs.read_plan(buffer[begin : begin + descriptor_bytes])
            begin += descriptor_bytes
            if flags & SHARED:
                assert self._peer is not None  # there is one as long as there is a link
                place = int.from_bytes(buffer[begin : begin + 8], "little")
                outputs = self._peer.tensors(self._outputs, plan, place)
            else:
                outputs = self._outputs.tensors(plan, buffer, begin, end)
            reply = self._done(number)
            if reply is not None:
                _reply(reply, outputs)
        elif kind == Kind.FREE:
            if self._own is not None:
                self._own.free(number)
        elif kind == Kind.ERROR:
            reply = self._done(number)
            if reply is not None:
                _reply(reply, read_error(buffer[begin:end]))
        elif kind == Kind.STATUS:
            self._on_status(buffer[begin:end])

    def _on_status(self, payload: bytes) -> None:
        wire = orjson.loads(payload.rstrip(b"\0"))
        self.status = read_status(wire)
        if "signature" in wire:
            self.signature = signature = read_signature(wire["signature"])
            self._load_s = wire["load_s"]
            self._inputs = TensorLayout([spec.name for spec in signature.inputs])
            self._outputs = TensorLayout([spec.name for spec in signature.outputs])
        self._on_change()

    def _lost(self) -> None:
        """The core process has ended: nothing that it had will be answered."""
        pending, self._pending, self.rows = self._pending, {}, 0
        if self.status.state is not ModelState.LOADING:
            self.status = ModelStatus(
                ModelState.LOADING, "the process that ran the model has ended; another is loading it"
            )
            self._on_change()
        for reply, _ in pending.values():
            error = NotReady(
                "the process that ran the model has ended before it had an answer; another is loading the model",
                retry_after_s=self._load_s,
            )
            _reply(reply, error)

    def _free_peer(self, link: Link, place: int) -> None:
        """Nobody reads this place of the core's memory any more; told in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(link.send, frame(Kind.FREE, number=place))


def _reply(reply: Reply, outcome: Tensors | ByocError) -> None:
    try:
        reply(outcome)
    except Exception:  # one request's reply must never keep others from theirs
        logger.exception("a reply failed")
