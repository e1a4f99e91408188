"""POST /invocations over real sockets: formats, headers, errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from byoc_server.codecs.base import answer_codecs, media_types, request_codecs
from tests.onnx_models import gather, identity
from tests.server_process import Answer, ServerProcess, post, read_answer, running, wait_for

ROWS = [[1.5, 2.0], [3.25, 4.0]]


def npy(rows: list[list[float]]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(rows, np.float32))
    return stream.getvalue()


BODIES = {
    "application/json": b'{"instances": [[1.5, 2], [3.25, 4]]}',
    "application/jsonlines": b"[1.5, 2]\n[3.25, 4]\n",
    "text/csv": b"1.5,2\n3.25,4\n",
    "application/x-npy": npy(ROWS),
}


def rows_of(media_type: str, body: bytes) -> object:
    if media_type == "application/json":
        return json.loads(body)["predictions"]
    if media_type == "application/jsonlines":
        lines = [json.loads(line) for line in body.splitlines()]
        return [line["predictions"] if isinstance(line, dict) else line for line in lines]
    if media_type == "text/csv":
        return [[float(cell) for cell in line.split(",")] for line in body.decode().splitlines()]
    return np.load(io.BytesIO(body)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with running("--model", str(identity(folder / "identity.onnx", shape=("N", 2)))) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def csv_server(folder: Path) -> Iterator[ServerProcess]:
    """Answers with CSV by default and does not echo custom attributes."""
    model = identity(folder / "csv.onnx", shape=("N", 2))
    variables = {"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv", "BYOC_ECHO_CUSTOM_ATTRIBUTES": "false"}
    with running("--model", str(model), environ=variables) as server:
        yield server


@pytest.fixture(scope="module")
def fragile(folder: Path) -> Iterator[ServerProcess]:
    """A model that fails on some values."""
    with running("--model", str(gather(folder / "gather.onnx"))) as server:
        yield server


@pytest.mark.parametrize("accept", BODIES)
@pytest.mark.parametrize("content_type", BODIES)
def test_every_format_in_and_out(server: ServerProcess, content_type: str, accept: str) -> None:
    """Checklist 29, 37, 61, 66."""
    answer = server.invoke(BODIES[content_type], Content_Type=content_type, Accept=accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == accept
    assert rows_of(accept, answer.content) == ROWS


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv;charset=utf-8", BODIES["text/csv"]),
        ("TEXT/CSV; Charset=UTF-8; label_size=0", BODIES["text/csv"]),
        ('Text/Csv ; header="absent" ;charset="utf-8"', BODIES["text/csv"]),
        ("text/csv; header=present", b"a,b\n" + BODIES["text/csv"]),
        ('application/json; odata=verbose; note="a;b,c"', BODIES["application/json"]),
    ],
)
def test_media_type_parameters_in_any_spelling(server: ServerProcess, content_type: str, body: bytes) -> None:
    """Checklist 29."""
    answer = server.invoke(body, Content_Type=content_type, Accept="application/json")
    assert (answer.status_code, answer.json()) == (200, {"predictions": ROWS})


def test_neither_content_type_nor_accept(server: ServerProcess) -> None:
    """Checklist 29, 34: JSON is assumed and answered."""
    answer = server.exchange(post(BODIES["application/json"]))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"predictions": ROWS}


@pytest.mark.parametrize("accept", [None, "*/*", "", "*/*;q=0.5"])
def test_the_default_accept_of_the_platform(csv_server: ServerProcess, accept: str | None) -> None:
    """Checklist 34: SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT counts when the client does not care."""
    headers = {} if accept is None else {"Accept": accept}
    answer = csv_server.exchange(post(BODIES["application/json"], Content_Type="application/json", **headers))
    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv")
    named = csv_server.exchange(post(BODIES["application/json"], Accept="application/json"))
    assert named.headers["content-type"] == "application/json"


def test_repeated_and_weighted_accept_headers(server: ServerProcess) -> None:
    """Checklist 35."""
    raw = post(BODIES["application/json"], Accept="text/csv;q=0.1, application/x-npy;q=0.9")
    assert server.exchange(raw).headers["content-type"] == "application/x-npy"
    raw = raw.replace(b"Accept:", b"Accept: text/html\r\naccept:")
    assert server.exchange(raw).headers["content-type"] == "application/x-npy"


@pytest.mark.parametrize("pieces", [1, 3, 70])
def test_chunked_bodies(server: ServerProcess, pieces: int) -> None:
    """Checklist 33."""
    body = b'{"instances": [' + b",".join([b"[1, 2]"] * 70) + b"]}"
    size = -(-len(body) // pieces)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    answer = requests.post(f"{server.url}/invocations", data=iter(parts), timeout=20)
    assert answer.json() == {"predictions": [[1.0, 2.0]] * 70}


def test_a_body_that_comes_byte_by_byte(server: ServerProcess) -> None:
    """Checklist 33: head and body in segments of one byte."""
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.setsockopt(6, 1, 1)  # TCP_NODELAY
        raw = b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw += b"6\r\n[[1,2]\r\n1\r\n]\r\n0\r\n\r\n"
        for i in range(len(raw)):
            connection.sendall(raw[i : i + 1])
        assert read_answer(stream).json() == {"predictions": [[1.0, 2.0]]}


def test_expect_100_continue(server: ServerProcess) -> None:
    """Checklist 29: the body is asked for, unless it would be refused."""
    with server.connect() as connection, connection.makefile("rb") as stream:
        head, _, body = post(BODIES["application/json"], Expect="100-continue").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(body)
        assert read_answer(stream).status == 200
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert read_answer(stream).status == 413


def error_of(answer: requests.Response | Answer, code: str) -> dict[str, object]:
    """Check the shape of an error body: short JSON that gives nothing of the machine away."""
    body = answer.body if isinstance(answer, Answer) else answer.content
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, object] = json.loads(body)["error"]
    assert error["code"] == code
    assert len(body) < 2000
    for secret in (b"Traceback", b"File \\", b".py", b"/tmp", b"site-packages"):
        assert secret not in body
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", body.decode())
    return error


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_post(server: ServerProcess, method: str) -> None:
    answer = requests.request(method, f"{server.url}/invocations", timeout=5)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    error_of(answer, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/", "/invocations/", "/metrics", "/execution-parameters", "/ping/../etc/passwd", "/%00"]
)
def test_other_routes_are_404(server: ServerProcess, path: str) -> None:
    """Checklist 42, 59."""
    error_of(server.exchange(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()), "not_found")


@pytest.mark.parametrize(
    "content_type", ["text/html", "nonsense", "application/x-python-pickle", "text/csv; =", "a" * 9000]
)
def test_an_unknown_content_type_is_415_and_told_the_list(server: ServerProcess, content_type: str) -> None:
    """Checklist 36."""
    answer = server.invoke(b"x", Content_Type=content_type)
    assert answer.status_code == 415
    assert error_of(answer, "unsupported_media_type")["accepted"] == media_types(request_codecs())


def test_an_impossible_accept_is_406_and_told_the_list(server: ServerProcess) -> None:
    """Checklist 36."""
    answer = server.invoke(BODIES["application/json"], Accept="text/html, image/*")
    assert answer.status_code == 406
    assert error_of(answer, "not_acceptable")["accepted"] == media_types(answer_codecs())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[[1]]", b'{"instances": []}', b"[" * 50_000, b"null"])
def test_a_body_that_does_not_fit_is_400(server: ServerProcess, body: bytes) -> None:
    """Checklist 36."""
    answer = server.invoke(body)
    assert answer.status_code == 400
    error_of(answer, "invalid_payload")


def test_a_pickled_array_is_400(server: ServerProcess) -> None:
    """Checklist 46."""
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    answer = server.invoke(stream.getvalue(), Content_Type="application/x-npy")
    assert answer.status_code == 400
    error_of(answer, "invalid_payload")


def test_custom_attributes_come_back(server: ServerProcess) -> None:
    """Checklist 38: with an answer and with an error."""
    for body, status in (("[[1, 2]]", 200), ("{", 400)):
        answer = server.invoke(body, X_Amzn_SageMaker_Custom_Attributes="trace=1; a, b")
        assert answer.status_code == status
        assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1; a, b"


@pytest.mark.parametrize("text", [b"a\tb", b"caf\xe9", b"x" * 1025])
def test_custom_attributes_the_api_would_refuse_do_not_come_back(server: ServerProcess, text: bytes) -> None:
    """Checklist 38: nothing but visible ASCII, at most 1024 characters."""
    raw = post(b"[[1, 2]]", X_Amzn_SageMaker_Custom_Attributes="HERE").replace(b"HERE", text)
    answer = server.exchange(raw)
    assert answer.status == 200
    assert "x-amzn-sagemaker-custom-attributes" not in answer.headers


def test_echoing_custom_attributes_can_be_switched_off(csv_server: ServerProcess) -> None:
    """Checklist 38."""
    answer = csv_server.invoke("[[1, 2]]", X_Amzn_SageMaker_Custom_Attributes="a")
    assert answer.status_code == 200
    assert "x-amzn-sagemaker-custom-attributes" not in answer.headers


def test_the_inference_id_is_logged_and_invented_otherwise(server: ServerProcess) -> None:
    """Checklist 45."""

    def ids() -> list[str]:
        logged = [line["id"] for line in server.events("request")]
        return logged[logged.index("order-66") :] if "order-66" in logged else []

    server.invoke("[[1, 2]]", X_Amzn_SageMaker_Inference_Id="order-66")
    server.invoke("[[1, 2]]", X_Amzn_SageMaker_Inference_Id="x" * 500)
    server.invoke("[[1, 2]]")
    server.invoke("[[1, 2]]")
    wait_for(lambda: len(ids()) == 4, "all are in the log")
    _, cut, *invented = ids()
    assert cut == "x" * 64
    assert len({*invented}) == 2
    assert all(re.fullmatch(r"[0-9a-f-]{8,64}", name) for name in invented)


def test_headers_that_mean_nothing_are_ignored(server: ServerProcess) -> None:
    """Checklist 39, 40."""
    names = ("Target-Model", "Target-Variant", "Inference-Component", "Session-Id", "Something-New")
    headers = {f"X-Amzn-SageMaker-{name}": "x" for name in names}
    headers |= {"Authorization": "Bearer x", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "Forwarded": "for=x"}
    for host in ("example.com:443", "", "[::1]", "a b", "169.254.169.254"):
        answer = server.exchange(post(b"[[1, 2]]", **headers).replace(b"Host: test", f"Host: {host}".encode()))
        assert answer.status == 200


def test_a_query_string_is_ignored(server: ServerProcess) -> None:
    """Checklist 39."""
    assert requests.post(f"{server.url}/invocations?x=1", data="[[1, 2]]", timeout=5).status_code == 200


def test_bodies_and_credentials_are_never_logged(server: ServerProcess) -> None:
    """Checklist 98: neither good nor bad ones."""
    server.invoke('{"instances": [[271828, 314159]]}', Authorization="Bearer hush-hush")
    server.invoke('{"instances": [["hush-hush", 314159]]}')
    assert server.invoke("[[1, 2]]", X_Amzn_SageMaker_Inference_Id="last-one").status_code == 200
    wait_for(lambda: "last-one" in server.log, "it is in the log")
    assert "271828" not in server.log
    assert "Bearer" not in server.log


def test_a_request_the_engine_fails_on_is_500_with_a_request_id_only(fragile: ServerProcess) -> None:
    """Checklist 24, 42: the reason is in the log under that id; the server goes on."""
    answer = fragile.invoke("[[99]]", X_Amzn_SageMaker_Inference_Id="poison-1")
    assert answer.status_code == 500
    error = error_of(answer, "inference_failed")
    assert error.keys() == {"code", "message", "request_id"}
    assert error["request_id"] == "poison-1"
    assert "99" not in answer.text
    assert fragile.ping().status_code == 200
    assert fragile.invoke("[[1]]").json() == {"predictions": [[20.0]]}
    (line,) = [line for line in fragile.events("error") if line["id"] == "poison-1"]
    assert "out of data bounds" in line["traceback"]


def test_a_failing_request_does_not_fail_its_neighbours_in_the_batch(fragile: ServerProcess) -> None:
    """Checklist 43, 74: requests that arrived at the same time share a batch."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(fragile.connect()) for _ in range(8)]
        for connection in connections:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        fragile.process.send_signal(signal.SIGSTOP)
        try:
            for i, connection in enumerate(connections):
                connection.sendall(post(b"[[%d]]" % (77 if i == 3 else i % 4)))
        finally:
            fragile.process.send_signal(signal.SIGCONT)
        for i, connection in enumerate(connections):
            with connection.makefile("rb") as stream:
                answer = read_answer(stream)
            if i == 3:
                assert answer.status == 500
            else:
                assert answer.json() == {"predictions": [[10.0 * (i % 4 + 1)]]}
    assert "run again in halves" in fragile.log
