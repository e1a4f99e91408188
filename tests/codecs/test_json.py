"""``application/json``: every request form, every refusal, the answers."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from byoc_server.codecs.base import DecodeOptions, Decoder, Enveloped
from byoc_server.codecs.json import decode, decoder, encode
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import BatchAxis, Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, spec, texts
from tests.codecs.test_roundtrip import tensors_of

NAN, INF = float("nan"), float("inf")
ROWS = [[1.5, 2, 3, 4], [5, 6, 7, 8]]


def read(document: object, signature: Signature, options: DecodeOptions = OPTIONS) -> Any:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    tensors = tensors_of(decode(body, signature, options))
    assert list(tensors) == [s.name for s in signature.inputs]
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(document: object, signature: Signature, options: DecodeOptions = OPTIONS) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        read(document, signature, options)
    return caught.value


def wrap(value: object) -> object:
    return {"data": {"features": {"values": value}}}


@pytest.mark.parametrize(
    "document",
    [
        {"instances": ROWS},
        {"instances": [{"features": row} for row in ROWS]},
        {"instances": [wrap(row) for row in ROWS]},
        {"instances": [{"data": {"features": row}} for row in ROWS]},
        {"instances": [{"values": row} for row in ROWS]},
        {"instances": [{"x": row} for row in ROWS]},
        {"instances": [{"keys": [0, 1, 2, 3], "shape": [4], "values": row} for row in ROWS]},
        {"instances": [ROWS[0], {"features": ROWS[1]}]},
        {"instances": [{"features": ROWS[0]}, ROWS[1]]},
        {"instances": ROWS, "configuration": {}, "signature_name": "serving_default"},
        {"signature_name": "serving_default", "instances": ROWS},
        {"instances": ROWS, "x": "not looked at"},
        {"inputs": ROWS},
        {"inputs": {"x": ROWS}},
        {"inputs": {"x": [{"values": row} for row in ROWS]}},
        {"x": ROWS},
        {"x": ROWS, "id": 7},
        {"features": ROWS},
        ROWS,
        [{"x": row} for row in ROWS],
        [{"features": ROWS[0]}, wrap(ROWS[1])],
    ],
)
def test_two_records_in_every_form(document: object) -> None:
    """Checklist 80 and 83: all request forms of the common formats."""
    assert_same(read(document, one()), np.array(ROWS, np.float32))


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [ROWS[0]]},
        {"instances": ROWS[0]},
        {"instances": {"features": ROWS[0]}},
        {"inputs": ROWS[0]},
        {"inputs": {"values": ROWS[0]}},
        {"features": ROWS[0]},
        {"features": {"values": ROWS[0]}},
        {"x": {"values": ROWS[0]}},
        wrap(ROWS[0]),
        ROWS[0],
    ],
)
def test_one_record_in_every_form(document: object) -> None:
    """Checklist 80."""
    assert_same(read(document, one()), np.array(ROWS[:1], np.float32))


def test_sparse_record_of_the_documentation() -> None:
    """Checklist 80: sparse JSON; keys may come in any order."""
    document = {"instances": [{"data": {"features": {"keys": [182, 26], "shape": [2000], "values": [4, 1]}}}]}
    array = read(document, one(shape=(None, 2000)))
    assert array.shape == (1, 2000)
    assert {i: array[0, i] for i in np.flatnonzero(array)} == {26: 1, 182: 4}


def test_sparse_records_of_other_ranks_and_kinds() -> None:
    sparse = {"keys": [3], "values": [9]}
    assert read({"instances": [sparse]}, one(shape=(None, 2, 2))).tolist() == [[[0, 0], [0, 9]]]
    assert read({"instances": [{**sparse, "shape": [5]}]}, one(shape=(None, None))).tolist() == [[0, 0, 0, 9, 0]]
    assert read({"instances": [{"keys": [], "values": [], "shape": []}]}, one(shape=(None,))).tolist() == [0]
    strings = {"keys": [1], "values": ["a"]}
    assert read({"instances": [strings]}, one("string", (None, 2))).tolist() == [["", "a"]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"keys": [0], "values": [1, 2]}, "same length"),
        ({"keys": 0, "values": [1]}, "same length"),
        ({"shape": [4], "values": [1]}, "same length"),
        ({"keys": [0], "values": 1}, "same length"),
        ({"keys": [4], "values": [1]}, "0 to 3, got 4"),
        ({"keys": [-1], "values": [1]}, "0 to 3, got -1"),
        ({"keys": ["0"], "values": [1]}, "0 to 3, got '0'"),
        ({"keys": [True], "values": [1]}, "0 to 3, got true"),
        ({"keys": [0], "values": [1], "shape": [5]}, "expected [4] for input 'x', got [5]"),
        ({"keys": [0], "values": [1], "shape": [-4]}, "expected a list of lengths"),
        ({"keys": [0], "values": [1], "shape": 4}, "expected a list of lengths, got 4"),
        ({"keys": [0], "values": [1], "shape": ["4"]}, "expected a list of lengths"),
        ({"keys": [0], "values": [[1]]}, "expected a number"),
        ({"keys": [0], "values": ["a"]}, "expected a number"),
    ],
)
def test_bad_sparse_records(value: object, words: str) -> None:
    error = refusal({"instances": [value]}, one())
    assert words in error.message
    assert error.message.startswith("instances[0]")


def test_sparse_record_needs_a_shape_where_the_model_has_none() -> None:
    error = refusal({"instances": [{"keys": [0], "values": [1]}]}, one(shape=(None, None)))
    assert error.message == "instances[0].shape: expected a list of lengths, got null"


@pytest.mark.parametrize("shape", [[2**40], [2**62], [10**6, 10**6], [2**63 - 1, 2**63 - 1], [2**62, 0]])
def test_sparse_bombs_are_refused(shape: list[int]) -> None:
    """Checklist 84: sizes are checked before memory is taken."""
    signature = one(shape=(None, *[None] * len(shape)))
    assert "too large when dense" in refusal([{"keys": [], "values": [], "shape": shape}], signature).message


def test_sparse_records_share_one_limit() -> None:
    """Checklist 84: also those of several inputs, and by the bytes of the tensors."""
    record = {"keys": [], "values": [], "shape": [100]}
    signature, options = one(shape=(None, None)), DecodeOptions({}, max_tensor_bytes=800)
    assert read([record, record], signature, options).shape == (2, 100)
    error = refusal([record, record, record], signature, options)
    assert isinstance(error, TensorsTooLarge)
    assert error.details["field"] == "body[2]"
    two = several(("a", "float32", (None, None)), ("b", "uint8", (None, None)))
    assert read({"a": [record], "b": [record]}, two, options)["b"].nbytes == 100
    error = refusal({"a": [record, record], "b": [record, record]}, two, options)
    assert isinstance(error, TensorsTooLarge)
    assert error.details["field"] == "b[0]"


@pytest.mark.parametrize("row", ["[%s]", "{'x': [%s]}", "{'keys': [0], 'values': [1]}"])
@pytest.mark.parametrize("numbers", ["1, 2", "1e30, 2", "'NaN', 2"])
def test_dense_records_count_too(row: str, numbers: str) -> None:
    """Checklist 84: whichever way they are read, and where some are sparse."""
    rows = ", ".join([row.replace("%s", numbers)] * 3000 + ["[1, 2]"])
    body = f"{{'instances': [{rows}]}}".replace("'", '"').encode()
    signature = one("float64", (None, 2))
    assert read(body, signature, DecodeOptions({}, 3001 * 16)).shape == (3001, 2)
    with pytest.raises(TensorsTooLarge, match=r"^instances\[\d+\]: .* too large when dense$"):
        read(body, signature, DecodeOptions({}, 3001 * 16 - 1))


def test_large_sparse_records_cost_little_more_than_their_tensors() -> None:
    """Checklist 84: a few kilobytes, of which no number becomes an object of Python's."""
    record = {"keys": [150_527, 0], "shape": [3, 224, 224], "values": [2, 1]}
    signature = one(shape=(None, 3, 224, 224))
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        array = read([record] * 50, signature)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * array.nbytes
    finally:
        tracemalloc.stop()
    assert array.shape == (50, 3, 224, 224)
    assert array.sum() == 150
    assert array[49, 2, 223, 223] == 2
    error = refusal([record] * 50 + [1], signature)
    assert error.message == "body[50]: expected a list of 3 lists for input 'x', got 1"
    assert time.monotonic() - start_s < 2


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
def test_a_large_sparse_record_is_made_at_once(dtype: str) -> None:
    start_s = time.monotonic()
    body = {"keys": [], "shape": [20_000_000], "values": []}
    assert read([body], one(dtype, (None, None))).shape == (1, 20_000_000)
    assert time.monotonic() - start_s < 1


