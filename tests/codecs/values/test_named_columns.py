"""Inputs made up of columns with names: record objects, columnar documents and tables."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from byoc_server.codecs import arrow_stream, jsonlines
from byoc_server.codecs import json as json_codec
from byoc_server.codecs import msgpack as msgpack_codec
from byoc_server.codecs import parquet as parquet_codec
from byoc_server.codecs.base import DecodeOptions
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec
from tests.codecs.signatures import ABSENT, OPTIONS, Shape, assert_same, spec, texts

Decode = Callable[[Any, Signature], Tensors]


def named(name: str, dtype: str, shape: Shape, *columns: str) -> TensorSpec:
    return replace(spec(name, dtype, shape), columns=columns)


def taking(*inputs: TensorSpec, batch_axis: BatchAxis = BatchAxis.DYNAMIC) -> Signature:
    return Signature(inputs, inputs, batch_axis)


PERSON = taking(named("person", "float32", (None, 2), "age", "height"))
TWO = taking(named("person", "float32", (None, 2), "age", "height"), spec("city", "string", (None, 1)))
GRID = taking(named("g", "int64", (None, 2, 2), "a", "b", "c", "d"))


def as_json(document: Any, signature: Signature) -> Tensors:
    tensors = json_codec.decode(json.dumps(document).encode(), signature, OPTIONS)
    assert isinstance(tensors, dict)
    return tensors


def as_msgpack(document: Any, signature: Signature) -> Tensors:
    return msgpack_codec.decode(msgpack.packb(document), signature, OPTIONS)


def as_lines(records: Any, signature: Signature) -> Tensors:
    return jsonlines.decode("\n".join(map(json.dumps, records)).encode(), signature, OPTIONS)


DOCUMENTS = pytest.mark.parametrize("decode", [as_json, as_msgpack])
PEOPLE: list[dict[str, Any]] = [{"age": 30, "height": 1.5}, {"height": 2, "age": None}]
ARRAY = np.array([[30, 1.5], [np.nan, 2]], np.float32)


@DOCUMENTS
@pytest.mark.parametrize(
    "document",
    [
        PEOPLE,
        {"instances": PEOPLE},
        {"inputs": PEOPLE},
        {"age": [30, None], "height": [1.5, 2]},
        {"inputs": {"age": [30, None], "height": [1.5, 2]}},
        {"signature_name": "x", "inputs": {"height": [1.5, 2], "age": [30, None]}},
        {"instances": [PEOPLE[0], {"person": [None, 2]}]},
        {"instances": [PEOPLE[0], {"features": [None, 2]}]},
        {"instances": [PEOPLE[0], {"values": [None, 2]}]},
        {"instances": [PEOPLE[0], {"data": {"features": {"values": [None, 2]}}}]},
        {"person": [[30, 1.5], [None, 2]]},
        {"inputs": {"person": [[30, 1.5], [None, 2]]}},
        {"inputs": [[30, 1.5], [None, 2]]},
        [[30, 1.5], [None, 2]],
    ],
)
def test_documents_have_the_columns_or_the_input(decode: Decode, document: Any) -> None:
    assert_same(decode(document, PERSON)["person"], ARRAY)


def test_lines_have_the_columns_or_the_input() -> None:
    assert_same(as_lines(PEOPLE, PERSON)["person"], ARRAY)
    assert_same(as_lines([PEOPLE[0], [None, 2]], PERSON)["person"], ARRAY)


@DOCUMENTS
@pytest.mark.parametrize("document", [PEOPLE[0], {"inputs": PEOPLE[0]}, {"instances": PEOPLE[0]}])
def test_one_record_needs_no_list(decode: Decode, document: Any) -> None:
    assert_same(decode(document, PERSON)["person"], ARRAY[:1])


@DOCUMENTS
@pytest.mark.parametrize(
    "document",
    [
        [{"age": 1, "height": 2, "city": "Rome"}, {"city": ["Oslo"], "person": [3, 4]}],
        {"age": [1, 3], "height": [2, 4], "city": ["Rome", "Oslo"]},
        {"inputs": {"age": [1, 3], "height": [2, 4], "city": [["Rome"], ["Oslo"]]}},
    ],
)
def test_other_inputs_keep_their_names(decode: Decode, document: Any) -> None:
    tensors = decode(document, TWO)
    assert_same(tensors["person"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(tensors["city"], texts([["Rome"], ["Oslo"]]))


@DOCUMENTS
def test_what_else_there_is_is_passed_over_where_all_inputs_have_columns(decode: Decode) -> None:
    assert_same(decode([{"id": "x", **PEOPLE[0]}], PERSON)["person"], ARRAY[:1])
    assert_same(decode({"inputs": {"id": "x", **PEOPLE[0]}}, PERSON)["person"], ARRAY[:1])
    with pytest.raises(InvalidPayload, match=r"^body\[0\]: unknown 'id'; "):
        decode([{"id": "x", "city": ["Rome"], **PEOPLE[0]}], TWO)


@DOCUMENTS
def test_columns_fill_a_record_of_several_axes_in_order(decode: Decode) -> None:
    expected = np.array([[[1, 2], [3, 4]]])
    assert_same(decode([{"d": 4, "c": 3, "b": 2, "a": 1}], GRID)["g"], expected)
    assert_same(decode({"d": [4], "c": [3], "b": [2], "a": [1]}, GRID)["g"], expected)


@DOCUMENTS
@pytest.mark.parametrize("shape", [(None,), (None, 1)])
@pytest.mark.parametrize("name", ["x", "age"])
def test_one_column_is_one_value(decode: Decode, shape: Shape, name: str) -> None:
    signature = taking(named(name, "int64", shape, "age"))
    expected = np.array([3, 4]).reshape(2, *shape[1:])
    assert_same(decode([{"age": 3}, {"age": 4}], signature)[name], expected)
    assert_same(decode({"age": [3, 4]}, signature)[name], expected)


@DOCUMENTS
def test_a_column_may_be_called_as_its_input(decode: Decode) -> None:
    signature = taking(named("age", "int64", (None, 2), "age", "height"))
    assert_same(decode([{"age": 3, "height": 4}], signature)["age"], np.array([[3, 4]]))
    assert_same(decode([{"age": [3, 4]}], signature)["age"], np.array([[3, 4]]))


@DOCUMENTS
def test_columns_may_be_called_as_the_common_forms(decode: Decode) -> None:
    signature = taking(named("x", "int64", (None, 3), "values", "features", "data"))
    record = {"values": 1, "features": 2, "data": 3}
    assert_same(decode([record], signature)["x"], np.array([[1, 2, 3]]))
    assert_same(decode({"inputs": record}, signature)["x"], np.array([[1, 2, 3]]))
    assert_same(decode({"inputs": {"values": [1, 2, 3]}}, signature)["x"], np.array([[1, 2, 3]]))


@DOCUMENTS
def test_without_a_batch_axis_there_is_one_record(decode: Decode) -> None:
    signature = taking(named("x", "int64", (2,), "a", "b"), batch_axis=ABSENT)
    assert_same(decode({"a": 1, "b": 2}, signature)["x"], np.array([1, 2]))
    assert_same(decode([{"a": 1, "b": 2}], signature)["x"], np.array([1, 2]))
    with pytest.raises(InvalidPayload, match="one record per request, got 2"):
        decode({"a": [1, 2], "b": [2, 3]}, signature)


def test_bytes_and_arrays_may_be_values_of_columns() -> None:
    signature = taking(named("x", "string", (None, 2), "a", "b"))
    assert_same(as_msgpack([{"a": b"u", "b": "v"}], signature)["x"], texts([["u", "v"]]))
    column = {"nd": True, "type": "<f4", "shape": [2], "data": np.array([1, 2], "<f4").tobytes()}
    assert_same(as_msgpack({"age": column, "height": [3, 4]}, PERSON)["person"], np.array([[1, 3], [2, 4]], np.float32))


@DOCUMENTS
@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ([PEOPLE[0], {"age": 3}], "body[1]", r"^body\[1\]: missing 'height'; .* \(columns 'age', 'height'\)$"),
        ([{"age": 3, "tall": 4}], "body[0]", r"missing 'height'; unknown 'tall'; "),
        ([{"person": [3, 4], "x": 5}], "body[0]", r"^body\[0\]: unknown 'x'; "),
        ({"inputs": {"age": [3]}}, "inputs", r"^inputs: missing 'height'; "),
        ([PEOPLE[0], {"age": "old", "height": 4}], "body[1].age", r"^body\[1\]\.age: expected a number .*, got 'old'$"),
        ([{"age": 3, "height": [4]}], "body[0].height", r"^body\[0\]\.height: .* got a list of 1$"),
        ([{"age": 3, "height": 1e39}], "body[0].height", r"within the range of float32"),
        ({"age": [3, 4], "height": [1, "x"]}, "height[1]", r"^height\[1\]: expected a number"),
        ({"inputs": {"age": 3, "height": "x"}}, "inputs.height", r"^inputs\.height: expected a number"),
        ({"age": [3, 4], "height": [1]}, "height", r"^height: expected 2 values, as age has, got 1$"),
        ({"inputs": {"age": [3, 4], "height": 1}}, "inputs.height", r"^inputs\.height: expected a list, .*, got 1$"),
        ({"age": [], "height": []}, None, "^no records for input 'person'"),
        ([PEOPLE[0], {"person": [1, 2, 3]}], "body[1]", r"^body\[1\]: expected 2 values for input 'person', got 3$"),
        ([PEOPLE[0], 5], "body[1]", r"^body\[1\]: expected a list of 2 values"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_column(
    decode: Decode, document: Any, field: str | None, message: str
) -> None:
    with pytest.raises(InvalidPayload, match=message) as caught:
        decode(document, PERSON)
    assert caught.value.details.get("field") == field


def test_the_column_at_fault_is_found_among_strings() -> None:
    signature = taking(named("x", "string", (None, 2), "a", "b"))
    with pytest.raises(InvalidPayload, match=r"^body\[0\]\.b: expected a string for input 'x', got 3$"):
        as_msgpack([{"a": b"u", "b": 3}], signature)
    with pytest.raises(InvalidPayload, match=r"^body\[0\]: the bytes of a string are not UTF-8"):
        as_msgpack([{"a": "u", "b": b"\xff"}], signature)


def test_what_is_too_large_is_not_searched_for_a_culprit() -> None:
    signature = taking(named("x", "float32", (None,), "a"))
    body = json.dumps([{"x": {"keys": [], "values": [], "shape": []}}, {"a": "no number"}]).encode()
    with pytest.raises(TensorsTooLarge):
        json_codec.decode(body, signature, DecodeOptions({}, 3))


def written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def streamed(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


TABLES = pytest.mark.parametrize("codec", [arrow_stream, parquet_codec])


def as_table(codec: Any, columns: Mapping[str, Any], signature: Signature) -> Tensors:
    table = pa.table(columns)
    body = streamed(table) if codec is arrow_stream else written(table)
    tensors: Tensors = codec.decode(body, signature, OPTIONS)
    return tensors


@TABLES
@pytest.mark.parametrize(
    "columns",
    [
        {"age": [30.0, None], "height": [1.5, 2.0]},
        {"height": [1.5, 2.0], "age": pa.array([30, None], pa.int16())},
        {"person": [[30, 1.5], [float("nan"), 2]]},
        {"id": ["a", "b"], "age": [30.0, None], "height": [1.5, 2.0]},
    ],
)
def test_tables_have_the_columns_or_the_input(codec: Any, columns: Mapping[str, Any]) -> None:
    assert_same(as_table(codec, columns, PERSON)["person"], ARRAY)


@TABLES
def test_tables_have_columns_of_several_inputs_in_any_order(codec: Any) -> None:
    tensors = as_table(codec, {"height": [2.0, 4], "city": ["Rome", "Oslo"], "age": [1, 3]}, TWO)
    assert_same(tensors["person"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(tensors["city"], texts([["Rome"], ["Oslo"]]))


@TABLES
def test_columns_of_a_table_fill_several_axes(codec: Any) -> None:
    tensors = as_table(codec, {"d": [4], "c": [3], "b": [2], "a": [1]}, GRID)
    assert_same(tensors["g"], np.array([[[1, 2], [3, 4]]]))


@TABLES
def test_one_column_of_a_table_is_one_value(codec: Any) -> None:
    signature = taking(named("x", "int64", (None, 1), "age"))
    assert_same(as_table(codec, {"age": [3, 4]}, signature)["x"], np.array([[3], [4]]))


@TABLES
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"age": [1], "tall": [2]}, "^columns: missing 'height'; unknown 'tall'; the model's inputs are person: "),
        ({"person": [[1, 2]], "x": [3]}, "^columns: unknown 'x'"),
        ({"other": [[1, 2]]}, "^columns: missing 'person'; unknown 'other'|missing 'age', 'height'; unknown 'other'"),
        ({"age": [1], "height": ["x"]}, "^column 'height', row 0: 'x' .string. does not convert to float32"),
        ({"age": [1], "height": [[2]]}, "^column 'height': expected single values"),
    ],
)
def test_a_table_of_other_columns_is_refused(codec: Any, columns: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidPayload, match=message):
        as_table(codec, columns, PERSON)


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["age", "height", "age"])
    with pytest.raises(InvalidPayload, match="column 'age' is there twice"):
        arrow_stream.decode(streamed(table), PERSON, OPTIONS)
