"""Clients that do not read, in both lanes. More of their kind is in tests/http/test_hostile.py and test_limits.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lanes.case import invocation, request
from tests.server_process import LANES, ServerProcess, running

_GROWTH_MIB = 64
_SENT_BYTES = 256 * 1024 * 1024
"""More than the kernel and the server together would take."""


@pytest.fixture(scope="module", params=LANES)
def server(model: str, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """Cuts off who has not read for a second."""
    with running("--model", model, "--keep-alive-s", "1", "--threads", "1", *LANES[request.param]) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


def resident_mib(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


SENT = {
    "small answers": invocation(),
    "pings": request(start=b"GET /ping HTTP/1.1"),
    "both lanes in turn": invocation() + request(start=b"GET /nowhere HTTP/1.1"),
}


def send_until_cut_off(server: ServerProcess, raw: bytes) -> bool:
    """Send without end and read nothing; whether the server put an end to it."""
    many = raw * (1 + 65_536 // len(raw))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        try:
            for _ in range(_SENT_BYTES // len(many)):
                connection.sendall(many)
        except (ConnectionResetError, BrokenPipeError):
            return True
    return False


def test_clients_that_send_and_never_read_are_cut_off(server: ServerProcess) -> None:
    """While they wait, the server holds as little for them as for anybody."""
    before_mib = resident_mib(server)
    with ThreadPoolExecutor(len(SENT)) as pool:
        cut_off = dict(zip(SENT, pool.map(lambda raw: send_until_cut_off(server, raw), SENT.values()), strict=True))
    assert all(cut_off.values()), cut_off
    assert resident_mib(server) < before_mib + _GROWTH_MIB
    with contextlib.closing(server.session):
        assert server.ping().status_code == 200
