"""What one request, or many, can use at most: body, queue, time."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.onnx_models import busy, identity, rounds_per_second
from tests.server_process import LANE_PARAMS, LANES, Answer, ServerProcess, post, read_answer, running, wait_for

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=LANE_PARAMS)
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """Small limits on bodies and time, for a quick model."""
    model = identity(folder / "identity.onnx", shape=("N", 2))
    with running("--model", str(model), "--request-timeout-s", "1", *LANES[request.param]) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def slow(folder: Path) -> Iterator[ServerProcess]:
    """A model that takes as many seconds as it is told, one record at a time, with room for three in the queue."""
    model = busy(folder / "busy.onnx", rounds_per_second())
    arguments = ("--max-batch-size", "1", "--max-queue-rows", "3", "--request-timeout-s", "6")
    with running("--model", str(model), *arguments) as server:
        yield server
        assert "Traceback" not in server.log


def code_of(answer: Answer | requests.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def test_a_body_of_25_mib_is_taken(server: ServerProcess) -> None:
    """Checklist 32: it is read whole; that it is not JSON is what it is refused for."""
    answer = server.invoke(b" " * (25 * MIB))
    assert (answer.status_code, code_of(answer)) == (400, "invalid_payload")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_larger_body_is_413_and_the_client_sees_it_while_it_sends(server: ServerProcess, chunked: bool) -> None:
    """Checklist 36, 41: also a client that first sends everything."""
    piece = bytes(MIB)
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\n"
    with server.connect() as connection, connection.makefile("rb") as stream:
        if chunked:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (30 * MIB))
        for _ in range(30):
            connection.sendall(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        answer = read_answer(stream)
        assert (answer.status, code_of(answer)) == (413, "payload_too_large")
        assert answer.headers["connection"] == "close"
        assert stream.read() == b""
    assert server.invoke("[[1, 2]]").status_code == 200


def test_a_declared_larger_body_is_413_before_it_is_sent(server: ServerProcess) -> None:
    """Checklist 41."""
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n")
        answer = read_answer(stream)
        assert (answer.status, code_of(answer)) == (413, "payload_too_large")


def test_a_refused_body_that_trickles_does_not_upset_the_server(server: ServerProcess) -> None:
    """Checklist 41: the time of the request ends while its rest is being thrown away."""
    with server.connect() as connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        assert read_answer(stream).status == 413
        for _ in range(15):
            connection.sendall(b"x")
            time.sleep(0.1)
    assert server.invoke("[[1, 2]]").status_code == 200
    assert "Exception" not in server.log


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n[[1,2\r\n"])
def test_a_body_that_does_not_come_is_408(server: ServerProcess, head: bytes) -> None:
    """Checklist 41."""
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\n" + head)
        answer = read_answer(stream)
        assert (answer.status, code_of(answer)) == (408, "body_timeout")
        assert answer.headers["connection"] == "close"


def test_a_full_queue_is_503_at_once(slow: ServerProcess) -> None:
    """Checklist 36, 104: while one runs there is room for the queue and no more; the rest are told so."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(slow.connect()) for _ in range(9)]
        connections[0].sendall(post(b"[[1.0]]"))
        time.sleep(0.2)  # until it runs
        for connection in connections[1:]:
            connection.sendall(post(b"[[0.01]]"))
        assert slow.ping().status_code == 200
        answers = [read_answer(stack.enter_context(connection.makefile("rb"))) for connection in connections]
        refused = [answer for answer in answers if answer.status != 200]
        # the three in the queue, the one that runs, and maybe one that stands ready to run next
        assert len(answers) - len(refused) in (4, 5)
        for answer in refused:
            assert (answer.status, code_of(answer)) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
    assert slow.invoke("[[0]]").status_code == 200


@pytest.mark.parametrize("lane", LANE_PARAMS)
def test_a_client_that_leaves_the_queue_is_never_run(folder: Path, lane: str) -> None:
    """Checklist 41: what waits for nobody is dropped, and its place is free again."""
    model = busy(folder / "left.onnx", rounds_per_second())
    arguments = ("--max-batch-size", "1", "--max-queue-rows", "3", *LANES[lane])
    with running("--model", str(model), *arguments) as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(server.connect())
        first.sendall(post(b"[[5]]"))
        leavers = [stack.enter_context(server.connect()) for _ in range(6)]  # more than there is room for
        for leaver in leavers:
            leaver.sendall(post(b"[[1000]]"))
        wait_for(lambda: select.select(leavers, [], [], 0)[0], "one of them is told that the queue is full")
        assert code_of(server.invoke("[[0]]")) == "overloaded"
        for leaver in leavers:
            leaver.close()
        wait_for(lambda: server.exchange(post(b"[[0]]")).status == 200, "the places are free again", 50)


