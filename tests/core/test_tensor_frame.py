"""Tensors of several requests in one frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.core.frame import HEADER, Frame, FrameError, FrameReader, Kind
from byoc_server.core.layout import TensorLayout
from byoc_server.core.tensor_frame import TensorFrame, read_columns

LAYOUT = TensorLayout(["x"])
PLAN = LAYOUT.plan({"x": np.zeros(2, np.float32)})
REQUESTS = st.tuples(st.integers(0, 2**64 - 1), st.floats(allow_nan=False), st.binary(min_size=8, max_size=8))


def received(sent: bytes) -> Frame:
    (frame,) = FrameReader().feed(sent)
    return frame


@given(st.lists(REQUESTS, min_size=1, max_size=20))
def test_each_request_is_there_in_order(requests: list[tuple[int, float, bytes]]) -> None:
    frame = TensorFrame(Kind.INFER, 3, 7, PLAN, 8)
    frame.requests += requests
    read = received(frame.take())
    kind, flags, rows, number, deadline_s, descriptor_bytes, count, buffer, begin, end = read
    assert (kind, flags, rows, count) == (Kind.INFER, 3, 7, len(requests))
    assert (number, deadline_s) == requests[0][:2]
    assert buffer[begin : begin + descriptor_bytes] == PLAN.descriptor
    numbers, deadlines_s, data = read_columns(read, begin + descriptor_bytes)
    pieces = [buffer[at : at + 8] for at in range(data, end, 8)]
    assert list(zip(numbers, deadlines_s, pieces, strict=True)) == requests


def test_a_frame_is_empty_when_it_has_been_sent() -> None:
    frame = TensorFrame(Kind.INFER, 0, 1, PLAN, 8)
    sent = []
    for number in (1, 2):
        frame.requests.append((number, 0.0, bytes(8)))
        sent.append(received(frame.take()))
        assert frame.requests == []
    assert [(one[3], one[6]) for one in sent] == [(1, 1), (2, 1)]


@pytest.mark.parametrize(("item_bytes", "most"), [(0, 65536), (1024, 64), (65536, 1), (10**7, 0)])
def test_a_frame_takes_no_more_than_so_much(item_bytes: int, most: int) -> None:
    """The first one fits whatever its size: nobody asks before it."""
    assert TensorFrame(Kind.INFER, 0, 1, PLAN, item_bytes).most == most


@pytest.mark.parametrize("count", [0, 3, 2**32 - 1])
def test_a_count_that_is_none(count: int) -> None:
    sent = HEADER.pack(24, Kind.INFER, 0, 0, 1, 1, 0.0, 8, count) + bytes(24)
    read = received(sent)
    with pytest.raises(FrameError):
        read_columns(read, read[-2] + 8)