def test_sparse_records_beside_others() -> None:
    sparse = {"keys": [1, 0, 1], "values": [None, "Infinity", 7]}
    expected = np.array([[INF, 7], [1, NAN], [5, 0]], np.float32)
    document = [sparse, {"x": [1, None]}, {"keys": [0], "values": [5]}]
    assert_same(read(document, one(shape=(None, 2))), expected)
    assert_same(read(document[1:], one(shape=(None, 2))), expected[1:])
    open_shape = one(shape=(None, None))
    assert read([{"keys": [], "values": [], "shape": [0]}, []], open_shape).shape == (2, 0)
    document = [{"keys": [], "values": [], "shape": [2]}, {"keys": [], "values": [], "shape": [3]}]
    assert refusal(document, open_shape).message == "body[1]: expected shape [2] for input 'x', got [3]"
    assert refusal([[1, 2, 3], document[0]], open_shape).message == (
        "body[1]: expected shape [3] for input 'x', got [2]"
    )
    error = refusal([{"keys": [3], "values": [300]}], one("uint8", (None, 4)))
    assert error.message.startswith("body[0].values[0]: expected a whole number from 0 to 255")
    assert read([{"keys": [3], "values": [2**63]}], one("uint64", (None, 4))).tolist() == [[0, 0, 0, 2**63]]


