"""A connection that serves plain requests to the hot routes by itself (``http.fast_lane``), all others through uvicorn.

While a request is in the fast lane, a stand-in is where uvicorn keeps the cycle and the task of a request. So all that
looks there finds what it expects: a request that comes behind it waits in uvicorn's pipeline, and the graceful end
waits for it. The fast lane is entered only when every request before has been answered, so answers keep their order.

A request is submitted when all that was read with it has been found valid, as uvicorn does. One whose body does not
come soon moves to the ordinary lane, where slow bodies are timed out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from byoc_server.batching.batcher import Cancel
from byoc_server.http.dialect import Head
from byoc_server.http.fast_lane import FAST_LANE, FastLane, is_plain_ping, plain_inference
from byoc_server.http.responses import Response
from byoc_server.server.connection import Connection
from byoc_server.server.state import WorkerState
from byoc_server.server.transport import JoiningTransport

TESTED_UVICORNS = frozenset(["0.54"])
"""Major and minor versions. The stand-in leans on how uvicorn treats a cycle, which is no documented interface."""

_BODY_SOON_S = 0.1


class FastRequest:
    """The request of one connection that is in the fast lane; where uvicorn looks, a cycle and a task.

    Attributes:
        calm: when no request is under way, the next may come without the parser; while one is, nothing has happened to
            the connection since it came. Costs one look instead of many.
        response_complete: there is none.
        keep_alive: the connection stays open after the answer.
        disconnected: written by uvicorn.
        head: of an inference, ``None`` of a ping.
        arrived_s: when the head was here, monotonic clock.
        chunks: of the body, as they came.
        whole: the body is complete.
        submitted: nothing of it is to be read or submitted any more.
        answer: takes the answer.
        give_up: gives up what was submitted.
        connection: whose request it is; ``None`` once that is lost.
    """

    __slots__ = (
        "answer",
        "arrived_s",
        "calm",
        "chunks",
        "connection",
        "disconnected",
        "give_up",
        "head",
        "keep_alive",
        "response_complete",
        "submitted",
        "whole",
    )

    def __init__(self, connection: FastConnection) -> None:
        self.connection: FastConnection | None = connection
        self.answer = connection.answer
        self.response_complete = self.submitted = True
        self.calm = False
        self.keep_alive = True
        self.disconnected = False
        self.head: Head | None = None
        self.arrived_s = 0.0
        self.chunks: list[bytes] = []
        self.whole = False
        self.give_up: Cancel | None = None

    def let_go(self) -> None:
        """Forget the connection, which is lost: it leads back here."""
        self.connection = None
        del self.answer

    def cancel(self, msg: object = None) -> None:
        """Called by the server when it waits no longer, in a loop over what this will be removed from."""
        if self.connection is not None:
            self.connection.loop.call_soon(self.connection.refuse_fast)


class FastConnection(Connection):
    """One HTTP connection. See the module."""

    _late_timer: asyncio.TimerHandle | None = None
    _in_message = False
    """The parser is between the first byte of a message and its last."""
    _sole_read: bytes | None = None
    """What is being parsed, if it began at the beginning of a message and nothing was before it."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: WorkerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lane: FastLane = app_state[FAST_LANE]
        self._find_head = self._lane.heads.find
        self._infer = self._lane.infer
        self._answer_heads = server_state.answer_heads
        self._fast = FastRequest(self)
        self._as_cycle = cast(RequestResponseCycle, self._fast)
        self._as_task = cast("asyncio.Task[None]", self._fast)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class does
        """Begin."""
        super().connection_made(transport)
        self._joining = cast(JoiningTransport, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and give up what is in the fast lane."""
        if not self._fast.response_complete:
            self._leave_lane()
        if self.cycle is self._as_cycle:
            self.cycle = None  # type: ignore[assignment]  # as in the base class before the first request
        self._fast.let_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Serve what came without the parser if it knows the head, else parse it."""
        fast = self._fast
        if not (fast.calm and fast.response_complete):
            fast.calm = False
            super().data_received(data)
            return
        find_head, infer = self._find_head, self._infer  # an attribute that is called at once costs twice as much
        known = find_head(data)
        if known is None:
            fast.calm = False
            self._sole_read = data
            try:
                super().data_received(data)
            finally:
                self._sole_read = None
            return
        fast.head = known.head
        fast.arrived_s = time.monotonic()
        fast.keep_alive = fast.whole = True
        fast.response_complete = False
        self.cycle = self._as_cycle
        give_up = infer(known.head, fast.arrived_s, data[known.head_bytes :], fast.answer)
        if not fast.response_complete:
            fast.give_up = give_up

    def on_message_begin(self) -> None:
        """Begin a head. The scope of ASGI is made once it is known to be needed."""
        self._in_message = self._head_begun = True
        self._head_bytes = None
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; trailers come here too, see ``Connection``."""
        if self._head_begun:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Choose the lane."""
        if self.parser.should_upgrade():
            self._sole_read = None  # something else is parsed from here on
            return
        if (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused:
            if self.url == b"/invocations":
                head = plain_inference(self.parser.get_method(), self.headers)
                if head is not None and self.parser.get_http_version() == "1.1":
                    self._enter_lane(head, keep_alive=self.parser.should_keep_alive())
                    return
            elif self.url == b"/ping":
                plain = is_plain_ping(self.parser.get_method(), self.headers)
                if plain and self.parser.get_http_version() == "1.1":
                    self._enter_lane(None, keep_alive=self.parser.should_keep_alive())
                    return
        self._enter_ordinary_lane()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if self.cycle is self._as_cycle:
            self._fast.chunks.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body of a request."""
        self._in_message = False
        if self.cycle is not self._as_cycle:
            super().on_message_complete()
        else:  # also of one behind it that offers an upgrade, which changes nothing
            self._fast.whole = True

    def timeout_keep_alive_handler(self) -> None:
        """See ``Connection``. A request of the fast lane is not told to the timer."""
        if self._fast.response_complete:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = None

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        self._fast.calm = False
        super().pause_writing()

    def shutdown(self) -> None:
        """Called by the server for every connection when it is about to end; from here on it asks what is under way."""
        self._fast.calm = False
        if not self._fast.response_complete:
            self.tasks.add(self._as_task)
        super().shutdown()

    def refuse_fast(self) -> None:
        """Refuse what is in the fast lane: the server ends, and can wait no longer."""
        fast = self._fast
        if fast.response_complete:
            return
        head = fast.head
        assert head is not None  # a ping is answered as soon as it is there
        self._leave_lane()
        fast.keep_alive = False
        self._lane.end(head, fast.arrived_s, fast.answer)

    def _await_request(self) -> None:
        super()._await_request()
        in_the_way = self._in_message or self._head_timer is not None or self.flow.write_paused or self._draining
        self._fast.calm = not in_the_way

    def _enter_lane(self, head: Head | None, *, keep_alive: bool) -> None:
        self._head_begun = False
        fast = self._fast
        fast.head = head
        fast.arrived_s = time.monotonic()
        fast.keep_alive = keep_alive
        fast.response_complete = fast.submitted = fast.whole = False
        self.cycle = self._as_cycle
        if self._draining:
            self.tasks.add(self._as_task)

    def _leave_lane(self) -> None:
        """Take the request out of the fast lane without an answer."""
        fast = self._fast
        self.tasks.discard(self._as_task)
        fast.response_complete = fast.submitted = True
        fast.head = None
        fast.chunks = []
        give_up, fast.give_up = fast.give_up, None
        if give_up is not None:
            give_up()
        self._stop_waiting()

    def _enter_ordinary_lane(self) -> None:
        """Begin a request as the base class does, with what has been read of it."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers  # in place: it is part of the scope
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()

    def _parsed(self, size: int) -> None:
        super()._parsed(size)
        fast = self._fast
        if fast.submitted:
            return
        if not fast.whole:
            if self._late_timer is None:
                self._late_timer = self.loop.call_later(_BODY_SOON_S, self._change_lanes)
            return
        self._stop_waiting()
        chunks, fast.chunks = fast.chunks, []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        nothing_behind = self.cycle is self._as_cycle and not self._in_message
        if self._sole_read is not None and nothing_behind and fast.head is not None and fast.keep_alive:
            self._lane.heads.remember(self._sole_read, fast.head, len(body))
        self._submit(body)

    def _submit(self, body: bytes) -> None:
        fast = self._fast
        fast.submitted = True
        if fast.head is None:
            self.answer(self._lane.answer_ping())
            return
        give_up = self._infer(fast.head, fast.arrived_s, body, fast.answer)
        if not fast.response_complete:
            fast.give_up = give_up

    def answer(self, response: Response) -> None:
        """Take the answer to the request in the fast lane."""
        fast, transport = self._fast, self._joining
        fast.response_complete = True
        fast.give_up = None
        if transport.is_closing():  # something invalid came behind the request
            self.tasks.discard(self._as_task)
            return
        transport.write_answer(self._answer_heads.write(response, fast.keep_alive), response.body)
        if fast.calm and fast.keep_alive:  # as below, without the looks
            self._idle_since_s = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._await_request()
            return
        self.tasks.discard(self._as_task)
        if not fast.keep_alive:
            transport.close()
        self.on_response_complete()

    def _change_lanes(self) -> None:
        """Move a request whose body takes its time to the ordinary lane."""
        fast = self._fast
        body = b"".join(fast.chunks)
        self._leave_lane()
        self._enter_ordinary_lane()
        self.cycle.keep_alive = self.cycle.keep_alive and fast.keep_alive
        if body:
            super().on_body(body)

    def _stop_waiting(self) -> None:
        if self._late_timer is not None:
            self._late_timer.cancel()
            self._late_timer = None
