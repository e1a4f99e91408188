"""Two processes meet; strangers are turned away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from byoc_server.core import handshake
from byoc_server.core.handshake import HandshakeError, Meeting, connect, introduce, meet, open_meeting

Run = Callable[[Meeting], Coroutine[Any, Any, None]]


def run(main: Run) -> None:
    meeting = open_meeting(1)
    try:
        asyncio.run(main(meeting))
    finally:
        meeting.listeners[0].close()


async def accept(meeting: Meeting) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(meeting.listeners[0])
    return connection


def a_file(content: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    return descriptor


def test_each_end_gets_the_descriptor_of_the_other() -> None:
    async def main(meeting: Meeting) -> None:
        assert meeting.addresses[0].startswith(b"\0")  # in no folder
        front = await connect(meeting.addresses[0])
        introduce(front, meeting.secret, a_file(b"front"))  # before anybody accepts
        front.send(b"and more")
        core = await accept(meeting)
        introduce(core, meeting.secret, a_file(b"core"))
        assert os.pread(await meet(core, meeting.secret), 9, 0) == b"front"
        assert os.pread(await meet(front, meeting.secret, None), 9, 0) == b"core"
        assert core.recv(99) == b"and more"  # what follows is left to whoever reads on
        front.close()
        core.close()

    run(main)


@pytest.mark.parametrize("shown", [b"x" * 32, b"short"])
def test_a_wrong_secret(shown: bytes) -> None:
    async def main(meeting: Meeting) -> None:
        before = len(os.listdir("/proc/self/fd"))
        front = await connect(meeting.addresses[0])
        descriptor = a_file(b"")
        introduce(front, shown, descriptor)
        os.close(descriptor)
        core = await accept(meeting)
        with pytest.raises(HandshakeError, match="stranger"):
            await meet(core, meeting.secret)
        front.close()
        core.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run(main)


def test_no_descriptor() -> None:
    async def main(meeting: Meeting) -> None:
        front = await connect(meeting.addresses[0])
        front.send(meeting.secret)
        core = await accept(meeting)
        with pytest.raises(HandshakeError):
            await meet(core, meeting.secret)
        front.close()
        core.close()

    run(main)


def test_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the abstract namespace has no permissions: whoever shares the network namespace may connect."""

    async def main(meeting: Meeting) -> None:
        front = await connect(meeting.addresses[0])
        introduce(front, meeting.secret, a_file(b""))
        core = await accept(meeting)
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(HandshakeError, match="stranger"):
            await meet(core, meeting.secret)
        front.close()
        core.close()

    run(main)


def test_who_ends_before_saying_anything() -> None:
    async def main(meeting: Meeting) -> None:
        front = await connect(meeting.addresses[0])
        core = await accept(meeting)
        front.close()
        with pytest.raises(HandshakeError, match="has ended"):
            await meet(core, meeting.secret)
        core.close()

    run(main)


def test_who_says_nothing() -> None:
    async def main(meeting: Meeting) -> None:
        front = await connect(meeting.addresses[0])
        core = await accept(meeting)
        with pytest.raises(TimeoutError):
            await meet(core, meeting.secret, 0.01)
        front.close()
        core.close()

    run(main)


def test_a_full_backlog_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_BACKLOG", 0)

    async def main(meeting: Meeting) -> None:
        first = await connect(meeting.addresses[0])
        second = asyncio.create_task(connect(meeting.addresses[0]))
        await asyncio.sleep(0.1)
        assert not second.done()
        (await accept(meeting)).close()
        (await asyncio.wait_for(second, 20)).close()
        first.close()

    run(main)


def test_waiting_for_a_place_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_BACKLOG", 0)

    async def main(meeting: Meeting) -> None:
        first = await connect(meeting.addresses[0])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connect(meeting.addresses[0]), 0.1)
        first.close()

    run(main)
