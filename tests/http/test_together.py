"""Requests of one batch that are answered in one pass, and all that must be answered one by one."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from byoc_server.batching.entry import Reply, Together
from byoc_server.codecs import csv as csv_codec
from byoc_server.codecs import json as json_codec
from byoc_server.codecs import jsonlines as jsonlines_codec
from byoc_server.codecs import npy as npy_codec
from byoc_server.codecs.base import EncodeOptions
from byoc_server.config import Settings
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.errors import InferenceFailed
from byoc_server.http.dialect import CUSTOM_ATTRIBUTES, Head
from byoc_server.http.inference import InferencePath
from byoc_server.http.responses import Response
from byoc_server.models.adapter import Adapter, adapter_for
from byoc_server.telemetry.request_log import RequestLog
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec
from tests.load import ask_all
from tests.onnx_models import identity
from tests.server_process import post, running

F32 = np.dtype(np.float32)
SIGNATURE = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", F32, (None, None)),))
OUTPUTS = np.array([[1.5, 2], [3, np.nan], [5, 6], [7, 8]], np.float32)
COUNTS = [1, 2, 1]
JSON, JSONLINES, CSV, NPY = b"application/json", b"application/jsonlines", b"text/csv", b"application/x-npy"
CODECS: dict[bytes, Any] = {JSON: json_codec, JSONLINES: jsonlines_codec, CSV: csv_codec, NPY: npy_codec}
ANY_FORMAT = pytest.mark.parametrize("accept", CODECS, ids=lambda accept: accept.decode())


class Submitted(NamedTuple):
    """What the client of the model was given."""

    rows: int
    reply: Reply
    together: Together


class ModelClient:
    """Keeps what it is given until ``answer``."""

    def __init__(self, adapter: Adapter) -> None:
        self.status = ModelStatus(ModelState.READY)
        self.adapter = adapter
        self.submitted: list[Submitted] = []
        self.given_up = 0

    def infer(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Together | None = None,
    ) -> Callable[[], None]:
        assert together is not None
        self.submitted.append(Submitted(rows, reply, together))
        return partial(self._give_up, reply)  # which leads to the request, as an entry of a queue does

    def answer(self, outputs: Tensors) -> None:
        """As a batch does whose requests are all of one path."""
        submitted, self.submitted = self.submitted, []
        assert len({id(one.together.__self__) for one in submitted}) == 1  # type: ignore[attr-defined]  # a method
        submitted[0].together([one.reply for one in submitted], outputs, [one.rows for one in submitted])

    def _give_up(self, reply: Reply) -> None:
        self.given_up += 1


class Connection:
    """Where one request comes from, and its answer goes to."""

    def __init__(self) -> None:
        self.answers: list[Response] = []
        self.give_up: Callable[[], None] = lambda: None

    def reply(self, response: Response) -> None:
        self.answers.append(response)

    @property
    def answer(self) -> Response:
        (answer,) = self.answers
        return answer


class Site:
    """A request path with a model client and a log of its own."""

    def __init__(self, adapter: Adapter, settings: Settings, executor: ThreadPoolExecutor) -> None:
        self.client = ModelClient(adapter)
        self.stream = io.BytesIO()
        self.request_log = RequestLog("all", "json", self.stream)
        self.path = InferencePath(self.client, settings, executor, self.request_log)

    def ask(
        self,
        rows: int = 1,
        accept: bytes | None = JSON,
        attributes: bytes | None = None,
        inference_id: bytes | None = None,
        connection: Connection | None = None,
        body: bytes = b"",
        fields: dict[bytes, bytes] | None = None,
    ) -> Connection:
        connection = connection or Connection()
        head = Head((JSON, accept), attributes, inference_id, fields or {})
        body = body or json.dumps([[1, 2]] * rows).encode()
        connection.give_up = self.path.submit(head, time.monotonic(), body, connection.reply)
        return connection

    def lines(self) -> list[dict[str, Any]]:
        self.request_log.flush()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def serve(
    scenario: Callable[[Site], Awaitable[None] | None], adapter: Adapter | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Run a scenario; returns the lines of the request log."""

    async def main() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(1) as executor:
            site = Site(adapter or Adapter(SIGNATURE, SIGNATURE), Settings(max_queue_mib=64, **settings), executor)
            ending = scenario(site)
            if ending is not None:
                await ending
            return site.lines()

    return asyncio.run(main())


