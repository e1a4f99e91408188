"""A front process' side of one core process: connects, sends requests, hands out answers, and notices when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import orjson

from byoc_server.batching.batcher import Cancel
from byoc_server.batching.collate import split
from byoc_server.batching.entry import Reply, Together
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.core.frame import URGENT, Frame, Kind, frame
from byoc_server.core.handshake import HandshakeError, connect, introduce, meet
from byoc_server.core.link import Link
from byoc_server.core.tensor_channel import TensorChannel
from byoc_server.core.wire import read_error, read_signature, read_status
from byoc_server.errors import ByocError, NotReady, Overloaded
from byoc_server.types import Signature, Tensors

logger = logging.getLogger(__name__)

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
        self.status = ModelStatus(ModelState.LOADING, "the model is loading")
        self.signature: Signature | None = None
        self.rows = 0
        self._load_s = 1.0
        self._link: Link | None = None
        self._pending: dict[int, tuple[Reply, int, Together | None]] = {}
        self._number = 0
        self._channel: TensorChannel | None = None
        self._ready: TensorChannel | None = None  # the same, while the model is ready

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
        channel = TensorChannel(Kind.INFER, link)
        try:
            channel.open_own(self._memory_bytes, partial(introduce, connection, self._secret))
            channel.open_peer(await meet(connection, self._secret, None))
            self._link, self._channel = link, channel
            await link.open(connection)
            await link.closed
        finally:
            self._link = self._channel = self._ready = None
            link.abort()
            connection.close()
            channel.close()
            self._lost()

    def infer(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Together | None = None,
    ) -> Cancel:
        """Send one request. See ``InferenceClient.infer``."""
        link, channel = self._link, self._ready
        if link is None or channel is None:
            raise self.status.refusal()
        if link.congested:
            raise Overloaded("the process that runs the model does not keep up")
        self._number = number = self._number + 1
        if not channel.send(tensors, number, URGENT if urgent else 0, rows, deadline_s):
            raise Overloaded("the memory for requests on their way to the model is full")
        self._pending[number] = reply, rows, together
        self.rows += rows
        return partial(self._cancel, number)

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link.abort()

    def _cancel(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            self.rows -= pending[1]
            if self._link is not None:
                self._link.send(frame(Kind.CANCEL, number=number))

    def _on_frame(self, received: Frame) -> None:
        channel = self._channel
        assert channel is not None  # there is one as long as there is a link
        kind, _, _, number, _, _, _, buffer, begin, end = received
        if kind == Kind.OUTPUTS:
            stacked = channel.receive_stacked(received)
            if stacked is not None:
                self._answer_stacked(*stacked)
                return
            for number, _, outputs in channel.receive(received):
                self._answer(number, outputs)
        elif kind == Kind.FREE:
            channel.free(number)
        elif kind == Kind.ERROR:
            self._answer(number, read_error(buffer[begin:end]))
        elif kind == Kind.STATUS:
            self._on_status(channel, buffer[begin:end])

    def _answer(self, number: int, outcome: Tensors | ByocError) -> None:
        pending = self._pending.pop(number, None)
        if pending is None:  # given up
            return
        reply, rows, _ = pending
        self.rows -= rows
        try:
            reply(outcome)
        except Exception:  # one request's reply must never keep others from theirs
            logger.exception("a reply failed")

    def _answer_stacked(self, numbers: Sequence[int], outputs: Tensors, rows: int) -> None:
        """Answer several requests, together if they may be."""
        counts = [rows] * len(numbers)
        pending = [self._pending.get(number) for number in numbers]
        together = None if pending[0] is None else pending[0][2]
        replies = [waiting[0] for waiting in pending if waiting is not None and waiting[2] is together]
        if together is None or len(replies) < len(numbers):
            for number, own in zip(numbers, split(outputs, counts), strict=True):
                self._answer(number, own)
            return
        for number in numbers:
            self.rows -= self._pending.pop(number)[1]
        try:
            together(replies, outputs, counts)
        except Exception:  # it sees to each of them; whatever is wrong with it must not end the connection
            logger.exception("replies failed")

    def _on_status(self, channel: TensorChannel, payload: bytes) -> None:
        wire = orjson.loads(payload.rstrip(b"\0"))
        self.status = read_status(wire)
        if "signature" in wire:
            self.signature = signature = read_signature(wire["signature"])
            self._load_s = wire["load_s"]
            channel.understand(signature)
        self._ready = channel if self.status.state is ModelState.READY else None
        self._on_change()

    def _lost(self) -> None:
        """The core process has ended: nothing that it had will be answered."""
        if self.status.state is not ModelState.LOADING:
            self.status = ModelStatus(
                ModelState.LOADING, "the process that ran the model has ended; another is loading it"
            )
            self._on_change()
        for number in list(self._pending):
            error = NotReady(
                "the process that ran the model has ended before it had an answer; another is loading the model",
                retry_after_s=self._load_s,
            )
            self._answer(number, error)
