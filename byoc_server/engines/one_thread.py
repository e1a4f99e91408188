"""An engine that runs on one thread of its own, whoever calls it.

The CUDA provider keeps captured graphs, and the count of runs before a capture, for every thread apart (ONNX Runtime
1.31, ``CUDAExecutionProvider::PerThreadContext``). Warm-up and serving are not the same thread: without this one,
graphs would be captured once more while requests wait, and take their memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from byoc_server.engines.base import Engine
from byoc_server.types import Tensors


class OneThread:
    """Another engine, on one thread. It costs a hand-over there and back, some 30 us. See ``Engine``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.facts: Mapping[str, object] = engine.facts
        self.fixed_shapes = engine.fixed_shapes

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once."""
        return self._thread.submit(self._engine.infer, tensors).result()

    def warmed_up(self) -> None:
        """Tell the engine."""
        self._thread.submit(self._engine.warmed_up).result()

    def close(self) -> None:
        """Give the memory back, and the thread: it ends behind what it does now."""
        self._thread.submit(self._engine.close)
        self._thread.shutdown(wait=False)
