"""The Open Inference Protocol with raw data behind the JSON: bytes packed by hand, and sizes that lie."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.base import Answer, DecodeOptions, EncodeOptions, Envelope, Enveloped, codecs_by_media_type
from byoc_server.codecs.open_inference.data import DATATYPES
from byoc_server.codecs.open_inference_binary import decode, encode
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import Signature, Tensors
from tests.codecs.signatures import ENCODE, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors

TYPE = "application/vnd.sagemaker-triton.binary+json"
PAIR = several(("a", "float32", (None, 2)), ("b", "string", (None,)))


def sized(size: Any, limit: int = 2**29) -> DecodeOptions:
    return DecodeOptions({} if size is None else {"json-header-size": str(size)}, limit)


def binary(name: str, shape: list[int], datatype: str, size: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def read(document: Any, data: bytes, signature: Signature, limit: int = 2**29) -> Enveloped:
    head = json.dumps(document).encode()
    return decode(head + data, signature, sized(len(head), limit))


def refusal(document: Any, data: bytes, signature: Signature) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        read(document, data, signature)
    assert len(caught.value.message) < 500
    orjson.dumps(caught.value.details)
    return caught.value


def packed(*strings: str) -> bytes:
    return b"".join(struct.pack("<I", len(s.encode())) + s.encode() for s in strings)


def test_much_data_in_the_json_beside_raw_data() -> None:
    """Checklist 80: read in pieces, and one by one where a value is none."""
    data: list[Any] = [i / 4 for i in range(8000)]
    inputs: list[dict[str, Any]] = [{"name": "a", "shape": [4000, 2], "datatype": "FP32", "data": data}]
    inputs.append(binary("b", [4000], "BYTES", 4000 * 5))
    raw = packed("s") * 4000
    received = read({"id": "7", "inputs": inputs}, raw, PAIR)
    assert received.envelope.id == "7"
    assert_same(received.tensors["a"], np.array(data, np.float32).reshape(4000, 2))
    assert received.tensors["b"].tolist() == ["s"] * 4000
    data[7999] = "x"
    message = "inputs[0].data[7999]: expected a number (float32) for input 'a', got 'x'"
    assert refusal({"inputs": inputs}, raw, PAIR).message == message
    del data[7999]
    message = "inputs[0].data: expected 8000 values for shape [4000, 2], got 7999"
    assert refusal({"inputs": inputs}, raw, PAIR).message == message


@pytest.mark.parametrize(
    ("datatype", "dtype", "code", "values"),
    [
        ("BOOL", "bool", "?", [True, False]),
        ("UINT8", "uint8", "B", [0, 255]),
        ("UINT16", "uint16", "H", [1, 65535]),
        ("UINT32", "uint32", "I", [1, 2**32 - 1]),
        ("UINT64", "uint64", "Q", [1, 2**64 - 1]),
        ("INT8", "int8", "b", [-128, 1]),
        ("INT16", "int16", "h", [-(2**15), 1]),
        ("INT32", "int32", "i", [-(2**31), 1]),
        ("INT64", "int64", "q", [-(2**63), 1]),
        ("FP16", "float16", "e", [1.5, -2]),
        ("FP32", "float32", "f", [1.5, -2]),
        ("FP64", "float64", "d", [1.5, -1e300]),
    ],
)
def test_numbers(datatype: str, dtype: str, code: str, values: list[Any]) -> None:
    """Against the standard library's own packing, at every alignment."""
    data = struct.pack(f"<2{code}", *values)
    for spaces in range(8):
        head = json.dumps({"inputs": [binary("x", [2], datatype, len(data))]}).encode() + b" " * spaces
        result = decode(head + data, one(dtype, (None,)), sized(len(head))).tensors["x"]
        assert_same(result, np.array(values, DATATYPES[datatype]))
        assert result.flags.aligned
        assert result.dtype.isnative


@pytest.mark.parametrize("dtype", ["FP32", "INT64", "UINT8"])
def test_aligned_numbers_are_not_copied(dtype: str) -> None:
    data = np.arange(8, dtype=DATATYPES[dtype]).tobytes()
    head = json.dumps({"inputs": [binary("x", [2, 4], dtype, len(data))]}).encode()
    body = head.ljust(256) + data
    result = decode(body, one(DATATYPES[dtype].name), sized(256)).tensors["x"]
    assert np.shares_memory(result, np.frombuffer(body, np.uint8))


def test_booleans_are_no_other_bytes_than_0_and_1() -> None:
    (result,) = read({"inputs": [binary("x", [3], "BOOL", 3)]}, b"\0\2\1", one("bool", (None,))).tensors.values()
    assert result.view(np.uint8).tolist() == [0, 1, 1]


def test_strings() -> None:
    data = packed("é€", "", "a\0b", "😀")
    (result,) = read(
        {"inputs": [binary("x", [2, 2], "BYTES", len(data))]}, data, one("string", (None, 2))
    ).tensors.values()
    assert_same(result, texts([["é€", ""], ["a\0b", "😀"]]))


