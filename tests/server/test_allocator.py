"""What the C library does with freed memory. In processes of their own: it is set for good."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from byoc_server.server import allocator

BLOCK_BYTES = 600_000
ROUNDS = 20
BLOCKS = 10

_PROGRAM = f"""
import resource, sys
from byoc_server.server.allocator import keep_freed_memory

def fill(rounds, blocks, size):
    for _ in range(rounds):
        held = [bytearray(size) for _ in range(blocks)]
        for block in held:
            block[::4096] = b"x" * len(block[::4096])
        del held, block

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

if "keep" in sys.argv:
    keep_freed_memory()
fill(1, {BLOCKS}, {BLOCK_BYTES})
before = faults()
fill({ROUNDS}, {BLOCKS}, {BLOCK_BYTES})
faulted = faults() - before
resident = resident_bytes()
fill(1, 20, 20 << 20)
print(faulted, resident_bytes() - resident)
"""


def measure(*arguments: str) -> tuple[int, int]:
    """Page faults of rounds of large blocks; and what a burst of 400 MiB leaves behind, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    faults, left_bytes = map(int, done.stdout.split())
    return faults, left_bytes


def test_large_blocks_find_the_memory_of_those_before_them() -> None:
    assert 20 * measure("keep")[0] < measure()[0]


def test_a_burst_is_given_back() -> None:
    assert measure("keep")[1] < 80 * 1024 * 1024


def test_a_c_library_without_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    allocator.keep_freed_memory()
