from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.core.free_list import UNIT_BYTES, FreeList

SIZE = 64 * UNIT_BYTES


def test_the_lowest_place_that_fits_is_taken() -> None:
    places = FreeList(SIZE)
    assert [places.allocate(size) for size in (1, 64, 65, 0)] == [0, 64, 128, 256]
    places.free(64)
    assert places.allocate(65) == 320
    assert places.allocate(64) == 64


def test_neighbours_grow_together() -> None:
    places = FreeList(SIZE)
    begins = [places.allocate(SIZE // 4) for _ in range(4)]
    assert places.allocate(1) is None
    for begin in (begins[1], begins[3], begins[0], begins[2]):
        assert begin is not None
        places.free(begin)
    assert len(places) == 0
    assert places.allocate(SIZE) == 0


def test_a_place_is_given_back_once() -> None:
    places = FreeList(SIZE)
    begin = places.allocate(1)
    assert begin is not None
    places.free(begin)
    with pytest.raises(KeyError):
        places.free(begin)


def test_where_the_last_place_has_ended() -> None:
    """Since it was asked before: of those that are in use now, and of those that have been given back."""
    places = FreeList(SIZE)
    assert places.take_high_water() == 0
    first, second = places.allocate(SIZE // 4), places.allocate(SIZE // 4)
    assert first is not None
    assert second is not None
    places.free(second)
    assert places.take_high_water() == SIZE // 2
    assert places.take_high_water() == SIZE // 4
    assert places.allocate(SIZE - SIZE // 4) == second
    places.free(first)
    assert places.take_high_water() == SIZE
    assert places.take_high_water() == SIZE
    places.free(second)
    assert places.take_high_water() == SIZE
    assert places.take_high_water() == 0


def test_no_memory_at_all() -> None:
    assert FreeList(0).allocate(1) is None


@given(st.lists(st.one_of(st.integers(1, SIZE // 3), st.just(-1)), max_size=120))
def test_places_never_overlap_and_nothing_is_lost(steps: list[int]) -> None:
    places = FreeList(SIZE)
    used: dict[int, int] = {}
    for size in steps:
        if size > 0:
            begin = places.allocate(size)
            if begin is None:
                continue
            assert begin % UNIT_BYTES == 0
            assert begin + size <= SIZE
            assert all(begin >= b + s or begin + size <= b for b, s in used.items())
            used[begin] = size
        elif used:
            begin = sorted(used)[len(used) // 2]
            del used[begin]
            places.free(begin)
        assert len(places) == len(used)
    for begin in used:
        places.free(begin)
    assert places.allocate(SIZE) == 0
