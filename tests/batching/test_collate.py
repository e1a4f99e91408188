import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.batching.collate import infer_in_fixed_batches, slice_rows, split, stack
from byoc_server.errors import InferenceFailed
from byoc_server.types import Tensors


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_splitting_a_stack_gives_the_parts_back(counts: list[int]) -> None:
    parts = [{"x": np.full((n, 2), i), "s": np.full(n, f"r{i}", dtype=object)} for i, n in enumerate(counts)]
    again = split(stack(parts), counts)
    for part, returned in zip(parts, again, strict=True):
        np.testing.assert_array_equal(part["x"], returned["x"])
        assert part["s"].tolist() == returned["s"].tolist()


def test_one_part_is_passed_through_without_a_copy() -> None:
    part = rows(1, 2)
    assert stack([part])["x"] is part["x"]
    assert split(part, [2])[0]["x"] is part["x"]


@pytest.mark.parametrize("output", [np.zeros(3), np.float32(1) + np.zeros(())])
def test_outputs_that_do_not_follow_the_rows_belong_to_nobody(output: np.ndarray) -> None:
    with pytest.raises(InferenceFailed, match="rows for 2 records"):
        split({"y": output}, [1, 1])


def test_slices_cover_all_rows_in_order() -> None:
    parts = slice_rows(rows(1, 2, 3, 4, 5), 2)
    assert [part["x"].ravel().tolist() for part in parts] == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_fixed_batch_size_runs_full_chunks_and_drops_the_filling(count: int) -> None:
    sizes: list[int] = []

    def infer(tensors: Tensors) -> Tensors:
        sizes.append(len(tensors["x"]))
        return {"y": tensors["x"] * 10}

    outputs = infer_in_fixed_batches(infer, rows(*range(count)), 3)
    assert outputs["y"].ravel().tolist() == [10 * i for i in range(count)]
    assert set(sizes) == {3}


def test_a_fixed_batch_is_filled_with_a_copy_of_a_real_record() -> None:
    seen: list[list[float]] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(tensors["x"].ravel().tolist())
        return tensors

    infer_in_fixed_batches(infer, rows(7, 8, 9), 2)
    assert seen == [[7, 8], [9, 9]]
