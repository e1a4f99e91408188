"""Records of different length in one request, filled up along the open axes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs import json as json_codec
from byoc_server.codecs import jsonlines
from byoc_server.codecs import msgpack as msgpack_codec
from byoc_server.codecs.base import DecodeOptions
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Array, BatchAxis, Signature
from tests.codecs.signatures import ABSENT, OPTIONS, Shape, assert_same, spec

LAWS = settings(deadline=None, max_examples=100, derandomize=True)


def padded(
    dtype: str, shape: Shape, padding_value: float | str = 0, batch_axis: BatchAxis = BatchAxis.DYNAMIC
) -> Signature:
    x = replace(spec("x", dtype, shape), padding_value=padding_value)
    return Signature((x,), (x,), batch_axis)


def as_json(records: Any, signature: Signature, options: DecodeOptions = OPTIONS) -> Array:
    tensors = json_codec.decode(json.dumps(records).encode(), signature, options)
    assert isinstance(tensors, dict)
    return tensors["x"]


def as_msgpack(records: Any, signature: Signature) -> Array:
    return msgpack_codec.decode(msgpack.packb(records), signature, OPTIONS)["x"]


def as_lines(records: Any, signature: Signature) -> Array:
    return jsonlines.decode("\n".join(map(json.dumps, records)).encode(), signature, OPTIONS)["x"]


FORMATS = pytest.mark.parametrize("decode", [as_json, as_msgpack, as_lines])
TOKENS = padded("int64", (None, None), -1)


@FORMATS
@pytest.mark.parametrize(
    ("signature", "records", "expected"),
    [
        (TOKENS, [[1, 2, 3], [4], []], [[1, 2, 3], [4, -1, -1], [-1, -1, -1]]),
        (TOKENS, [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        (TOKENS, [[], []], [[], []]),
        (TOKENS, [[5]], [[5]]),
        (padded("float32", (None, None), 0.5), [[1.5, None], [2]], [[1.5, np.nan], [2, 0.5]]),
        (padded("bool", (None, None), False), [[True], [True, True]], [[True, False], [True, True]]),
        (padded("string", (None, None), ""), [["a", "b"], ["c"]], [["a", "b"], ["c", ""]]),
        (padded("string", (None, None, 1), "?"), [[["a"], ["b"]], [["c"]]], [[["a"], ["b"]], [["c"], ["?"]]]),
        (padded("int64", (None, None, 2)), [[[1, 2]], [[3, 4], [5, 6]]], [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]),
        (padded("int64", (None, 2, None)), [[[1], [2, 3]], [[], []]], [[[1, 0], [2, 3]], [[0, 0], [0, 0]]]),
        (
            padded("int64", (None, None, None)),
            [[[1, 2, 3]], [], [[4], [5, 6]]],
            [[[1, 2, 3], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[4, 0, 0], [5, 6, 0]]],
        ),
    ],
)
def test_records_are_filled_up_to_the_longest(
    decode: Callable[[Any, Signature], Array], signature: Signature, records: Any, expected: Any
) -> None:
    dtype = signature.inputs[0].dtype
    assert_same(decode(records, signature), np.array(expected, dtype))


@LAWS
@given(st.lists(st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=3), min_size=1, max_size=5))
def test_every_value_stays_in_its_place(records: list[list[list[int]]]) -> None:
    array = as_lines(records, padded("int8", (None, None, None), 99))
    outer, inner = max(map(len, records)), max((len(row) for record in records for row in record), default=0)
    assert array.shape == (len(records), outer, inner)
    for i, j, k in np.ndindex(*array.shape):
        row = records[i][j] if j < len(records[i]) else []
        assert array[i, j, k] == (row[k] if k < len(row) else 99)


def test_a_request_without_a_batch_axis_is_one_record() -> None:
    signature = padded("int64", (None, None), 0, ABSENT)
    assert_same(as_json([[1, 2], [3]], signature), np.array([[1, 2], [3, 0]]))


@pytest.mark.parametrize("form", ["arrays", "mixed", "sparse"])
def test_arrays_among_the_records_are_filled_up_too(form: str) -> None:
    two, one = (
        {"nd": True, "type": "<i4", "shape": [n], "data": np.arange(1, n + 1, dtype="<i4").tobytes()} for n in (2, 1)
    )
    records = {
        "arrays": [two, one],
        "mixed": [[1, 2], one],
        "sparse": [{"keys": [0, 1], "values": [1, 2], "shape": [2]}, {"keys": [0], "values": [1], "shape": [1]}],
    }[form]
    assert_same(as_msgpack({"instances": records}, TOKENS), np.array([[1, 2], [1, -1]]))


@pytest.mark.parametrize(
    ("signature", "records", "message"),
    [
        (TOKENS, [[1], [2, "x"]], r"^body\[1\]\[1\]: expected a whole number from .* for input 'x', got 'x'$"),
        (TOKENS, [[1], [2, [3]]], r"^body\[1\]\[1\]: expected a whole number from .*, got a list of 1$"),
        (TOKENS, [[1], 2], r"^body\[1\]: expected a list of values for input 'x', got 2$"),
        (TOKENS, [], "no records for input 'x'"),
        (padded("int64", (None, 2, None)), [[[1], [2]], [[3]]], r"^body\[1\]: expected 2 lists for input 'x', got 1$"),
        (padded("int64", (None, None, 2)), [[[1, 2]], [[3, 4], [5]]], r"^body\[1\]\[1\]: expected 2 values .*, got 1$"),
        (
            padded("float32", (None, None, None)),
            [[[1]], [[], [2, 3], [4, "y"]]],
            r"^body\[1\]\[2\]\[1\]: expected a number .*, got 'y'$",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_its_own_place(signature: Signature, records: Any, message: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        as_json(records, signature)
    assert re.search(message, caught.value.message), caught.value.message


def test_an_array_of_the_wrong_rank_is_named() -> None:
    nd = {"nd": True, "type": "<i4", "shape": [1, 1], "data": bytes(4)}
    with pytest.raises(InvalidPayload, match=r"^instances\[1\]: expected shape \[\?\] for input 'x', got \[1, 1\]$"):
        as_msgpack({"instances": [[1], nd]}, TOKENS)


def test_few_bytes_do_not_grow_without_bound() -> None:
    """One long record and many empty ones: their product would be 80 GB."""
    records = [[0] * 100_000, *[[]] * 100_000]
    with pytest.raises(TensorsTooLarge, match=r"^body\[0\]: .* too large when dense"):
        as_json(records, TOKENS)
    nested = [[[]] * 1000, *[[[0] * 1000]] * 10]
    with pytest.raises(TensorsTooLarge):
        as_json(nested, padded("int64", (None, None, None)), DecodeOptions({}, 1024 * 1024))
    sparse = [{"keys": [], "values": [], "shape": [1000]}, *[[1]] * 1000]
    with pytest.raises(TensorsTooLarge):
        as_json({"instances": sparse}, TOKENS, DecodeOptions({}, 1024 * 1024))


def test_without_a_padding_value_records_have_one_length() -> None:
    signature = Signature((spec("x", "int64", (None, None)),), (spec("x", "int64", (None, None)),))
    with pytest.raises(InvalidPayload, match=r"^body\[1\]: expected 2 values for input 'x', got 1$"):
        as_json([[1, 2], [3]], signature)
