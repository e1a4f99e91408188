"""Frames between a front process and a core process: a fixed header, then a payload. Pure.

::

    header, 40 bytes, little-endian                        payload
    payload bytes u64 | kind u8 | flags u8 | model u16 |   JSON or nothing; of tensors see ``tensor_frame``
    rows u32 | id u64 | deadline f64 |
    descriptor bytes u32 | count u32

Every part of a payload is filled up to eight bytes, so that each array lies aligned in what was read. Both ends are
processes of one server, of one version: there is nothing to negotiate, and a frame that makes no sense ends the
connection. A new kind of work (such as calls of user code, or streams) is a new kind of frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

HEADER = Struct("<QBBHIQdII")
ALIGNMENT_BYTES = 8

URGENT = 1
"""Flag of ``Kind.INFER``: they go before requests that are not urgent."""
SHARED = 2
"""Flag of ``Kind.INFER`` and ``Kind.OUTPUTS``: the data lies in the sender's shared memory, the payload says where."""


class Kind:
    """What a frame is, in one byte. The id is that of the request, with tensors of the first one."""

    STATUS = 1
    """Core to front: state of the model as JSON, whenever it changes."""
    INFER = 2
    """Front to core: the inputs of requests."""
    OUTPUTS = 3
    """Core to front: their outputs."""
    ERROR = 4
    """Core to front: why a request has none, as JSON."""
    CANCEL = 5
    """Front to core: nobody waits for this request any more; it gets no answer."""
    FREE = 6
    """Nobody reads the place at this offset of the receiver's shared memory any more; the id is the offset."""


class FrameError(Exception):
    """The peer has sent what cannot be a frame."""


Frame = tuple[int, int, int, int, float, int, int, bytes, int, int]
"""Kind, flags, rows of a request, id, deadline in seconds, descriptor bytes, count of requests, and the payload: bytes
that hold it, its begin, its end."""


def frame(kind: int, payload: bytes = b"", number: int = 0) -> bytes:
    """A frame without tensors."""
    payload += bytes(-len(payload) % ALIGNMENT_BYTES)
    return HEADER.pack(len(payload), kind, 0, 0, 0, number, 0.0, 0, 0) + payload


class FrameReader:
    """Cuts what comes out of a socket into frames, however it was cut on the way."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held_bytes = 0
        self._needed_bytes = HEADER.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with ``data``.

        Raises:
            FrameError: this is not what the other end sends.
        """
        if self._chunks:
            self._chunks.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._needed_bytes:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        begin, size = 0, len(data)
        needed_bytes = HEADER.size
        while size - begin >= HEADER.size:
            header = HEADER.unpack_from(data, begin)
            payload_bytes, kind, flags, _, rows, number, deadline_s, descriptor_bytes, count = header
            if payload_bytes % ALIGNMENT_BYTES or descriptor_bytes > payload_bytes:
                raise FrameError(f"a header with {payload_bytes} bytes of payload, {descriptor_bytes} of descriptor")
            payload = begin + HEADER.size
            end = payload + payload_bytes
            if end > size:
                needed_bytes = end - begin
                break
            yield kind, flags, rows, number, deadline_s, descriptor_bytes, count, data, payload, end
            begin = end
        if begin < size:
            self._chunks.append(data[begin:] if begin else data)
            self._held_bytes = size - begin
            self._needed_bytes = needed_bytes
