from __future__ import annotations

import mmap

import numpy as np
import pytest

from byoc_server.batching.adjacent import WORTHWHILE_BYTES, joined
from byoc_server.batching.collate import stack
from byoc_server.types import Array

RECORD = WORTHWHILE_BYTES // 4


def records(memory: mmap.mmap, *bounds: tuple[int, int]) -> list[Array]:
    """Float records (begin, end) of a memory file, each from a view of its own, as they come from a peer."""
    return [
        np.frombuffer(memory, np.uint8, (end - begin) * RECORD * 4, begin * RECORD * 4)
        .view(np.float32)
        .reshape(end - begin, RECORD)
        for begin, end in bounds
    ]


@pytest.fixture
def memory() -> mmap.mmap:
    memory = mmap.mmap(-1, 8 * RECORD * 4)
    memory[:] = np.arange(8 * RECORD, dtype=np.float32).tobytes()
    return memory


@pytest.mark.parametrize("bounds", [[(0, 1), (1, 3), (3, 8)], [(2, 3), (3, 4)], [(5, 7)]])
def test_one_behind_the_other(memory: mmap.mmap, bounds: list[tuple[int, int]]) -> None:
    parts = records(memory, *bounds)
    whole = joined(parts)
    assert whole is not None
    assert np.shares_memory(whole, parts[0])
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    assert whole.dtype == np.float32
    assert whole.shape == (bounds[-1][1] - bounds[0][0], RECORD)


@pytest.mark.parametrize("bounds", [[(0, 1), (2, 3)], [(1, 2), (0, 1)], [(0, 2), (1, 3)], [(3, 4), (3, 4)]])
def test_anything_else(memory: mmap.mmap, bounds: list[tuple[int, int]]) -> None:
    assert joined(records(memory, *bounds)) is None


def test_arrays_with_memory_of_their_own() -> None:
    assert joined([np.zeros((1, RECORD), np.float32)] * 2) is None


def test_another_piece_of_memory(memory: mmap.mmap) -> None:
    other = mmap.mmap(-1, RECORD * 4)
    assert joined([*records(memory, (0, 1)), *records(other, (0, 1))]) is None


def test_rows_with_gaps(memory: mmap.mmap) -> None:
    (first,) = records(memory, (0, 2))
    assert joined([first, records(memory, (2, 6))[0][::2]]) is None


def test_a_batch_of_such_records_is_not_copied(memory: mmap.mmap) -> None:
    parts = records(memory, (0, 1), (1, 2))
    stacked = stack([{"x": part} for part in parts])["x"]
    assert np.shares_memory(stacked, parts[1])
    assert stacked.tobytes() == memory[: 2 * RECORD * 4]
    assert not np.shares_memory(stack([{"x": part} for part in reversed(parts)])["x"], parts[1])
