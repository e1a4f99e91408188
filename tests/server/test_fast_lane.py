"""Which requests take the fast lane, and that those in both lanes of a connection keep to their order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from byoc_server.config import Settings
from byoc_server.http.dialect import Head
from byoc_server.http.fast_lane import FAST_LANE
from byoc_server.http.known_heads import KnownHeads
from byoc_server.http.responses import Response
from byoc_server.server.connection import Connection
from byoc_server.server.fast_connection import FastConnection
from byoc_server.server.state import WorkerState
from byoc_server.server.worker import connection_class
from tests.server_process import PING, post

PLAIN = post(b"[1]")
OK = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: %d\r\n\r\n%b"
WITHIN_S = 30.0


class Lane:
    """Stands in for ``FastLane``: keeps what it is given until it is told to answer."""

    def __init__(self) -> None:
        self.heads = KnownHeads()
        self.bodies: list[bytes] = []
        self.replies: list[Callable[[Response], None]] = []
        self.at_once = False
        self.given_up = 0
        self.ended = 0

    def infer(self, head: Head, arrived_s: float, body: bytes, reply: Callable[[Response], None]) -> Callable[[], None]:
        self.bodies.append(body)
        self.replies.append(reply)
        if self.at_once:
            self.answer()
        return self._give_up

    def _give_up(self) -> None:
        self.given_up += 1

    def answer(self, body: bytes = b"yes") -> None:
        self.replies.pop(0)(Response(200, (), body))

    def answer_ping(self) -> Response:
        return Response(200, (), b"pong")

    def end(self, head: Head, arrived_s: float, reply: Callable[[Response], None]) -> None:
        self.ended += 1
        reply(Response(503, (), b""))


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False
        self.paused = False
        self._ours, self._peer = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ours if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.sent += b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self._ours.close()
        self._peer.close()

    abort = close


class Bench:
    """One connection, its wire, its fast lane, and an ASGI application in the ordinary lane."""

    def __init__(self, keep_alive_s: int = 60) -> None:
        self.lane = Lane()
        self.scopes: list[Scope] = []
        self.state = WorkerState()
        self.state.default_headers = [(b"date", b"today")]
        config = uvicorn.Config(
            self._app, interface="asgi3", log_config=None, access_log=False, ws="none", timeout_keep_alive=keep_alive_s
        )
        self.wire = Wire()
        self.connection = FastConnection(config, self.state, {FAST_LANE: self.lane}, asyncio.get_running_loop())
        self.connection.connection_made(self.wire)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def receive(self, *reads: bytes) -> None:
        for data in reads:
            self.connection.data_received(data)

    def end(self) -> None:
        """As the server does when it is to stop."""
        self.state.draining = True
        self.connection.shutdown()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def opened(keep_alive_s: int = 60) -> AsyncIterator[Bench]:
    bench = Bench(keep_alive_s)
    yield bench
    bench.wire.close()
    bench.connection.connection_lost(None)
    await bench.until(lambda: not bench.state.tasks)


def play(scenario: Callable[[Bench], Awaitable[None]], keep_alive_s: int = 60) -> None:
    async def main() -> None:
        async with opened(keep_alive_s) as bench:
            await scenario(bench)

    asyncio.run(main())


def test_a_plain_inference_takes_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN)
        assert bench.lane.bodies == [b"[1]"]
        bench.lane.answer()
        assert bench.wire.sent == OK % (3, b"yes")
        assert not bench.scopes
        assert not bench.state.tasks

    play(scenario)


def test_an_answer_may_come_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.lane.at_once = True
        bench.receive(PLAIN, PLAIN)
        assert bench.wire.sent == 2 * (OK % (3, b"yes"))
        assert not bench.state.tasks

    play(scenario)


def test_so_does_a_ping() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PING, PING)
        assert bench.wire.sent == 2 * (OK % (4, b"pong"))
        assert not bench.scopes

    play(scenario)


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PING.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PLAIN.replace(b"POST", b"PUT"),
        PLAIN.replace(b"/invocations", b"/invocations?a=1"),
        PLAIN.replace(b"/invocations", b"/v2"),
        PING.replace(b"GET", b"HEAD"),
        PING.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\nabc"),
        post(b"[1]", Content_Encoding="identity"),
        post(b"[1]", Expect="100-continue"),
        post(b"x" * 65537),
        PLAIN.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked").replace(b"[1]", b"3\r\n[1]\r\n0\r\n\r\n"),
        b"POST /invocations HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 3\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: test\r\n\r\n",
    ],
)
def test_everything_else_takes_the_ordinary_lane(raw: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(raw)
        await bench.until(lambda: b"200 OK" in bench.wire.sent)
        (scope,) = bench.scopes
        assert scope["method"] == raw.split()[0].decode()
        assert scope["path"] == raw.split()[1].partition(b"?")[0].decode()
        assert (b"host", b"test") in scope["headers"]
        assert len(scope["headers"]) == raw.partition(b"\r\n\r\n")[0].count(b"\r\n")
        assert (b"100 Continue" in bench.wire.sent) == (b"100-continue" in raw)
        assert not bench.lane.bodies

    play(scenario)


def test_a_body_may_come_in_pieces() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(*[PLAIN[i : i + 1] for i in range(len(PLAIN))])
        assert bench.lane.bodies == [b"[1]"]
        bench.lane.answer()
        bench.receive(PLAIN[:-3], PLAIN[-3:])
        assert bench.lane.bodies == [b"[1]", b"[1]"]

    play(scenario)


@pytest.mark.parametrize("draining", [False, True])
def test_a_body_that_takes_its_time_changes_lanes(draining: bool) -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN[:-2])
        if draining:
            bench.state.draining = True
            bench.connection.shutdown()
        await bench.until(lambda: bool(bench.scopes))
        bench.receive(PLAIN[-2:])
        await bench.until(lambda: bench.wire.sent.endswith(b"[1]"))
        assert (b"connection: close" in bench.wire.sent) == draining
        assert not bench.lane.bodies

    play(scenario)


def test_a_body_may_change_lanes_before_any_of_it_is_there() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN[:-3])
        await bench.until(lambda: bool(bench.scopes))
        bench.receive(PLAIN[-3:])
        await bench.until(lambda: bench.wire.sent.endswith(b"[1]"))

    play(scenario)


def test_a_request_behind_it_waits_in_the_ordinary_lane() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN + post(b"second") + PING)
        assert bench.wire.paused
        assert not bench.scopes
        bench.lane.answer()
        await bench.until(lambda: bench.wire.sent.count(b"200 OK") == 3)
        assert [scope["path"] for scope in bench.scopes] == ["/invocations", "/ping"]
        assert bench.wire.sent.index(b"yes") < bench.wire.sent.index(b"second")
        assert not bench.connection.flow.read_paused
        bench.receive(PLAIN)
        assert bench.lane.bodies == [b"[1]", b"[1]"]

    play(scenario)


def test_a_request_behind_one_in_the_ordinary_lane_stays_there() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(post(b"first", Content_Encoding="identity") + PLAIN)
        await bench.until(lambda: bench.wire.sent.count(b"200 OK") == 2)
        assert not bench.lane.bodies
        assert bench.wire.sent.index(b"first") < bench.wire.sent.index(b"[1]")

    play(scenario)


def test_a_known_head_needs_no_parser() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN)
        bench.lane.answer()
        bench.connection.parser = None  # type: ignore[assignment]  # whoever would parse with it fails
        bench.receive(PLAIN.replace(b"[1]", b"[2]"))
        assert bench.lane.bodies == [b"[1]", b"[2]"]
        bench.lane.answer()
        assert bench.wire.sent == 2 * (OK % (3, b"yes"))

    play(scenario)


def test_a_body_that_looks_like_a_known_request_is_a_body() -> None:
    async def scenario(bench: Bench) -> None:
        async def answer_early(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        bench.receive(PLAIN)
        bench.lane.answer()
        bench.connection.app = answer_early
        bench.receive(b"POST /other HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(PLAIN))
        await bench.until(lambda: bench.wire.sent.count(b"200 OK") == 2)
        bench.receive(PLAIN)
        assert bench.lane.bodies == [b"[1]"]
        assert bench.wire.sent.count(b"HTTP/1.1") == 2

    play(scenario)


def test_an_invalid_read_submits_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN + b"garbage\r\n\r\n")
        assert not bench.lane.bodies
        assert bench.wire.sent.startswith(b"HTTP/1.1 400")
        assert bench.wire.closed

    play(scenario)


def test_an_answer_after_an_invalid_read_is_dropped() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN, b"garbage\r\n\r\n")
        bench.lane.answer()
        assert bench.wire.sent.count(b"HTTP/1.1") == 1

    play(scenario)


def test_an_offer_of_an_upgrade_is_declined() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(post(b"[1]", Connection="Upgrade", Upgrade="h2c"))
        assert bench.lane.bodies == [b"[1]"]
        bench.receive(post(b"[2]", Connection="Upgrade", Upgrade="h2c"))
        bench.lane.answer()
        await bench.until(lambda: bench.wire.sent.endswith(b"[2]"))

    play(scenario)


@pytest.mark.parametrize("close", [b"\r\nConnection: close", b""])
def test_the_last_request_closes_the_connection(close: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN.replace(b"\r\n\r\n", close + b"\r\n\r\n"))
        if not close:
            bench.state.draining = True
            bench.connection.shutdown()
        bench.lane.answer()
        assert bench.wire.sent == OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") % (3, b"yes")
        assert bench.wire.closed

    play(scenario)


def test_a_client_that_leaves_is_given_up() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN)

    bench_of: list[Bench] = []

    async def main() -> None:
        async with opened() as bench:
            bench_of.append(bench)
            await scenario(bench)

    asyncio.run(main())
    assert bench_of[0].lane.given_up == 1


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_when_the_server_waits_no_longer_it_says_so(known: bool, late: bool) -> None:
    """Of a request that was there when the end began, and of one that came then."""

    async def scenario(bench: Bench) -> None:
        if known:
            bench.receive(PLAIN)
            bench.lane.answer()
        if late:
            bench.state.draining = True
        bench.receive(PLAIN)
        bench.end()
        assert len(bench.state.tasks) == 1
        for task in bench.state.tasks:  # as uvicorn does
            task.cancel(msg="Task cancelled, timeout graceful shutdown exceeded")
        await bench.until(lambda: bench.wire.closed)
        assert bench.lane.given_up == bench.lane.ended == 1
        assert b"503" in bench.wire.sent
        assert not bench.state.tasks
        bench.connection.refuse_fast()
        assert bench.lane.ended == 1

    play(scenario)


def test_the_end_of_a_request_whose_client_has_left_does_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.receive(PLAIN)
        bench.end()
        (task,) = bench.state.tasks
        bench.wire.close()
        bench.connection.connection_lost(None)
        task.cancel()
        await asyncio.sleep(0)
        assert bench.lane.ended == 0

    asyncio.run(main())


def test_what_a_client_does_not_read_is_waited_for_in_the_ordinary_lane() -> None:
    async def scenario(bench: Bench) -> None:
        bench.connection.pause_writing()
        bench.receive(PLAIN)
        await bench.until(lambda: bool(bench.scopes))
        assert bench.wire.sent == b""
        bench.connection.resume_writing()
        await bench.until(lambda: bench.wire.sent.endswith(b"[1]"))

    play(scenario)


def test_large_answers_are_not_copied() -> None:
    async def scenario(bench: Bench) -> None:
        bench.receive(PLAIN)
        bench.lane.answer(b"x" * 70_000)
        assert bench.wire.sent == OK % (70_000, b"x" * 70_000)

    play(scenario)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(2):  # by the parser, and without
            bench.receive(PLAIN)
            bench.connection.timeout_keep_alive_handler()
            assert not bench.wire.closed
            bench.lane.answer()
        bench.connection.timeout_keep_alive_handler()  # too early: it looks again later
        assert not bench.wire.closed
        await bench.until(lambda: bench.wire.closed)

    play(scenario, keep_alive_s=1)


def test_a_connection_leaves_no_cycle_behind() -> None:
    async def main() -> None:
        async with opened() as bench:
            bench.receive(PLAIN, PLAIN)
            bench.lane.answer()
        gone.append(weakref.ref(bench.connection))
        bench.connection = None  # type: ignore[assignment]  # let go
        bench.lane.replies.clear()

    gone: list[weakref.ref[FastConnection]] = []
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        assert gone[0]() is None
    finally:
        gc.enable()


def test_the_lane_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="byoc_server"):
        assert connection_class(Settings(), uvicorn.__version__) is FastConnection
        assert connection_class(Settings(fast_lane=False), uvicorn.__version__) is Connection
        assert not caplog.records
        assert connection_class(Settings(), "1.7.3") is Connection
    (record,) = caplog.records
    assert "1.7.3" in record.getMessage()
