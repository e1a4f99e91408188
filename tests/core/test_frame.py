"""Frames between processes, cut anyhow on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.core.frame import HEADER, Frame, FrameError, FrameReader, Kind, frame

FRAMES = [
    frame(Kind.STATUS),
    frame(Kind.ERROR, b"why", 7),
    HEADER.pack(32, Kind.INFER, 3, 0, 5, 2**40, 12.5, 8, 1) + b"describe" + b"eight by" * 3,
    frame(Kind.CANCEL, number=2**63),
    frame(Kind.ERROR, bytes(range(256)) * 9, 8),
]


def contents(received: Frame) -> tuple[object, ...]:
    *fields, buffer, begin, end = received
    return *fields, buffer[begin:end]


EXPECTED = [contents(received) for one in FRAMES for received in FrameReader().feed(one)]


def test_what_is_sent_is_received() -> None:
    assert EXPECTED[0] == (Kind.STATUS, 0, 0, 0, 0.0, 0, 0, b"")
    assert EXPECTED[1] == (Kind.ERROR, 0, 0, 7, 0.0, 0, 0, b"why" + bytes(5))
    assert EXPECTED[2] == (Kind.INFER, 3, 5, 2**40, 12.5, 8, 1, b"describe" + b"eight by" * 3)


@given(st.lists(st.integers(0, sum(map(len, FRAMES))), max_size=40))
def test_frames_are_found_however_they_are_cut(cuts: list[int]) -> None:
    """Each payload lies aligned in its buffer, so that arrays on it are."""
    stream = b"".join(FRAMES)
    bounds = [0, *sorted(cuts), len(stream)]
    reader = FrameReader()
    received = [one for a, b in pairwise(bounds) for one in reader.feed(stream[a:b])]
    assert [contents(one) for one in received] == EXPECTED
    assert all(one[-2] % 8 == 0 for one in received)


def test_a_large_frame_in_many_pieces_is_joined_once() -> None:
    """Or a body of megabytes would be copied for each of its pieces."""
    reader = FrameReader()
    stream = frame(Kind.ERROR, bytes(8_000_000))
    pieces = [stream[i : i + 1000] for i in range(0, len(stream), 1000)]
    assert [one for piece in pieces[:-1] for one in reader.feed(piece)] == []
    assert len(reader._chunks) == len(pieces) - 1
    (received,) = reader.feed(pieces[-1])
    assert received[-1] - received[-2] == 8_000_000
    assert reader._chunks == []


@pytest.mark.parametrize(
    "header",
    [HEADER.pack(5, Kind.INFER, 0, 0, 0, 0, 0.0, 0, 1), HEADER.pack(8, Kind.INFER, 0, 0, 0, 0, 0.0, 16, 1)],
    ids=["odd size", "descriptor longer than the payload"],
)
def test_nonsense(header: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameReader().feed(header))
