"""Tensors as bytes and back, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from byoc_server.core.frame import FrameError
from byoc_server.core.layout import TensorLayout
from byoc_server.engines.onnx_runtime import DTYPES
from byoc_server.types import STRING, Tensors

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TEXT = st.text(st.characters(), max_size=9)


def through(layout: TensorLayout, requests: Sequence[Tensors]) -> list[Tensors]:
    """The same after they were sent together."""
    (plan,) = {id(layout.plan(tensors)): layout.plan(tensors) for tensors in requests}.values()
    pieces = [layout.data(tensors, plan) for tensors in requests]
    assert len(plan.descriptor) % 8 == 0
    assert all(len(data) % 8 == 0 for data in pieces)
    assert all(plan.nbytes in (None, len(data)) for data in pieces)
    sent = b"".join(pieces)
    buffer = bytes(16) + sent + b"what follows"
    reader = TensorLayout(layout._names)
    return reader.read(reader.read_plan(plan.descriptor), len(requests), buffer, 16, 16 + len(sent))


def assert_same(one: Tensors, other: Tensors) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        assert one[name].tolist() == other[name].tolist() or one[name].tobytes() == other[name].tobytes()


@given(st.data())
def test_every_dtype_and_shape(data: st.DataObject) -> None:
    names = data.draw(st.sampled_from([["x"], ["a", "b"], ["a", "b", "c"]]))
    kinds = {name: (data.draw(st.sampled_from(list(DTYPES.values()))), data.draw(SHAPES)) for name in names}
    requests: list[Tensors] = []
    for _ in range(data.draw(st.integers(1, 3))):
        tensors: Tensors = {}
        for name, (dtype, shape) in kinds.items():
            elements = TEXT if dtype == STRING else None
            tensors[name] = data.draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))
        requests.append(tensors)
    read = through(TensorLayout(names), requests)
    assert len(read) == len(requests)
    for one, other in zip(read, requests, strict=True):
        assert_same(one, other)


def test_single_surrogates_survive() -> None:
    tensors = {"x": np.array(["\ud800", "", "a\0b"], STRING)}
    assert_same(through(TensorLayout(["x"]), [tensors])[0], tensors)


def test_what_is_not_contiguous() -> None:
    tensors: Tensors = {"x": np.arange(12, dtype=np.float32).reshape(3, 4).T[1:]}
    assert_same(through(TensorLayout(["x"]), [tensors])[0], tensors)


def test_numbers_are_not_copied() -> None:
    layout = TensorLayout(["x"])
    tensors: Tensors = {"x": np.arange(6, dtype=np.int64).reshape(2, 3)}
    plan = layout.plan(tensors)
    buffer = layout.data(tensors, plan) * 3
    whole = np.frombuffer(buffer, np.uint8)
    read = layout.read(plan, 3, buffer, 0, len(buffer))
    assert all(np.shares_memory(one["x"], whole) and one["x"].flags.aligned for one in read)
    assert not any(one["x"].flags.writeable for one in read)


def test_the_same_shapes_are_planned_once() -> None:
    layout = TensorLayout(["x"])
    first = layout.plan({"x": np.zeros((2, 3), np.float32)})
    assert layout.plan({"x": np.ones((2, 3), np.float32)}) is first
    assert layout.plan({"x": np.ones((2, 3), np.int32)}) is not first
    assert layout.read_plan(first.descriptor) is layout.read_plan(bytes(bytearray(first.descriptor)))


def test_a_client_with_ever_new_shapes_takes_no_more_memory() -> None:
    layout = TensorLayout(["x"])
    for length in range(1000):
        layout.read_plan(layout.plan({"x": np.zeros(length, np.int8)}).descriptor)
    assert len(layout._by_shape) <= 256
    assert len(layout._by_descriptor) <= 256


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype != STRING])
def test_spread_over_memory(dtype: np.dtype[np.generic]) -> None:
    """Each tensor begins at a cache line, and nothing is copied on the way back."""
    layout = TensorLayout(["a", "b"])
    tensors: Tensors = {"a": np.ones((3, 1), dtype), "b": np.zeros((2, 2), dtype)}
    plan = layout.plan(tensors)
    memory = np.zeros(64 + plan.spread_bytes, np.uint8)
    layout.spread(tensors, plan, memory, 64)
    read = layout.spread_tensors(plan, memory[64:])
    assert_same(read, tensors)
    assert all(np.shares_memory(array, memory) for array in read.values())


def test_memory_that_is_too_short() -> None:
    layout = TensorLayout(["a"])
    plan = layout.plan({"a": np.ones(100, np.float32)})
    with pytest.raises(FrameError):
        layout.spread_tensors(plan, np.zeros(plan.spread_bytes - 1, np.uint8))


@pytest.mark.parametrize(
    "descriptor",
    [b"", b"\xff\1" + bytes(14), b"\0\1" + bytes(6), b"\0\0" + bytes(14)],
    ids=["empty", "no such dtype", "an axis is missing", "longer than the tensors"],
)
def test_a_descriptor_that_is_none(descriptor: bytes) -> None:
    with pytest.raises(FrameError):
        TensorLayout(["x"]).read_plan(descriptor)


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": np.ones(4, np.float64)},
        {"x": np.array(["abc", "d"], STRING)},
        {"x": np.array(["abc", "d"], STRING), "y": np.ones(4, np.float64)},
    ],
    ids=["numbers", "strings", "both"],
)
def test_data_that_end_early(tensors: Tensors) -> None:
    layout = TensorLayout(list(tensors))
    plan = layout.plan(tensors)
    data = layout.data(tensors, plan)
    for count in (1, 2):
        for end in range(0, count * len(data), 8):
            with pytest.raises(FrameError):
                layout.read(plan, count, data * count, 0, end)


def test_a_dtype_that_no_model_has() -> None:
    with pytest.raises(KeyError):
        TensorLayout(["x"]).plan({"x": np.zeros(1, np.complex64)})
