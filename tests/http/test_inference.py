"""The request path with a client made up for the case; everything else about it is tested over sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from byoc_server.batching.policy import Reply
from byoc_server.config import Settings
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.http.inference import Head, InferencePath
from byoc_server.http.responses import Response
from byoc_server.telemetry.request_log import RequestLog
from byoc_server.types import Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)


class Client:
    """Answers every request at once with ``outputs``, or keeps the replies when there are none."""

    def __init__(self, outputs: Tensors | None) -> None:
        self.outputs = outputs
        self.replies: list[Reply] = []
        self.status = ModelStatus(ModelState.READY)
        self.signature = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", F32, (None, None)),))

    def infer(self, tensors: Tensors, rows: int, reply: Reply, deadline_s: float) -> Any:
        if self.outputs is None:
            self.replies.append(reply)
        else:
            reply(self.outputs)
        return lambda: None


def ask(client: Client, body: bytes = b"[[1, 2]]", cancel: bool = False) -> list[Response]:
    """Submit one request; give it up at once if asked to."""

    async def main() -> list[Response]:
        with ThreadPoolExecutor(1) as executor:
            path = InferencePath(client, Settings(), executor, RequestLog("off", "json", sys.stderr.buffer))
            answers: list[Response] = []
            head = Head(b"application/json", None, None, None, time.monotonic(), {})
            give_up = path.submit(head, body, answers.append)
            if cancel:
                give_up()
            for _ in range(200):
                if answers:
                    break
                await asyncio.sleep(0.001 if not cancel else 0.0005)
            for reply in client.replies:
                reply({"y": np.zeros((1, 2), np.float32)})
            return answers

    return asyncio.run(main())


@pytest.mark.parametrize("columns", [2, 100_000])
def test_an_answer_that_cannot_be_written_is_a_500_with_nothing_but_an_id(
    columns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Checklist 42: written on the event loop, and on a thread."""
    with caplog.at_level(logging.ERROR):
        (answer,) = ask(Client({"y": np.zeros((1, columns), np.complex128)}))
    error = json.loads(answer.body)["error"]
    assert (answer.status, sorted(error)) == (500, ["code", "message", "request_id"])
    assert error["request_id"] in caplog.text


def test_a_large_answer_is_written_on_a_thread() -> None:
    (answer,) = ask(Client({"y": np.ones((1, 100_000), np.float32)}))
    assert len(json.loads(answer.body)["predictions"][0]) == 100_000


@pytest.mark.parametrize("rows", [1, 50_000])
def test_a_request_that_was_given_up_is_never_answered(rows: int) -> None:
    """While it waits for the model, and while its large body is being decoded."""
    body = json.dumps([[1, 2]] * rows).encode()
    assert ask(Client(None), body, cancel=True) == []
