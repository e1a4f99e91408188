"""The graceful end: what had reached the server when it was told to stop is answered, and then it is gone."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.onnx_models import busy, identity, rounds_per_second
from tests.server_process import ORDINARY_LANE, Answer, ServerProcess, alive, post, read_answer, running, wait_for

WORKERS = [
    pytest.param(("--workers", "1"), id="one"),
    pytest.param(("--workers", "2"), id="two"),
    pytest.param(("--workers", "1", *ORDINARY_LANE), id="one, ordinary lane", marks=pytest.mark.soak),
]
ENDS_WITHIN_S = 25.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def identity_model(folder: Path) -> str:
    return str(identity(folder / "identity.onnx", shape=("N", 2)))


@pytest.fixture(scope="module")
def busy_model(folder: Path) -> str:
    return str(busy(folder / "busy.onnx", rounds_per_second()))


def numbered(*numbers: int) -> bytes:
    """Requests that can be told apart, in one piece."""
    return b"".join(post(b'{"instances": [[%d, 1]]}' % number) for number in numbers)


def number_of(answer: Answer) -> int:
    assert answer.status == 200, answer
    return int(answer.json()["predictions"][0][0])


@contextlib.contextmanager
def stopped(server: ServerProcess, *then: int) -> Iterator[None]:
    """Hold the server still, so that everything sent meanwhile waits in the kernel; then send it signals."""
    server.signal_all(signal.SIGSTOP)
    try:
        yield
        for number in then:
            server.process.send_signal(number)
    finally:
        server.signal_all(signal.SIGCONT)


def ends_cleanly(server: ServerProcess) -> None:
    assert server.process.wait(ENDS_WITHIN_S) == 0, server.log
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log


@pytest.mark.parametrize("arguments", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_the_kernel_are_answered(
    identity_model: str, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    """Checklist 11: bytes that lay unread on idle, pipelined and not yet accepted connections get their answer."""
    with running("--model", identity_model, *arguments) as server, contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(server.connect())

        idle, used, pipelined = [connect() for _ in range(4)], [connect() for _ in range(8)], [connect() for _ in "ab"]
        streams = {c: stack.enter_context(c.makefile("rb")) for c in (*idle, *used, *pipelined)}
        for i, connection in enumerate((*idle, *used, *pipelined)):
            connection.sendall(numbered(i))
            assert number_of(read_answer(streams[connection])) == i
        with stopped(server, number):
            fresh = [connect() for _ in range(8)]
            streams |= {c: stack.enter_context(c.makefile("rb")) for c in fresh}
            for i, connection in enumerate((*used, *fresh)):
                connection.sendall(numbered(100 + i))
            for connection in pipelined:
                connection.sendall(numbered(7, 8, 9))
        for i, connection in enumerate((*used, *fresh)):
            assert number_of(read_answer(streams[connection])) == 100 + i
            assert streams[connection].read() == b""
        for connection in pipelined:
            answers = [read_answer(streams[connection]) for _ in range(3)]
            assert [number_of(answer) for answer in answers] == [7, 8, 9]
            assert streams[connection].read() == b""
        for connection in idle:
            assert streams[connection].read() == b""
        ends_cleanly(server)
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_connections_that_vanish_in_the_backlog_do_not_cost_the_others(identity_model: str) -> None:
    """Checklist 11."""
    with running("--model", identity_model) as server, contextlib.ExitStack() as stack:
        with stopped(server, signal.SIGTERM):
            good = []
            for i in range(6):
                bad = server.connect()
                bad.sendall(numbered(1))
                bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                bad.close()  # a reset
                stack.enter_context(server.connect())  # silent
                good.append(stack.enter_context(server.connect()))
                good[-1].sendall(numbered(i))
        for i, connection in enumerate(good):
            with connection.makefile("rb") as stream:
                assert number_of(read_answer(stream)) == i
        ends_cleanly(server)


@pytest.mark.parametrize("arguments", WORKERS)
def test_a_body_still_on_its_way_is_waited_for(identity_model: str, arguments: tuple[str, ...]) -> None:
    """Checklist 11: neither half a head nor half a body is cut off."""
    raw = numbered(5)
    with running("--model", identity_model, *arguments) as server:
        with server.connect() as head, server.connect() as body, head.makefile("rb") as a, body.makefile("rb") as b:
            head.sendall(raw[:30])
            body.sendall(raw[:-4])
            server.ping()
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: refused(server), "new connections are refused")
            head.sendall(raw[30:])
            body.sendall(raw[-4:])
            for stream in (a, b):
                answer = read_answer(stream)
                assert number_of(answer) == 5
                assert answer.headers["connection"] == "close"
        ends_cleanly(server)


def refused(server: ServerProcess) -> bool:
    try:
        server.connect(1.0).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("arguments", WORKERS)
def test_an_inference_that_runs_is_finished(busy_model: str, arguments: tuple[str, ...]) -> None:
    """Checklist 11."""
    with running("--model", busy_model, *arguments) as server, server.connect() as slow, slow.makefile("rb") as stream:
        slow.sendall(post(b"[[1.5]]"))
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        answer = read_answer(stream)
        assert answer.status == 200
        assert answer.json() == {"predictions": [[1.5]]}
        assert answer.headers["connection"] == "close"
        ends_cleanly(server)


@pytest.mark.parametrize("arguments", WORKERS)
def test_an_inference_that_takes_too_long_does_not_keep_the_server(busy_model: str, arguments: tuple[str, ...]) -> None:
    """Checklist 11: the client is told, and the process ends."""
    drain = ("--drain-timeout-s", "0.5")
    with running("--model", busy_model, *drain, *arguments) as server:
        children = server.worker_pids()
        with server.connect() as slow, slow.makefile("rb") as stream:
            slow.sendall(post(b"[[600]]"))
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            answer = read_answer(stream)
            assert answer.status == 503
            assert "retry-after" in answer.headers
        ends_cleanly(server)
        assert not [pid for pid in children if alive(pid)]


@pytest.mark.parametrize("arguments", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads(folder: Path, arguments: tuple[str, ...], number: signal.Signals) -> None:
    """Checklist 11: the end does not wait for the load."""
    model = str(busy(folder / "loads_for_ever.onnx", rounds_per_second(), idle_s=600))
    with running("--model", model, *arguments, ready=False) as server:
        wait_for(lambda: not refused(server) and server.ping().status_code == 503, "pings are answered")
        start_s = time.monotonic()
        server.process.send_signal(number)
        ends_cleanly(server)
        assert time.monotonic() - start_s < 10


@pytest.mark.parametrize("arguments", WORKERS)
def test_under_load_every_request_that_was_sent_in_time_is_answered(
    identity_model: str, arguments: tuple[str, ...]
) -> None:
    """Checklist 11: clients at full speed see a closed connection only after an answer that said so, or while idle."""
    broken: list[str] = []
    signalled = threading.Event()

    def client(server: ServerProcess, name: int) -> None:
        with server.connect() as connection, connection.makefile("rb") as stream:
            for i in range(1_000_000):
                sent_before = not signalled.is_set()
                try:
                    connection.sendall(numbered(name * 1000 + i % 1000))
                    answer = read_answer(stream)
                except (OSError, EOFError) as error:
                    if sent_before and not signalled.is_set():
                        broken.append(f"client {name}, request {i}: {error!r}")
                    return
                if number_of(answer) != name * 1000 + i % 1000:
                    broken.append(f"client {name}, request {i}: {answer}")
                if answer.headers.get("connection") == "close":
                    return

    with running("--model", identity_model, *arguments, "--request-log", "errors") as server:
        threads = [threading.Thread(target=client, args=(server, name)) for name in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        signalled.set()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(ENDS_WITHIN_S)
        assert not any(thread.is_alive() for thread in threads)
        assert broken == []
        ends_cleanly(server)


def test_the_log_says_nothing_alarming_about_an_orderly_end(identity_model: str) -> None:
    """Checklist 94."""
    with running("--model", identity_model) as server:
        assert server.invoke("[[1, 2]]").status_code == 200
        assert server.stop() == 0
        lines = [orjson.loads(line) for line in server.log.splitlines()]
        assert {line["level"] for line in lines} == {"info"}
