"""How the tensors of requests get from one process to the other: small ones in frames, large ones in shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

from byoc_server.core.frame import SHARED, Frame, FrameError, Kind, frame
from byoc_server.core.layout import Plan, TensorLayout
from byoc_server.core.link import Link
from byoc_server.core.shared_memory import OwnMemory, PeerMemory
from byoc_server.core.tensor_frame import TensorFrame, read_columns
from byoc_server.types import Signature, Tensors

SHARED_FROM_BYTES = 32 * 1024
"""Larger tensors go through shared memory: two copies by the kernel cost more than one place found and given back."""
_PLACE = struct.Struct("<Q")


class TensorChannel:
    """One end of a connection, as far as tensors go.

    Args:
        kind: of the frames with tensors that this end sends.
        link: of the connection.
    """

    _own: OwnMemory
    _peer: PeerMemory

    def __init__(self, kind: int, link: Link) -> None:
        self._kind = kind
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._closing = contextlib.ExitStack()
        self._sent = self._received = TensorLayout(())
        self._frame: TensorFrame | None = None
        self._batched = False

    def open_own(self, size: int, send_descriptor: Callable[[int], None]) -> None:
        """Open the memory that this end writes to.

        Args:
            size: in bytes, of all tensors that may be on their way in it.
            send_descriptor: sends its descriptor to the other end; it is closed afterwards.

        Raises:
            OSError: there are no descriptors or no addresses left.
        """
        self._own = OwnMemory(size, self._loop.call_later)
        self._closing.callback(self._own.close)
        send_descriptor(self._own.descriptor)
        self._own.sent()

    def open_peer(self, descriptor: int) -> None:
        """Open the memory that the other end writes to; the descriptor is closed here. Raises ``OSError``."""
        self._peer = PeerMemory(descriptor, self._tell_free)
        self._closing.callback(self._peer.close)

    def understand(self, signature: Signature) -> None:
        """From now on the tensors are those of a model."""
        self._batched = signature.batched
        inputs = TensorLayout([spec.name for spec in signature.inputs])
        outputs = TensorLayout([spec.name for spec in signature.outputs])
        self._sent, self._received = (inputs, outputs) if self._kind == Kind.INFER else (outputs, inputs)
        self._frame = None

    def send(
        self,
        tensors: Tensors,
        number: int,
        flags: int = 0,
        rows: int = 0,
        deadline_s: float = 0.0,
        *,
        wait_in_frames: bool = False,
    ) -> bool:
        """Send the tensors of one request at the end of this turn of the event loop.

        Args:
            tensors: of the model.
            number: id of the request.
            flags: of the frame.
            rows: records in the tensors; the same in tensors of the same shapes.
            deadline_s: of the request, with inputs.
            wait_in_frames: send even what there is no place for now.

        Returns:
            False if there is no place in the shared memory now. What can never have one goes in a frame.

        Raises:
            KeyError: one of the tensors is missing, or of a dtype that no model has.
        """
        layout = self._sent
        plan = layout.plan(tensors)
        data = None
        if plan.spread_bytes >= SHARED_FROM_BYTES and self._own.holds(plan):
            place = self._own.put(tensors, layout, plan)
            if place is not None:
                data = _PLACE.pack(place)
                flags |= SHARED
            elif not wait_in_frames:
                return False
        if data is None:
            data = layout.data(tensors, plan)
        self._collect(plan, flags, rows, len(data)).requests.append((number, deadline_s, data))
        return True

    def send_stacked(self, numbers: Sequence[int], stacked: Tensors, rows: int) -> bool:
        """Send the outputs of several requests at the end of this turn of the event loop.

        Args:
            numbers: ids of the requests.
            stacked: outputs of a model with a batch axis, of all of them in that order.
            rows: of each of them.

        Returns:
            False if they have to be sent one by one: there are strings, or they are large.

        Raises:
            KeyError: see ``send``.
        """
        layout = self._sent
        plan = layout.plan({name: array[:rows] for name, array in stacked.items()})
        if not plan.nbytes or plan.spread_bytes >= SHARED_FROM_BYTES:
            return False
        requests = list(zip(numbers, repeat(0.0), layout.data_of_each(stacked, plan)))
        begin = 0
        while begin < len(requests):
            collected = self._collect(plan, 0, 0, plan.nbytes)
            end = begin + collected.most - len(collected.requests)
            collected.requests += requests[begin:end]
            begin = end
        return True

    def receive_stacked(self, received: Frame) -> tuple[list[int], Tensors, int] | None:
        """The outputs of several requests that the other end has sent.

        Returns:
            Ids of the requests, their outputs stacked along axis 0, and the rows of each; ``None`` if they have to be
            received one by one.

        Raises:
            FrameError: see ``receive``.
        """
        _, flags, _, _, _, descriptor_bytes, count, buffer, begin, end = received
        data = begin + descriptor_bytes
        plan = self._received.read_plan(buffer[begin:data])
        if count == 1 or flags & SHARED or not plan.nbytes or not self._batched:
            return None
        numbers, _, data = read_columns(received, data)
        return numbers, self._received.read_stacked(plan, count, buffer, data, end), plan.tensors[0][1][0]

    def receive(self, received: Frame) -> Iterable[tuple[int, float, Tensors]]:
        """The tensors that the other end has sent.

        Returns:
            Id, deadline in seconds (0 with outputs), and tensors of each request. They cannot be written to. Those in
            shared memory keep their place as long as any array leads to it.

        Raises:
            FrameError: this is no frame with tensors of the model.
        """
        _, flags, _, number, deadline_s, descriptor_bytes, count, buffer, begin, end = received
        layout = self._received
        data = begin + descriptor_bytes
        plan = layout.read_plan(buffer[begin:data])
        alone = count == 1
        if not alone:
            numbers, deadlines_s, data = read_columns(received, data)
        if not flags & SHARED:
            requests = layout.read(plan, count, buffer, data, end)
        elif data + _PLACE.size * count > end:
            raise FrameError("places that reach behind their frame")
        else:
            places = struct.unpack_from(f"<{count}Q", buffer, data)
            requests = [self._peer.tensors(layout, plan, place) for place in places]
        if alone:
            return ((number, deadline_s, requests[0]),)
        return zip(numbers, deadlines_s, requests, strict=True)

    def free(self, place: int) -> None:
        """The other end reads a place of the own memory no longer. Raises ``FrameError``."""
        try:
            self._own.free(place)
        except KeyError as error:
            raise FrameError(f"a place that is not in use: {place}") from error

    def close(self) -> None:
        """Let go of all memory; arrays that are left keep what they lie on."""
        self._closing.close()

    def _collect(self, plan: Plan, flags: int, rows: int, item_bytes: int) -> TensorFrame:
        """The frame for requests with such tensors; it has room for one more at least, and is sent in this turn."""
        collected = self._frame
        if (
            collected is None
            or collected.plan is not plan
            or collected.flags != flags
            or len(collected.requests) >= collected.most
        ):
            collected = self._frame = TensorFrame(self._kind, flags, rows, plan, item_bytes)
        if not collected.requests:
            self._link.send(collected)
        return collected

    def _tell_free(self, place: int) -> None:
        """Nobody reads a place of the other end's memory any more; told in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._link.send, frame(Kind.FREE, number=place))