def expected(accept: bytes, outputs: Array, counts: Sequence[int] = COUNTS) -> list[bytes]:
    """What the format makes of each one's own rows."""
    parts = np.split(outputs, np.cumsum(counts)[:-1])
    return [CODECS[accept].encode({"y": part}, SIGNATURE, EncodeOptions()) for part in parts]


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """A list that grows with every call that writes several answers."""
    passes: list[list[int]] = []

    def counted(each: Any) -> Any:
        def encode_each(tensors: Any, signature: Any, options: Any, counts: Sequence[int]) -> Any:
            passes.append(list(counts))
            return each(tensors, signature, options, counts)

        return encode_each

    for codec in CODECS.values():
        monkeypatch.setattr(codec, "encode_each", counted(codec.encode_each))
    return passes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@ANY_FORMAT
def test_answers_of_one_format_are_written_in_one_pass(accept: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)

    def scenario(site: Site) -> None:
        asked = [site.ask(rows, accept) for rows in COUNTS]
        site.client.answer({"y": OUTPUTS})
        assert [one.answer.body for one in asked] == expected(accept, OUTPUTS)
        assert [(one.answer.status, one.answer.headers) for one in asked] == [(200, ((b"content-type", accept),))] * 3
        for one in asked:  # late, and twice
            one.give_up()
            one.give_up()
        assert site.client.given_up == 0

    serve(scenario)
    assert passes == [COUNTS]


def test_each_request_has_a_line_of_its_own_in_the_log() -> None:
    bodies: list[bytes] = []

    def scenario(site: Site) -> None:
        asked = [site.ask(1), site.ask(2, inference_id=b"mine"), site.ask(1, attributes=b"a=1")]
        site.client.answer({"y": OUTPUTS})
        bodies.extend(one.answer.body for one in asked)

    lines = {line["rows"] if line["id"] != "mine" else "mine": line for line in serve(scenario)}
    shown = sorted((line["rows"], line["request_bytes"], line["response_bytes"]) for line in lines.values())
    assert len({line["id"] for line in lines.values()}) == len(lines)
    assert lines["mine"]["rows"] == 2
    assert lines["mine"]["response_bytes"] == len(bodies[1])
    assert all((line["status"], line["level"]) == (200, "info") for line in lines.values())
    assert all(0 <= line["duration_ms"] < 60_000 for line in lines.values())
    assert (2, len(b"[[1, 2], [1, 2]]"), len(bodies[1])) in shown


def test_of_many_requests_none_is_missing_in_the_log() -> None:
    def scenario(site: Site) -> None:
        for number in range(40):
            site.ask(1, attributes=b"a=1" if number % 3 == 0 else None)
        site.client.answer({"y": np.zeros((40, 2), np.float32)})

    lines = serve(scenario)
    assert len({line["id"] for line in lines}) == len(lines) == 40


@ANY_FORMAT
def test_attributes_go_back_to_the_request_they_came_with(accept: bytes) -> None:
    """And to no other that shares its format, then or later."""

    def scenario(site: Site) -> None:
        attributes = [b"a=1", None, b"b=2", b"\x00not visible", None]
        for _ in range(2):
            asked = [site.ask(1, accept, one) for one in attributes]
            site.client.answer({"y": np.arange(10, dtype=np.float32).reshape(5, 2)})
            seen = [dict(one.answer.headers).get(CUSTOM_ATTRIBUTES) for one in asked]
            assert seen == [b"a=1", None, b"b=2", None, None]
            assert [one.answer.status for one in asked] == [200] * 5
            assert len({one.answer.body for one in asked}) == 5

    serve(scenario)


def test_attributes_are_not_echoed_where_nobody_wants_that() -> None:
    def scenario(site: Site) -> None:
        asked = [site.ask(1, JSON, b"a=1"), site.ask(1)]
        site.client.answer({"y": OUTPUTS[:2]})
        assert [one.answer.headers for one in asked] == [((b"content-type", JSON),)] * 2

    serve(scenario, echo_custom_attributes=False)


