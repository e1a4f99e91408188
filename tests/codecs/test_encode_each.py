"""The answers to several requests in one pass: each is what ``encode`` makes of its own rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from byoc_server.batching.collate import split
from byoc_server.codecs import csv, json, jsonlines, npy
from byoc_server.codecs.base import EncodeOptions, Envelope
from byoc_server.errors import NotAcceptable
from byoc_server.types import STRING, Array, Signature, Tensors
from tests.codecs.signatures import ENCODE, one, several, spec, texts
from tests.codecs.test_roundtrip import elements

LAWS = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)

ALL = pytest.mark.parametrize("codec", [json, jsonlines, csv, npy], ids=lambda codec: codec.__name__.rpartition(".")[2])
DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint64", "bool", "string"]
NAN, INF = float("nan"), float("inf")


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tensors, Signature, list[int]]:
    """Outputs of a batch, with what made them and the rows of each request in it."""
    counts = draw(st.one_of(st.lists(st.just(1), min_size=1, max_size=4), st.lists(st.integers(1, 3), max_size=4)))
    counts = counts or [2]
    tensors: Tensors = {}
    specs = []
    for name in draw(st.sampled_from([["y"], ["y"], ["y"], ["y", "z"]])):
        dtype = draw(st.sampled_from(DTYPES))
        record = draw(st.lists(st.sampled_from([0, 1, 1, 3]), max_size=3))
        declared = spec(name, dtype, (None, *record))
        array = draw(arrays.arrays(declared.dtype, (sum(counts), *record), elements=elements(declared.dtype)))
        tensors[name] = laid_out(array, draw(st.sampled_from(["C", "F", "reversed"])))
        specs.append(declared)
    return tensors, Signature((spec("x", "float32", (None, 1)),), tuple(specs)), counts


def laid_out(array: Array, order: str) -> Array:
    """The same values in another place."""
    if order == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    return np.asfortranarray(array) if order == "F" else array


def one_pass(codec: ModuleType, tensors: Tensors, signature: Signature, options: EncodeOptions) -> bool:
    """Whether the format can do it: that is a promise, or nothing would be gained."""
    if codec in (csv, jsonlines):
        return True
    array, single = tensors[signature.outputs[0].name], len(signature.outputs) == 1
    is_text = array.dtype == STRING
    return single and not is_text and (codec is npy or (array.ndim < 3 and options.envelope is None))


def one_by_one(
    codec: Any, tensors: Tensors, signature: Signature, options: EncodeOptions, counts: Sequence[int]
) -> list[bytes]:
    return [codec.encode(part, signature, options) for part in split(tensors, counts)]


@ALL
def test_each_answer_is_that_of_its_own_rows(codec: Any) -> None:
    @LAWS
    @given(outputs(), st.booleans())
    def law(made: tuple[Tensors, Signature, list[int]], final_newline: bool) -> None:
        tensors, signature, counts = made
        options = EncodeOptions(final_newline)
        each = codec.encode_each(tensors, signature, options, counts)
        assert (each is not None) is one_pass(codec, tensors, signature, options)
        if each is not None:
            assert each == one_by_one(codec, tensors, signature, options, counts)
            assert {type(body) for body in each} == {bytes}

    law()


VALUES = np.array([1.5, NAN, -INF, 0.1, INF, -0.0, 1e-7, 65504.0])


RECORDS = [(), (0,), (1,), (2,), (2, 1), (0, 2), (1, 2, 1)]
COUNTS = [[8], [1] * 8, [3, 1, 4], [1, 7], [2, 2, 2, 2]]


def usual(dtype: np.dtype[Any], record: tuple[int, ...]) -> Array:
    """Eight records, with all that has no number in JSON."""
    values = np.resize(VALUES, (8, *record))
    if dtype == STRING:
        return texts(list(map(str, values.ravel().tolist()))).reshape(values.shape)
    return values.astype(dtype) if dtype.kind == "f" else np.nan_to_num(values).astype(np.int8).astype(dtype)


@ALL
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("final_newline", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of infinity to an integer
def test_no_kind_of_output_is_different(codec: Any, dtype: str, final_newline: bool) -> None:
    """Every dtype in every rank."""
    options = EncodeOptions(final_newline)
    for record in RECORDS:
        signature = one(dtype, (None, *record))
        tensors: Tensors = {"y": usual(signature.outputs[0].dtype, record)}
        for counts in COUNTS:
            each = codec.encode_each(tensors, signature, options, counts)
            assert (each is not None) is one_pass(codec, tensors, signature, options)
            assert each is None or each == one_by_one(codec, tensors, signature, options, counts)


@pytest.mark.parametrize(
    ("codec", "bodies"),
    [
        (json, [b'{"predictions":[[1.5,null]]}', b'{"predictions":[[2.0,3.0],[4.0,5.0]]}']),
        (jsonlines, [b"[1.5,null]\n", b"[2.0,3.0]\n[4.0,5.0]\n"]),
        (csv, [b"1.5,nan\n", b"2.0,3.0\n4.0,5.0\n"]),
    ],
)
def test_answers_in_one_pass(codec: Any, bodies: list[bytes]) -> None:
    array = np.array([[1.5, NAN], [2, 3], [4, 5]], np.float32)
    assert codec.encode_each({"y": array}, one(shape=(None, 2)), ENCODE, [1, 2]) == bodies


def test_lines_of_several_outputs() -> None:
    signature = several(("a", "float32", (None, 2)), ("s", "string", (None,)))
    tensors: Tensors = {"a": np.array([[1, 2], [3, 4], [5, 6]], np.float32), "s": texts(["x", "a,b\nc", ""])}
    assert csv.encode_each(tensors, signature, ENCODE, [2, 1]) == [b'1.0,2.0,x\n3.0,4.0,"a,b\nc"\n', b'5.0,6.0,""\n']
    assert jsonlines.encode_each(tensors, signature, ENCODE, [1, 1, 1]) == [
        b'{"a":[1.0,2.0],"s":"x"}\n',
        b'{"a":[3.0,4.0],"s":"a,b\\nc"}\n',
        b'{"a":[5.0,6.0],"s":""}\n',
    ]


def test_a_request_that_says_how_it_wants_its_answer_gets_one_of_its_own() -> None:
    options = EncodeOptions(envelope=Envelope("7"))
    assert json.encode_each({"y": np.zeros((2, 1), np.float32)}, one(shape=(None, 1)), options, [1, 1]) is None


@pytest.mark.parametrize("codec", [csv, jsonlines])
def test_what_a_format_cannot_carry_fails_as_a_whole(codec: Any) -> None:
    """Whose rows they are is found out one by one."""
    with pytest.raises((UnicodeEncodeError, TypeError)):
        codec.encode_each({"y": texts([["ok"], ["\ud800"]])}, one("string", (None, 1)), ENCODE, [1, 1])
    with pytest.raises(TypeError):
        codec.encode_each({"y": np.zeros((2, 1), np.complex64)}, one(shape=(None, 1)), ENCODE, [1, 1])


def test_numbers_that_json_has_not_are_left_to_what_says_so() -> None:
    assert json.encode_each({"y": np.zeros((2, 1), np.complex64)}, one(shape=(None, 1)), ENCODE, [1, 1]) is None


def test_outputs_with_different_numbers_of_records_have_no_lines() -> None:
    pair = several(("a", "float32", (None, 1)), ("b", "float32", (None, 1)))
    with pytest.raises(NotAcceptable, match="different numbers of records"):
        csv.encode_each({"a": np.zeros((2, 1)), "b": np.zeros((1, 1))}, pair, ENCODE, [1, 1])
