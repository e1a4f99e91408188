"""Clients that break the rules, or leave whenever it hurts most."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.onnx_models import busy, identity, rounds_per_second
from tests.server_process import LANES, PING, SERVE, ServerProcess, post, read_answer, running, wait_for

GOOD = post(b"[[0]]")
HEAD = b"POST /invocations HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("identity", "fast"), id="identity"),
        pytest.param(("busy", "fast"), id="busy"),
        pytest.param(("busy", "ordinary"), id="busy, ordinary lane", marks=pytest.mark.soak),
    ],
)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A model that runs on the event loop, and one that runs on a thread."""
    model_name, lane = request.param
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    model = busy(path, rounds_per_second()) if model_name == "busy" else identity(path, shape=("N", 1))
    with running("--model", str(model), *LANES[lane]) as server:
        yield server
        assert server.invoke("[[0]]").status_code == 200
        assert server.stop() == 0
        signs = ("Traceback", "never retrieved", "never awaited", "Exception")
        assert [line for line in server.log.splitlines() if any(sign in line for sign in signs)] == []


@pytest.fixture(autouse=True)
def _healthy_afterwards(server: ServerProcess) -> Iterator[None]:
    """After every attack: it answers, it made no 5xx, and it holds no connection, task or file more than before."""
    server.session.close()
    before = open_files(server)
    yield
    assert server.exchange(GOOD).status == 200
    assert [line for line in server.events("request") if line["status"] >= 500] == []
    wait_for(lambda: open_files(server) <= before, "all connections are closed on the server's side")


