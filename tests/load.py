"""Load for tests: clients on keep-alive connections of their own that ask again and again, beside the test.

They run on an event loop in a thread, so that a test goes on meanwhile: it kills a process and looks at what has come
back so far. Nothing here fails a test; what each request came to is written down, for the test to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.server_process import Answer

_RETRY_S = 0.1
"""After a refusal, or while nobody listens: else clients that are sent away would take all of a small machine."""
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        number: of the request.
        client: who asked.
        sent_s: when its bytes were handed to the kernel, on the monotonic clock.
        ended_s: when its answer was complete, or the connection lost.
        answer: ``None`` where the connection ended before it was complete.
    """

    number: int
    client: int
    sent_s: float
    ended_s: float
    answer: Answer | None

    @property
    def status(self) -> int | None:
        """Of the answer, if there is one."""
        return None if self.answer is None else self.answer.status


class Load:
    """Clients at work.

    Args:
        port: of the server, on 127.0.0.1.
        request: makes the bytes of a request from its number.
        clients: how many, each with one request under way.
        reconnect: whether a client whose connection has ended opens another one.
    """

    def __init__(self, port: int, request: Callable[[int], bytes], clients: int, reconnect: bool) -> None:
        self.outcomes: list[Outcome] = []
        self.ports: dict[int, int] = {}
        """Client -> its own port."""
        self._port = port
        self._request = request
        self._clients = clients
        self._reconnect = reconnect
        self._numbers = itertools.count()
        self._ended = threading.Event()

    def count(self, status: int | None) -> int:
        """How many requests have come to this; ``None``: to a lost connection."""
        return sum(outcome.status == status for outcome in list(self.outcomes))

    def statuses(self) -> Counter[int | None]:
        """How many requests have come to what."""
        return Counter(outcome.status for outcome in list(self.outcomes))

    def end(self) -> None:
        """Let each client finish what it has asked, and no more."""
        self._ended.set()

    async def run(self) -> None:
        """Ask until told to end."""
        await asyncio.gather(*[self._client(client) for client in range(self._clients)])

    async def _client(self, client: int) -> None:
        while not self._ended.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(_RETRY_S)
            else:
                self.ports[client] = writer.get_extra_info("sockname")[1]
                with contextlib.closing(writer):
                    await self._ask_on(client, reader, writer)
            if not self._reconnect:
                return

    async def _ask_on(self, client: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._ended.is_set():
            number = next(self._numbers)
            sent_s = time.monotonic()
            answer = await _exchange(reader, writer, self._request(number))
            self.outcomes.append(Outcome(number, client, sent_s, time.monotonic(), answer))
            if answer is None or answer.headers.get("connection") == "close":
                return
            if answer.status == 503:
                await asyncio.sleep(_RETRY_S)


@contextlib.contextmanager
def under_load(
    port: int, request: Callable[[int], bytes], clients: int = 8, *, reconnect: bool = False
) -> Iterator[Load]:
    """Have clients ask until the block ends; then wait for the answers that are still due. See ``Load``."""
    load = Load(port, request, clients, reconnect)
    thread = threading.Thread(target=lambda: asyncio.run(load.run()), name="load")
    thread.start()
    try:
        yield load
    finally:
        load.end()
        thread.join(_END_TIMEOUT_S)
    assert not thread.is_alive(), f"requests are still unanswered after {_END_TIMEOUT_S:.0f} s"


def ask_all(port: int, requests: Sequence[bytes], connections: int) -> list[Answer | None]:
    """Send each request once, over so many connections at a time, and return the answers in the order of the requests.

    An answer is ``None`` where the connection ended before it was complete; its client opens another one.
    """
    answers: list[Answer | None] = [None] * len(requests)
    numbers = iter(range(len(requests)))

    async def client() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                for number in numbers:
                    answers[number] = await _exchange(reader, writer, requests[number])
                    if answers[number] is None:
                        break
                else:
                    return

    async def run() -> None:
        await asyncio.gather(*[client() for _ in range(connections)])

    asyncio.run(run())
    return answers


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> Answer | None:
    try:
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (OSError, asyncio.IncompleteReadError):
        return None
    return Answer(int(status_line.split()[1]), headers, body)
