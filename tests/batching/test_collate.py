import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.batching.collate import RowCollation, infer_in_rungs, slice_rows, split, stack
from byoc_server.errors import InferenceFailed
from byoc_server.types import STRING, BatchAxis, Signature, Tensors, TensorSpec, tensor_bytes


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


@pytest.mark.parametrize(
    ("rungs", "count", "sizes"),
    [
        ((3,), 1, [3]),
        ((3,), 3, [3]),
        ((3,), 7, [3, 3, 3]),
        ((1, 2, 4), 1, [1]),
        ((1, 2, 4), 3, [4]),
        ((1, 2, 4), 4, [4]),
        ((1, 2, 4), 9, [4, 4, 1]),
        ((1, 2, 4), 11, [4, 4, 4]),
    ],
)
def test_rows_are_rounded_up_to_a_rung_and_the_filling_is_dropped(
    rungs: tuple[int, ...], count: int, sizes: list[int]
) -> None:
    seen: list[int] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(len(tensors["x"]))
        return {"y": tensors["x"] * 10}

    outputs = infer_in_rungs(infer, rows(*range(count)), rungs)
    assert outputs["y"].ravel().tolist() == [10 * i for i in range(count)]
    assert seen == sizes


def test_a_rung_is_filled_with_a_copy_of_a_real_record() -> None:
    seen: list[list[float]] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(tensors["x"].ravel().tolist())
        return tensors

    infer_in_rungs(infer, rows(7, 8, 9), (2,))
    assert seen == [[7, 8], [9, 9]]


def test_outputs_that_do_not_have_the_rows_of_the_rung_belong_to_nobody() -> None:
    with pytest.raises(InferenceFailed, match="rows for 4 records"):
        infer_in_rungs(lambda tensors: {"y": tensors["x"][:3]}, rows(1, 2, 3), (4,))


def collation(*shapes: tuple[int | None, ...], axis: BatchAxis = BatchAxis.DYNAMIC) -> RowCollation:
    specs = tuple(TensorSpec(f"x{i}", np.dtype(np.float32), shape) for i, shape in enumerate(shapes))
    return RowCollation(Signature(specs, specs, axis))


def test_records_of_one_shape_share_a_batch() -> None:
    fixed, open_axes = collation((None, 4)), collation((None, 4), (None, None, 3, None))
    part: Tensors = {"x0": np.zeros((2, 4)), "x1": np.zeros((2, 5, 3, 6))}
    assert fixed.key(part) == fixed.key({"x0": np.zeros((1, 4))})
    assert open_axes.key(part) != open_axes.key({**part, "x1": np.zeros((2, 6, 3, 5))})
    assert open_axes.key(part) == open_axes.key({"x0": np.zeros((1, 4)), "x1": np.zeros((1, 5, 3, 6))})


def test_the_length_of_a_record_is_the_product_of_its_open_axes() -> None:
    part: Tensors = {"x0": np.zeros((2, 4)), "x1": np.zeros((2, 5, 3, 6))}
    assert collation((None, 4)).length(part) == 1
    assert collation((None, 4), (None, None, 3, None)).length(part) == 30
    assert collation((None, None)).length({"x0": np.zeros((2, 0))}) == 1
    assert collation((None, 4), axis=BatchAxis.ABSENT).length({"x0": np.zeros((2, 4))}) == 2


def test_rows_are_stacked_and_split_unless_there_is_no_batch_axis() -> None:
    rowwise = collation((None, 1))
    parts: list[Tensors] = [{"x0": np.ones((2, 1))}, {"x0": np.zeros((1, 1))}]
    stacked = rowwise.stack(parts)
    assert [p["x0"].tolist() for p in rowwise.split(stacked, parts, [2, 1])] == [[[1], [1]], [[0]]]
    whole: Tensors = {"y": np.float32(1) + np.zeros(())}
    assert collation((4,), axis=BatchAxis.ABSENT).split(whole, parts[:1], [1]) == [whole]


F32, F64, I8 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int8)
DYNAMIC, FIXED, ABSENT = BatchAxis.DYNAMIC, BatchAxis.FIXED, BatchAxis.ABSENT


@pytest.mark.parametrize(
    ("specs", "axis", "record_bytes"),
    [
        ([(F32, (None, 4))], DYNAMIC, 16),
        ([(F64, (None,))], DYNAMIC, 8),
        ([(F32, (None, 2, 3)), (I8, (None, 5))], DYNAMIC, 29),
        ([(F32, (8, 4))], FIXED, 16),
        ([(F32, (None, None))], DYNAMIC, 0),
        ([(F32, (None, 4)), (F32, (None, None))], DYNAMIC, 0),
        ([(STRING, (None, 4))], DYNAMIC, 0),
        ([(F32, (None, 4)), (STRING, (None, 1))], DYNAMIC, 0),
        ([(F32, (4,))], ABSENT, 0),
        ([(F32, (None, 0))], DYNAMIC, 0),
    ],
)
def test_the_bytes_of_a_record_are_known_where_all_are_alike(
    specs: list[tuple[np.dtype[np.generic], tuple[int | None, ...]]], axis: BatchAxis, record_bytes: int
) -> None:
    """Then whatever a request says of its key and its length would be the same for all."""
    inputs = tuple(TensorSpec(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs))
    signature = Signature(inputs, inputs, axis, 8 if axis is FIXED else None)
    rowwise = RowCollation(signature)
    assert rowwise.record_bytes == record_bytes
    if record_bytes:
        shapes = signature.record_shapes
        parts: list[Tensors] = [
            {spec.name: np.zeros((rows, *[d or 0 for d in shapes[spec.name]]), spec.dtype) for spec in inputs}
            for rows in (1, 3)
        ]
        assert [tensor_bytes(part) for part in parts] == [record_bytes, 3 * record_bytes]
        assert rowwise.key(parts[0]) == rowwise.key(parts[1])
        assert [rowwise.length(part) for part in parts] == [1, 1]


@pytest.mark.parametrize("shape", [(None, 1), (None, None)])
def test_outputs_with_the_rows_that_went_in_belong_to_all_together(shape: tuple[int | None, ...]) -> None:
    parts: list[Tensors] = [{"x0": np.ones((2, 1))}, {"x0": np.zeros((1, 1))}]
    assert collation(shape).together({"y": np.zeros((3, 1)), "z": np.zeros(3)}, parts, [2, 1])


@pytest.mark.parametrize("bad", [np.zeros((2, 1)), np.zeros((4, 1)), np.float32(1) + np.zeros(())])
def test_outputs_without_the_rows_that_went_in_do_not_belong_together(bad: np.ndarray) -> None:
    parts: list[Tensors] = [{"x0": np.ones((2, 1))}, {"x0": np.zeros((1, 1))}]
    with pytest.raises(InferenceFailed, match=r"output 'z' has .* rows for 3 records"):
        collation((None, 1)).together({"y": np.zeros((3, 1)), "z": bad}, parts, [2, 1])


def test_without_a_batch_axis_nothing_belongs_together() -> None:
    whole: Tensors = {"y": np.float32(1) + np.zeros(())}
    assert not collation((4,), axis=ABSENT).together(whole, [{"x0": np.zeros(4)}], [1])
