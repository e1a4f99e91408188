"""A client that asks at a steady pace and times each answer, and one that asks back to back beside it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from benchmarks.report import BenchmarkError

_TIMEOUT_S = 30.0
_RECEIVE_BYTES = 1024 * 1024
_OK = b"HTTP/1.1 200 "
_PING = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def ping() -> bytes:
    """A ping, as it goes over the wire."""
    return _PING


def invocation(media_type: str, body: bytes) -> bytes:
    """An invocation, as it goes over the wire; the answer is to come in the same format."""
    head = (
        "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: {media_type}\r\nAccept: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def latencies_s(port: int, request: bytes, rate_per_s: float, duration_s: float) -> list[float]:
    """Send a request at a steady rate on one connection.

    While an answer is awaited nothing is sent; what was due meanwhile is left out.

    Args:
        port: of the server, on 127.0.0.1.
        request: as it goes over the wire.
        rate_per_s: at most.
        duration_s: how long.

    Returns:
        Seconds from each request to the end of its answer.

    Raises:
        BenchmarkError: an answer other than 200.
    """
    latencies = []
    with _connect(port) as connection:
        begin_s = sent_s = time.perf_counter()
        while sent_s < begin_s + duration_s:
            _ask(connection, request)
            now_s = time.perf_counter()
            latencies.append(now_s - sent_s)
            time.sleep((begin_s - now_s) % (1 / rate_per_s))
            sent_s = time.perf_counter()
    return latencies


@contextlib.contextmanager
def back_to_back(port: int, request: bytes) -> Iterator[list[float]]:
    """Send a request again and again on one connection, each when the last one is answered, until the block ends.

    It is sent once at least.

    Yields:
        Seconds that each request took; it grows meanwhile.

    Raises:
        BenchmarkError: an answer other than 200.
    """
    taken_s: list[float] = []
    failures: list[Exception] = []
    ended = threading.Event()

    def ask_on() -> None:
        try:
            with _connect(port) as connection:
                while not (taken_s and ended.is_set()):
                    begin_s = time.perf_counter()
                    _ask(connection, request)
                    taken_s.append(time.perf_counter() - begin_s)
        except (OSError, BenchmarkError) as error:
            failures.append(error)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield taken_s
    finally:
        ended.set()
        thread.join()
    if failures:
        raise BenchmarkError(f"the client beside failed: {failures[0]}")


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ask(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    answer = connection.recv(_RECEIVE_BYTES)
    while b"\r\n\r\n" not in answer:
        answer += _more(connection)
    if not answer.startswith(_OK):
        raise BenchmarkError(f"the server answered {answer[:300]!r}")
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = lengths[0] - len(body)
    while missing > 0:
        missing -= len(_more(connection))


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(_RECEIVE_BYTES)
    if not data:
        raise BenchmarkError("the server closed the connection")
    return data
