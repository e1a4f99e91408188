"""An open-loop client: requests leave when they are due, whether or not earlier ones have been answered.

Latency counts from the moment a request was due, not from the one at which it was sent, so that a server that falls
behind cannot slow down its own clock. With exponential gaps between requests it is the "server" scenario of MLPerf
Inference (Reddi et al., "MLPerf Inference Benchmark", November 2019, section IV).

One thread, non-blocking sockets, the same few requests again and again, and of an answer only status and length are
read: a request costs about 15 us. The kernel's poll counts in whole milliseconds; ``select`` on the epoll descriptor
does not, so that requests leave within some 0.1 ms of their time on a free core. How late they left is part of every
result.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.report import BenchmarkError

_RECEIVE_BYTES = 256 * 1024
_CONNECT_TIMEOUT_S = 30.0
_OK, _REFUSED = b"200", b"503"


class Reply(NamedTuple):
    """One answer.

    Attributes:
        due_s: when its request was due, in seconds from the start.
        latency_s: from then to the end of the answer.
        ok: whether it was 200, and not 503.
    """

    due_s: float
    latency_s: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Replies:
    """What came back.

    Attributes:
        answers: in the order in which they came.
        unanswered: requests without an answer when the time was over.
        late_s: how long after it was due each request left; includes waiting for a connection to get free.
    """

    answers: Sequence[Reply]
    unanswered: int
    late_s: Sequence[float]

    def latencies_s(self) -> list[float]:
        """Of the requests that were answered with 200."""
        return [answer.latency_s for answer in self.answers if answer.ok]

    def refusals_s(self) -> list[float]:
        """Latencies of the requests that were answered with 503."""
        return [answer.latency_s for answer in self.answers if not answer.ok]

    def p99_s(self) -> float:
        """Latency of the slowest hundredth; infinite if more than that was refused or not answered."""
        lost = len(self.refusals_s()) + self.unanswered
        return p99([*self.latencies_s(), *[math.inf] * lost])

    def late_p99_s(self) -> float:
        """How late the latest hundredth of the requests left."""
        return p99(self.late_s)


def p99(values: Sequence[float]) -> float:
    """The least value that no more than a hundredth of all are above; of values of which some may be infinite."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def poisson_s(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """When requests are due: seconds from the start, with exponential gaps between them."""
    random = np.random.default_rng(seed)
    count = max(1, round(rate_per_s * duration_s))
    due_s: list[float] = np.cumsum(random.exponential(1 / rate_per_s, count)).tolist()
    return due_s


def send(
    port: int, request: bytes | Sequence[bytes], due_s: Sequence[float], connections: int, patience_s: float
) -> Replies:
    """Send a request as often as said, each time when it is due.

    Args:
        port: of the server, on 127.0.0.1.
        request: as it goes over the wire; small enough for the send buffer of a socket. Several take turns.
        due_s: when to send, in seconds from the start, ascending.
        connections: kept open. When all of them wait for an answer, a request waits for one to get free.
        patience_s: how long answers are waited for after the last request was due.

    Raises:
        BenchmarkError: a connection ended, an answer was neither 200 nor 503, or the request was too large.
    """
    requests = [request] if isinstance(request, bytes) else request
    longest = max(map(len, requests))
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        client = _Client(requests, due_s, epoll)
        for _ in range(connections):
            client.add(stack.enter_context(_connect(port, longest)))
        with _no_collections():
            return client.run(patience_s)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep this thread on one core meanwhile."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """A collection of garbage would hold up everything that is due meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _connect(port: int, request_bytes: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _CONNECT_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * request_bytes)
    connection.setblocking(False)
    return connection


class _Connection:
    """One connection, and what is still missing of the answer it waits for."""

    __slots__ = ("due_s", "head", "missing", "socket", "status")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.due_s = 0.0
        self.head = b""
        self.missing = 0
        self.status = b""

    def receive(self) -> bool:
        """Read what is there. Returns whether the answer is complete."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise BenchmarkError("the server closed a connection")
        if self.missing:
            self.missing -= len(data)
            return self.missing == 0
        self.head += data
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.status = self.head[9:12]
        if self.status not in (_OK, _REFUSED):
            raise BenchmarkError(f"the server answered {self.head[:300]!r}")
        self.missing = end + 4 + _content_length(self.head[:end]) - len(self.head)
        self.head = b""
        return self.missing == 0


def _content_length(head: bytes) -> int:
    start = head.lower().index(b"\r\ncontent-length:") + 17
    end = head.find(b"\r\n", start)
    return int(head[start : end if end >= 0 else len(head)])


class _Client:
    def __init__(self, requests: Sequence[bytes], due_s: Sequence[float], epoll: select.epoll) -> None:
        self._requests = itertools.cycle(requests)
        self._due_s = due_s
        self._epoll = epoll
        self._by_descriptor: dict[int, _Connection] = {}
        self._free: list[_Connection] = []
        self._waiting: deque[float] = deque()
        self._late_s: list[float] = []
        self._answers: list[Reply] = []
        self._start_s = 0.0

    def add(self, connected: socket.socket) -> None:
        connection = _Connection(connected)
        self._by_descriptor[connected.fileno()] = connection
        self._free.append(connection)
        self._epoll.register(connected, select.EPOLLIN)

    def run(self, patience_s: float) -> Replies:
        start_s = self._start_s = time.perf_counter()
        due_s = [start_s + due for due in self._due_s]
        give_up_s = due_s[-1] + patience_s
        sent, answered, now_s = 0, 0, start_s
        while answered < len(due_s) and now_s < give_up_s:
            while sent < len(due_s) and due_s[sent] <= now_s:
                self._waiting.append(due_s[sent])
                sent += 1
            self._send_waiting()
            next_s = due_s[sent] if sent < len(due_s) else give_up_s
            select.select([self._epoll], [], [], max(0.0, next_s - time.perf_counter()))
            answered += self._receive()
            now_s = time.perf_counter()
        return Replies(self._answers, len(due_s) - answered, self._late_s)

    def _send_waiting(self) -> None:
        while self._waiting and self._free:
            connection = self._free.pop()
            connection.due_s = self._waiting.popleft()
            request = next(self._requests)
            if connection.socket.send(request) < len(request):
                raise BenchmarkError("the request does not fit into the buffer of a socket")
            self._late_s.append(time.perf_counter() - connection.due_s)

    def _receive(self) -> int:
        answered = 0
        for descriptor, _ in self._epoll.poll(0):
            connection = self._by_descriptor[descriptor]
            if connection.receive():
                latency_s = time.perf_counter() - connection.due_s
                ok = connection.status == _OK
                self._answers.append(Reply(connection.due_s - self._start_s, latency_s, ok))
                self._free.append(connection)
                answered += 1
        return answered
