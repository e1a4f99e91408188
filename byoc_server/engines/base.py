"""What an engine is: the thing that runs a model file.

Another engine is one module that implements ``Engine`` and one row in ``ENGINES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from byoc_server.types import Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine may use.

    Attributes:
        threads: threads of one inference, the calling one included.
        device: ``auto``, ``cpu`` or ``gpu``.
        gpu_usable: a GPU is to be seen here; matters for ``auto`` alone.
    """

    threads: int
    device: str = "auto"
    gpu_usable: bool = False


class Engine(Protocol):
    """A loaded model. ``infer`` is never called twice at the same time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs in the order of the model."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs in the order of the model."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """What the start summary should say of it: versions, device, execution providers, threads."""
        ...

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once.

        Args:
            tensors: every input, of the declared dtype and of a shape the graph shape allows, C-contiguous.

        Returns:
            Every output.

        Raises:
            Exception: whatever the engine raises when it fails on this input; the model stays usable.
        """
        ...

    def close(self) -> None:
        """Give the memory back. The engine is not used afterwards."""
        ...


OpenEngine = Callable[[Path, EngineOptions], Engine]
"""Loads a model file. Raises ``ModelLoadError`` and ``GpuUnavailable``."""

ENGINES: Mapping[str, str] = {
    ".onnx": "byoc_server.engines.onnx:open_model",
    ".ort": "byoc_server.engines.onnx:open_model",
}
"""File suffix -> import string of what opens it."""


def engine_for(path: Path) -> OpenEngine:
    """The engine for a model file; the suffix is one of ``ENGINES``."""
    module, _, name = ENGINES[path.suffix.lower()].partition(":")
    return cast(OpenEngine, getattr(importlib.import_module(module), name))
