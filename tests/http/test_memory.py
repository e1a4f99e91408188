"""A request leaves nothing behind that only the garbage collector could find (docs/decisions/0004)."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from byoc_server.batching.entry import Entry
from byoc_server.batching.join import Join
from byoc_server.config import Settings
from byoc_server.core.local import LocalClient
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ByocError
from byoc_server.http.body import BodyBudget
from byoc_server.http.inference import InferencePath, _Request
from byoc_server.http.invocations import InvocationsEndpoint
from byoc_server.http.watch import Exchange
from byoc_server.models.model import load_model
from byoc_server.telemetry.request_log import RequestLog
from tests.onnx_models import gather

KINDS = (Entry, Join, _Request, Exchange, ByocError)
JSON = [(b"content-type", b"application/json")]


@pytest.fixture
def _without_collector() -> Iterator[None]:
    logger = logging.getLogger("byoc_server")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # the records that pytest keeps would keep the errors
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logger.setLevel(level)


def kept(known: Collection[int] = ()) -> dict[int, str]:
    """Objects of these kinds that live, but for those known before: id -> name."""
    return {
        id(thing): type(thing).__name__
        for thing in gc.get_objects()
        if isinstance(thing, KINDS) and id(thing) not in known
    }


async def ask(endpoint: InvocationsEndpoint, *parts: bytes, method: str = "POST", coding: bytes = b"") -> int:
    """Call the endpoint as uvicorn does and return the status."""
    headers = [*JSON, (b"content-encoding", coding)] if coding else JSON
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/invocations", "headers": headers}
    await asyncio.get_running_loop().create_task(endpoint(scope, receive, send))
    status: int = sent[0]["status"]
    return status


@pytest.mark.usefixtures("_without_collector")
def test_no_kind_of_request_leaves_a_reference_cycle(tmp_path: Path) -> None:
    model = gather(tmp_path / "m.onnx")
    before = kept()  # of other tests

    async def main() -> None:
        client = LocalClient(lambda: load_model(model, EngineOptions(1), 4), 100, 10**6, lambda error: None)
        client.start()
        await client.settled()
        with ThreadPoolExecutor(1) as executor:
            log = RequestLog("off", "json", sys.stderr.buffer)
            path = InferencePath(client, Settings(), executor, log)
            budget = BodyBudget(1000, 1000)
            endpoint = InvocationsEndpoint(path, budget, 60.0)
            one = b'{"instances": [0]}'
            many = b'{"instances": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}'
            poison = b'{"instances": [0, 0, 0, 0, 0, 0, 99999]}'
            for _ in range(3):
                assert await ask(endpoint, one) == 200
                assert await ask(endpoint, many) == 200
                assert await ask(endpoint, poison) == 500
                assert await ask(endpoint, b"nonsense") == 400
                assert await ask(endpoint, b"", method="GET") == 405
                assert await ask(endpoint, b"x" * 600, b"x" * 600) == 413
                assert await ask(endpoint, zlib.compress(one), coding=b"deflate") == 200
                assert await ask(endpoint, zlib.compress(one + b" " * 900), coding=b"deflate") == 200
                assert await ask(endpoint, zlib.compress(b" " * 5000), coding=b"deflate") == 413
                assert await ask(endpoint, b"nonsense", coding=b"deflate") == 400
                assert await ask(endpoint, one, coding=b"nonsense") == 415
            exchange = asyncio.get_running_loop().create_task(ask(endpoint, one))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            exchange.cancel()
            await asyncio.gather(exchange, return_exceptions=True)
            del exchange
            await asyncio.sleep(0.2)
            assert budget.held_bytes == 0
        client.close()

    asyncio.run(main())
    assert kept(before) == {}