def test_a_long_text_beside_many_numbers_takes_no_memory() -> None:
    """NumPy would give each number the room of the text: terabytes here."""
    start_s = time.monotonic()
    for document in ({"instances": ["a" * 1_000_000] + [1] * 1_000_000}, ["a" * 1_000_000] + [1] * 1_000_000):
        assert "expected a number" in refusal(document, one(shape=(None,))).message
    body = b'{"instances":["' + b"a" * 1_000_000 + b'"' + b",1" * 1_000_000 + b"]}"
    assert "expected a number" in refusal(body, one(shape=(None,))).message
    assert time.monotonic() - start_s < 10


@pytest.mark.parametrize("depth", [3, 33, 65, 500, 1000, 100_000])
@pytest.mark.parametrize("key", [b'{"instances":%s}', b'{"inputs":%s}', b"%s", b'{"x":%s,"y":NaN}'])
def test_nesting_bombs(depth: int, key: bytes) -> None:
    """Checklist 41."""
    for core in (b"", b"1"):
        refusal(key.replace(b"%s", b"[" * depth + core + b"]" * depth), one())
    refusal(key.replace(b"%s", b"[" * depth), one())
    refusal(key.replace(b"%s", b'{"x":' * depth + b"1" + b"}" * depth), one())


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", [0.1, -65504, None]),
        ("float32", [0.1, 3.4028235e38, 1e-45]),
        ("float32", [3.4028235e38, None, "NaN", "Infinity", "-Infinity", True]),
        ("float64", [0.1, 1.7976931348623157e308, 5e-324]),
        ("int8", [-128, 127, 1.0]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("int64", [2**60 + 1, 1.0]),
        ("int64", [2**53, 1.0 - 2.0**53]),
        ("uint8", [0, 255, True]),
        ("uint16", [0, 2**16 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("uint64", [2**64 - 1, 1.0]),
        ("bool", [True, False, 1, 0]),
        ("bool", [True, 1.0, 0.0]),
        ("string", ["", "a", "ünï\x00", "NaN"]),
    ],
)
def test_values_keep_their_meaning(dtype: str, values: list[Any]) -> None:
    words = {None: NAN, "NaN": NAN, "Infinity": INF, "-Infinity": -INF}
    plain = values if dtype == "string" else [words.get(v, v) for v in values]
    expected = texts(plain) if dtype == "string" else np.array([int(v) if "int" in dtype else v for v in plain], dtype)
    assert_same(read({"instances": values}, one(dtype, (None,))), expected)
    assert_same(read({"instances": [[v] for v in values]}, one(dtype, (None, 1))), expected[:, None])
    assert_same(read({"inputs": [values]}, one(dtype, (None, len(values)))), expected[None])


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float16", 1e5, "within the range of float16, got 100000.0"),
        ("float16", 100000, "within the range of float16, got 100000"),
        ("float32", 1e39, "within the range of float32, got 1e+39"),
        ("float32", 3.5e38, "within the range of float32"),
        ("float32", "1.5", "a number (float32), got '1.5'"),
        ("float32", "nan", "a number (float32)"),
        ("float32", "a" * 100, "got 'aaa"),
        ("float32", {"a": 1}, "missing 'x'; unknown 'a'"),
        ("float32", [1], "a number (float32), got a list of 1"),
        ("int8", 128, "a whole number from -128 to 127, got 128"),
        ("int8", -129, "a whole number"),
        ("int8", 1.5, "got 1.5"),
        ("int8", None, "got null"),
        ("int8", "1", "got '1'"),
        ("int64", 2**63, "got 9223372036854775808"),
        ("int64", 2.0**60, "a whole number"),
        ("uint8", -1, "from 0 to 255, got -1"),
        ("uint64", -1, "a whole number"),
        ("uint64", 1e30, "a whole number"),
        ("bool", 2, "expected true or false, got 2"),
        ("bool", "true", "true or false"),
        ("bool", None, "got null"),
        ("bool", 0.5, "true or false"),
        ("string", 1, "expected a string, got 1"),
        ("string", None, "expected a string"),
        ("string", ["a"], "expected a string"),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_values_that_do_not_fit(dtype: str, value: object, words: str, key: str) -> None:
    error = refusal({key: [0 if dtype != "string" else "a", value]}, one(dtype, (None,)))
    assert words in error.message.replace(" for input 'x'", "")
    assert error.message.startswith(f"{key}[1]:" if not isinstance(value, dict) else f"{key}[")
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"instances": []}, "no records for input 'x'"),
        ({"inputs": []}, "no records for input 'x'"),
        ({"x": []}, "no records for input 'x'"),
        ([], "no records for input 'x'"),
        ({"instances": [[1, 2, 3]]}, "instances[0]: expected 4 values for input 'x', got 3"),
        ({"instances": [[1, 2, 3, 4], [1, 2, 3]]}, "instances[1]: expected 4 values for input 'x', got 3"),
        ({"instances": [[1, 2, 3, 4], 5]}, "instances[1]: expected a list of 4 values for input 'x', got 5"),
        (
            {"instances": [[1, 2, 3, [4]]]},
            "instances[0][3]: expected a number (float32) for input 'x', got a list of 1",
        ),
        ({"instances": [[[1, 2, 3, 4]]]}, "instances[0]: expected 4 values for input 'x', got 1"),
        ({"instances": None}, "instances: expected a list of 4 values for input 'x', got null"),
        ({"instances": "abc"}, "instances: expected a list of 4 values for input 'x', got 'abc'"),
        ({"instances": 5}, "instances: expected a list of 4 values for input 'x', got 5"),
        (b"5", "body: expected a list of 4 values for input 'x', got 5"),
        (b"null", "body: expected a list of 4 values for input 'x', got null"),
        (
            {"instances": [{"feature": [1]}]},
            "instances[0]: missing 'x'; unknown 'feature'; the model's inputs are x: float32[?, 4]",
        ),
        (
            {"instances": [{"x": [1], "z": 1}]},
            "instances[0]: unknown 'z'; the model's inputs are x: float32[?, 4]",
        ),
        ({"instances": [{"data": {"values": [1]}}]}, "instances[0].data: expected the key 'features'"),
        ({"data": {"values": [1]}}, "body.data: expected the key 'features'"),
        ({"data": 1}, "body: missing 'x'; unknown 'data'; the model's inputs are x: float32[?, 4]"),
        ({"inputs": {"z": ROWS}}, "inputs: missing 'x'; unknown 'z'; the model's inputs are x: float32[?, 4]"),
        (
            {"x": {"a": 1}},
            "x: expected a value for input 'x', got an object with the keys 'a'",
        ),
        (
            {"rows": ROWS},
            "expected an object with 'instances', 'inputs' or 'features', or a list of records, "
            "got an object with 'rows'; the model's inputs are x: float32[?, 4]",
        ),
        (
            {},
            "expected an object with 'instances', 'inputs' or 'features', or a list of records, "
            "got an object with no keys; the model's inputs are x: float32[?, 4]",
        ),
        (b"", "body is empty"),
        (b" \n", "body is empty"),
    ],
)
def test_documents_that_do_not_fit(document: object, message: str) -> None:
    """Checklist 36: a body that does not fit is refused with 400, and the message names the place."""
    error = refusal(document, one())
    assert error.message == message
    assert error.status == 400


