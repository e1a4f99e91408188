"""The Open Inference Protocol in JSON: requests of every kind, what they ask for, and answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.base import CODECS, Answer, DecodeOptions, EncodeOptions, Envelope, Enveloped
from byoc_server.codecs.json import decode, encode
from byoc_server.codecs.open_inference.answer import encode_answer
from byoc_server.codecs.open_inference.data import DATATYPES
from byoc_server.codecs.open_inference.request import decode_request, is_request
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Array, BatchAxis, Signature, Tensors
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors

PAIR = several(("a", "float32", (None, 2)), ("b", "string", (None,)))


def tensor(name: str, shape: Any, datatype: Any, data: Any = None, **more: Any) -> dict[str, Any]:
    item = {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}
    return {key: value for key, value in item.items() if value is not None}


X = tensor("x", [1, 4], "FP32", [1, 2, 3, 4])


def read(document: Any, signature: Signature, options: DecodeOptions = OPTIONS) -> Enveloped:
    """Through the JSON codec, which has to recognise the form."""
    decoded = decode(json.dumps(document).encode(), signature, options)
    assert isinstance(decoded, Enveloped)
    return decoded


def read_x(item: dict[str, Any], signature: Signature) -> Array:
    return read({"inputs": [item]}, signature).tensors["x"]


def refusal(document: Any, signature: Signature, options: DecodeOptions = OPTIONS) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode_request(document, signature, options)
    assert len(caught.value.message) < 500
    orjson.dumps(caught.value.details)
    return caught.value


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4, 5, 6, 7, 8], [[1, 2.5, 3, 4], [5, 6, 7, 8]]])
def test_data_is_flat_or_nested(data: Any) -> None:
    expected = np.array([[1, 2.5, 3, 4], [5, 6, 7, 8]], np.float32)
    assert_same(read_x(tensor("x", [2, 4], "FP32", data), one()), expected)


@pytest.mark.parametrize(
    ("datatype", "dtype", "data", "values"),
    [
        ("BOOL", "bool", [True, False, 1, 0], [True, False, True, False]),
        ("UINT8", "uint8", [0, 255], [0, 255]),
        ("UINT16", "uint16", [0, 65535], [0, 65535]),
        ("UINT32", "uint32", [0, 2**32 - 1], [0, 2**32 - 1]),
        ("UINT64", "uint64", [0, 2**64 - 1], [0, 2**64 - 1]),
        ("INT8", "int8", [-128, 127], [-128, 127]),
        ("INT16", "int16", [-(2**15), 5.0], [-(2**15), 5]),
        ("INT32", "int32", [-(2**31), 2**31 - 1], [-(2**31), 2**31 - 1]),
        ("INT64", "int64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("FP16", "float16", [1.5, -65504, None], [1.5, -65504, math.nan]),
        ("FP32", "float32", [1, 2.5, None, "NaN", "-Infinity"], [1, 2.5, math.nan, math.nan, -math.inf]),
        ("FP64", "float64", [1, 1e300, float("nan")], [1, 1e300, math.nan]),
        ("BYTES", "string", ["a", "", "é€😀"], ["a", "", "é€😀"]),
    ],
)
def test_datatypes(datatype: str, dtype: str, data: list[Any], values: list[Any]) -> None:
    result = read_x(tensor("x", [len(data)], datatype, data), one(dtype, (None,)))
    assert_same(result, np.array(values, DATATYPES[datatype]))


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("INT64", [1, 2], "float32"),
        ("FP64", [1.0, 2.0], "int64"),
        ("FP32", [1, 2], "float64"),
        ("BOOL", [True, False], "float32"),
        ("UINT8", [1, 0], "bool"),
        ("FP64", [1.5, 2.5], "float16"),
    ],
)
def test_values_convert_to_the_dtype_of_the_input(datatype: str, data: list[Any], dtype: str) -> None:
    assert_same(read_x(tensor("x", [2], datatype, data), one(dtype, (None,))), np.array(data).astype(dtype))


@pytest.mark.parametrize(
    ("shape", "signature", "expected"),
    [
        ([4], one(), (1, 4)),
        ([2, 4], one(), (2, 4)),
        ([3], one(shape=(None, 1)), (3, 1)),
        ([3], one(shape=(None, None)), (1, 3)),
        ([], one(shape=(None,)), (1,)),
        ([3], one(shape=(None,)), (3,)),
        ([2, 3, 2], one(shape=(None, 3, None)), (2, 3, 2)),
        ([6, 2], one(shape=(4, 2), batch_axis=BatchAxis.FIXED), (6, 2)),
        ([2, 2], one(shape=(2, 2), batch_axis=ABSENT), (2, 2)),
        ([], one(shape=(), batch_axis=ABSENT), ()),
    ],
)
def test_shapes_with_and_without_the_record_axis(shape: list[int], signature: Signature, expected: Any) -> None:
    count = math.prod(shape)
    result = read_x(tensor("x", shape, "FP32", list(range(count))), signature)
    assert_same(result, np.arange(count, dtype=np.float32).reshape(expected))


def test_several_inputs_in_any_order() -> None:
    inputs = [tensor("b", [2], "BYTES", ["p", "q"]), tensor("a", [2, 2], "FP32", [1, 2, 3, 4])]
    result = read({"inputs": inputs, "model_name": "m", "unknown": {}}, PAIR)
    assert list(result.tensors) == ["a", "b"]
    assert_same(result.tensors["a"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(result.tensors["b"], texts(["p", "q"]))
    assert result.envelope == Envelope()


def test_what_a_request_says_about_its_answer() -> None:
    inputs = [tensor("a", [1, 2], "FP32", [1, 2], parameters={"own": 1}), tensor("b", [1], "BYTES", ["p"])]
    document: dict[str, Any] = {"id": "7é", "inputs": inputs, "parameters": {"priority": 3, "classification": 1}}
    assert read(document, PAIR).envelope == Envelope("7é")
    document["outputs"] = [{"name": "b"}, {"name": "a", "parameters": {"binary_data": True}}]
    assert read(document, PAIR).envelope == Envelope("7é", ("b", "a"), {"a": True})
    document["parameters"]["binary_data_output"] = True
    document["outputs"][1]["parameters"]["binary_data"] = False
    assert read(document, PAIR).envelope == Envelope("7é", ("b", "a"), {"b": True, "a": False})
    del document["outputs"]
    assert read(document, PAIR).envelope == Envelope("7é", (), {"b": True, "a": True})
    nothing = {"id": None, "parameters": None, "outputs": None}
    assert read({**document, **nothing}, PAIR).envelope == Envelope()
    assert read({**document, **nothing, "outputs": [], "parameters": {}}, PAIR).envelope == Envelope()


WRONG: list[tuple[Any, str, str]] = [
    ([], "body", "expected an inference request"),
    ({}, "inputs", "expected a list, got nothing"),
    ({"inputs": {"x": 1}}, "inputs", "expected a list, got an object"),
    ({"inputs": []}, "inputs", "missing 'x'"),
    ({"inputs": [5]}, "inputs[0]", "expected an object, got 5"),
    ({"inputs": [X, {**X}]}, "inputs[1].name", "'x' is there twice"),
    ({"inputs": [X, {**X, "name": "z"}]}, "inputs", "unknown 'z'"),
    ({"inputs": [{**X, "name": 7}]}, "inputs[0].name", "expected a string, got 7"),
    ({"inputs": [{"name": "x"}]}, "inputs[0].datatype", "got nothing"),
    ({"inputs": [{**X, "datatype": "BF16"}]}, "inputs[0].datatype", "send FP32, got 'BF16'"),
    ({"inputs": [{**X, "datatype": "fp32"}]}, "inputs[0].datatype", "expected one of BOOL"),
    ({"inputs": [{**X, "datatype": ["FP32"]}]}, "inputs[0].datatype", "got a list of 1"),
    ({"inputs": [{**X, "datatype": "BYTES", "data": list("abcd")}]}, "inputs[0].datatype", "BYTES does not convert"),
    ({"inputs": [{**X, "shape": None}]}, "inputs[0].shape", "expected a list, got nothing"),
    ({"inputs": [{**X, "shape": 4}]}, "inputs[0].shape", "expected a list, got 4"),
    ({"inputs": [{**X, "shape": [1, -4]}]}, "inputs[0].shape[1]", "a positive whole number, got -4"),
    ({"inputs": [{**X, "shape": [0, 4]}]}, "inputs[0].shape[0]", "a positive whole number, got 0"),
    ({"inputs": [{**X, "shape": [True, 4]}]}, "inputs[0].shape[0]", "got true"),
    ({"inputs": [{**X, "shape": [1.0, 4]}]}, "inputs[0].shape[0]", "got 1.0"),
    ({"inputs": [{**X, "shape": [2**63, 4]}]}, "inputs[0].shape[0]", "a positive whole number"),
    ({"inputs": [{**X, "shape": [10**4000]}]}, "inputs[0].shape[0]", "a positive whole number"),
    ({"inputs": [{**X, "shape": [2**40, 2**40]}]}, "inputs[0].shape", "so many elements"),
    ({"inputs": [{**X, "shape": [1] * 33}]}, "inputs[0].shape", "32 axes or fewer"),
    ({"inputs": [{**X, "shape": [4, 1]}]}, "inputs[0].shape", "expected shape [?, 4], got [4, 1]"),
    ({"inputs": [{**X, "shape": [2, 4]}]}, "inputs[0].data", "expected 8 values for shape [2, 4], got 4"),
    ({"inputs": [{**X, "data": [[1, 2, 3, 4]] * 2}]}, "inputs[0].data", "expected 1 lists for shape [1, 4], got 2"),
    ({"inputs": [{**X, "data": [[1, 2, 3]]}]}, "inputs[0].data[0]", "expected 4 values"),
    ({"inputs": [{**X, "data": [1, 2, 3, "4"]}]}, "inputs[0].data[3]", "expected a number"),
    ({"inputs": [{**X, "data": [1, 2, 3, [4]]}]}, "inputs[0].data[3]", "expected a number"),
    ({"inputs": [{**X, "data": [1, 2, 3, 1e39]}]}, "inputs[0].data[3]", "within the range of float32"),
    ({"inputs": [{**X, "datatype": "INT8", "data": [1, 2, 3, 128]}]}, "inputs[0].data[3]", "from -128 to 127"),
    ({"inputs": [{**X, "data": {}}]}, "inputs[0].data", "expected a list, got an object"),
    ({"inputs": [tensor("x", [1, 4], "FP32")]}, "inputs[0].data", "expected a list, got null"),
    ({"inputs": [{**X, "parameters": 1}]}, "inputs[0].parameters", "expected an object"),
    (
        {"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]},
        "inputs[0].parameters.shared_memory_region",
        "is not supported here",
    ),
    (
        {"inputs": [{**X, "parameters": {"binary_data_size": 16}}]},
        "inputs[0].parameters.binary_data_size",
        "there is 'data' as well",
    ),
    ({"inputs": [X], "id": 7}, "id", "expected a string, got 7"),
    ({"inputs": [X], "parameters": []}, "parameters", "expected an object"),
    ({"inputs": [X], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output", "true or false, got 1"),
    ({"inputs": [X], "outputs": {}}, "outputs", "expected a list"),
    ({"inputs": [X], "outputs": ["y"]}, "outputs[0]", "expected an object"),
    ({"inputs": [X], "outputs": [{}]}, "outputs[0].name", "expected a string"),
    ({"inputs": [X], "outputs": [{"name": "z"}]}, "outputs[0].name", "one of the model's outputs, 'y', got 'z'"),
    ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1].name", "'y' is there twice"),
    (
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
        "outputs[0].parameters.classification",
        "is not supported here",
    ),
    (
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
        "outputs[0].parameters.binary_data",
        "true or false",
    ),
]


@pytest.mark.parametrize(("document", "field", "message"), WRONG)
def test_what_is_wrong_is_named_by_its_place(document: Any, field: str, message: str) -> None:
    error = refusal(document, one())
    assert error.details["field"] == field
    assert message in error.message
    assert field in error.message or field == "body"


def test_inputs_have_the_same_number_of_records() -> None:
    inputs = [tensor("a", [1, 2], "FP32", [1, 2]), tensor("b", [2], "BYTES", ["p", "q"])]
    assert "1 records" in refusal({"inputs": inputs}, PAIR).message


@pytest.mark.parametrize(
    ("shape", "dtype", "datatype"),
    [([100, 4], "float64", "UINT8"), ([16], "string", "BYTES"), ([4, 64], "bool", "FP32")],
)
def test_tensors_have_a_limit(shape: list[int], dtype: str, datatype: str) -> None:
    """What the values take in between counts too."""
    signature = one(dtype, (None,) * len(shape))
    document = {"inputs": [tensor("x", shape, datatype, [])]}
    with pytest.raises(TensorsTooLarge, match="the tensors of this request take"):
        decode_request(document, signature, DecodeOptions({}, max_tensor_bytes=1000))


@pytest.mark.parametrize(
    ("document", "signature", "expected"),
    [
        ({"inputs": [X]}, one(), True),
        ({"data": 1, "inputs": [{"datatype": "FP32", "data": [1], "name": "x"}, 5]}, one(), True),
        ([X], one(), False),
        ({"inputs": X}, one(), False),
        ({"inputs": []}, one(), False),
        ({"inputs": [[1, 2, 3, 4]]}, one(), False),
        ({"inputs": [{"x": [1, 2, 3, 4]}]}, one(), False),
        (
            {"inputs": [{"name": "Ann", "age": 7}]},
            several(("name", "string", (None,)), ("age", "int64", (None,))),
            False,
        ),
        ({"inputs": [X]}, several(("name", "string", (None,)), ("age", "int64", (None,))), True),
        ({"inputs": [X]}, several(("name", "string", (None,)), ("datatype", "string", (None,))), False),
    ],
)
def test_requests_are_told_from_other_documents(document: Any, signature: Signature, expected: bool) -> None:
    assert is_request(document, signature) is expected


def test_records_that_look_alike_are_still_records() -> None:
    signature = several(("name", "string", (None,)), ("datatype", "string", (None,)))
    result = decode(b'{"inputs": [{"name": "a", "datatype": "b"}]}', signature, OPTIONS)
    assert isinstance(result, dict)
    assert_same(result["datatype"], texts(["b"]))


def answer_of(arrays: Tensors, signature: Signature, options: EncodeOptions) -> Any:
    answer = encode(arrays, signature, options)
    assert isinstance(answer, Answer)
    assert answer.media_type == "application/json"
    return json.loads(answer.body)


def test_answers() -> None:
    signature = several(("a", "float32", (None, 2)), ("b", "string", (None,)), ("c", "bool", ()))
    arrays = {
        "a": np.array([[1.5, np.nan], [-np.inf, 0.1]], np.float32)[:, ::-1],
        "b": texts(["é", ""]),
        "c": np.array(True),
    }
    assert answer_of(arrays, signature, EncodeOptions(envelope=Envelope("7"), model_name="iris")) == {
        "model_name": "iris",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [None, 1.5, 0.1, None]},
            {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["é", ""]},
            {"name": "c", "shape": [], "datatype": "BOOL", "data": [True]},
        ],
    }


def test_an_answer_names_no_id_where_none_was_given() -> None:
    assert "id" not in answer_of({"y": np.zeros(1, np.float16)}, one(), EncodeOptions(envelope=Envelope()))


def test_other_json_requests_are_answered_as_ever() -> None:
    assert encode({"y": np.zeros((1, 1), np.float32)}, one(), ENCODE) == b'{"predictions":[[0.0]]}'


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_is_written_reads_back(signature: Signature) -> None:
    """Checklist 80: an answer's outputs are a request's inputs; infinities are ``null`` in JSON."""

    @settings(LAWS, max_examples=20)
    @given(tensors(signature))
    def law(sent: Tensors) -> None:
        document = orjson.loads(encode_answer(sent, echo(signature), ENCODE).body)
        received = decode_request({"inputs": document["outputs"]}, signature, OPTIONS).tensors
        for name, array in sent.items():
            expected = np.where(np.isinf(array), np.nan, array) if array.dtype.kind == "f" else array
            assert_same(received[name], expected.astype(array.dtype))

    law()


names = st.sampled_from(["x", "a", "b", "z", "name"])
datatypes = st.sampled_from([*DATATYPES, "BF16"])
values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3)
data = st.lists(values | st.lists(values, max_size=3), max_size=6)
parameters = st.dictionaries(st.sampled_from(["binary_data_size", "binary_data", "classification"]), values, max_size=1)
items = st.fixed_dictionaries(
    {"name": names, "datatype": datatypes, "shape": st.lists(st.integers(-1, 3) | values, max_size=3)},
    optional={"data": data, "parameters": parameters},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(items | values, min_size=1, max_size=2)},
    optional={"id": values, "outputs": st.lists(items | values, max_size=2), "parameters": parameters},
)


@LAWS
@given(requests, st.sampled_from(SIGNATURES))
def test_any_request_gives_tensors_or_a_refusal(document: Any, signature: Signature) -> None:
    """Checklist 36 and 41."""
    options = DecodeOptions({}, max_tensor_bytes=10_000)
    assert_tensors_or_refusal(CODECS[0], json.dumps(document).encode(), signature, options)
