"""Joined writes, on real sockets under uvloop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from byoc_server.server.transport import JoiningTransport


def run(scenario: Callable[[JoiningTransport, socket.socket], Awaitable[None]], linger_s: float = 60.0) -> None:
    """Give the scenario a transport and the peer's blocking socket."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.settimeout(5)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        with peer:
            await scenario(JoiningTransport(transport, loop, linger_s), peer)
            transport.abort()
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_two_writes_arrive_as_one() -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        transport.write(b"head ")
        transport.write(b"body")
        assert peer.recv(100) == b"head body"

    run(scenario)


def test_a_large_second_write_is_not_copied_and_keeps_its_place() -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        transport.write(b"head")
        transport.write(b"x" * 70_000)
        received = b""
        while len(received) < 70_004:
            received += await asyncio.to_thread(peer.recv, 100_000)
        assert received == b"head" + b"x" * 70_000

    run(scenario)


def test_a_lone_write_leaves_at_the_end_of_the_turn() -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        transport.write(b"100 continue")
        assert transport.get_write_buffer_size() == 12
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert peer.recv(100) == b"100 continue"

    run(scenario)


def test_order_holds_over_many_writes() -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        for number in range(7):
            transport.write(b"%d" % number)
            if number % 3 == 0:
                await asyncio.sleep(0)
        transport.close()
        received = b""
        while piece := await asyncio.to_thread(peer.recv, 100):
            received += piece
        assert received == b"0123456"

    run(scenario)


def test_a_connection_lost_in_the_same_turn_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        transport.write(b"head")
        transport._transport.abort()
        await asyncio.sleep(0.01)

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert caplog.text == ""


def test_aborting_drops_what_was_kept() -> None:
    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        transport.write(b"head")
        transport.abort()
        transport.close()
        await asyncio.sleep(0.01)
        assert peer.recv(100) == b""

    run(scenario)


def test_a_closed_connection_does_not_wait_for_ever_for_a_client_that_does_not_read() -> None:
    """Checklist 41."""

    async def scenario(transport: JoiningTransport, peer: socket.socket) -> None:
        while not transport.get_write_buffer_size():
            transport.write(b"x" * 10_000)
            await asyncio.sleep(0)
        transport.close()
        await asyncio.sleep(0.3)
        assert transport.get_write_buffer_size() == 0

    run(scenario, linger_s=0.05)
