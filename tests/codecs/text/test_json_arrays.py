"""Large arrays in JSON documents: which documents they may stand in, and what is left to the long way."""

from __future__ import annotations

import json as standard_json
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from byoc_server.codecs.json import decode
from byoc_server.codecs.text.json_arrays import document_with_arrays
from byoc_server.errors import InvalidPayload
from byoc_server.types import Signature
from tests.codecs.signatures import OPTIONS, assert_same, one, several
from tests.codecs.test_roundtrip import tensors_of
from tests.onnx_models import identity
from tests.server_process import running

ROWS = (np.arange(4000).reshape(1000, 4) / 8).astype(np.float32)
TEXT = orjson.dumps(ROWS.tolist()).decode()
TWO = several(("a", "float32", (None, 4)), ("b", "int64", (None, 4)))


def arrays_in(document: Any) -> int:
    if isinstance(document, dict):
        return sum(map(arrays_in, document.values()))
    if isinstance(document, list):
        return sum(map(arrays_in, document))
    return int(isinstance(document, np.ndarray))


@pytest.mark.parametrize(
    "form",
    ["%s", " %s\n", '{"instances": %s}', '{"instances": %s, "id": "a"}', '{"id": {"b": [1, {}]}, "instances": %s}']
    + ['{"inputs": %s}', '{"inputs": {"x": %s}}', '{"x": %s, "y": {}}', '{"features": %s}', '{"y": "[1]", "x": %s}']
    + ['{"inputs": [{"name": "x", "shape": [1000, 4], "datatype": "FP32", "data": %s}], "id": "7"}']
    + ['{"inputs": [{"data": %s, "datatype": "FP64", "shape": [1000, 4], "name": "x"}]}']
    + ['{"b": 1, "x": %s}'],
)
def test_documents_with_an_array(form: str) -> None:
    """Checklist 80."""
    body = form.replace("%s", TEXT).encode()
    assert arrays_in(document_with_arrays(body, one())) == 1
    assert_same(tensors_of(decode(body, one(), OPTIONS))["x"], ROWS)
    body = form.replace("%s", TEXT.replace("[0.5,", "[null,", 1)).encode()
    expected = ROWS.copy()
    expected[1, 0] = np.nan
    assert arrays_in(document_with_arrays(body, one())) == 1
    assert_same(tensors_of(decode(body, one(), OPTIONS))["x"], expected)


def test_two_arrays() -> None:
    whole = TEXT.replace(".0", "").replace(".125", "").replace(".25", "").replace(".375", "").replace(".5", "")
    whole = whole.replace(".625", "").replace(".75", "").replace(".875", "")
    for form in ('{"a": %s, "b": %s}', '{"inputs": {"b": %s, "a": %s}}', '{"a": %s, "id": "1", "b": %s}'):
        first, second = (TEXT, whole) if form.index('"a"') < form.index('"b"') else (whole, TEXT)
        body = (form % (first, second)).encode()
        assert arrays_in(document_with_arrays(body, TWO)) == 2
        tensors = tensors_of(decode(body, TWO, OPTIONS))
        assert_same(tensors["a"], ROWS)
        assert_same(tensors["b"], ROWS.astype(np.int64))


@pytest.mark.parametrize(
    ("form", "signature"),
    [
        ('{"instances": %s, "\\u0061": 1}', one()),  # a backslash
        ('{"instances": %s, "y": {"b64": "?"}}', one()),
        ('{"instances": %s, "y": ' + str(["a"] * 200).replace("'", '"') + "}", one()),
        ('{"instances": %s, "y": ' + "1" * 20_000 + "}", one()),
        ('{"instances": %s, "y": [' + "true," * 5000 + "1]}", one()),
        ('{"instances": %s, "y": [[1]' + " " * 20_000 + "]}", one()),
        ('{"instances": %s, "y": [[1' + " " * 20_000 + "]}", one()),
        ('[[{"x": %s}]]', one()),
        ('[{"z": {"b64": 1}, "x": %s}]', one()),
        ('{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1000, 4], "data": %s}]}', one()),
        ('{"inputs": [{"name": "z", "datatype": "FP32", "shape": [1000, 4], "data": %s}]}', one()),
        ('{"inputs": [{"name": ["x"], "datatype": "FP32", "shape": [1000, 4], "data": %s}]}', one()),
        ('{"inputs": [{"name": "x", "datatype": ["FP32"], "shape": [1000, 4], "data": %s}]}', one()),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1000, 4], "data": [1]}, "a"], "x": %s}', one()),
        ('{"instances": %s, "instances": %s}', one()),
        ('{"instances": %s', one()),
        ('{"instances": %s]}', one()),
        ('{"instances" %s}', one()),
        ('{"instances: %s}', one()),
        ('{"instances": %s}', one("string", (None, 4))),
        ('{"instances": %s}', one("int64", (None, 4))),
        ('{"instances": [%s, 1]}', one()),
        ("%s", TWO),
        ('{"a": %s, "c": %s}', TWO),
        ('{"\xff": %s, "b": 1}', TWO),
    ],
)
def test_documents_that_are_left_alone(form: str, signature: Signature) -> None:
    body = form.replace("%s", TEXT).encode("latin-1")
    assert document_with_arrays(body, signature) is None


