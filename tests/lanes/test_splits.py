"""However TCP cuts what is sent, the answers are those to the bytes in one piece, in both lanes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lanes.case import Case, invocation, joined, request
from tests.lanes.corpus import ALL
from tests.lanes.player import Transcript, play
from tests.server_process import LANES, ServerProcess

CUTTABLE = [case for case in ALL if case.cut_anywhere]
_LARGE_BYTES = 20_000
"""Of these only the head is cut at random, or hardly a cut would be in it."""


def cut_at(places: Iterable[int]) -> Iterable[int]:
    return sorted(set(places))


def pieces(raw: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut at the places, each taken modulo the length."""
    ends = [*cut_at(place % len(raw) for place in places if len(raw)), len(raw)]
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


PLACES = st.lists(st.one_of(st.integers(0, 300), st.integers(0, _LARGE_BYTES)), min_size=1, max_size=8)


@given(case=st.sampled_from(CUTTABLE), places=PLACES)
@settings(derandomize=True, database=None, deadline=None, max_examples=250)
def test_random_cuts_change_nothing(inline: Mapping[str, ServerProcess], case: Case, places: list[int]) -> None:
    whole = play(inline["ordinary"], case)
    for lane in LANES:
        assert play(inline[lane], case, lambda raw: pieces(raw, places)) == whole


SENT = (
    invocation(0)
    + request(b"Transfer-Encoding: chunked", body=b"2\r\n[[\r\n3;a=b\r\n1]]\r\n0\r\nX-A: b\r\n\r\n", length=False)
    + request(start=b"GET /ping HTTP/1.1")
    + invocation(2, b"Connection: upgrade", b"Upgrade: h2c")
    + request(start=b"GET /nowhere HTTP/1.1")
    + invocation(3)
)
ROW = joined("every kind of request", SENT, 200, 200, 200, 200, 404, 200)


@pytest.mark.parametrize("lane", LANES)
def test_every_single_cut_changes_nothing(inline: Mapping[str, ServerProcess], lane: str) -> None:
    whole = checked(play(inline["ordinary"], ROW))
    for place in range(1, len(SENT)):
        assert play(inline[lane], ROW, lambda raw, place=place: pieces(raw, [place])) == whole  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("lane", LANES)
def test_bytes_that_trickle_change_nothing(inline: Mapping[str, ServerProcess], lane: str, size: int) -> None:
    whole = checked(play(inline["ordinary"], ROW))
    assert play(inline[lane], ROW, lambda raw: pieces(raw, range(0, len(raw), size))) == whole


def checked(transcript: Transcript) -> Transcript:
    assert transcript.statuses == (*ROW.statuses, 200)
    return transcript
