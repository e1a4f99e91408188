"""What fuzzing begins with, read by the decoders without atheris: whatever it once found stays mended."""

from __future__ import annotations

import pytest

from benchmarks.fuzz.seeds import COMMITTED, committed_seeds, folder_name, made_seeds
from benchmarks.fuzz.targets import targets

TARGETS = targets()
COMMITTED_BYTES = 100_000


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_hold_the_property(target: str) -> None:
    seeds = made_seeds(target) + [path.read_bytes() for path in committed_seeds(target)]
    assert len(seeds) > 3
    for seed in seeds:
        TARGETS[target](seed)


def test_committed_seeds_are_small_and_each_belongs_to_a_target() -> None:
    paths = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert paths
    assert {path.parent for path in paths} <= {COMMITTED / folder_name(target) for target in TARGETS}
    assert sum(path.stat().st_size for path in paths) < COMMITTED_BYTES
