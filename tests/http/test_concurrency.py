"""Many requests at once: nobody gets another one's answer."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_models import busy, identity, rounds_per_second, two_inputs
from tests.server_process import Answer, ServerProcess, post, read_answer, running

CONNECTIONS, REQUESTS = 64, 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(
    scope="module",
    params=[("identity", "1"), ("identity", "2"), ("busy", "1")],
    ids=["on the loop", "two workers", "on a thread"],
)
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    name, workers = request.param
    path = folder / f"{name}.onnx"
    model = busy(path, rounds_per_second()) if name == "busy" else identity(path, shape=("N", 1))
    arguments = ("--workers", workers, "--request-log", "errors", "--max-queue-rows", "1000000")
    with running("--model", str(model), *arguments) as server:
        yield server
        assert "Traceback" not in server.log
        assert server.events("request") == []


def as_json(rows: list[float]) -> bytes:
    return post(json.dumps({"instances": [[x] for x in rows]}).encode(), Content_Type="application/json")


def as_jsonlines(rows: list[float]) -> bytes:
    return post("".join(f"[{x}]\n" for x in rows).encode(), Content_Type="application/jsonlines", Accept="text/csv")


def as_csv(rows: list[float]) -> bytes:
    return post("\n".join(map(str, rows)).encode(), Content_Type="text/csv", Accept="application/x-npy")


def as_npy(rows: list[float]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(rows, np.float32)[:, None])
    return post(stream.getvalue(), Content_Type="application/x-npy", Accept="application/json")


def values(answer: Answer) -> list[float]:
    assert answer.status == 200, answer
    kind = answer.headers["content-type"]
    if kind == "application/json":
        return [row[0] for row in answer.json()["predictions"]]
    if kind == "text/csv":
        return [float(line) for line in answer.body.splitlines()]
    return [float(x) for x in np.load(io.BytesIO(answer.body))[:, 0]]


WRITERS: tuple[Callable[[list[float]], bytes], ...] = (as_json, as_jsonlines, as_csv, as_npy)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run ``work`` for 0, 1, ... at the same time; the first failure is raised here."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


def test_answers_match_their_requests(server: ServerProcess) -> None:
    """Checklist 43: 64 connections, all formats, one to seven records, every value once."""

    def client(name: int) -> None:
        with server.connect(60) as connection, connection.makefile("rb") as stream:
            for i in range(REQUESTS):
                # negative, so that the busy model does not take the values for seconds
                rows = [-float(name * 1000 + i * 10 + k) for k in range(1 + (name + i) % 7)]
                connection.sendall(WRITERS[(name + i) % len(WRITERS)](rows))
                assert values(read_answer(stream)) == rows

    in_threads(client, CONNECTIONS)


def test_pipelined_answers_come_in_order(server: ServerProcess) -> None:
    """Checklist 43: several requests in one write."""

    def client(name: int) -> None:
        with server.connect(60) as connection, connection.makefile("rb") as stream:
            for i in range(5):
                sent = [[-float(name * 1000 + i * 10 + k)] for k in range(10)]
                connection.sendall(b"".join(WRITERS[k % 4](rows) for k, rows in enumerate(sent)))
                assert [values(read_answer(stream)) for _ in sent] == sent

    in_threads(client, 16)


def test_large_requests_are_cut_and_joined_in_order(server: ServerProcess) -> None:
    """Checklist 43, 61, 66: ten thousand records spread over many batches, while others come and go."""

    def client(name: int) -> None:
        rows = [-float(name * 100_000 + k) for k in range(10_000)]
        raw = WRITERS[name % 4](rows)
        with server.connect(60) as connection, connection.makefile("rb") as stream:
            if name % 3 == 2:  # changes its mind
                connection.sendall(raw[: -name * 10] if name % 2 else raw)
                return
            connection.sendall(raw)
            assert values(read_answer(stream)) == rows

    in_threads(client, 12)
    assert server.ping().status_code == 200


def test_a_retry_has_the_same_answer(server: ServerProcess) -> None:
    """Checklist 44, 101."""
    raw = as_json([-1.0, -2.0])
    assert server.exchange(raw).body == server.exchange(raw).body


def test_two_inputs_do_not_mix(folder: Path) -> None:
    """Checklist 43."""
    with running("--model", str(two_inputs(folder / "two.onnx"))) as server:

        def client(name: int) -> None:
            with server.connect(60) as connection, connection.makefile("rb") as stream:
                for i in range(20):
                    a, b = float(name), float(i)
                    connection.sendall(post(json.dumps({"instances": [{"a": [a], "b": [b]}]}).encode()))
                    answer = read_answer(stream)
                    assert answer.status == 200, answer
                    assert answer.json()["predictions"] == [{"sum": [a + b], "difference": [a - b]}]

        in_threads(client, 32)
