from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.batching.collate import split
from byoc_server.batching.lengths import PaddedCollation, PaddedInput, Padding, bucket_end
from byoc_server.errors import InferenceFailed
from byoc_server.types import Array, Tensors

LAWS = settings(deadline=None, max_examples=150, derandomize=True)

PADDING = Padding(
    {"ids": PaddedInput(1, 7), "mask": PaddedInput(1, 0), "features": PaddedInput(2, 0.5)},
    {"words": [1], "pairs": [2, 3], "turned": [2]},
)


def infer(tensors: Tensors) -> Tensors:
    """A model that looks at nothing where the mask is 0."""
    present = tensors["mask"].astype(np.float64)
    ids = tensors["ids"].astype(np.float64)
    features = tensors["features"].astype(np.float64)
    return {
        "words": ids[:, :, None] * [1.0, 2.0],
        "total": (ids * present).sum(axis=1, keepdims=True) + tensors["offset"],
        "pairs": np.stack([ids[:, :, None] * ids[:, None, :]] * 2, axis=1),
        "turned": features + 1,
    }


def request(rows: int, length: int, seed: int = 0) -> Tensors:
    """Whole numbers, so that results are exact."""
    random = np.random.default_rng(seed)
    return {
        "ids": random.integers(0, 100, (rows, length)),
        "mask": np.ones((rows, length), np.int32),
        "features": random.integers(0, 100, (rows, 3, length)).astype(np.float32),
        "offset": random.integers(0, 100, (rows, 1)).astype(np.float32),
    }


def run_together(collation: PaddedCollation, parts: Sequence[Tensors]) -> list[Tensors]:
    return collation.split(infer(collation.stack(parts)), parts, [len(part["ids"]) for part in parts])


@LAWS
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40), st.integers(0, 99)), min_size=1, max_size=6),
    st.booleans(),
)
def test_together_is_the_same_as_alone(asked: list[tuple[int, int, int]], to_bucket: bool) -> None:
    """Whatever the key lets meet, each request gets just what it would get alone."""
    collation = PaddedCollation(PADDING, 24, to_bucket)
    parts = [request(*sizes) for sizes in asked]
    for key in {collation.key(part) for part in parts}:
        batch = [part for part in parts if collation.key(part) == key]
        for part, outputs in zip(batch, run_together(collation, batch), strict=True):
            for name, expected in infer(part).items():
                np.testing.assert_array_equal(outputs[name], expected, strict=True)
                assert outputs[name].flags.c_contiguous


