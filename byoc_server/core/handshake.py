"""How a front process and a core process meet: sockets without a name in any folder, and the exchange of descriptors.

The parent of all processes opens one listening socket a core, in Linux's abstract namespace (unix(7)), and its children
inherit them. So a front can connect while no core is there yet: the connection waits in the backlog until the next core
accepts it. Anybody in the same network namespace could connect to such a socket, so each end must show the secret that
the parent has made, and run as the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from dataclasses import dataclass

_BACKLOG = 1024
_SECRET_BYTES = 32
_TIMEOUT_S = 10.0
_RETRY_S = 0.05
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group id, as SO_PEERCRED gives them (unix(7))."""


class HandshakeError(Exception):
    """Whoever is at the other end is no process of this server."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes of one server meet.

    Attributes:
        listeners: one listening socket a core process.
        secret: known to the processes of this server alone.
    """

    listeners: tuple[socket.socket, ...]
    secret: bytes

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Where the core processes listen."""
        return tuple(listener.getsockname() for listener in self.listeners)


def open_meeting(cores: int) -> Meeting:
    """Open a listening socket for each of so many core processes."""
    listeners = []
    for _ in range(cores):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("")  # the kernel chooses a name in the abstract namespace
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        listeners.append(listener)
    return Meeting(tuple(listeners), secrets.token_bytes(_SECRET_BYTES))


async def connect(address: bytes) -> socket.socket:
    """Connect to a core process, or to the place where the next one will look."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        while True:
            try:
                connection.connect(address)
            except BlockingIOError:  # the backlog is full
                await asyncio.sleep(_RETRY_S)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def introduce(connection: socket.socket, secret: bytes, descriptor: int) -> None:
    """Send the secret and a descriptor, as the first thing on a connection: so little always fits."""
    socket.send_fds(connection, [secret], [descriptor])


async def meet(connection: socket.socket, secret: bytes, timeout_s: float | None = _TIMEOUT_S) -> int:
    """Wait for what the other end introduces itself with.

    Args:
        connection: new, not blocking.
        secret: what it has to show.
        timeout_s: for how long; ``None`` = a core may take as long as it likes to come.

    Returns:
        The descriptor it has sent, which the caller has to close.

    Raises:
        HandshakeError: it is no process of this server, or has ended.
        TimeoutError: nothing came.
    """
    async with asyncio.timeout(timeout_s):
        await _readable(connection)
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        shown, descriptors, _, _ = socket.recv_fds(connection, _SECRET_BYTES, 2)
    except OSError as error:
        raise HandshakeError("the other process has ended") from error
    if user != os.geteuid() or len(descriptors) != 1 or not secrets.compare_digest(shown, secret):
        for descriptor in descriptors:
            os.close(descriptor)
        raise HandshakeError("the other process has ended" if not shown else "a stranger has connected")
    return descriptors[0]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def settle() -> None:
        loop.remove_reader(connection)
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection, settle)
    try:
        await readable
    finally:
        with contextlib.suppress(ValueError):  # closed meanwhile
            loop.remove_reader(connection)
