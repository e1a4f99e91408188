"""Tensors of several requests in one frame: those with the same shapes that are sent in one turn. Pure.

::

    descriptor | id u64 and then deadline f64 of each request but the first | data of each, or the place u64 where it
    lies in the sender's shared memory

What the requests share is sent and understood once, and their arrays are cut from one. The id and the deadline of the
first, which is often the only one, stand in the header.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from byoc_server.core.frame import HEADER, Frame, FrameError
from byoc_server.core.layout import Plan

_MOST_BYTES = 64 * 1024
"""Of data: the other end understands a frame once all of it is there, and keeps it as long as any array on it."""
_COLUMN_BYTES = 8


class TensorFrame:
    """A frame that collects requests until it is sent, and then others.

    Args:
        kind: of the frame.
        flags: of all its requests.
        rows: of each of them.
        plan: of the tensors of each of them.
        item_bytes: of the data of each of them, but for strings.

    Attributes:
        requests: id, deadline in seconds (0 with outputs), and data in whole units of eight bytes, of each.
        most: so many requests are enough; strings, of any length, are sent one by one.
    """

    __slots__ = ("flags", "kind", "most", "plan", "requests", "rows")

    def __init__(self, kind: int, flags: int, rows: int, plan: Plan, item_bytes: int) -> None:
        self.kind = kind
        self.flags = flags
        self.rows = rows
        self.plan = plan
        self.requests: list[tuple[int, float, bytes]] = []
        self.most = 1 if plan.nbytes is None else _MOST_BYTES // max(item_bytes, 1)

    def take(self) -> bytes:
        """The frame with what it holds; it holds nothing afterwards."""
        requests, self.requests = self.requests, []
        descriptor = self.plan.descriptor
        number, deadline_s, data = requests[0]
        if len(requests) > 1:
            data = _columns_and_data(requests)
        size = len(descriptor) + len(data)
        return (
            HEADER.pack(size, self.kind, self.flags, 0, self.rows, number, deadline_s, len(descriptor), len(requests))
            + descriptor
            + data
        )


def _columns_and_data(requests: Sequence[tuple[int, float, bytes]]) -> bytes:
    numbers, deadlines_s, data = zip(*requests, strict=True)
    others = len(requests) - 1
    return b"".join([struct.pack(f"<{others}Q{others}d", *numbers[1:], *deadlines_s[1:]), *data])


def read_columns(received: Frame, begin: int) -> tuple[list[int], list[float], int]:
    """What a frame says of each of its requests.

    Args:
        received: a frame with tensors.
        begin: where its descriptor ends.

    Returns:
        Ids, deadlines in seconds, and where the data begin.

    Raises:
        FrameError: they do not end within the frame.
    """
    _, _, _, number, deadline_s, _, count, buffer, _, end = received
    others = count - 1
    middle = begin + _COLUMN_BYTES * others
    data = middle + _COLUMN_BYTES * others
    if others < 0 or data > end:
        raise FrameError("requests that reach behind their frame")
    numbers = struct.unpack_from(f"<{others}Q", buffer, begin)
    return [number, *numbers], [deadline_s, *struct.unpack_from(f"<{others}d", buffer, middle)], data