@pytest.mark.parametrize(
    "body",
    [b"{", b"[1,2", b"[1,]", b"{'instances': []}", b"\xff", b"\x80\x81", b"[1] [2]", b'"\xed\xa0\x80"', b"\x00", b"nul"]
    + [b"[1e400]", b"[NaN", b"[NaN,]", b"[Infinity, 1e400, NaN]", b'["\\ud800", NaN]', b"[NaN, \xff]"]
    + [b"[NaN, " + b"9" * 5000 + b"]", b"[" * 5000 + b"NaN"],
)
def test_malformed_json(body: bytes) -> None:
    error = refusal(body, one(shape=(None,)))
    assert error.message.startswith("body is not valid JSON: ")
    assert len(error.message) < 200


def test_bare_nan_and_infinity_are_read() -> None:
    array = read(b'{"instances": [[NaN, Infinity, -Infinity, 1]]}', one())
    assert_same(array, np.array([[NAN, INF, -INF, 1]], np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_integers_beyond_every_float(dtype: str) -> None:
    for body in (b"[NaN, 1" + b"0" * 400 + b"]", b"[1" + b"0" * 400 + b", NaN]", b"[null, NaN, 1" + b"0" * 400 + b"]"):
        message = refusal(body, one(dtype, (None,))).message
        assert "expected " in message
        assert len(message) < 200


def test_the_message_names_the_fault_and_not_a_bare_nan_before_it() -> None:
    assert "char 16" in refusal(b"[[NaN, 1, 2, 3] [4]]", one()).message


def test_surrogate_pairs_beside_nan_are_read() -> None:
    signature = several(("a", "string", (None,)), ("b", "float32", (None,)))
    tensors = read(b'{"a": ["\\ud83d\\ude00"], "b": [NaN]}', signature)
    assert tensors["a"][0] == "\U0001f600"


def test_one_column_takes_scalars() -> None:
    expected = np.array([[1], [2]], np.float32)
    for document in ({"instances": [1, 2]}, {"instances": [[1], [2]]}, [{"features": 1}, {"features": [2]}], [1, [2]]):
        assert_same(read(document, one(shape=(None, 1))), expected)
    assert_same(read({"instances": [1, None]}, one(shape=(None, 1))), np.array([[1], [NAN]], np.float32))
    assert_same(read(b"5", one(shape=(None, 1))), np.array([[5]], np.float32))
    assert refusal([[1, 2]], one(shape=(None, 1))).message == "body[0]: expected 1 values for input 'x', got 2"


def test_scalar_records() -> None:
    assert_same(read({"instances": [1, 2]}, one(shape=(None,))), np.array([1, 2], np.float32))
    assert_same(read(b"7", one("int64", (None,))), np.array([7]))
    assert "got a list of 1" in refusal({"instances": [[1], [2]]}, one(shape=(None,))).message


def test_open_axes_are_equal_for_all_records() -> None:
    signature = one(shape=(None, None))
    assert read([[1, 2, 3]], signature).shape == (1, 3)
    assert read([1, 2, 3], signature).shape == (1, 3)
    assert read([[], []], signature).shape == (2, 0)
    assert refusal([[1, 2], [3]], signature).message == "body[1]: expected 2 values for input 'x', got 1"
    empty: dict[str, list[float]] = {"features": []}
    assert read([empty, empty], one(shape=(None, None, 3))).shape == (2, 0, 3)
    assert read([[[1, None]], [["NaN", 2]]], one(shape=(None, None, None))).shape == (2, 1, 2)
    error = refusal([[[1], [2, 3]]], one(shape=(None, None, None)))
    assert error.message == "body[0][1]: expected 1 values for input 'x', got 2"
    signature = one(shape=(None, None, None, None))
    assert "expected a list of 1 lists" in refusal([[[[1]]], 5], signature).message
    assert "expected a list of lists" in refusal({"instances": [{"features": 5}, [[[1]]]]}, signature).message


def test_images() -> None:
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    signature = one("uint8", (None, 3, 4, 5))
    assert_same(read({"instances": images.tolist()}, signature), images.astype(np.uint8))
    assert_same(read({"instances": images[0].tolist()}, signature), images[:1].astype(np.uint8))
    assert_same(read({"instances": images.tolist()}, one(shape=(None, 3, 4, 5))), images.astype(np.float32))
    broken = images.tolist()
    broken[1][2][3][4] = 256
    assert refusal(broken, signature).details["field"] == "body[1][2][3][4]"


TWO = several(("a", "float32", (None, 2)), ("b", "int64", (None,)))


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [{"a": [1, 2], "b": 3}, {"b": 6, "a": [4, 5]}]},
        [{"a": [1, 2], "b": 3}, {"b": 6, "a": {"values": [4, 5]}}],
        {"inputs": {"a": [[1, 2], [4, 5]], "b": [3, 6]}},
        {"a": [[1, 2], [4, 5]], "b": [3, 6]},
        {"a": [[1, 2], {"keys": [0, 1], "values": [4, 5]}], "b": [3, 6], "id": 1},
    ],
)
def test_several_inputs(document: object) -> None:
    tensors = read(document, TWO)
    assert_same(tensors["a"], np.array([[1, 2], [4, 5]], np.float32))
    assert_same(tensors["b"], np.array([3, 6]))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inputs": {"a": [[1, 2]], "b": [3, 6]}}, "input 'a' has 1 records but input 'b' has 2"),
        ({"inputs": {"a": [[1, 2]]}}, "inputs: missing 'b'; the model's inputs are a: float32[?, 2], b: int64[?]"),
        ({"inputs": {"a": [[1, 2]], "b": [3], "c": 1}}, "inputs: unknown 'c'"),
        ({"instances": [{"a": [1, 2]}]}, "instances[0]: missing 'b'"),
        (
            {"instances": [[1, 2]]},
            "instances[0]: the model has several inputs: expected an object with the keys 'a', 'b'",
        ),
        ({"instances": []}, "no records for input 'a'"),
        ([], "no records for input 'a'"),
        ({"inputs": [[1, 2]]}, "inputs[0]: the model has several inputs"),
        ({"features": [1, 2]}, "expected an object with 'instances'"),
        ({"data": {"features": [1]}}, "body: missing 'a', 'b'; unknown 'data'"),
        (b"5", "expected an object with 'instances', 'inputs' or 'features', or a list of records, got 5"),
        ({"a": [[1, 2]]}, "got an object with 'a'"),
        ({"a": [[1, 2], [1]], "b": [1, 2]}, "a[1]: expected 2 values for input 'a', got 1"),
        ({"inputs": {"a": [[1, 2]], "b": [0.5]}}, "inputs.b[0]: expected a whole number"),
    ],
)
def test_several_inputs_that_do_not_fit(document: object, words: str) -> None:
    assert words in refusal(document, TWO).message