def test_each_input_is_padded_with_its_own_value_to_the_longest() -> None:
    stacked = PaddedCollation(PADDING).stack([request(1, 2), request(2, 3)])
    assert stacked["ids"].shape == stacked["mask"].shape == (3, 3)
    assert stacked["ids"][0, 2] == 7
    assert stacked["mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert stacked["features"].shape == (3, 3, 3)
    assert stacked["features"][0, :, 2].tolist() == [0.5] * 3
    assert [stacked[name].dtype for name in ("ids", "mask", "features")] == [np.int64, np.int32, np.float32]
    assert stacked["offset"].shape == (3, 1)


def test_strings_are_padded_with_strings() -> None:
    parts: list[Tensors] = [{"s": np.array([words], object)} for words in (["a"], ["b", "c"])]
    stacked = PaddedCollation(Padding({"s": PaddedInput(1, "")}, {})).stack(parts)
    assert stacked["s"].tolist() == [["a", ""], ["b", "c"]]


@pytest.mark.parametrize("to_bucket", [False, True])
def test_a_lone_request_passes_through_without_a_copy(to_bucket: bool) -> None:
    collation, part = PaddedCollation(PADDING, to_bucket=to_bucket), request(2, 5)
    assert collation.stack([part]) is part
    outputs = infer(part)
    assert collation.split(outputs, [part], [2])[0]["words"] is outputs["words"]


def test_equal_lengths_are_not_padded() -> None:
    parts = [request(1, 5, 1), request(2, 5, 2)]
    assert PaddedCollation(PADDING).stack(parts)["ids"].shape == (3, 5)


def test_whole_buckets_bound_the_number_of_shapes() -> None:
    collation = PaddedCollation(PADDING, to_bucket=True)
    shapes = {collation.stack([request(1, length)] * 2)["ids"].shape for length in range(1, 129)}
    assert shapes == {(2, end) for end in (16, 24, 32, 48, 64, 96, 128)}
    assert [outputs["words"].shape for outputs in run_together(collation, [request(1, 17)] * 2)] == [(1, 17, 2)] * 2


def test_buckets_bound_what_is_computed_for_padding() -> None:
    ends = [bucket_end(length) for length in range(1, 5000)]
    assert ends == sorted(ends)
    assert all(bucket_end(end) == end for end in ends)
    assert all(length <= end for length, end in enumerate(ends, 1))
    assert all(end * 2 < length * 3 for length, end in enumerate(ends, 1) if length > 16)
    assert len(set(ends)) <= 18


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_steps_only_cut_buckets(length: int, step: int) -> None:
    end = bucket_end(length, step)
    assert length <= end <= bucket_end(length)
    assert bucket_end(end, step) == end
    assert end - length < max(step, 16)


def test_steps_are_bucket_ends() -> None:
    assert sorted({bucket_end(length, 31) for length in range(1, 129)}) == [16, 24, 32, 48, 64, 72, 96, 120, 128]
    assert sorted({bucket_end(length, 3) for length in range(1, 97)}) == [16, 24, 32, 48, 64, 80, 96]
    assert PaddedCollation(PADDING, 16).key(request(1, 66)) != PaddedCollation(PADDING, 16).key(request(1, 90))
    assert PaddedCollation(PADDING, 16, to_bucket=True).stack([request(1, 66)] * 2)["ids"].shape == (2, 96)


def test_the_key_is_the_bucket_and_the_length_that_of_a_record() -> None:
    collation = PaddedCollation(PADDING)
    assert collation.key(request(1, 17)) == collation.key(request(3, 24)) != collation.key(request(1, 25))
    assert [collation.length(request(2, length)) for length in (0, 1, 30)] == [1, 1, 30]


def test_records_whose_inputs_differ_in_length_meet_only_their_like() -> None:
    collation = PaddedCollation(PADDING)

    def uneven(ids: int, others: int) -> Tensors:
        return {**request(1, others), "ids": np.ones((1, ids), np.int64)}

    assert collation.key(uneven(3, 4)) == collation.key(uneven(3, 4)) != collation.key(uneven(4, 3))
    assert collation.key(uneven(3, 4)) not in {collation.key(request(1, length)) for length in range(64)}
    assert collation.length(uneven(3, 4)) == 4
    assert collation.stack([uneven(3, 4), uneven(3, 4)])["ids"].shape == (2, 3)
    outputs: Tensors = {"words": np.zeros((2, 3, 2))}
    pieces = collation.split(outputs, [uneven(3, 4), uneven(3, 4)], [1, 1])
    assert [piece["words"].shape for piece in pieces] == [(1, 3, 2)] * 2


def test_an_empty_record_meets_only_empty_ones() -> None:
    collation = PaddedCollation(PADDING, to_bucket=True)
    assert collation.key(request(1, 0)) not in {collation.key(request(1, length)) for length in range(1, 64)}
    assert collation.stack([request(1, 0), request(2, 0)])["ids"].shape == (3, 0)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("words", np.zeros((2, 3, 2)), r"output 'words' has shape \(2, 3, 2\) for records padded to 4"),
        ("pairs", np.zeros((2, 2, 4, 3)), r"output 'pairs' has shape \(2, 2, 4, 3\) for records padded to 4"),
        ("turned", np.zeros((2, 3)), r"output 'turned' has shape \(2, 3\) for records padded to 4"),
        ("total", np.zeros((3, 1)), "3,.* rows for 2 records"),
    ],
)
def test_outputs_that_do_not_follow_the_length_belong_to_nobody(name: str, array: Array, message: str) -> None:
    collation, parts = PaddedCollation(PADDING), [request(1, 2), request(1, 4)]
    outputs = {**infer(collation.stack(parts)), name: array}
    with pytest.raises(InferenceFailed, match=message):
        collation.split(outputs, parts, [1, 1])


def test_what_a_record_takes_has_to_be_looked_at() -> None:
    assert PaddedCollation(PADDING).record_bytes == PaddedCollation(PADDING, 16, to_bucket=True).record_bytes == 0


@pytest.mark.parametrize(
    ("lengths", "to_bucket", "together"),
    [
        ([5, 5], False, True),
        ([0, 0], False, True),
        ([5, 6], False, False),
        ([6, 5], False, False),
        ([5, 5], True, False),
        ([16, 16], True, True),
        ([15, 16], True, False),
        ([5], True, True),
        ([0, 0], True, True),
    ],
)
def test_what_is_not_padded_belongs_together(lengths: list[int], to_bucket: bool, together: bool) -> None:
    collation, parts = PaddedCollation(PADDING, to_bucket=to_bucket), [request(2, length) for length in lengths]
    assert collation.together(infer(collation.stack(parts)), parts, [2] * len(parts)) is together


@LAWS
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20)), min_size=1, max_size=4), st.booleans())
def test_what_belongs_together_is_cut_along_its_rows_alone(asked: list[tuple[int, int]], to_bucket: bool) -> None:
    collation = PaddedCollation(PADDING, 24, to_bucket)
    parts = [request(*sizes) for sizes in asked]
    batch = [part for part in parts if collation.key(part) == collation.key(parts[0])]
    counts = [len(part["ids"]) for part in batch]
    outputs = infer(collation.stack(batch))
    if not collation.together(outputs, batch, counts):
        return
    for cut, expected in zip(split(outputs, counts), collation.split(outputs, batch, counts), strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(cut[name], array, strict=True)


def test_records_whose_inputs_differ_in_length_belong_together_with_their_like() -> None:
    part: Tensors = {**request(1, 4), "ids": np.ones((1, 3), np.int64)}
    collation = PaddedCollation(PADDING, to_bucket=True)
    assert collation.together({"words": np.zeros((2, 3, 2))}, [part, part], [1, 1])


@pytest.mark.parametrize("lengths", [(3, 3), (3, 4)])
def test_outputs_without_the_rows_that_went_in_do_not_belong_together(lengths: tuple[int, int]) -> None:
    parts = [request(1, length) for length in lengths]
    with pytest.raises(InferenceFailed, match="rows for 2 records"):
        PaddedCollation(PADDING).together({"total": np.zeros((3, 1))}, parts, [1, 1])
