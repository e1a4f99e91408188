"""Tensors between two ends of a connection, over real sockets and real shared memory."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from byoc_server.core.frame import HEADER, SHARED, URGENT, Frame, FrameError, FrameReader, Kind
from byoc_server.core.layout import TensorLayout
from byoc_server.core.link import Link
from byoc_server.core.tensor_channel import SHARED_FROM_BYTES, TensorChannel
from byoc_server.types import STRING, Signature, Tensors, TensorSpec

MIB = 1024 * 1024
SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, None)),),
    (TensorSpec("y", np.dtype(np.float32), (None, None)), TensorSpec("z", STRING, (None,))),
)
LARGE_LENGTH = SHARED_FROM_BYTES // 4


class End:
    """A process at one end."""

    def __init__(self, kind: int) -> None:
        self.frames: list[Frame] = []
        self.link = Link(self.on_frame)
        self.channel = TensorChannel(kind, self.link)
        self.channel.understand(SIGNATURE)
        self.received: list[tuple[int, float, Tensors]] = []

    def on_frame(self, received: Frame) -> None:
        self.frames.append(received)
        if received[0] == Kind.FREE:
            self.channel.free(received[3])
        else:
            self.received += self.channel.receive(received)

    def open_peer(self, descriptor: int) -> None:
        self.channel.open_peer(os.dup(descriptor))

    async def count(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.received) < count:
                await asyncio.sleep(0.001)


class Pair:
    """Both ends."""

    def __init__(self) -> None:
        self.front, self.core = End(Kind.INFER), End(Kind.OUTPUTS)

    async def open(self) -> None:
        ends = (self.front, self.core)
        for end, other in zip(ends, reversed(ends), strict=True):
            end.channel.open_own(MIB, other.open_peer)
        for end, connection in zip(ends, socket.socketpair(), strict=True):
            connection.setblocking(False)
            await end.link.open(connection)

    async def close(self) -> None:
        for end in (self.front, self.core):
            end.link.abort()
            await end.link.closed
            end.channel.close()


def run(main: Callable[[Pair], Coroutine[Any, Any, None]]) -> None:
    async def around() -> None:
        pair = Pair()
        await pair.open()
        try:
            await main(pair)
        finally:
            await pair.close()

    asyncio.run(around())


def inputs(value: float, length: int = 1, rows: int = 1) -> Tensors:
    return {"x": np.full((rows, length), value, np.float32)}


def kinds(frames: Sequence[Frame]) -> list[tuple[int, int, int]]:
    """Kind, flags, and count of requests of each."""
    return [(one[0], one[1], one[6]) for one in frames]


def test_requests_of_one_turn_with_the_same_shapes_share_a_frame() -> None:
    async def main(pair: Pair) -> None:
        send = pair.front.channel.send
        assert send(inputs(1), 1, 0, 1, 10.5)
        assert send(inputs(2), 2, 0, 1, 20.5)
        assert send(inputs(3, rows=2), 3, 0, 2, 30.5)
        assert send(inputs(4), 4, URGENT, 1, 40.5)
        await pair.core.count(4)
        assert kinds(pair.core.frames) == [(Kind.INFER, 0, 2), (Kind.INFER, 0, 1), (Kind.INFER, URGENT, 1)]
        assert [one[2] for one in pair.core.frames] == [1, 2, 1]
        assert [one[:2] for one in pair.core.received] == [(1, 10.5), (2, 20.5), (3, 30.5), (4, 40.5)]
        assert [one[2]["x"].tolist() for one in pair.core.received] == [[[1]], [[2]], [[3], [3]], [[4]]]
        assert send(inputs(5), 5, URGENT, 1, 50.5)
        await pair.core.count(5)
        assert kinds(pair.core.frames[3:]) == [(Kind.INFER, URGENT, 1)]

    run(main)


def test_many_requests_make_several_frames() -> None:
    """The other end need not wait for all of them, and one that is kept does not keep the memory of all."""

    async def main(pair: Pair) -> None:
        for number in range(100):
            assert pair.front.channel.send(inputs(number, 1000), number)
        await pair.core.count(100)
        assert [one[6] for one in pair.core.frames] == [16] * 6 + [4]
        assert [one[2]["x"][0, 999] for one in pair.core.received] == list(range(100))

    run(main)


def test_large_tensors_lie_in_shared_memory_as_long_as_somebody_reads_them() -> None:
    async def main(pair: Pair) -> None:
        for number in range(3):
            assert pair.front.channel.send(inputs(number, LARGE_LENGTH), number)
        await pair.core.count(3)
        assert kinds(pair.core.frames) == [(Kind.INFER, SHARED, 3)]
        assert [one[2]["x"][0, -1] for one in pair.core.received] == [0, 1, 2]
        assert len(pair.front.channel._own) == 3
        del pair.core.received[1]
        async with asyncio.timeout(30):
            while len(pair.front.channel._own) == 3:
                await asyncio.sleep(0.001)
        assert [one[2]["x"][0, -1] for one in pair.core.received] == [0, 2]
        pair.core.received.clear()
        async with asyncio.timeout(30):
            while len(pair.front.channel._own):
                await asyncio.sleep(0.001)

    run(main)


def test_tensors_just_too_small_for_shared_memory() -> None:
    async def main(pair: Pair) -> None:
        assert pair.front.channel.send(inputs(7, LARGE_LENGTH - 16), 1)
        await pair.core.count(1)
        assert kinds(pair.core.frames) == [(Kind.INFER, 0, 1)]

    run(main)


def test_shared_memory_that_is_full() -> None:
    """Tensors are refused, or wait in frames, as the sender likes."""

    async def main(pair: Pair) -> None:
        half = MIB // 2 // 4
        send = pair.front.channel.send
        assert [send(inputs(number, half), number) for number in range(3)] == [True, True, False]
        assert send(inputs(3, half), 3, wait_in_frames=True)
        await pair.core.count(3)
        assert [one[0] for one in pair.core.received] == [0, 1, 3]
        assert kinds(pair.core.frames) == [(Kind.INFER, SHARED, 2), (Kind.INFER, 0, 1)]

    run(main)


def test_tensors_that_can_never_have_a_place_go_in_a_frame() -> None:
    async def main(pair: Pair) -> None:
        assert pair.front.channel.send(inputs(5, MIB), 1)
        await pair.core.count(1)
        assert kinds(pair.core.frames) == [(Kind.INFER, 0, 1)]
        assert pair.core.received[0][2]["x"][0, -1] == 5

    run(main)


def test_strings_go_in_frames_whatever_is_beside_them() -> None:
    async def main(pair: Pair) -> None:
        for number in range(2):
            text = np.array(["ä" * number], STRING)
            assert pair.core.channel.send({"y": np.full((1, MIB), number, np.float32), "z": text}, number)
        await pair.front.count(2)
        assert [one[2]["z"].tolist() for one in pair.front.received] == [[""], ["ä"]]
        assert [one[2]["y"][0, -1] for one in pair.front.received] == [0, 1]

    run(main)


def test_tensors_that_cannot_be_sent_leave_no_trace() -> None:
    async def main(pair: Pair) -> None:
        with pytest.raises(KeyError):
            pair.front.channel.send({}, 1)
        assert pair.front.channel.send(inputs(2), 2)
        await pair.core.count(1)
        assert [one[0] for one in pair.core.received] == [2]

    run(main)


def test_places_that_are_none() -> None:
    descriptor = TensorLayout(["x"]).plan(inputs(1)).descriptor

    async def main(pair: Pair) -> None:
        for count, places in ((1, 0), (2, 3)):  # two requests: the id and the deadline of the second come first
            payload = descriptor + bytes(8 * places)
            header = HEADER.pack(len(payload), Kind.INFER, SHARED, 0, 1, 1, 0.0, len(descriptor), count)
            (received,) = FrameReader().feed(header + payload)
            with pytest.raises(FrameError, match="places"):
                pair.core.channel.receive(received)
        with pytest.raises(FrameError, match="not in use"):
            pair.front.channel.free(64)

    run(main)