@pytest.mark.parametrize("name", ["instances", "inputs", "features", "values", "data"])
def test_inputs_named_like_keywords(name: str) -> None:
    signature = several((name, "float32", (None, 2)))
    for document in (
        {"instances": [[1, 2]]},
        {"instances": [{"features": [1, 2]}]},
        {"inputs": {name: [[1, 2]]}} if name != "inputs" else {"inputs": [[1, 2]]},
        {name: [[1, 2]]},
        [{name: [1, 2]}],
        {"data": {"features": {"values": [1, 2]}}},
        [[1, 2]],
    ):
        assert_same(read(document, signature), np.array([[1, 2]], np.float32))


def test_an_input_named_instances_among_several() -> None:
    signature = several(("instances", "float32", (None,)), ("mask", "bool", (None,)))
    tensors = read({"instances": [1, 2], "mask": [True, False]}, signature)
    assert tensors["instances"].tolist() == [1, 2]


def test_many_inputs_stay_linear() -> None:
    names = [f"feature_{i}" for i in range(1000)]
    signature = several(*((name, "float32", (None,)) for name in names))
    start_s = time.monotonic()
    read([dict.fromkeys(names, 1) for _ in range(200)], signature)
    assert time.monotonic() - start_s < 5


def test_without_batch_axis() -> None:
    matrix = one(shape=(2, 2), batch_axis=ABSENT)
    for document in ({"inputs": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]], {"instances": [{"features": [[1, 2], [3, 4]]}]}):
        assert_same(read(document, matrix), np.array([[1, 2], [3, 4]], np.float32))
    scalar = read({"x": 5}, one(shape=(), batch_axis=ABSENT))
    assert_same(scalar, np.array(5, np.float32))
    assert_same(read({"x": "a"}, one("string", (), ABSENT)), texts("a"))
    assert_same(read({"x": [1, 2]}, one("int32", (None,), ABSENT)), np.array([1, 2], np.int32))
    error = refusal([{"x": [1]}, {"x": [2]}], one(shape=(1,), batch_axis=ABSENT))
    assert error.message == "the model takes one record per request, got 2"
    assert read([1], one(shape=(1,), batch_axis=ABSENT)).tolist() == [1]
    tensors = read({"a": [1], "b": 2}, several(("a", "float32", (1,)), ("b", "float32", ()), batch_axis=ABSENT))
    assert tensors["b"].shape == ()


