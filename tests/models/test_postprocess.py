"""Softmax, top k and labels, against plain Python."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from byoc_server.errors import InferenceFailed
from byoc_server.models.postprocess import Labels, Postprocessing, softmax, top_k
from byoc_server.types import STRING, TensorSpec

LAWS = settings(deadline=None, max_examples=100, derandomize=True)


def assert_close(actual: Any, expected: Any, rtol: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol)


F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_softmax_is_stable_and_keeps_the_dtype(dtype: str) -> None:
    array = np.array([[0, math.log(3)], [60000, 60000], [-60000, 0], [-np.inf, 1]], dtype)
    result = softmax(array)
    assert result.dtype == dtype
    assert_close(result, [[0.25, 0.75], [0.5, 0.5], [0, 1], [0, 1]], rtol=1e-3)


def test_softmax_of_halves_is_computed_wider() -> None:
    """A sum of 100 000 ones is beyond float16."""
    assert softmax(np.zeros((1, 100_000), np.float16))[0, 0] == np.float16(1e-5)


@pytest.mark.parametrize("row", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
def test_softmax_of_what_has_none_is_nan_in_its_row_only(row: list[float]) -> None:
    result = softmax(np.array([row, [1, 1]], np.float32))
    assert np.isnan(result[0]).all()
    assert result[1].tolist() == [0.5, 0.5]


def test_softmax_of_nothing_is_nothing() -> None:
    assert softmax(np.empty((2, 0), np.float32)).shape == (2, 0)


DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool"])
FEW = st.sampled_from([0, 1, 1, 2, 3])


def arrays(dtype: str) -> st.SearchStrategy[Any]:
    """Short rows, and long ones of few different values."""
    short = hnp.arrays(dtype, st.tuples(st.integers(0, 3), st.integers(0, 8)))
    if dtype == "bool":
        return short
    extremes = [np.nan, -np.inf, np.inf, 0, 1] if dtype.startswith("f") else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    long = hnp.arrays(dtype, st.tuples(st.integers(1, 3), st.just(90)), elements=FEW)
    return st.one_of(short, long, hnp.arrays(dtype, (2, 80), elements=st.sampled_from([*extremes, 2])))


def descending(row: list[Any], index: int) -> tuple[bool, float, int]:
    """Sorts the greatest first, the first of equals first, NaN last."""
    is_nan = math.isnan(row[index])
    return is_nan, 0 if is_nan else -row[index], index


@LAWS
@given(DTYPES.flatmap(arrays), st.integers(1, 100))
def test_top_k_sorts_down_takes_the_first_of_equals_and_nan_last(array: Any, k: int) -> None:
    values, indices = top_k(array, k)
    assert values.dtype == array.dtype
    assert indices.dtype == np.int64
    for row, some_values, some_indices in zip(array.tolist(), values.tolist(), indices.tolist(), strict=True):
        order = sorted(range(len(row)), key=partial(descending, row))
        assert some_indices == order[:k]
        np.testing.assert_array_equal(some_values, [row[i] for i in order[:k]])


def test_top_k_works_along_the_last_of_several_axes() -> None:
    array = np.arange(2 * 3 * 100).reshape(2, 3, 100)
    values, indices = top_k(array, 2)
    assert indices.tolist() == [[[99, 98]] * 3] * 2
    assert values[1, 2].tolist() == [599, 598]


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint64"])
def test_an_index_beyond_the_labels_is_its_own_label(dtype: str) -> None:
    labels = Labels(["a", "b"])
    last = np.iinfo(dtype).max
    assert labels.of(np.array([[1, 0], [2, last]], dtype)).tolist() == [["b", "a"], ["2", str(last)]]
    assert labels.of(np.array([1, 1], dtype)).tolist() == ["b", "b"]


def test_a_negative_index_does_not_count_from_the_end() -> None:
    assert Labels(["a", "b"]).of(np.array([-1])).tolist() == ["-1"]


def test_labels_by_index_may_have_gaps() -> None:
    labels = Labels({3: "c", 1: "a"})
    assert labels.of(np.arange(5)).tolist() == ["0", "a", "2", "c", "4"]
    assert (labels.fit(4), labels.fit(90), labels.fit(3)) == (True, True, False)
    assert (Labels(["a"]).fit(1), Labels(["a"]).fit(2)) == (True, False)


def test_labels_of_a_scalar_are_an_array() -> None:
    result = Labels(["a", "b"]).of(np.array(1))
    assert (result.shape, result.dtype, result.item()) == ((), STRING, "b")


@pytest.mark.parametrize(
    ("steps", "spec", "expected"),
    [
        (Postprocessing(softmax=True), TensorSpec("y", F32, (None, 3)), "z: float32[?, 3]"),
        (Postprocessing(top_k=2), TensorSpec("y", F32, (None, 3)), "z: float32[?, 2] z_indices: int64[?, 2]"),
        (Postprocessing(top_k=5), TensorSpec("y", F32, (None, 3)), "z: float32[?, 3] z_indices: int64[?, 3]"),
        (Postprocessing(top_k=5), TensorSpec("y", F32, (None, None)), "z: float32[?, ?] z_indices: int64[?, ?]"),
        (Postprocessing(top_k=5), TensorSpec("y", F32, ()), "z: float32[] z_indices: int64[]"),
        (
            Postprocessing(top_k=1, labels=Labels(["a"])),
            TensorSpec("y", F32, (None, 1)),
            "z: float32[?, 1] z_labels: string[?, 1]",
        ),
        (Postprocessing(labels=Labels(["a"])), TensorSpec("y", I64, (None,)), "z: string[?]"),
    ],
)
def test_clients_see_what_comes_out(steps: Postprocessing, spec: TensorSpec, expected: str) -> None:
    specs = steps.specs(spec, "z")
    assert " ".join(made.describe() for made in specs) == expected
    shape = tuple(3 if length is None else length for length in spec.shape) or (3, 3)
    made = steps.apply(np.zeros(shape, spec.dtype), "z", 1 if len(shape) > 1 else 0)
    assert list(made) == [spec.name for spec in specs]
    assert [array.dtype for array in made.values()] == [spec.dtype for spec in specs]


def test_all_steps_follow_each_other() -> None:
    steps = Postprocessing(softmax=True, top_k=2, labels=Labels(["a", "b", "c"]))
    made = steps.apply(np.array([[0, math.log(2), 0]], np.float32), "z", 1)
    assert_close(made["z"], [[0.5, 0.25]], rtol=1e-6)
    assert made["z_labels"].tolist() == [["b", "a"]]


@pytest.mark.parametrize("steps", [Postprocessing(softmax=True), Postprocessing(top_k=1)])
def test_an_output_without_the_axis_its_graph_did_not_declare_is_an_inference_that_failed(
    steps: Postprocessing,
) -> None:
    with pytest.raises(InferenceFailed, match="output 'z' has no axis"):
        steps.apply(np.zeros(3, np.float32), "z", 1)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (Postprocessing(softmax=True), 24),
        (Postprocessing(top_k=2), 2 * 2 * (4 + 8)),
        (Postprocessing(top_k=9), 2 * 3 * (4 + 8)),
        (Postprocessing(top_k=1, labels=Labels(["a", "b", "c"])), 2 * (4 + 64)),
        (Postprocessing(top_k=1, labels=Labels(["a" * 100, "b", "c"])), 2 * (4 + 400)),
    ],
)
def test_what_an_answer_takes_is_known_before_it_is_made(steps: Postprocessing, expected: int) -> None:
    """Of strings the longest counts, as formats with strings of fixed width give it to all."""
    assert steps.answer_bytes(np.zeros((2, 3), np.float32)) == expected


def test_labels_in_the_place_of_small_numbers_take_more() -> None:
    assert Postprocessing(labels=Labels(["a", "b"])).answer_bytes(np.zeros((5, 2), np.uint8)) == 10 * 64
    assert Postprocessing(top_k=1).answer_bytes(np.zeros((), np.float32)) == 12
