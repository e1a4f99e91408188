"""The Open Inference Protocol over real sockets: on ``/invocations`` and on its own routes."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from onnx import TensorProto

from byoc_server import __version__
from byoc_server.codecs.open_inference.data import DATATYPES
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.errors import ByocError, InferenceFailed
from byoc_server.http.invocations import PingEndpoint
from byoc_server.http.open_inference import OPEN_INFERENCE, OpenInferenceEndpoint
from byoc_server.models.adapter import Adapter
from byoc_server.types import BatchAxis, Signature
from tests.codecs.signatures import one
from tests.onnx_models import identity, two_inputs
from tests.server_process import PING, ServerProcess, read_answer, running

BINARY = "application/vnd.sagemaker-triton.binary+json"
JSON = {"Content-Type": "application/json"}
NAMES = ["sum", "difference"]
A = {"name": "a", "shape": [2, 1], "datatype": "FP32", "data": [5, 7]}
B = {"name": "b", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}
RAW = [
    {"name": name, "shape": [2, 1], "datatype": "FP32", "parameters": {"binary_data_size": 8}} for name in ("a", "b")
]
RAW_DATA = struct.pack("<4f", 5, 7, 1, 2)
SUM = {"name": "sum", "shape": [2, 1], "datatype": "FP32", "data": [6.0, 9.0]}
DIFFERENCE = {"name": "difference", "shape": [2, 1], "datatype": "FP32", "data": [4.0, 5.0]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    model = two_inputs(tmp_path_factory.mktemp("models") / "sums.onnx")
    with running("--model", str(model), "--max-payload-mib", "1") as server:
        yield server


@pytest.fixture(scope="module")
def text_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model of strings, behind a server whose default answer is CSV."""
    model = identity(tmp_path_factory.mktemp("models") / "model.onnx", TensorProto.STRING, ("N", 2))
    with running("--model", str(model), "--default-accept", "text/csv") as server:
        yield server