def test_a_fixed_batch_axis_takes_any_number_of_records() -> None:
    """Checklist 66."""
    signature = one(shape=(8, 4), batch_axis=BatchAxis.FIXED)
    assert read({"instances": ROWS}, signature).shape == (2, 4)
    assert read({"instances": ROWS * 10}, signature).shape == (20, 4)


def write(signature: Signature, *arrays: object) -> Any:
    tensors = {s.name: np.asarray(a, dtype=s.dtype) for s, a in zip(signature.outputs, arrays, strict=True)}
    return encode(tensors, signature, ENCODE)


@pytest.mark.parametrize(
    ("signature", "arrays", "text"),
    [
        (one(), [[[0.1, 1, 2, 3]]], b'{"predictions":[[0.1,1.0,2.0,3.0]]}'),
        (one(), [[[NAN, INF, -INF, 3]]], b'{"predictions":[[null,null,null,3.0]]}'),
        (one("float16", (None,)), [[0.1]], b'{"predictions":[0.099975586]}'),
        (one("float64", (None,)), [[0.1]], b'{"predictions":[0.1]}'),
        (one("int64", (None,)), [[-1, 2**62]], b'{"predictions":[-1,4611686018427387904]}'),
        (one("uint64", (None, 1)), [[[2**64 - 1]]], b'{"predictions":[[18446744073709551615]]}'),
        (one("bool", (None,)), [[True, False]], b'{"predictions":[true,false]}'),
        (one("string", (None, 1)), [[["a\u00e4"], ['"']]], '{"predictions":[["a\u00e4"],["\\""]]}'.encode()),
        (one(shape=(None, 1, 2)), [[[[1, 2]], [[3, 4]]]], b'{"predictions":[[[1.0,2.0]],[[3.0,4.0]]]}'),
        (one(shape=(None, 0)), [np.zeros((2, 0))], b'{"predictions":[[],[]]}'),
        (one(shape=(), batch_axis=ABSENT), [0.1], b'{"predictions":0.1}'),
        (one(shape=(), batch_axis=ABSENT), [NAN], b'{"predictions":null}'),
        (one("string", (), ABSENT), ["a"], b'{"predictions":"a"}'),
        (one(shape=(None, 4), batch_axis=ABSENT), [np.zeros((0, 4))], b'{"predictions":[]}'),
        (TWO, [[[0.1, 2], [3, NAN]], [5, 6]], b'{"predictions":[{"a":[0.1,2.0],"b":5},{"a":[3.0,null],"b":6}]}'),
        (
            several(("s", "string", (None,)), ("p", "float32", (None,))),
            [["a"], [0.1]],
            b'{"predictions":[{"s":"a","p":0.1}]}',
        ),
        (
            several(("a", "float32", (2,)), ("b", "float32", ()), batch_axis=ABSENT),
            [[0.1, 1], 0.1],
            b'{"predictions":{"a":[0.1,1.0],"b":0.1}}',
        ),
    ],
)
def test_answers(signature: Signature, arrays: list[object], text: bytes) -> None:
    """Checklist 47, 80 and 83: predictions in order, no bare NaN."""
    assert write(signature, *arrays) == text


