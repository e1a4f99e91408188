"""Many records in JSON and JSON Lines: where they are cut, and which bodies are left whole."""

from __future__ import annotations

import json as standard_json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import orjson
import pytest

from byoc_server.codecs import json, jsonlines
from byoc_server.codecs.base import DecodeOptions, Enveloped
from byoc_server.codecs.text import json_records
from byoc_server.codecs.text.json_records import find_records, line_pieces, record_pieces
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Signature, Tensors
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several
from tests.codecs.test_roundtrip import tensors_of
from tests.onnx_models import identity
from tests.server_process import running

COUNT = 30_000
VALUES = np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 4) / 8
RECORDS = [{"features": row} for row in VALUES.tolist()]
LINES = b"\n".join(map(orjson.dumps, RECORDS))
LIST = b"[" + LINES.replace(b"\n", b", ") + b"]"
TWO = several(("a", "float32", (None,)), ("b", "int64", (None,)))

Decode = Callable[[bytes, Signature, DecodeOptions], Tensors | Enveloped]


@pytest.fixture
def in_pieces() -> Iterator[None]:
    """Fails where a large body is parsed as a whole."""
    with mock.patch.object(json_records, "require_parsed_bytes", side_effect=AssertionError):
        yield


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("form", [b"%s", b' {"instances": %s}', b'{"id": {}, "instances": %s, "signature_name": "a"}'])
@pytest.mark.parametrize("separator", [b",", b", ", b" ,\n\t"])
def test_records_of_a_document(form: bytes, separator: bytes) -> None:
    """Checklist 80."""
    body = form.replace(b"%s", b"[" + LINES.replace(b"\n", separator) + b"]")
    assert_same(tensors_of(json.decode(body, one(), OPTIONS))["x"], VALUES)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_records_of_lines(end: bytes) -> None:
    """Checklist 80."""
    for last in (b"", end):
        body = LINES.replace(b"\n", end) + last
        assert_same(tensors_of(jsonlines.decode(body, one(), OPTIONS))["x"], VALUES)


@pytest.mark.usefixtures("in_pieces")
def test_records_of_several_inputs_and_of_texts() -> None:
    records = [{"a": i / 2, "b": i} for i in range(COUNT)]
    tensors = tensors_of(json.decode(orjson.dumps({"instances": records}), TWO, OPTIONS))
    assert_same(tensors["a"], np.arange(COUNT, dtype=np.float32) / 2)
    assert_same(tensors["b"], np.arange(COUNT))
    texts = [{"x": f"{i} [\u00e9]"} for i in range(COUNT)]
    received = tensors_of(json.decode(orjson.dumps(texts), one("string", (None,)), OPTIONS))["x"]
    assert received.tolist() == [text["x"] for text in texts]


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"]", b"][", b"{}", b"[]", b"[[1]]", b'["a"]', b"[1, {}]", b'{"a": [{}]', b'"[{}]"', b'{"\\": [{}]}']
    + [b'{"a": "%s", "b": [{}]}' % (b" " * 5000), b'{"b": [{}], "a": "%s"}' % (b" " * 5000)],
)
def test_what_holds_no_list_of_objects(body: bytes) -> None:
    assert find_records(body) is None


def test_pieces() -> None:
    with mock.patch.object(json_records, "PIECE_BYTES", 1):
        assert list(record_pieces(b"[{},{} , {}]", 1, 11)) == [b"[{}]", b"[{} ]", b"[ {}]"]
        assert list(line_pieces(b"1\n2\r\n\n3\n")) == [b"1\n", b"2\r\n", b"\n3\n"]
    assert list(line_pieces(b"1\n2")) == [b"1\n2"]