def test_json_and_raw_data_side_by_side() -> None:
    signature = several(("a", "float32", (None, 2)), ("b", "string", (None,)), ("c", "int64", (None,)))
    in_json = {"name": "a", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4]}
    text = packed("p", "qq")
    inputs = [binary("c", [2], "INT8", 2), in_json, binary("b", [2], "BYTES", len(text))]
    result = read({"id": "k", "inputs": inputs, "outputs": [{"name": "b"}]}, b"\xff\5" + text, signature)
    assert_same(result.tensors["a"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(result.tensors["b"], texts(["p", "qq"]))
    assert_same(result.tensors["c"], np.array([-1, 5], np.int64))
    assert result.envelope == Envelope("k", ("b",))


@pytest.mark.parametrize("size", [None, "all"])
def test_all_of_the_body_may_be_json(size: str | None) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [5]}]}'
    result = decode(body, one(shape=(None,)), sized(size and len(body)))
    assert_same(result.tensors["x"], np.array([5], np.float32))


def test_without_json_the_body_is_the_one_input() -> None:
    result = decode(struct.pack("<4f", 1, 2, 3, 4), one(), sized(0))
    assert_same(result.tensors["x"], np.array([[1, 2, 3, 4]], np.float32))
    assert result.envelope == Envelope(binary={"y": True})
    with pytest.raises(InvalidPayload, match="raw bytes carry one input"):
        decode(b"1234", PAIR, sized(0))


F = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("inputs", "data", "field", "message"),
    [
        (
            [binary("x", [1, 4], "FP32", 16)],
            F[:-1],
            "inputs[0].parameters.binary_data_size",
            "16 bytes behind the JSON, got 15",
        ),
        ([binary("x", [1, 4], "FP32", 15)], F, "inputs[0].parameters.binary_data_size", "takes 16 bytes, got 15"),
        ([binary("x", [1, 4], "FP64", 16)], F, "inputs[0].parameters.binary_data_size", "takes 32 bytes, got 16"),
        ([binary("x", [1, 4], "FP32", 16)], F + b"12", "byte {16}", "2 bytes before the body does"),
        ([binary("x", [1, 4], "FP32", -16)], F, "inputs[0].parameters.binary_data_size", "a number of bytes, got -16"),
        ([binary("x", [1, 4], "FP32", 2**63)], F, "inputs[0].parameters.binary_data_size", "a number of bytes"),
        ([{**binary("x", [1, 4], "FP32", 0), "parameters": {"binary_data_size": True}}], F, None, "got true"),
        ([{**binary("x", [1, 4], "FP32", 0), "parameters": {"binary_data_size": "16"}}], F, None, "got '16'"),
        ([{**binary("x", [1, 4], "FP32", 0), "parameters": {}}], F, "byte {0}", "16 bytes before the body does"),
        ([{**binary("x", [1, 4], "FP32", 16), "data": [1, 2, 3, 4]}], F, None, "there is 'data' as well"),
        ([binary("x", [2**40], "FP32", 16)], F, None, "takes 4398046511104 bytes, got 16"),
        ([binary("x", [2**40], "FP32", 2**42)], F, None, "got 16 bytes"),
        ([binary("x", [2, 2], "FP32", 16)], F, "inputs[0].shape", "expected shape [?, 4], got [2, 2]"),
    ],
)
def test_sizes_that_lie(inputs: list[Any], data: bytes, field: str | None, message: str) -> None:
    error = refusal({"inputs": inputs}, data, one())
    start = len(json.dumps({"inputs": inputs}))
    expected = field or "inputs[0].parameters.binary_data_size"
    assert error.details["field"] == expected.replace("{16}", str(start + 16)).replace("{0}", str(start))
    assert message in error.message


@pytest.mark.parametrize(
    ("data", "at", "message"),
    [
        (packed("ab")[:3], 0, "string 1 of 2 goes beyond the end"),
        (packed("abc") + b"\0\0\0", 7, "string 2 of 2 goes beyond the end"),
        (packed("abcde")[:-1], 0, "string 1 of 2 goes beyond the end"),
        (packed("abcdefg"), 11, "string 2 of 2 goes beyond the end"),
        (struct.pack("<I", 2**32 - 1) + b"abcdefgh", 0, "string 1 of 2 goes beyond the end"),
        (packed("a", "b", "c"), 10, "end here, 5 bytes before the tensor"),
        (packed("a") + struct.pack("<I", 2) + b"x\xff", 10, "is not UTF-8"),
    ],
)
def test_strings_that_lie(data: bytes, at: int, message: str) -> None:
    document = {"inputs": [binary("x", [2], "BYTES", len(data))]}
    error = refusal(document, data, one("string", (None,)))
    assert error.details["field"] == f"byte {len(json.dumps(document)) + at}"
    assert message in error.message


@pytest.mark.parametrize("size", ["", "-1", "x", "1e2", "٣", "9" * 19, "1.0", "+5"])
def test_a_size_of_the_json_that_is_no_number_is_415(size: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="json-header-size: expected a number of bytes"):
        decode(b"{}", one(), sized(size))


