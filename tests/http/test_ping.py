"""GET /ping over real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import requests

from tests.onnx_models import busy, rounds_per_second
from tests.server_process import PING, ServerProcess, post, read_answer, running, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    model = busy(tmp_path_factory.mktemp("models") / "model.onnx", rounds_per_second())
    with running("--model", str(model)) as server:
        yield server


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_ready_is_200_and_empty(server: ServerProcess, method: str) -> None:
    """Checklist 21."""
    answer = requests.request(method, f"{server.url}/ping", timeout=5)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_405_and_told_what_is_allowed(server: ServerProcess, method: str) -> None:
    answer = requests.request(method, f"{server.url}/ping", timeout=5)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_a_ping_with_a_body_leaves_the_connection_usable(server: ServerProcess) -> None:
    """Checklist 20: whatever comes with a ping is not read, and not taken for the next request."""
    with server.connect() as connection, connection.makefile("rb") as stream:
        for size in (10, 1_000_000):
            connection.sendall(b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            assert read_answer(stream).status == 200
        connection.sendall(post(b"[[0]]"))
        assert read_answer(stream).status == 200


def test_pings_are_quick_while_the_model_computes(server: ServerProcess) -> None:
    """Checklist 20, 24: the bound is generous, the machine may be busy."""
    with server.connect() as slow, slow.makefile("rb") as stream, server.connect() as quick:
        slow.sendall(post(b"[[2]]"))
        time.sleep(0.1)
        slowest_s, pings = 0.0, 0
        with quick.makefile("rb") as pongs:
            end_s = time.monotonic() + 1.0
            while time.monotonic() < end_s:
                start_s = time.monotonic()
                quick.sendall(PING)
                assert read_answer(pongs).status == 200
                slowest_s, pings = max(slowest_s, time.monotonic() - start_s), pings + 1
                time.sleep(0.01)
        assert slowest_s < 1.0
        assert pings > 3
        answer = read_answer(stream)
        assert answer.json() == {"predictions": [[2.0]]}


def test_pings_are_not_logged(server: ServerProcess) -> None:
    """Checklist 26."""
    assert server.invoke("[[0]]", X_Amzn_SageMaker_Inference_Id="before-the-pings").status_code == 200
    wait_for(lambda: "before-the-pings" in server.log, "it is in the log")
    before = server.log
    for _ in range(5):
        server.ping()
    assert server.invoke("[[0]]", X_Amzn_SageMaker_Inference_Id="after-the-pings").status_code == 200
    wait_for(lambda: "after-the-pings" in server.log, "it is in the log")
    (line,) = server.log[len(before) :].splitlines()
    assert "after-the-pings" in line
