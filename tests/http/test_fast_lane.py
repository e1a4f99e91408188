"""What the fast lane hands to the request path, and which requests are plain. The connection has its own tests."""

from __future__ import annotations

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from byoc_server.config import Settings
from byoc_server.core.local import LocalClient
from byoc_server.engines.base import EngineOptions
from byoc_server.http.fast_lane import FastLane, is_plain_ping, plain_inference
from byoc_server.http.inference import InferencePath
from byoc_server.http.invocations import PingEndpoint
from byoc_server.http.responses import EMPTY, Response
from byoc_server.models.model import load_model
from byoc_server.telemetry.request_log import RequestLog
from tests.onnx_models import identity

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"23")]


def test_its_requests_go_the_one_way(tmp_path: Path) -> None:
    """An inference, a ping and a refusal, with the real request path."""
    model = identity(tmp_path / "identity.onnx", shape=("N", 2))
    log = io.BytesIO()

    async def ask() -> list[Response]:
        client = LocalClient(lambda: load_model(model, EngineOptions(threads=1), 1), 100, 2**20, print)
        with ThreadPoolExecutor(1) as threads:
            request_log = RequestLog("all", "json", log)
            path = InferencePath(client, Settings(), threads, request_log)
            lane = FastLane(path, PingEndpoint(client, lambda: True))
            answers = [lane.answer_ping()]
            client.start()
            await client.settled()
            answers.append(lane.answer_ping())
            head = plain_inference(b"POST", HEADERS)
            assert head is not None
            answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            lane.infer(head, time.monotonic(), b'{"instances": [[1, 2]]}', answer.set_result)
            answers.append(await asyncio.wait_for(answer, 30))
            lane.end(head, time.monotonic(), answers.append)
            request_log.flush()
            client.close()
        return answers

    early, ping, inference, refusal = asyncio.run(ask())
    assert early.status == 503
    assert ping is EMPTY
    assert orjson.loads(inference.body) == {"predictions": [[1.0, 2.0]]}
    assert refusal.status == 503
    assert [orjson.loads(line)["status"] for line in log.getvalue().splitlines()] == [200, 503]


@pytest.mark.parametrize("length", [b"", b"65537", b"99999", b"000001", b"+1", b"1,1", b"0x1"])
def test_a_length_that_is_large_or_odd_is_not_plain(length: bytes) -> None:
    assert plain_inference(b"POST", [(b"content-length", length)]) is None


@pytest.mark.parametrize("length", [b"0", b"65536"])
def test_small_bodies_are_plain(length: bytes) -> None:
    head = plain_inference(b"POST", [(b"content-length", length), (b"accept", b"a/b"), (b"accept", b"c/d")])
    assert head is not None
    assert head.key == (None, b"a/b, c/d")


def test_a_ping_with_a_body_is_not_plain() -> None:
    assert is_plain_ping(b"GET", [(b"host", b"a")])
    assert not is_plain_ping(b"GET", [(b"content-length", b"0")])
    assert not is_plain_ping(b"GET", [(b"transfer-encoding", b"chunked")])
    assert not is_plain_ping(b"HEAD", [])