@pytest.mark.parametrize("form", ['[{"x": %s}, {"x": %s}]', '{"instances": [{"features": %s}, {"values": %s}, %r]}'])
def test_records_with_an_array(form: str) -> None:
    """Checklist 80: also beside a record that is a list."""
    signature = one(shape=(None, 1000, 4))
    body = form.replace("%s", TEXT).replace("%r", str([[1, 2, 3, 4]] * 1000)).encode()
    expected = np.stack([ROWS, ROWS])
    if "%r" in form:
        expected = np.concatenate([expected, np.full((1, 1000, 4), [1, 2, 3, 4], np.float32)])
    else:
        assert arrays_in(document_with_arrays(body, signature)) == 2
    assert_same(tensors_of(decode(body, signature, OPTIONS))["x"], expected)


def test_data_is_read_as_what_the_request_declares() -> None:
    """Checklist 83: 2^24 + 1 is no float32, so the request is refused as it is where the data is small."""
    form = '{"inputs": [{"name": "x", "shape": [20000], "datatype": "%s", "data": [16777217%s]}]}'
    signature = one("int64", (None,))
    body = (form % ("INT32", ",1" * 19_999)).encode()
    assert arrays_in(document_with_arrays(body, signature)) == 1
    assert tensors_of(decode(body, signature, OPTIONS))["x"].tolist() == [16777217] + [1] * 19_999
    body = (form % ("INT16", ",1" * 19_999)).encode()
    with pytest.raises(InvalidPayload, match=r"^inputs\[0\].data\[0\]: expected a whole number from -32768 to 32767"):
        decode(body, signature, OPTIONS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1,2,3]", "instances[1000]: expected 4 values for input 'x', got 3"),
        ("[1,2,3,1e39]", "instances[1000][3]: expected a number within the range of float32 for input 'x', got 1e+39"),
        ("[1,2,3,[4]]", "instances[1000][3]: expected a number (float32) for input 'x', got a list of 1"),
        ("[1,2,3 4]", "body is not valid JSON: "),
        ("[1,2,3,04]", "body is not valid JSON: "),
    ],
)
def test_messages_are_those_of_the_long_way(row: str, message: str) -> None:
    """Checklist 36."""
    body = f'{{"instances": {TEXT[:-1]},{row}]}}'.encode()
    with pytest.raises(InvalidPayload) as caught:
        decode(body, one(), OPTIONS)
    assert caught.value.message.startswith(message)
    with pytest.raises(InvalidPayload, match=r"^instances\[0\]: expected 3 values for input 'x', got 4$"):
        decode(f'{{"instances": {TEXT}}}'.encode(), one(shape=(None, 3)), OPTIONS)


def test_many_texts_and_deep_objects_stay_linear() -> None:
    start_s = time.monotonic()
    for body in (
        b'{"instances": ' + TEXT.encode() + b', "y": [' + b'"a",' * 1_000_000 + b"1]}",
        b'{"a":' * 90 + TEXT.encode() + b"}" * 90,
        b"[" * 2_000_000,
        b"1," * 2_000_000,
        b'"' * 100_001,
    ):
        document_with_arrays(body, one())
    assert time.monotonic() - start_s < 5


def test_rows_that_declare_more_than_they_hold_take_no_memory() -> None:
    """Checklist 84: empty rows for an input of many columns."""
    body = b'{"instances": [' + b"[]," * 2000 + b"[]]}"
    with pytest.raises(InvalidPayload, match=r"^instances\[0\]: expected 1000000000000 values"):
        decode(body, one(shape=(None, 10**12)), OPTIONS)


def test_a_large_body_through_the_server(tmp_path: Path) -> None:
    """Checklist 80: spaced as Python writes it, and with a value that goes the long way."""
    with running("--model", str(identity(tmp_path / "model.onnx"))) as server:
        for value, expected in ((0.0, 0.0), ("NaN", None)):
            rows: list[list[Any]] = ROWS.tolist()
            rows[0][0] = value
            answer = server.invoke(standard_json.dumps({"instances": rows}).encode(), Content_Type="application/json")
            rows[0][0] = expected
            assert orjson.loads(answer.content) == {"predictions": rows}