@pytest.mark.parametrize(
    ("body", "size", "message"),
    [
        (b"{}", 3, "json-header-size: the JSON has 3 bytes, the body has 2"),
        (b"", 0, "body is empty"),
        (b"", None, "JSON is empty"),
        (b"{}12", 3, "JSON is not valid JSON"),
        (b"{}12", None, "JSON is not valid JSON"),
        (b"[]", 2, "expected an inference request"),
        (b"\xff\xfe", 2, "JSON is not valid JSON"),
    ],
)
def test_json_that_is_not_there(body: bytes, size: int | None, message: str) -> None:
    with pytest.raises(InvalidPayload, match=message):
        decode(body, one(), sized(size))


def test_a_body_without_the_size_is_told_of_it() -> None:
    with pytest.raises(InvalidPayload) as caught:
        decode(b'{"inputs": []}\0\0\0\0', one(), sized(None))
    assert "json-header-size" in str(caught.value.details["expected"])


def test_json_has_a_limit_of_its_own() -> None:
    """Parsed, it takes many times its size; on the event loop it is not even begun with."""
    with pytest.raises(TensorsTooLarge, match="bytes of JSON take up to"):
        read({"inputs": [], "id": "k" * 100}, b"", one(), limit=1000)


def test_strings_count_for_what_they_become() -> None:
    data = bytes(4 * 50)
    with pytest.raises(TensorsTooLarge, match="take 3200 bytes, more than 3136"):
        read({"inputs": [binary("x", [50], "BYTES", 200)]}, data, one("string", (None,)), limit=64 * 49)


def parts_of(answer: Answer) -> tuple[Any, bytes]:
    kind, _, size = answer.media_type.partition(";json-header-size=")
    assert kind == TYPE
    return json.loads(answer.body[: int(size)]), answer.body[int(size) :]


def test_answers() -> None:
    signature = several(
        ("a", "float32", (None, 2)), ("b", "string", (None,)), ("c", "bool", (None,)), ("d", "int8", ())
    )
    arrays: Tensors = {
        "a": np.asfortranarray(np.array([[1.5, np.nan], [3, 4]], np.float32)),
        "b": texts(["é", ""]),
        "c": np.array([True, False]),
        "d": np.array(7, np.int8),
    }
    options = EncodeOptions(envelope=Envelope("7", binary={"c": False}), model_name="iris")
    document, data = parts_of(encode(arrays, signature, options))
    assert document == {
        "model_name": "iris",
        "model_version": "1",
        "id": "7",
        "outputs": [
            binary("a", [2, 2], "FP32", 16),
            binary("b", [2], "BYTES", 10),
            {"name": "c", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            binary("d", [], "INT8", 1),
        ],
    }
    assert data == struct.pack("<4f", 1.5, float("nan"), 3, 4) + packed("é", "") + b"\7"


def test_a_request_in_another_format_is_answered_in_raw_data_altogether() -> None:
    answer = encode({"y": np.ones((1, 2), np.float32)}, one(), ENCODE)
    document, data = parts_of(answer)
    assert document["outputs"] == [binary("y", [1, 2], "FP32", 8)]
    assert data == struct.pack("<2f", 1, 1)
    assert (len(answer.body) - len(data)) % 8 == 0


def test_an_answer_with_no_raw_data_is_json() -> None:
    options = EncodeOptions(envelope=Envelope(binary={"y": False}))
    answer = encode({"y": np.ones((1, 1), np.float32)}, one(), options)
    assert answer.media_type == "application/json"
    assert json.loads(answer.body)["outputs"][0]["data"] == [1.0]


def test_text_that_is_not_unicode_cannot_be_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode({"y": texts(["\ud800"])}, one("string", (None,)), ENCODE)


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_is_written_reads_back(signature: Signature) -> None:
    """Checklist 80: bit for bit, with NaN and infinities."""

    @settings(LAWS, max_examples=20)
    @given(tensors(signature))
    def law(sent: Tensors) -> None:
        document, data = parts_of(encode(sent, echo(signature), ENCODE))
        received = read({"inputs": document["outputs"]}, data, signature).tensors
        for name, array in sent.items():
            assert_same(received[name], array)

    law()


@LAWS
@given(st.data())
def test_damaged_bodies(data: st.DataObject) -> None:
    """Checklist 36 and 41: also with a size of the JSON that lies."""
    signature = data.draw(st.sampled_from(SIGNATURES))
    document, raw = parts_of(encode(data.draw(tensors(signature)), echo(signature), ENCODE))
    head = json.dumps({"inputs": document["outputs"]}).encode()
    body = bytearray(head + raw)
    for _ in range(data.draw(st.integers(0, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.just(len(head)) | st.integers(0, len(body) + 1))
    end = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    entry = codecs_by_media_type()[TYPE]
    assert_tensors_or_refusal(entry, bytes(body[:end]), signature, sized(size))