def request(inputs: list[Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def infer(server: ServerProcess, body: bytes, path: str = "/v2/models/sums/infer", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(server.url + path, data=body, headers=named, timeout=30)


def outputs_of(answer: requests.Response, size: int | None = None) -> dict[str, list[float]]:
    """Name -> numbers of the outputs of an answer, in their order, raw or not."""
    assert answer.status_code == 200, answer.text
    document, at, found = json.loads(answer.content[:size]), size or 0, {}
    assert (document["model_name"], document["model_version"]) == ("sums", "1")
    for output in document["outputs"]:
        bytes_ = output.get("parameters", {}).get("binary_data_size")
        if bytes_ is None:
            found[output["name"]] = output["data"]
        else:
            found[output["name"]] = list(struct.unpack_from(f"<{bytes_ // 4}f", answer.content, at))
            at += bytes_
    assert at == (len(answer.content) if size else 0)
    return found


def json_size(answer: requests.Response) -> int:
    kind, _, size = answer.headers["content-type"].partition(";json-header-size=")
    assert kind == BINARY
    return int(size)


# On /invocations.


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/*;q=0.5"])
def test_a_json_request_is_answered_in_its_form(server: ServerProcess, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = server.invoke(request([B, A], id="é7"), **JSON, **headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"model_name": "sums", "model_version": "1", "id": "é7", "outputs": [SUM, DIFFERENCE]}


def test_only_the_outputs_asked_for_are_answered_in_any_format(server: ServerProcess) -> None:
    body = request([A, B], outputs=[{"name": "difference"}])
    assert server.invoke(body, **JSON).json()["outputs"] == [DIFFERENCE]
    assert server.invoke(body, **JSON, Accept="text/csv").text == "4.0\n5.0\n"
    npy = np.load(io.BytesIO(server.invoke(body, **JSON, Accept="application/x-npy").content))
    np.testing.assert_array_equal(npy, np.array([[4], [5]], np.float32))
    body = request([A, B], outputs=[{"name": "difference"}, {"name": "sum"}])
    assert server.invoke(body, **JSON, Accept="text/csv").text == "4.0,6.0\n5.0,9.0\n"
    lines = server.invoke(body, **JSON, Accept="application/jsonlines").text.splitlines()
    assert list(json.loads(lines[0])) == ["difference", "sum"]


@pytest.mark.parametrize(
    ("more", "raw"),
    [
        ({"parameters": {"binary_data_output": True}}, NAMES),
        ({"outputs": [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "difference"}]}, ["sum"]),
    ],
)
@pytest.mark.parametrize("accept", [None, "application/json", "*/*"])
def test_raw_data_where_it_is_asked_for(server: ServerProcess, more: Any, raw: list[str], accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = server.invoke(request([A, B], **more), **JSON, **headers)
    size = json_size(answer)
    assert outputs_of(answer, size) == {"sum": [6, 9], "difference": [4, 5]}
    outputs = json.loads(answer.content[:size])["outputs"]
    assert [output["name"] for output in outputs if "parameters" in output] == raw


@pytest.mark.parametrize("space", ["", " "])
def test_a_request_with_raw_data(server: ServerProcess, space: str) -> None:
    head = request(RAW, id="1", parameters={"binary_data_output": True})
    answer = server.invoke(head + RAW_DATA, Content_Type=f"{BINARY};{space}json-header-size={len(head)}")
    assert outputs_of(answer, json_size(answer)) == {"sum": [6, 9], "difference": [4, 5]}
    head = request(RAW)
    answer = server.invoke(head + RAW_DATA, Content_Type=f"{BINARY};json-header-size={len(head)}")
    assert answer.headers["content-type"] == "application/json"
    assert outputs_of(answer) == {"sum": [6, 9], "difference": [4, 5]}


@pytest.mark.parametrize("body", [b'{"a": [[5], [7]], "b": [[1], [2]]}', request([A, B])])
def test_raw_data_by_accept(server: ServerProcess, body: bytes) -> None:
    answer = server.invoke(body, **JSON, Accept=BINARY)
    assert outputs_of(answer, json_size(answer)) == {"sum": [6, 9], "difference": [4, 5]}


def test_the_default_format_is_for_requests_that_say_nothing(text_server: ServerProcess) -> None:
    body = request([{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["é", "b"]}])
    assert text_server.invoke(body, **JSON).json()["outputs"][0]["data"] == ["é", "b"]
    assert text_server.invoke(body, **JSON, Accept="text/csv").content.decode() == "é,b\n"
    assert text_server.invoke(b'[["a", "b"]]', **JSON).text == "a,b\n"


def test_raw_strings(text_server: ServerProcess) -> None:
    data = b"\2\0\0\0\xc3\xa9\0\0\0\0"
    x = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = request([x], parameters={"binary_data_output": True})
    answer = text_server.invoke(head + data, Content_Type=f"{BINARY};json-header-size={len(head)}")
    assert answer.content[json_size(answer) :] == data


@pytest.mark.parametrize(
    ("size", "status", "code"),
    [("x", 415, "unsupported_media_type"), ("100000", 400, "invalid_payload"), ("0", 400, "invalid_payload")],
)
def test_sizes_that_lie(server: ServerProcess, size: str, status: int, code: str) -> None:
    answer = server.invoke(request(RAW) + RAW_DATA, Content_Type=f"{BINARY};json-header-size={size}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert server.ping().status_code == 200


# On routes of its own.


def test_what_there_is_about_the_server(server: ServerProcess) -> None:
    document = {"name": "byoc-server", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert requests.get(f"{server.url}/v2", timeout=5).json() == document


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_what_there_is_about_the_model(server: ServerProcess, version: str) -> None:
    answer = requests.get(f"{server.url}/v2/models/sums{version}", timeout=5)
    tensor = {"datatype": "FP32", "shape": [-1, 1]}
    assert answer.json() == {
        "name": "sums",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "a", **tensor}, {"name": "b", **tensor}],
        "outputs": [{"name": "sum", **tensor}, {"name": "difference", **tensor}],
    }


@pytest.mark.parametrize("path", ["health/live", "health/ready", "models/sums/ready", "models/sums/versions/1/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ready_is_200_and_empty(server: ServerProcess, path: str, method: str) -> None:
    answer = requests.request(method, f"{server.url}/v2/{path}", timeout=5)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/", 404, "no such route; there are GET /v2,"),
        ("GET", "/v2/nothing", 404, "no such route"),
        ("GET", "/v2/models", 404, "no such route"),
        ("GET", "/v2/models/iris", 404, "there is no model 'iris'; there is 'sums'"),
        ("GET", "/v2/models/iris/ready", 404, "there is no model 'iris'; there is 'sums'"),
        ("GET", "/v2/models/sums/versions/2", 404, "'sums' has no version '2'; it has '1'"),
        ("GET", "/v2/models/sums/version/1", 404, "no such route"),
        ("GET", "/v2/models/sums/stats", 404, "no such route"),
        ("POST", "/v2/models/iris/infer", 404, "there is no model 'iris'; there is 'sums'"),
        ("POST", "/v2/models/sums/versions/2/infer", 404, "'sums' has no version '2'; it has '1'"),
        ("POST", "/v2/models/sums/versions/infer", 404, "no such route"),
        ("POST", "/v2", 405, "use GET or HEAD"),
        ("POST", "/v2/health/live", 405, "use GET or HEAD"),
        ("PUT", "/v2/models/sums", 405, "use GET or HEAD"),
        ("GET", "/v2/models/sums/infer", 405, "use POST"),
    ],
)
def test_what_there_is_not(server: ServerProcess, method: str, path: str, status: int, message: str) -> None:
    answer = requests.request(method, server.url + path, data=b"{}" if method == "POST" else None, timeout=5)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    if status == 405:
        assert answer.headers["allow"] == message.removeprefix("use ").replace(" or ", ", ")


def test_other_routes_are_named_where_there_is_none(server: ServerProcess) -> None:
    answer = requests.get(f"{server.url}/v2x", timeout=5)
    assert answer.status_code == 404
    assert "GET /v2" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8", BINARY])
def test_inference_in_json(server: ServerProcess, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    for path in ("/v2/models/sums/infer", "/v2/models/sums/versions/1/infer"):
        answer = infer(server, request([A, B], id="7"), path, **headers, Accept="text/csv")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"model_name": "sums", "model_version": "1", "id": "7", "outputs": [SUM, DIFFERENCE]}


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "application/json", BINARY])
def test_inference_with_raw_data(server: ServerProcess, content_type: str | None) -> None:
    head = request(RAW, parameters={"binary_data_output": True})
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = infer(server, head + RAW_DATA, Inference_Header_Content_Length=str(len(head)), **headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    assert outputs_of(answer, size) == {"sum": [6, 9], "difference": [4, 5]}
    head = request(RAW)
    answer = infer(server, head + RAW_DATA, Inference_Header_Content_Length=str(len(head)), **headers)
    assert "inference-header-content-length" not in answer.headers
    assert outputs_of(answer) == {"sum": [6, 9], "difference": [4, 5]}


def test_inference_in_chunks_and_in_gzip(server: ServerProcess) -> None:
    body = request([A, B])
    chunked = requests.post(f"{server.url}/v2/models/sums/infer", data=iter([body[:9], body[9:]]), timeout=30)
    assert outputs_of(chunked) == {"sum": [6, 9], "difference": [4, 5]}
    assert outputs_of(infer(server, gzip.compress(body), Content_Encoding="gzip"))["sum"] == [6, 9]


def test_a_large_answer_is_compressed_and_keeps_its_size(server: ServerProcess) -> None:
    """The length of the JSON is that of the answer before it was compressed."""
    count = 40_000
    raw = [
        {"name": name, "shape": [count, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4 * count}}
        for name in ("a", "b")
    ]
    head = request(raw, parameters={"binary_data_output": True})
    body = head + bytes(8 * count)
    sized = {"Inference_Header_Content_Length": str(len(head))}
    answer = infer(server, body, **sized, Accept_Encoding="gzip, identity;q=0.5")
    assert answer.headers["content-encoding"] == "gzip"
    size = int(answer.headers["inference-header-content-length"])
    assert outputs_of(answer, size) == {"sum": [0.0] * count, "difference": [0.0] * count}


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b'{"instances": [{"a": 1, "b": 2}]}', {}, 400, "inputs: expected a list, got nothing"),
        (b"[[1, 2]]", {}, 400, "expected an inference request"),
        (b"", {}, 400, "JSON is empty"),
        (request([A]), {}, 400, "missing 'b'"),
        (request([A, {**B, "shape": [2]}, A]), {}, 400, "inputs[2].name: 'a' is there twice"),
        (request([A, {**B, "shape": [2, -1]}]), {}, 400, "inputs[1].shape[1]: expected a positive whole number"),
        (request([A, B], outputs=[{"name": "y"}]), {}, 400, "outputs[0].name: expected one of the model's outputs"),
        (b"a,b\n1,2\n", {"Content-Type": "text/csv"}, 415, "use application/json"),
        (request([A, B]), {"Content-Type": "application/octet-stream"}, 415, "Inference-Header-Content-Length"),
        (request([A, B]), {"Content-Type": "json"}, 415, "'json' is not supported here"),
        (request([A, B]), {"Content-Encoding": "br"}, 415, "br"),
        (request([A, B]), {"Inference-Header-Content-Length": "-1"}, 400, "expected a number of bytes, got '-1'"),
        (request([A, B]), {"Inference-Header-Content-Length": "9999"}, 400, "the JSON has 9999 bytes, the body has"),
        (bytes(2**20 + 1), {}, 413, "larger than the limit"),
    ],
)
def test_errors_are_in_the_form_of_the_protocol(
    server: ServerProcess, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    answer = infer(server, body, **headers)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert outputs_of(infer(server, request([A, B])))["sum"] == [6, 9]


def test_a_refused_body_does_not_become_the_next_request(server: ServerProcess) -> None:
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(
            b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(PING) + PING
        )
        answer = read_answer(stream)
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert stream.read() == b""


def test_neighbours_are_what_they_were(server: ServerProcess) -> None:
    """On one connection with inferences of this protocol."""
    with requests.Session() as session:
        for _ in range(2):
            assert session.head(f"{server.url}/v2/models/iris", timeout=5).status_code == 404
            assert session.head(f"{server.url}/v2", timeout=5).status_code == 200
            assert session.post(f"{server.url}/v2/models/sums/infer", data=request([A, B]), timeout=5).ok
            assert session.get(f"{server.url}/ping", timeout=5).content == b""
            ordinary = session.post(f"{server.url}/invocations", json={"a": [[5]], "b": [[1]]}, timeout=5)
            assert ordinary.json() == {"predictions": [{"sum": [6.0], "difference": [4.0]}]}


# Without a server.


class Loading:
    """A client whose model is not there."""

    status = ModelStatus(ModelState.LOADING, "the model is loading")

    @property
    def adapter(self) -> Any:
        raise self.status.refusal()


class Ready:
    """A client with a model of any signature."""

    status = ModelStatus(ModelState.READY)

    def __init__(self, signature: Signature) -> None:
        self.adapter = Adapter(signature, signature)


def asked(path: str, client: Any) -> list[Any]:
    """What is sent in answer to a request for ``path``, of a worker that is not the last to get ready."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def infer(scope: Any, receive: Any, send: Any) -> None:
        sent.append("infer")

    async def refuse(error: ByocError, scope: Any, receive: Any, send: Any) -> None:
        sent.append(error.status)

    infer.refuse = refuse  # type: ignore[attr-defined]  # a stand-in
    endpoint = OpenInferenceEndpoint(client, PingEndpoint(client, lambda: False), infer)  # type: ignore[arg-type]  # as it is

    async def main() -> None:
        await endpoint({"path": path, "method": "GET"}, None, send)  # type: ignore[arg-type]  # nothing is received

    asyncio.run(main())
    return sent


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("health/live", 200),
        ("health/ready", 503),
        ("models/sums/ready", 503),
        ("models/sums", 503),
        ("models/x", 503),
    ],
)
def test_before_the_model_is_loaded(path: str, status: int) -> None:
    start, body = asked(f"/v2/{path}", Loading())
    assert start["status"] == status
    if status == 503:
        assert json.loads(body["body"]) == {"error": "the model is loading"}
        assert (b"retry-after", b"1") in start["headers"]


def test_an_inference_before_the_model_is_loaded_is_refused_where_all_are() -> None:
    assert asked("/v2/models/x/infer", Loading()) == ["infer"]


def test_while_other_workers_load_the_model_it_still_has_a_name() -> None:
    client = Ready(one())
    assert asked("/v2/models/model/infer", client) == ["infer"]
    assert asked("/v2/models/x/infer", client) == [404]
    assert asked("/v2/models/model", client)[0]["status"] == 200
    start, body = asked("/v2/models/model/ready", client)
    assert start["status"] == 503
    assert json.loads(body["body"]) == {"error": "other workers are still loading the model"}


@pytest.mark.parametrize(
    ("signature", "shape"),
    [
        (one("int64", (None, None, 3)), [-1, -1, 3]),
        (one("string", (8, 3), BatchAxis.FIXED), [-1, 3]),
        (one("float16", (2, None), BatchAxis.ABSENT), [2, -1]),
        (one("bool", (), BatchAxis.ABSENT), []),
    ],
)
def test_shapes_say_which_axes_are_open(signature: Signature, shape: list[int]) -> None:
    """A batch axis is open whatever the graph says: records run in as many batches as it takes."""
    _, body = asked("/v2/models/model", Ready(signature))
    (tensor,) = json.loads(body["body"])["inputs"]
    assert tensor["shape"] == shape
    assert DATATYPES[tensor["datatype"]] == signature.inputs[0].dtype


def test_an_error_of_the_server_says_under_which_id_it_is_logged() -> None:
    response = OPEN_INFERENCE.error_response(InferenceFailed("it failed"), request_id="7")
    assert json.loads(response.body) == {"error": "it failed (request_id 7)"}