def test_answers_of_different_formats_are_each_in_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)

    def scenario(site: Site) -> None:
        asked = [site.ask(1, accept) for accept in CODECS]
        site.client.answer({"y": OUTPUTS})
        bodies = [one.answer.body for one in asked]
        assert bodies == [expected(accept, OUTPUTS, [1] * 4)[number] for number, accept in enumerate(CODECS)]
        assert [one.answer.headers for one in asked] == [((b"content-type", accept),) for accept in CODECS]

    assert [line["status"] for line in serve(scenario)] == [200] * 4
    assert passes == []


def test_the_last_one_may_be_the_one_of_another_format() -> None:
    def scenario(site: Site) -> None:
        asked = [site.ask(1, JSON), site.ask(2, JSON), site.ask(1, CSV)]
        site.client.answer({"y": OUTPUTS})
        first, second, _ = expected(JSON, OUTPUTS)
        assert [one.answer.body for one in asked] == [first, second, b"7.0,8.0\n"]

    serve(scenario)


def test_a_request_that_says_how_it_wants_its_answer_gets_it_so() -> None:
    """Its headers, and so its formats, are those of the others."""
    body = b'{"id": "own", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'

    def scenario(site: Site) -> None:
        asked = [site.ask(1), site.ask(body=body), site.ask(1)]
        site.client.answer({"y": OUTPUTS[1:]})
        assert [one.answer.body for one in asked[::2]] == expected(JSON, OUTPUTS[[1, 3]], [1, 1])
        answer = json.loads(asked[1].answer.body)
        assert answer["id"] == "own"
        assert answer["outputs"][0]["data"] == [5, 6]

    serve(scenario)


TEXTS = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", STRING, (None, 1)),))


@pytest.mark.parametrize(
    ("accept", "bad", "status"),
    [(CSV, "\ud800", 406), (JSON, "\ud800", 500), (JSONLINES, "\ud800", 500), (NPY, "zero\0", 406)],
)
def test_an_answer_that_cannot_be_written_is_an_error_of_its_own(accept: bytes, bad: str, status: int) -> None:
    """Half of a surrogate pair is no text that most formats could carry; the others are none the worse."""
    outputs = np.array([["ok"], [bad], ["fine"]], dtype=object)

    def scenario(site: Site) -> None:
        asked = [site.ask(1, accept) for _ in range(3)]
        site.client.answer({"y": outputs})
        good = [CODECS[accept].encode({"y": outputs[[row]]}, TEXTS, EncodeOptions()) for row in (0, 2)]
        assert [one.answer.body for one in asked[::2]] == good
        assert [one.answer.status for one in asked] == [200, status, 200]

    assert [line["status"] for line in serve(scenario, Adapter(TEXTS, TEXTS))] == [200, status, 200]


@pytest.mark.parametrize("accept", [JSON, JSONLINES, CSV])
def test_numbers_that_no_format_has_are_an_error_of_each(accept: bytes, caplog: pytest.LogCaptureFixture) -> None:
    def scenario(site: Site) -> None:
        asked = [site.ask(1, accept) for _ in range(2)]
        site.client.answer({"y": np.zeros((2, 2), np.complex64)})
        errors = [json.loads(one.answer.body)["error"] for one in asked]
        assert [one.answer.status for one in asked] == [500, 500]
        assert len({error["request_id"] for error in errors}) == 2
        assert all(error["request_id"] in caplog.text for error in errors)

    with caplog.at_level(logging.ERROR):
        serve(scenario)


