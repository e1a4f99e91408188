"""Requests of different lengths at once, through the real server: each gets the answer it would get alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from byoc_server.types import Tensors
from tests.onnx_models import encoder
from tests.server_process import Answer, ServerProcess, post, read_answer, running

CONNECTIONS, REQUESTS = 32, 20
OUTPUTS = ("hidden", "pooled", "attention")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("model") / "encoder.onnx")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ServerProcess]:
    with running("--model", str(model), "--request-log", "errors", "--max-queue-rows", "1000000") as server:
        yield server
        assert "Traceback" not in server.log
        assert server.events("request") == []


def records(rows: int, length: int, seed: int) -> Tensors:
    """Different in every request."""
    ids = np.random.default_rng(seed).integers(1, 100, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def as_json(tensors: Tensors) -> bytes:
    body = {"inputs": {name: array.tolist() for name, array in tensors.items()}}
    return post(json.dumps(body).encode(), Content_Type="application/json", Accept="application/json")


def as_npz(tensors: Tensors) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **tensors)
    return post(stream.getvalue(), Content_Type="application/x-npz", Accept="application/x-npz")


def outputs_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    if answer.headers["content-type"] == "application/x-npz":
        return dict(np.load(io.BytesIO(answer.body)))
    predictions = answer.json()["predictions"]
    return {name: np.array([prediction[name] for prediction in predictions]) for name in OUTPUTS}


WRITERS: tuple[Callable[[Tensors], bytes], ...] = (as_json, as_npz)


def at_once(client: Callable[[int], None], count: int) -> None:
    """Run clients 0, 1, ... at the same time; the first failure is raised here."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(client, range(count)))


def check(session: ort.InferenceSession, tensors: Tensors, answer: Answer) -> None:
    alone = session.run(OUTPUTS, tensors)
    for name, expected in zip(OUTPUTS, alone, strict=True):
        np.testing.assert_allclose(outputs_of(answer)[name], expected, rtol=1e-3, atol=1e-4)


def test_everybody_gets_their_own_answer(server: ServerProcess, model: Path) -> None:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def client(name: int) -> None:
        with server.connect(60) as connection, connection.makefile("rb") as stream:
            for number in range(REQUESTS):
                tensors = records(1 + (name + number) % 3, 1 + (name * 7 + number * 11) % 70, name * 1000 + number)
                connection.sendall(WRITERS[(name + number) % 2](tensors))
                check(session, tensors, read_answer(stream))

    at_once(client, CONNECTIONS)


def test_requests_larger_than_a_batch_are_cut_and_joined(model: Path) -> None:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with running("--model", str(model), "--max-batch-size", "4") as server:

        def client(name: int) -> None:
            tensors = records(10, 5 + name, name)
            check(session, tensors, server.exchange(as_npz(tensors)))

        at_once(client, 8)


def test_what_is_padded_is_in_the_log(server: ServerProcess) -> None:
    (ready,) = server.events("ready")
    assert ready["padded"] == {"input_ids": 0, "attention_mask": 0}


@pytest.mark.parametrize(("setting", "config"), [("false", ""), ("true", "[batching]\npad = false\n")])
def test_padding_can_be_switched_off(tmp_path: Path, setting: str, config: str) -> None:
    (tmp_path / "byoc.toml").write_text(config)
    with running("--model", str(encoder(tmp_path / "m.onnx")), "--pad-lengths", setting) as server:
        assert "padded" not in server.events("ready")[0]


def test_a_declared_value_is_what_the_model_is_padded_with(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text('[inputs.input_ids]\nname = "ids"\ndtype = "int8"\npadding_value = 99\n')
    with running("--model", str(encoder(tmp_path / "m.onnx"))) as server:
        assert server.events("ready")[0]["padded"] == {"input_ids": 99, "attention_mask": 0}


def test_a_model_that_cannot_be_padded_is_served_and_the_log_says_why(tmp_path: Path) -> None:
    path = encoder(tmp_path / "m.onnx", masked=False)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with running("--model", str(path)) as server:
        (warning,) = server.events("padding")
        assert warning["message"].startswith("records of different lengths do not share a batch: output ")
        assert "padded" not in server.events("ready")[0]

        def client(name: int) -> None:
            tensors = records(1, 1 + name, name)
            check(session, tensors, server.exchange(as_json(tensors)))

        at_once(client, 16)