def test_answers_do_not_depend_on_the_memory_layout() -> None:
    array = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    signature = one(shape=(None, 2))
    assert encode({"y": array.T.copy().T}, signature, ENCODE) == encode({"y": array}, signature, ENCODE)


def test_spec_helper_reads_strings() -> None:
    assert spec("x", "string", (None,)).dtype_name == "string"


def test_large_integers_beside_floats_keep_every_digit() -> None:
    array = read(b'{"instances": [[9007199254740993, 1.0]]}', one("int64", (None, 2)))
    assert array.tolist() == [[9007199254740993, 1]]


@pytest.mark.parametrize("body", [b'{"keys": [0, 2], "shape": [4], "values": [5, 1]}', b'{"values": [5, 0, 1, 0]}'])
def test_a_value_object_may_be_the_whole_body(body: bytes) -> None:
    assert read(body, one()).tolist() == [[5, 0, 1, 0]]


def test_a_decoder_keeps_nothing_of_what_it_read() -> None:
    """Whatever came before, good or bad, each body is read as if it were the first, into memory of its own."""
    signature = one()
    read_body = decoder(signature, OPTIONS)
    bodies = [
        b'{"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
        b'{"instances": [[1, 2, 3, 4], [5, 6, 7]]}',
        b'{"instances": [[9, 9, 9, 9]]}',
        b'{"instances": [[1, 2, 3, "4"]]}',
        b'{"instances": [[1, 2, 3, null]]}',
        b'{"instances": [[1, 2, 3, 1e300]]}',
        b'{"instances": []}',
        b'{"instances": 5}',
        b'{"instances": "1234"}',
        b'{"instances": {"x": [1, 2, 3, 4]}}',
        b'{"inputs": [[1, 2, 3, 4]]}',
        b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b"[[1, 2, 3, 4]]",
        b'"x"',
        b"5",
        b"{",
        b"",
        b'{"instances": [[NaN, 2, 3, 4]]}',
        b'{"instances": [' + b"[1, 2, 3, 4]," * 20_000 + b"[1, 2, 3, 4]]}",
    ]

    def outcome(body: bytes, read_one: Decoder) -> object:
        try:
            decoded = read_one(body)
        except InvalidPayload as error:
            return error.message, error.details
        envelope = decoded.envelope if isinstance(decoded, Enveloped) else None
        (array,) = tensors_of(decoded).values()
        return envelope, array.dtype, array.shape, array.tobytes()

    for body in [*bodies, *reversed(bodies), *bodies]:
        assert outcome(body, read_body) == outcome(body, decoder(signature, OPTIONS))
    first, second = (tensors_of(read_body(bodies[0]))["x"] for _ in range(2))
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize(
    "signature",
    [
        one(shape=(None, None)),
        one("string", (None, 1)),
        one("bool", (None, 1)),
        one(shape=(1,), batch_axis=ABSENT),
        TWO,
    ],
)
def test_a_decoder_of_what_is_no_row_of_numbers_reads_the_same(signature: Signature) -> None:
    read_body = decoder(signature, OPTIONS)
    values = {"string": ["a"], "bool": [True]}.get(signature.inputs[0].dtype_name, [1])
    for _ in range(2):
        document: object = {"instances": [{"a": [1, 2], "b": 3}]} if len(signature.inputs) > 1 else {"inputs": [values]}
        if not signature.batched:
            document = {"inputs": values}
        received = tensors_of(read_body(orjson.dumps(document)))
        expected = tensors_of(decode(orjson.dumps(document), signature, OPTIONS))
        for name, array in expected.items():
            assert_same(received[name], array)