def open_files(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def memory_mib(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def answer_bytes(server: ServerProcess, raw: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    received = b""
    with server.connect(10) as connection, contextlib.suppress(ConnectionResetError):
        connection.sendall(raw)
        while piece := connection.recv(65536):
            received += piece
    return received


def reset(connection: socket.socket) -> None:
    """Close with a reset in place of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
        b"GET  HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /ping HTTP/9.9\r\nHost: a\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost a\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n[[0]]",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n[[0]]",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n[[0]]",
        HEAD + b"Content-Length: 5x\r\n\r\n[[0]]",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n[[0]]",
        HEAD + b"X-A: a\x01b\r\nContent-Length: 5\r\n\r\n[[0]]",
        HEAD + b"X A: b\r\nContent-Length: 5\r\n\r\n[[0]]",
        b"GET \xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT example.com HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /%zz%ff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"BREW /ping HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=lambda raw: raw[-40:].decode("latin-1").encode("unicode_escape").decode(),
)
def test_nonsense_is_a_client_error(server: ServerProcess, raw: bytes) -> None:
    """Checklist 41: 4xx and a closed connection, and never a trace."""
    with server.connect(10) as connection, connection.makefile("rb") as stream:
        connection.sendall(raw)
        answer = read_answer(stream)
        assert 400 <= answer.status < 500, answer
        assert b"Traceback" not in answer.body


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_connection_that_ends_with_its_request(server: ServerProcess, version: bytes) -> None:
    """Checklist 29: HTTP/1.0, and Connection: close."""
    raw = GOOD.replace(b"HTTP/1.1", b"HTTP/" + version).replace(b"Host", b"Connection: close\r\nHost")
    assert answer_bytes(server, raw).endswith(b'{"predictions":[[0.0]]}')
    assert answer_bytes(server, raw.replace(b"Connection: close\r\n", b"Connection: CLOSE\r\n")).endswith(b"}")


def test_http_1_0_without_host_and_keep_alive(server: ServerProcess) -> None:
    """Checklist 40."""
    assert answer_bytes(server, b"GET /ping HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_flood_of_offered_upgrades_is_declined(server: ServerProcess) -> None:
    """One by one: the way the first is declined must not lead through all that follow."""
    offer = b"GET /ping HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(offer * 3000)
        assert [read_answer(stream).status for _ in range(3000)] == [200] * 3000
    assert "Traceback" not in server.log


def test_an_offered_upgrade_is_declined(server: ServerProcess) -> None:
    """Checklist 39: some HTTP clients offer h2c with every request; it is served as it is, and so is the next."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAARAAAAA"}
    with server.connect() as connection, connection.makefile("rb") as stream:
        for raw in (
            post(b"[[0]]", **offer),
            PING.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost"),
            GOOD,
        ):
            connection.sendall(raw)
            assert read_answer(stream).status == 200
        head, _, body = post(b"[[0]]", **offer).partition(b"\r\n\r\n")
        for piece in (head[:60], head[60:] + b"\r\n\r\n", body[:2], body[2:] + GOOD):
            connection.sendall(piece)
            time.sleep(0.02)
        assert [read_answer(stream).status for _ in "ab"] == [200, 200]
    assert "WebSocket" not in server.log


def test_a_flood_of_headers_is_refused(server: ServerProcess) -> None:
    """Checklist 41: a head is bounded, in one header or in many."""
    for flood in (b"X-A: b\r\n" * 100_000, b"X-A: " + b"a" * 2_000_000):
        received = answer_bytes(server, HEAD + flood)
        assert received == b"" or received.startswith(b"HTTP/1.1 431 ")
    assert memory_mib(server) < 400


def test_many_small_headers_are_fine(server: ServerProcess) -> None:
    """Checklist 39."""
    assert server.exchange(HEAD + b"X-A: b\r\n" * 500 + b"Content-Length: 5\r\n\r\n[[0]]").status == 200


def test_a_repeated_content_type_counts_once(server: ServerProcess) -> None:
    """Checklist 29."""
    raw = HEAD + b"Content-Type: text/html\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[[0]]"
    assert server.exchange(raw).status in (200, 415)


def test_half_closed_connections(server: ServerProcess) -> None:
    """Checklist 41: a client that ends its side before, in and after a request."""
    for raw in (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n[[0", GOOD, GOOD + GOOD[:20]):
        with server.connect(10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass


def test_resets_at_every_moment(server: ServerProcess) -> None:
    """Checklist 41."""
    raws = [b"", GOOD[:10], GOOD[:-2], GOOD, GOOD * 5, HEAD + b"Content-Length: 5000000\r\n\r\n" + bytes(200_000)]
    for i in range(120):
        connection = server.connect(10)
        connection.sendall(raws[i % len(raws)])
        if i % 3:
            time.sleep(0.001 * (i % 4))
        if i % 2:
            reset(connection)
        else:
            connection.close()


def test_thousands_of_quick_connections(server: ServerProcess) -> None:
    """Checklist 30, 41: with and without a request."""
    before_mib = memory_mib(server)

    def client() -> None:
        for i in range(500):
            connection = server.connect(10)
            if i % 2:
                connection.sendall(GOOD)
            if i % 10 == 1:
                connection.recv(1000)
            reset(connection)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert server.exchange(GOOD).status == 200
    assert memory_mib(server) < before_mib + 100


def test_many_open_connections_do_not_keep_others_out(server: ServerProcess) -> None:
    """Checklist 30."""
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(server.connect(10)).sendall(GOOD[:40])
        start_s = time.monotonic()
        assert server.exchange(PING).status == 200
        assert server.exchange(GOOD).status == 200
        assert time.monotonic() - start_s < 5


def test_pipelining_behind_a_slow_request(server: ServerProcess) -> None:
    """Checklist 41, 43: the answers keep the order; a client that leaves meanwhile leaves nothing behind."""
    slow = post(b"[[0.3]]")
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(slow + PING + GOOD + b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n" + GOOD)
        assert [read_answer(stream).status for _ in range(5)] == [200, 200, 200, 404, 200]
    assert b"HTTP/1.1 400 " in answer_bytes(server, slow + b"\x00 nonsense\r\n\r\n")
    for leave in (reset, socket.socket.close):
        connection = server.connect()
        connection.sendall(slow + GOOD * 50)
        time.sleep(0.05)
        leave(connection)


def test_a_flood_of_pipelined_requests_nobody_reads(server: ServerProcess) -> None:
    """Checklist 41: reading stops while answers wait."""
    before_mib = memory_mib(server)
    with server.connect(2) as connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(3000):
            connection.sendall(GOOD * 100)
    assert memory_mib(server) < before_mib + 150


def test_connections_beyond_the_limit_of_open_files(tmp_path: Path) -> None:
    """Checklist 41: without a file descriptor left, the server waits and recovers."""
    model = identity(tmp_path / "model.onnx", shape=("N", 1))
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    with running("--model", str(model), command=(prlimit, "--nofile=64", *SERVE)) as server:
        server.session.close()
        crowd: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while len(crowd) < 150:
                crowd.append(server.connect(2))
        time.sleep(0.3)
        for connection in crowd:
            connection.close()
        wait_for(lambda: served(server), "it serves again", 10)
        assert len(server.log.splitlines()) < 300
        assert server.stop() == 0


def served(server: ServerProcess) -> bool:
    try:
        return server.exchange(GOOD, 2).status == 200
    except (OSError, EOFError):
        return False


def test_a_long_body_before_a_partial_head_is_no_long_head(server: ServerProcess) -> None:
    """The request before is answered, whatever came with it in one read."""
    rows = b"0\n" * 60_000
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nAccept: text/csv\r\n"
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(rows) + rows + head)
        assert read_answer(stream).status == 200
        connection.sendall(b"Content-Length: 2\r\n\r\n0\n")
        assert read_answer(stream).status == 200


def test_what_is_not_http_gets_an_error_as_json(server: ServerProcess) -> None:
    answer = server.exchange(b"\x16\x03\x01\x02\x00 this is TLS, say\r\n\r\n")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")