def test_an_answer_that_comes_too_late_is_503_while_the_model_still_runs(slow: ServerProcess) -> None:
    """Checklist 31, 104."""
    with slow.connect() as first, first.makefile("rb") as stream, slow.connect() as second:
        start_s = time.monotonic()
        first.sendall(post(b"[[9]]"))
        time.sleep(0.2)
        second.sendall(post(b"[[0.01]]"))
        answer = read_answer(stream)
        assert (answer.status, code_of(answer)) == (503, "deadline_exceeded")
        assert time.monotonic() - start_s > 5
        assert int(answer.headers["retry-after"]) >= 1
        with second.makefile("rb") as waiting:
            assert code_of(read_answer(waiting)) == "deadline_exceeded"
        assert slow.ping().status_code == 200
    wait_for(lambda: slow.invoke("[[0]]").status_code == 200, "it serves again")


def test_many_unfinished_bodies_do_not_fill_the_memory(folder: Path) -> None:
    """Checklist 41: all bodies together are bounded as well; others are told to come again."""
    model = identity(folder / "small.onnx", shape=("N", 2))
    with running("--model", str(model), "--max-queue-mib", "8") as server, contextlib.ExitStack() as stack:
        started = [stack.enter_context(server.connect()) for _ in range(6)]
        for connection in started:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (4 * MIB))
            connection.sendall(b" " * (3 * MIB))
        refused = 0
        for connection in started:
            connection.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                refused += connection.recv(100).startswith(b"HTTP/1.1 503 ")
        assert refused >= 3
        assert server.invoke("[[1, 2]]").status_code == 200
        assert memory_mib(server) < 400


def memory_mib(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("lane", LANE_PARAMS)
def test_a_large_answer_nobody_reads_is_given_up(folder: Path, lane: str) -> None:
    """Checklist 41: a client that does not read cannot hold an answer for ever."""
    model = identity(folder / "wide.onnx", shape=("N", 2))
    with running("--model", str(model), "--keep-alive-s", "1", *LANES[lane]) as server:
        rows = b"[" + b",".join([b"[1,2]"] * 1_000_000) + b"]"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(30)
            connection.sendall(post(rows))
            wait_for(lambda: server.events("request"), "it is answered")
            wait_for(lambda: sockets(server) == 1, "the connection is cut off", 10)
        server.session.close()
        assert server.stop() == 0


def sockets(server: ServerProcess) -> int:
    """TCP sockets in the server, the listening one included; the session's connection is closed first."""
    server.session.close()
    port = f":{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in ("0A", "01", "08") for row in rows)


def test_a_slow_reader_gets_all_of_a_large_answer(folder: Path) -> None:
    """Checklist 41: only who reads nothing at all is cut off."""
    model = identity(folder / "slow_reader.onnx", shape=("N", 2))
    with running("--model", str(model), "--keep-alive-s", "1") as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(post(b"[" + b",".join([b"[1,2]"] * 1_000_000) + b"]"))
        received = connection.recv(1000)
        length = (
            len(received.partition(b"\r\n\r\n")[0]) + 4 + int(received.partition(b"content-length: ")[2].split()[0])
        )
        size = len(received)
        while size < length:
            piece = connection.recv(MIB)
            assert piece, f"cut off after {size} of {length} bytes"
            size += len(piece)
            time.sleep(0.02 if size < length // 2 else 0)
        assert size == length


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n\r\n", b"POST /invocations HTTP/1.1\r\nHost", b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"]
)
def test_silent_connections_are_closed(folder: Path, keep_alive_server: ServerProcess, sent: bytes) -> None:
    """Checklist 41, 48: before, in and after a request."""
    with keep_alive_server.connect() as connection:
        connection.sendall(sent)
        while connection.recv(1000):
            pass


@pytest.fixture(scope="module", params=LANE_PARAMS)
def keep_alive_server(folder: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    model = identity(folder / "keep.onnx")
    with running("--model", str(model), "--keep-alive-s", "1", *LANES[request.param]) as server:
        yield server


def test_a_head_that_trickles_is_cut_off(keep_alive_server: ServerProcess) -> None:
    """Checklist 41: every byte is new, but the head as a whole takes too long."""
    with keep_alive_server.connect() as connection:
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /ping HTTP/1.1\r\n")
                while not stop.wait(0.1):
                    connection.sendall(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
        stop.set()
        thread.join(10)


def test_a_connection_in_use_is_kept_longer_than_its_idle_time(keep_alive_server: ServerProcess) -> None:
    """Checklist 48."""
    with keep_alive_server.connect() as connection, connection.makefile("rb") as stream:
        for _ in range(5):
            connection.sendall(post(b"[[1,2,3,4]]"))
            assert read_answer(stream).status == 200
            time.sleep(0.5)
