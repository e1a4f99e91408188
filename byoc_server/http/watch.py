"""Watches over exchanges that take long: bodies that do not arrive, clients that leave before their answer.

Both would cost a timer or a task a request if every request were watched. Instead open exchanges stand in one set,
and a sweep looks at them a few times a second: only what is still there at its second sweep gets attention.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Receive

from byoc_server.http.responses import Response

SWEEP_SECONDS = 0.05


class Exchange:
    """One request from its head to its answer.

    Attributes:
        task: runs the endpoint.
        receive: of the ASGI connection.
        deadline_s: when the body must have arrived, monotonic clock.
        answer: what the endpoint waits for; ``None`` while the body is read, where the reader sees a client leave.
        cancel: gives up what was submitted.
        timed_out: the body did not arrive in time; the task was cancelled for that.
    """

    __slots__ = ("answer", "cancel", "deadline_s", "receive", "seen", "task", "timed_out", "watcher")

    def __init__(self, task: asyncio.Task[None], receive: Receive, deadline_s: float) -> None:
        self.task = task
        self.receive = receive
        self.deadline_s = deadline_s
        self.answer: asyncio.Future[Response | None] | None = None
        self.cancel: Callable[[], None] | None = None
        self.timed_out = False
        self.seen = False
        self.watcher: asyncio.Task[None] | None = None

    def reply(self, response: Response) -> None:
        """Take the answer, unless the wait for it was cancelled in this very turn."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(response)

    def give_up(self) -> None:
        """End the wait for the answer, if there is one, without an answer."""
        if self.cancel is not None:
            self.cancel()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)


class Watch:
    """All open exchanges of one worker."""

    def __init__(self) -> None:
        self._open: set[Exchange] = set()
        self._loop = asyncio.get_running_loop()
        self._sweeping = False

    def add(self, exchange: Exchange) -> None:
        """Begin to watch."""
        self._open.add(exchange)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def remove(self, exchange: Exchange) -> None:
        """The exchange is over."""
        self._open.discard(exchange)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for exchange in self._open:
            if exchange.answer is None:
                if now_s >= exchange.deadline_s and not exchange.timed_out:
                    exchange.timed_out = True
                    exchange.task.cancel()
            elif exchange.seen and exchange.watcher is None:
                exchange.watcher = self._loop.create_task(_await_disconnect(exchange))
            exchange.seen = True
        if self._open:
            self._loop.call_later(SWEEP_SECONDS, self._sweep)
        else:
            self._sweeping = False


async def _await_disconnect(exchange: Exchange) -> None:
    """Wait for the end of the connection; ends by itself when the answer is complete, which ASGI reports alike."""
    while (await exchange.receive())["type"] != "http.disconnect":
        pass
    exchange.give_up()
