"""An engine that runs on one thread of its own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from byoc_server.engines.one_thread import OneThread
from byoc_server.types import Tensors, TensorSpec

X = TensorSpec("x", np.dtype(np.float32), (None,))


class Recorder:
    """An engine that keeps what was called, and on which thread. See ``Engine``."""

    inputs = (X,)
    outputs = (X,)
    facts: Mapping[str, object] = {"device": "gpu"}
    fixed_shapes = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def infer(self, tensors: Tensors) -> Tensors:
        self._note("infer")
        if not tensors["x"].size:
            raise ValueError("nothing to do")
        return tensors

    def warmed_up(self) -> None:
        self._note("warmed_up")

    def close(self) -> None:
        self._note("close")
        self.closed.set()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())


def test_everything_runs_on_one_thread_that_is_not_the_callers() -> None:
    recorder = Recorder()
    engine = OneThread(recorder)
    assert (engine.inputs, engine.outputs, engine.facts, engine.fixed_shapes) == ((X,), (X,), recorder.facts, True)
    tensors: Tensors = {"x": np.ones(1, np.float32)}
    assert engine.infer(tensors) is tensors
    engine.warmed_up()
    with ThreadPoolExecutor(2) as others:
        assert all(answer is tensors for answer in others.map(engine.infer, [tensors] * 4))
    engine.close()
    assert recorder.closed.wait(20)
    assert recorder.calls == ["infer", "warmed_up", *["infer"] * 4, "close"]
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads


def test_a_failure_reaches_the_caller_and_leaves_nothing_behind() -> None:
    engine = OneThread(Recorder())
    nothing: Tensors = {"x": np.ones(0, np.float32)}
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="nothing to do"):
                engine.infer(nothing)
        engine.infer({"x": np.ones(1, np.float32)})
        assert gc.collect() == 0
    finally:
        gc.enable()
    engine.close()