@pytest.mark.parametrize("missing", [False, True])
def test_a_format_that_fails_to_write_all_at_once_writes_them_one_by_one(
    missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[bytes]:
        if missing:
            return [b"{}"] * (len(COUNTS) - 1)
        raise RuntimeError("broken")

    monkeypatch.setattr(json_codec, "encode_each", broken)

    def scenario(site: Site) -> None:
        asked = [site.ask(rows) for rows in COUNTS]
        site.client.answer({"y": OUTPUTS})
        assert [one.answer.body for one in asked] == expected(JSON, OUTPUTS)

    serve(scenario)


class BrokenConnection(Connection):
    """Cannot take an answer."""

    def reply(self, response: Response) -> None:
        super().reply(response)
        raise ValueError("this connection is broken")


@pytest.mark.parametrize("attributes", [None, b"a=1"])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_reply_that_fails_keeps_no_other_from_its_answer(
    broken: int, attributes: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    def scenario(site: Site) -> None:
        connections = [BrokenConnection() if number == broken else Connection() for number in range(3)]
        for rows, connection in zip(COUNTS, connections, strict=True):
            site.ask(rows, connection=connection, attributes=attributes)
        site.client.answer({"y": OUTPUTS})
        assert [one.answer.body for one in connections] == expected(JSON, OUTPUTS)

    with caplog.at_level(logging.ERROR):
        serve(scenario)
    assert caplog.text.count("a reply failed") == 1
    assert "this connection is broken" in caplog.text


def test_nor_does_it_where_the_formats_differ(caplog: pytest.LogCaptureFixture) -> None:
    def scenario(site: Site) -> None:
        first = site.ask(1, CSV)
        broken = site.ask(1, JSON, connection=BrokenConnection())
        last = site.ask(1, NPY)
        site.client.answer({"y": OUTPUTS[[0, 2, 3]]})
        assert first.answer.body == b"1.5,2.0\n"
        assert np.load(io.BytesIO(last.answer.body)).tolist() == [[7, 8]]
        assert broken.answer.status == 200  # and that once

    with caplog.at_level(logging.ERROR):
        serve(scenario)
    assert caplog.text.count("a reply failed") == 1


@pytest.mark.parametrize("accept", [JSON, CSV], ids=["one format", "two formats"])
def test_a_request_that_was_given_up_gets_no_answer_and_no_line(accept: bytes) -> None:
    """Whoever runs the model may know of it too late."""

    def scenario(site: Site) -> None:
        asked = [site.ask(1), site.ask(2), site.ask(1, accept)]
        asked[1].give_up()
        site.client.answer({"y": OUTPUTS})
        assert site.client.given_up == 1
        assert asked[1].answers == []
        assert asked[0].answer.body == expected(JSON, OUTPUTS)[0]
        assert asked[2].answer.body == expected(accept, OUTPUTS)[2]

    assert [line["rows"] for line in serve(scenario)] == [1, 1]


def test_one_that_is_given_up_because_of_the_answer_to_another_gets_none() -> None:
    """In the middle of the pass."""

    class Leaving(Connection):
        def reply(self, response: Response) -> None:
            super().reply(response)
            asked[2].give_up()

    asked: list[Connection] = []

    def scenario(site: Site) -> None:
        asked.extend([site.ask(1), site.ask(2, connection=Leaving()), site.ask(1)])
        site.client.answer({"y": OUTPUTS})

    assert sorted(line["rows"] for line in serve(scenario)) == [1, 2]
    assert [len(one.answers) for one in asked] == [1, 1, 0]


@pytest.mark.parametrize("accept", [JSON, CSV], ids=["one format", "two formats"])
def test_who_has_its_answer_may_ask_again_at_once(accept: bytes) -> None:
    """As a connection does whose next request has come already."""

    class Again(Connection):
        def reply(self, response: Response) -> None:
            super().reply(response)
            later.append(site_of[0].ask(1))

    later: list[Connection] = []
    site_of: list[Site] = []

    def scenario(site: Site) -> None:
        site_of.append(site)
        asked = [site.ask(1, connection=Again()), site.ask(1, accept, connection=Again())]
        site.client.answer({"y": OUTPUTS[2:]})
        assert asked[1].answer.body == expected(accept, OUTPUTS)[2]
        site.client.answer({"y": OUTPUTS[2:]})
        assert [one.answer.body for one in later] == expected(JSON, OUTPUTS[2:], [1, 1])

    assert len(serve(scenario)) == 4


@pytest.mark.parametrize("columns", [5_000, 20_000], ids=["each small", "each large"])
@ANY_FORMAT
def test_large_outputs_are_not_written_in_one_pass(
    accept: bytes, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much for the event loop at once is written one by one, large answers on a thread."""
    passes = count_passes(monkeypatch)
    columns *= 16 if accept == NPY else 1
    outputs = np.arange(4 * columns, dtype=np.float32).reshape(4, columns)

    async def scenario(site: Site) -> None:
        asked = [site.ask(rows, accept, fields={b"accept-encoding": b"gzip"}) for rows in COUNTS]
        site.client.answer({"y": outputs})
        await until(lambda: all(one.answers for one in asked))
        for one, body in zip(asked, expected(accept, outputs), strict=True):
            coded = dict(one.answer.headers).get(b"content-encoding")
            assert (gzip.decompress(one.answer.body) if coded else one.answer.body) == body
        assert any(len(one.answer.headers) > 1 for one in asked) is (columns > 5_000 * (16 if accept == NPY else 1))

    assert sorted(line["rows"] for line in serve(scenario)) == [1, 1, 2]
    assert passes == []


def test_just_as_much_as_the_event_loop_may_write_is_written_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)

    def scenario(site: Site) -> None:
        for columns in (64 * 1024 // 8, 64 * 1024 // 8 + 1):
            outputs = np.ones((2, columns), np.float32)
            asked = [site.ask(1), site.ask(1)]
            site.client.answer({"y": outputs})
            assert [one.answer.body for one in asked] == expected(JSON, outputs, [1, 1])

    serve(scenario)
    assert passes == [[1, 1]]


def test_what_clients_see_of_the_outputs_is_made_for_each() -> None:
    """The batch holds what the model gives, and one pass over that would show it as it is."""
    adapter = Adapter(SIGNATURE, SIGNATURE, present=lambda tensors: {"y": cast(Any, tensors["y"]) * 10})

    def scenario(site: Site) -> None:
        asked = [site.ask(rows) for rows in COUNTS]
        site.client.answer({"y": OUTPUTS})
        assert [one.answer.body for one in asked] == expected(JSON, OUTPUTS * 10)

    serve(scenario, adapter)


def test_an_answer_of_unknown_size_is_looked_at_by_itself() -> None:
    """Too large an answer is the error of one."""
    adapter = Adapter(SIGNATURE, SIGNATURE, answer_bytes=lambda tensors: len(tensors["y"]) * 40 * 1024 * 1024)

    async def scenario(site: Site) -> None:
        asked = [site.ask(rows) for rows in COUNTS]
        site.client.answer({"y": OUTPUTS})
        await until(lambda: all(one.answers for one in asked))
        assert [one.answer.status for one in asked] == [200, 413, 200]

    serve(scenario, adapter)


def test_labels_stand_in_every_answer(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text('[outputs.y]\ntop_k = 1\nlabels = ["no", "yes"]\n')
    signature = Signature((TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", F32, (None, 2)),))

    def scenario(site: Site) -> None:
        asked = [site.ask(rows) for rows in COUNTS]
        site.client.answer({"y": np.array([[1, 2], [4, 3], [5, 6], [8, 7]], np.float32)})
        predictions = [json.loads(one.answer.body)["predictions"] for one in asked]
        assert [[row["y_labels"] for row in rows] for rows in predictions] == [[["yes"]], [["no"], ["yes"]], [["no"]]]
        assert [[row["y"] for row in rows] for rows in predictions] == [[[2]], [[4], [6]], [[8]]]

    serve(scenario, adapter_for(tmp_path / "model.onnx", signature))


def test_several_outputs_are_answered_together_in_lines_and_one_by_one_in_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = count_passes(monkeypatch)
    outputs = (TensorSpec("y", F32, (None, 2)), TensorSpec("z", F32, (None,)))
    signature = Signature(SIGNATURE.inputs, outputs)
    tensors: Tensors = {"y": OUTPUTS, "z": np.array([10, 20, 30, 40], np.float32)}

    def scenario(site: Site) -> None:
        asked = [site.ask(rows, CSV) for rows in COUNTS]
        site.client.answer(tensors)
        assert [one.answer.body for one in asked] == [
            b"1.5,2.0,10.0\n",
            b"3.0,nan,20.0\n5.0,6.0,30.0\n",
            b"7.0,8.0,40.0\n",
        ]
        asked = [site.ask(rows, JSON) for rows in COUNTS]
        site.client.answer(tensors)
        rows = [json.loads(one.answer.body)["predictions"] for one in asked]
        assert [[row["z"] for row in some] for some in rows] == [[10], [20, 30], [40]]

    serve(scenario, Adapter(signature, signature))
    assert passes == [COUNTS, COUNTS]


@pytest.mark.parametrize("final_newline", [True, False])
def test_lines_end_as_the_server_is_told(final_newline: bool) -> None:
    def scenario(site: Site) -> None:
        asked = [site.ask(rows, CSV) for rows in (1, 1)]
        site.client.answer({"y": OUTPUTS[2:]})
        end = b"\n" if final_newline else b""
        assert [one.answer.body for one in asked] == [b"5.0,6.0" + end, b"7.0,8.0" + end]

    serve(scenario, final_newline=final_newline)


@pytest.mark.parametrize("accept", [JSON, CSV], ids=["one format", "two formats"])
def test_an_answered_request_leaves_nothing_behind(accept: bytes) -> None:
    """Without the garbage collector: what gives it up leads to it, and it lets go of that."""

    def scenario(site: Site) -> None:
        asked = [site.ask(1), site.ask(1, accept)]
        connections = [weakref.ref(one) for one in asked]
        gc.disable()
        try:
            site.client.answer({"y": OUTPUTS[:2]})
            assert [len(one.answers) for one in asked] == [1, 1]
            for one in asked:
                one.give_up = lambda: None
            del one
            asked.clear()
            assert [connection() for connection in connections] == [None, None]
        finally:
            gc.enable()

    serve(scenario)


@pytest.mark.parametrize("accept", [JSON, CSV], ids=["one format", "two formats"])
def test_errors_beside_answers_in_one_pass_have_their_own_lines(accept: bytes) -> None:
    """A batch that fails is answered by each one's reply, whatever came before."""

    def scenario(site: Site) -> None:
        asked = [site.ask(1), site.ask(1, accept)]
        for submitted in site.client.submitted:
            submitted.reply(InferenceFailed("the model failed on this request"))
        assert [one.answer.status for one in asked] == [500, 500]
        site.client.submitted.clear()
        again = [site.ask(1), site.ask(1, accept)]
        site.client.answer({"y": OUTPUTS[:2]})
        assert [one.answer.status for one in again] == [200, 200]

    assert sorted(line["status"] for line in serve(scenario)) == [200, 200, 500, 500]


def test_every_answer_is_that_of_its_own_request(tmp_path: Path) -> None:
    """Over sockets: 32 connections, in three formats at a time, one to three records, every value once."""
    wanted, raws = [], []
    for number in range(960):
        rows = [float(10 * number + row) for row in range(1 + number % 3)]
        accept = ["application/json", "text/csv", "application/json", "application/x-npy"][number % 4]
        own = {"X_Amzn_SageMaker_Custom_Attributes": f"n={number}"} if number % 5 == 0 else {}
        body = json.dumps({"instances": [[row] for row in rows]}).encode()
        raws.append(post(body, Content_Type="application/json", Accept=accept, **own))
        wanted.append((accept, rows, f"n={number}" if own else None))
    model = identity(tmp_path / "model.onnx", shape=("N", 1))
    with running("--model", str(model), "--max-queue-delay-ms", "2") as server:
        answers = ask_all(server.port, raws, connections=32)
        assert server.stop() == 0
        assert len(server.events("request")) == len(raws)
        assert "Traceback" not in server.log
    for answer, (accept, rows, attributes) in zip(answers, wanted, strict=True):
        assert answer is not None
        assert (answer.status, answer.headers["content-type"]) == (200, accept)
        assert answer.headers.get("x-amzn-sagemaker-custom-attributes") == attributes
        assert _values(accept, answer.body) == rows


def _values(accept: str, body: bytes) -> list[float]:
    if accept == "application/json":
        return [row[0] for row in json.loads(body)["predictions"]]
    if accept == "text/csv":
        return [float(line) for line in body.splitlines()]
    return [float(value) for value in np.load(io.BytesIO(body))[:, 0]]
