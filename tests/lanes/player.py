"""Plays a case of the corpus to a server, and keeps what came back."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lanes.case import Answers, Case, Step, Wait
from tests.server_process import ServerProcess, wait_for

Cut = Callable[[bytes], Iterable[bytes]]
"""Cuts what is sent in one piece into several."""

_PIECE_BYTES = 64 * 1024
_DATE = re.compile(rb"\r\ndate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT(?=\r\n)")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


@dataclass(frozen=True)
class Transcript:
    """What came back on a connection.

    Attributes:
        received: all bytes, without the time in ``Date``.
        end: ``closed``, or ``reset`` where bytes were left that nobody had read.
    """

    received: bytes
    end: str

    @property
    def statuses(self) -> tuple[int, ...]:
        """Of all answers, interim ones too. For answers to ``HEAD`` use ``statuses_without_bodies``."""
        return split_answers(self.received, bodies=True)

    @property
    def statuses_without_bodies(self) -> tuple[int, ...]:
        """Of answers that have a head alone, whatever length it declares."""
        return split_answers(self.received, bodies=False)


def split_answers(received: bytes, *, bodies: bool) -> tuple[int, ...]:
    """The statuses of all complete answers.

    Args:
        received: bytes of answers, the last of them perhaps not complete.
        bodies: whether the declared bodies follow the heads.
    """
    statuses, start = [], 0
    while (end := received.find(b"\r\n\r\n", start)) >= 0:
        head, end = received[start : end + 2], end + 4
        length = _LENGTH.search(head)
        if length is not None and bodies:
            end += int(length[1])
        if end > len(received):
            break
        statuses.append(int(head.split(b" ", 2)[1]))
        start = end
    return tuple(statuses)


def whole(raw: bytes) -> Iterable[bytes]:
    """Cut nothing."""
    return (raw,)


def play(server: ServerProcess, case: Case, cut: Cut = whole) -> Transcript:
    """Do what the case says, then read until the server has closed the connection."""
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        player = _Player(server, connection, case)
        for step in case.steps:
            player.do(step, cut)
        while player.read():
            pass
        assert _DATE.search(player.received) or not player.received, "an answer has its date"
        return Transcript(_DATE.sub(b"\r\ndate: ...", player.received), player.end)


class _Player:
    def __init__(self, server: ServerProcess, connection: socket.socket, case: Case) -> None:
        self._server = server
        self._connection = connection
        self._case = case
        self._has_bodies = not is_head(case)
        self.received = b""
        self.end = ""

    def do(self, step: Step, cut: Cut) -> None:
        if isinstance(step, bytes):
            self._send(cut(step))
        elif isinstance(step, Answers):
            while len(split_answers(self.received, bodies=self._has_bodies)) < step.count and self.read():
                pass
        elif step is Wait.CONTINUE:
            while b"100 Continue\r\n\r\n" not in self.received and self.read():
                pass
        elif step is Wait.TAKEN:
            wait_for(lambda: unread_bytes(self._server, self._connection) == 0, "the server has read all")
        elif not self.end:
            self._connection.shutdown(socket.SHUT_WR)

    def _send(self, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                self._connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):  # it was closed earlier than the case expects, which will show
            pass

    def read(self) -> bool:
        """Read once; whether there can be more."""
        if not self.end:
            try:
                piece = self._connection.recv(_PIECE_BYTES)
            except ConnectionResetError:
                self.end = "reset"
            else:
                self.received += piece
                self.end = "" if piece else "closed"
        return not self.end


def is_head(case: Case) -> bool:
    """Whether what comes back has no bodies."""
    first = case.steps[0]
    return isinstance(first, bytes) and first.startswith(b"HEAD ")


def unread_bytes(server: ServerProcess, connection: socket.socket) -> int:
    """Bytes of a connection on their way to the server, or there and not read yet (proc(5), ``/proc/net/tcp``)."""
    near, far = f"0100007F:{connection.getsockname()[1]:04X}", f"0100007F:{server.port:04X}"
    queues = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, sizes, *_ = line.split()
        queues[local, remote] = [int(size, 16) for size in sizes.split(":")]
    to_send, _ = queues.get((near, far), (0, 0))
    _, to_read = queues.get((far, near), (0, 0))
    return to_send + to_read
