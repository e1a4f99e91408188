"""The request path with a client made up for the case; everything else about it is tested over sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from byoc_server.batching.entry import Reply
from byoc_server.codecs import base
from byoc_server.config import Settings
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.http.dialect import Head
from byoc_server.http.inference import InferencePath
from byoc_server.http.responses import Response
from byoc_server.models.adapter import Adapter
from byoc_server.telemetry.request_log import RequestLog
from byoc_server.types import STRING, Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)


class Client:
    """Answers every request at once with ``outputs``, or keeps the replies when there are none."""

    def __init__(self, outputs: Tensors | None) -> None:
        self.outputs = outputs
        self.replies: list[Reply] = []
        self.urgent: list[bool] = []
        self.deadlines_s: list[float] = []
        self.status = ModelStatus(ModelState.READY)
        self.signature = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", F32, (None, None)),))

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.signature, self.signature)

    def infer(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Any = None,
    ) -> Any:
        self.urgent.append(urgent)
        self.deadlines_s.append(deadline_s)
        if self.outputs is None:
            self.replies.append(reply)
        else:
            reply(self.outputs)
        return lambda: None


def ask(
    client: Client,
    body: bytes = b"[[1, 2]]",
    cancel: bool = False,
    content_type: bytes = b"application/json",
    accept: bytes | None = None,
    executor: Executor | None = None,
    attributes: bytes | None = None,
    arrived_s: float | None = None,
    request_timeout_s: float = 60.0,
) -> list[Response]:
    """Submit one request; give it up at once if asked to."""

    async def main() -> list[Response]:
        with ThreadPoolExecutor(1) as threads:
            settings = Settings(max_queue_mib=16, request_timeout_s=request_timeout_s)
            path = InferencePath(client, settings, executor or threads, RequestLog("off", "json", sys.stderr.buffer))
            answers: list[Response] = []
            began_s = time.monotonic() if arrived_s is None else arrived_s
            head = Head((content_type, accept), attributes, None, {})
            give_up = path.submit(head, began_s, body, answers.append)
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


@pytest.mark.parametrize(
    ("attributes", "urgent"), [(None, False), (b"trace=1", False), (b"trace=1, priority=high", True)]
)
def test_a_request_may_say_that_it_is_urgent(attributes: bytes | None, urgent: bool) -> None:
    client = Client({"y": np.ones((1, 2), np.float32)})
    (answer,) = ask(client, attributes=attributes)
    assert client.urgent == [urgent]
    assert dict(answer.headers).get(b"x-amzn-sagemaker-custom-attributes") == attributes


@pytest.mark.parametrize(("timeout_s", "time_to_infer_s"), [(60.0, 59.0), (3600.0, 3599.0), (5.0, 4.9), (0.1, 0.098)])
def test_a_little_of_its_time_is_left_for_the_answer(timeout_s: float, time_to_infer_s: float) -> None:
    client = Client({"y": np.ones((1, 2), np.float32)})
    ask(client, arrived_s=1000.0, request_timeout_s=timeout_s)
    assert client.deadlines_s == [pytest.approx(1000.0 + time_to_infer_s)]


class Counting(ThreadPoolExecutor):
    """Counts what is done on a thread."""

    def __init__(self) -> None:
        super().__init__(1)
        self.submitted = 0

    def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(*arguments, **keywords)


@pytest.mark.parametrize(("columns", "status", "threads"), [(1000, 200, 0), (1_000_000, 200, 1), (10_000_000, 400, 1)])
def test_a_small_body_that_stands_for_large_tensors_leaves_the_event_loop(
    columns: int, status: int, threads: int
) -> None:
    """A sparse record of a few bytes: little is built at once, much on a thread, too much nowhere."""
    client = Client({"y": np.ones((1, 1), np.float32)})
    client.signature = Signature((TensorSpec("x", F32, (None, None)),), (TensorSpec("y", F32, (None, 1)),))
    body = json.dumps({"instances": [{"keys": [], "shape": [columns], "values": []}]}).encode()
    with Counting() as executor:
        (answer,) = ask(client, body, executor=executor)
        assert (answer.status, executor.submitted) == (status, threads)
    if status == 400:
        assert json.loads(answer.body)["error"]["code"] == "tensors_too_large"


def test_an_answer_too_large_to_hold_is_refused_before_the_model_runs() -> None:
    client = Client(None)
    client.signature = Signature((TensorSpec("x", F32, (None, 1)),), (TensorSpec("y", F32, (None, 1000, 1000)),))
    (answer,) = ask(client, b"[[1], [2], [3], [4], [5]]")
    assert answer.status == 413
    assert "5 records" in json.loads(answer.body)["error"]["message"]
    assert client.replies == []


def test_text_that_is_not_unicode_is_406() -> None:
    client = Client({"y": np.array([["\ud800"]], dtype=object)})
    client.signature = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", STRING, (None, 1)),))
    (answer,) = ask(client, accept=b"application/x-recordio-protobuf")
    assert answer.status == 406


@pytest.mark.parametrize("accept", [b"application/*", b"application/json, application/octet-stream"])
def test_a_format_that_cannot_carry_the_outputs_is_not_chosen(accept: bytes) -> None:
    client = Client({"y": np.ones((1, 1), np.float32), "z": np.ones((1, 1), np.float32)})
    outputs = (TensorSpec("y", F32, (None, 1)), TensorSpec("z", F32, (None, 1)))
    client.signature = Signature((TensorSpec("x", F32, (None, 2)),), outputs)
    (answer,) = ask(client, bytes(8), content_type=b"application/octet-stream", accept=accept)
    assert (answer.status, dict(answer.headers)[b"content-type"]) == (200, b"application/json")


@pytest.fixture
def _broken_pyarrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where a library is installed and cannot be loaded."""
    for entry in (entry for entry in base.CODECS if entry.library == "pyarrow"):
        monkeypatch.delitem(sys.modules, entry.module, raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    base.request_codecs.cache_clear()
    base.answer_codecs.cache_clear()
    yield
    base._broken.clear()
    base.request_codecs.cache_clear()
    base.answer_codecs.cache_clear()


@pytest.mark.usefixtures("_broken_pyarrow")
def test_a_library_that_is_broken_takes_its_formats_off_the_table(caplog: pytest.LogCaptureFixture) -> None:
    arrow = b"application/vnd.apache.arrow.stream"
    with caplog.at_level(logging.ERROR):
        (answer,) = ask(Client({"y": np.ones((1, 2), np.float32)}), content_type=arrow)
        assert answer.status == 415
        assert "byoc-server[arrow]" in json.loads(answer.body)["error"]["message"]
        (answer,) = ask(Client({"y": np.ones((1, 2), np.float32)}), accept=arrow + b", application/json;q=0.5")
        assert (answer.status, dict(answer.headers)[b"content-type"]) == (200, b"application/json")
        (answer,) = ask(Client({"y": np.ones((1, 2), np.float32)}), accept=arrow)
        assert answer.status == 406
        assert "byoc-server[arrow]" in json.loads(answer.body)["error"]["message"]
    assert len([record for record in caplog.records if getattr(record, "event", "") == "codec_broken"]) == 1
