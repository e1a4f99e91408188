"""Memory files: who owns a place, and when it is free again."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from byoc_server.core.frame import FrameError
from byoc_server.core.layout import TensorLayout
from byoc_server.core.shared_memory import OwnMemory, PeerMemory
from byoc_server.types import Tensors

LAYOUT = TensorLayout(["x"])
MIB = 1024 * 1024


class Timers:
    """An event loop, as far as memory needs one, whose time goes on when it is told to."""

    def __init__(self) -> None:
        self.functions: list[Callable[[], None]] = []
        self.handles: list[mock.Mock] = []

    def call_later(self, delay_s: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        assert delay_s >= 1
        self.functions.append(function)
        self.handles.append(mock.Mock(asyncio.TimerHandle))
        return self.handles[-1]

    def go_on(self) -> None:
        (function,) = self.functions
        self.functions.clear()
        function()


def pair(size: int = MIB) -> tuple[OwnMemory, PeerMemory, list[int]]:
    freed: list[int] = []
    own = OwnMemory(size, Timers().call_later)
    peer = PeerMemory(os.dup(own.descriptor), freed.append)
    own.sent()
    return own, peer, freed


def put(own: OwnMemory, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> int:
    tensors: Tensors = {"x": array}
    place = own.put(tensors, LAYOUT, LAYOUT.plan(tensors))
    assert place is not None
    return place


def test_one_writes_and_the_other_reads_without_a_copy() -> None:
    own, peer, _ = pair()
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    place = put(own, array)
    read = peer.tensors(LAYOUT, LAYOUT.plan({"x": array}), place)["x"]
    assert read.tolist() == array.tolist()
    assert not read.flags.writeable
    own.free(place)
    put(own, array + 1)
    assert read.tolist() == (array + 1).tolist()


def test_a_place_is_free_when_the_last_array_on_it_is_gone() -> None:
    own, peer, freed = pair()
    array = np.arange(1000, dtype=np.float32)
    plan = LAYOUT.plan({"x": array})
    first, second = put(own, array), put(own, array)
    tensors = peer.tensors(LAYOUT, plan, first)
    part = tensors["x"][10:].reshape(99, 10)[::2]
    other = peer.tensors(LAYOUT, plan, second)
    tensors.clear()
    assert freed == []
    other.clear()
    assert freed == [second]
    part = part[1:]
    assert freed == [second]
    del part
    assert freed == [second, first]
    assert len(own) == 2
    for place in freed:
        own.free(place)
    assert len(own) == 0


def test_no_place_left() -> None:
    own, _, _ = pair()
    tensors: Tensors = {"x": np.zeros(MIB, np.uint8)}
    plan = LAYOUT.plan(tensors)
    place = own.put(tensors, LAYOUT, plan)
    assert own.put(tensors, LAYOUT, plan) is None
    assert place is not None
    own.free(place)
    assert own.put(tensors, LAYOUT, plan) == place


def test_an_offset_behind_the_end() -> None:
    _, peer, _ = pair()
    with pytest.raises(FrameError):
        peer.tensors(LAYOUT, LAYOUT.plan({"x": np.zeros(100, np.uint8)}), MIB - 64)


def test_the_peer_cannot_be_cut_off() -> None:
    """A file that shrinks would end who reads it with SIGBUS."""
    own = OwnMemory(MIB, Timers().call_later)
    with pytest.raises(PermissionError):
        os.ftruncate(own.descriptor, mmap.PAGESIZE)
    own.close()


def test_after_the_end_nobody_is_told_any_more() -> None:
    own, peer, freed = pair()
    array = np.ones(100, np.float32)
    tensors = peer.tensors(LAYOUT, LAYOUT.plan({"x": array}), put(own, array))
    own.close()
    peer.close()
    assert tensors["x"].sum() == 100  # what is left keeps its memory
    tensors.clear()
    assert freed == []


def test_neither_files_nor_mappings_are_left() -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:tensors")
        return len(os.listdir("/proc/self/fd")), maps

    before = count()
    for _ in range(50):
        own, peer, _ = pair()
        array = np.ones(100, np.float32)
        tensors = peer.tensors(LAYOUT, LAYOUT.plan({"x": array}), put(own, array))
        own.close()
        peer.close()
        del tensors, own, peer
    assert count() == before


def pages_bytes(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


def mapped_files() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:tensors")


def test_memory_of_a_burst_is_given_back() -> None:
    """Memory files count as the container's memory for as long as their pages are there."""
    timers = Timers()
    own = OwnMemory(256 * MIB, timers.call_later)
    descriptor = own.descriptor
    own.free(put(own, np.ones(8 * MIB, np.uint8)))
    assert timers.functions == []  # so little stays
    places = [put(own, np.ones(32 * MIB, np.uint8)) for _ in range(4)]
    for place in places[1:]:
        own.free(place)
    timers.go_on()
    assert pages_bytes(descriptor) >= 128 * MIB  # it was used since
    timers.go_on()
    assert pages_bytes(descriptor) == 32 * MIB
    own.free(places[0])
    assert put(own, np.ones(100 * MIB, np.uint8)) == 0
    timers.go_on()
    assert pages_bytes(descriptor) >= 100 * MIB
    own.free(0)
    timers.go_on()
    timers.go_on()
    assert pages_bytes(descriptor) == 16 * MIB
    assert timers.functions == []  # nothing is left to give back
    own.close()


def test_what_is_in_use_stays() -> None:
    timers = Timers()
    own = OwnMemory(64 * MIB, timers.call_later)
    peer = PeerMemory(os.dup(own.descriptor), lambda _: None)
    array = np.arange(40 * MIB // 8)
    place = put(own, array)
    for _ in range(3):
        timers.go_on()
    read = peer.tensors(LAYOUT, LAYOUT.plan({"x": array}), place)["x"]
    assert np.array_equal(read, array)
    own.close()


def test_a_file_goes_with_the_last_array_on_it_and_waits_for_no_garbage_collection() -> None:
    """What tells that a place is free leads, in the server, back to who holds the memory."""

    class Holder:
        def __init__(self, descriptor: int) -> None:
            self.peer = PeerMemory(descriptor, self.tell_free)

        def tell_free(self, _: int) -> None: ...

    own = OwnMemory(MIB, Timers().call_later)
    holder = Holder(os.dup(own.descriptor))
    array = np.arange(1000)
    read = holder.peer.tensors(LAYOUT, LAYOUT.plan({"x": array}), put(own, array))
    own.close()
    gc.collect()
    gc.disable()
    try:
        before = mapped_files()
        holder.peer.close()
        del holder
        assert np.array_equal(read["x"], array)
        assert mapped_files() == before
        del read
        assert mapped_files() == before - 1
    finally:
        gc.enable()


def test_after_the_end_nothing_is_given_back() -> None:
    timers = Timers()
    own = OwnMemory(64 * MIB, timers.call_later)
    put(own, np.ones(40 * MIB, np.uint8))
    own.close()
    timers.handles[0].cancel.assert_called_once_with()