@pytest.mark.parametrize(
    ("decode", "body", "signature", "message"),
    [
        (
            json.decode,
            LIST[:-1] + b",]",
            one(),
            "body is not valid JSON: trailing comma is not allowed: line 1 column 15011",
        ),
        (
            json.decode,
            LIST[:-1] + b', {"features": [1]}]',
            one(),
            "body[30000]: expected 4 values for input 'x', got 1",
        ),
        (json.decode, b'{"instances": %s}' % LIST, TWO, "instances[0]: missing 'a', 'b'; unknown 'features'"),
        (json.decode, LIST, one(shape=(4,), batch_axis=ABSENT), "the model takes one record per request, got 30000"),
        (jsonlines.decode, LINES + b"\n\n", one(), "line 30001 is empty"),
        (jsonlines.decode, LINES + b"\n{", one(), "line 30001 is not valid JSON: "),
        (jsonlines.decode, LINES + b"\n[1]", one(shape=(None, None)), "line 30001: expected 4 values for input 'x'"),
    ],
)
def test_messages_are_those_of_the_long_way(decode: Decode, body: bytes, signature: Signature, message: str) -> None:
    """Checklist 36."""
    with pytest.raises(InvalidPayload) as caught:
        decode(body, signature, OPTIONS)
    assert caught.value.message.startswith(message)


def test_records_with_bytes_are_read_at_once() -> None:
    """Checklist 80: texts in base64."""
    records = [{"x": {"b64": "YQ=="}}] * COUNT
    for decode, body in ((json.decode, orjson.dumps(records)), (jsonlines.decode, orjson.dumps(records[0]) + b"\n")):
        body = body * (1 if decode is json.decode else COUNT)
        assert tensors_of(decode(body, one("string", (None,)), OPTIONS))["x"].tolist() == ["a"] * COUNT


@pytest.mark.parametrize(("decode", "body"), [(json.decode, LIST), (jsonlines.decode, LINES)])
def test_records_have_a_limit(decode: Decode, body: bytes) -> None:
    """Checklist 84."""
    assert tensors_of(decode(body, one(), DecodeOptions({}, VALUES.nbytes)))["x"].nbytes == VALUES.nbytes
    with pytest.raises(TensorsTooLarge, match=r"the records of this request are too large when dense$"):
        decode(body, one(), DecodeOptions({}, VALUES.nbytes - 1))


@pytest.mark.parametrize(("decode", "unit"), [(json.decode, b"[],"), (jsonlines.decode, b"{}\n")])
def test_lists_and_objects_have_a_limit(decode: Decode, unit: bytes) -> None:
    """Checklist 84."""
    body = unit * 100_000 if decode is jsonlines.decode else b"[" + unit * 100_000 + b"[]]"
    with pytest.raises(TensorsTooLarge, match=r"^the lists and objects in the JSON take 6400\d\d\d bytes or more once"):
        decode(body, one(), DecodeOptions({}, 5_000_000))


@pytest.mark.parametrize(("decode", "body"), [(json.decode, LIST), (jsonlines.decode, LINES)])
def test_memory_is_a_small_multiple_of_the_body(decode: Decode, body: bytes) -> None:
    """Checklist 84: parsed at once it was 12 times."""
    tracemalloc.start()
    try:
        decode(body, one(), OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 1_500_000
    finally:
        tracemalloc.stop()


def test_borders_that_are_none_stay_linear() -> None:
    start_s = time.monotonic()
    for filling in (b"}" * 1_000_000, b"}" + b" " * 1_000_000, b'"},{' * 250_000, b"},{" * 300_000):
        with pytest.raises(InvalidPayload):
            json.decode(b"[{" + filling + b"]", one(), OPTIONS)
    assert time.monotonic() - start_s < 5


def test_records_through_the_server(tmp_path: Path) -> None:
    """Checklist 80: objects in JSON and in lines, as Python writes them."""
    with running("--model", str(identity(tmp_path / "model.onnx"))) as server:
        document = standard_json.dumps({"instances": RECORDS}).encode()
        answer = server.invoke(document, Content_Type="application/json")
        assert orjson.loads(answer.content) == {"predictions": VALUES.tolist()}
        answer = server.invoke(LINES, Content_Type="application/jsonlines", Accept="application/json")
        assert orjson.loads(answer.content) == {"predictions": VALUES.tolist()}
