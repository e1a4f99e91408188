"""What an engine is: the thing that runs a model file.

Another engine is one module that implements ``Engine`` and one row in ``ENGINES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from byoc_server.types import Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a model runs where it runs on a GPU. Spelt as in the settings of the same names.

    Attributes:
        execution_provider: ``cuda`` or ``tensorrt``.
        memory_limit_bytes: most memory of the tensors of one session; ``None`` = no limit.
        arena: ``same_as_requested`` or ``next_power_of_two``.
        cudnn_search: ``heuristic``, ``exhaustive`` or ``default``.
        cuda_graphs: replay a batch of a known shape as a CUDA graph.
        tensorrt_cache_dir: folder for the engines that TensorRT builds; empty = none.
        tensorrt_precision: ``model``, ``fp16`` or ``int8``.
        largest_batch_rows: what TensorRT builds an engine for; batches are no larger.
    """

    execution_provider: str = "cuda"
    memory_limit_bytes: int | None = None
    arena: str = "same_as_requested"
    cudnn_search: str = "heuristic"
    cuda_graphs: bool = False
    tensorrt_cache_dir: str = ""
    tensorrt_precision: str = "model"
    largest_batch_rows: int = 256


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine may use.

    Attributes:
        threads: threads of one inference, the calling one included.
        device: ``auto``, ``cpu`` or ``gpu``.
        gpu_usable: a GPU is to be seen here; matters for ``auto`` alone.
        gpu: matters on a GPU alone.
    """

    threads: int
    device: str = "auto"
    gpu_usable: bool = False
    gpu: GpuOptions = field(default_factory=GpuOptions)


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

    @property
    def fixed_shapes(self) -> bool:
        """Whether it wants few different shapes, all of them met in warm-up: others are slow, or take minutes."""
        ...

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once.

        Args:
            tensors: every input, of the declared dtype and of a shape the graph shape allows, C-contiguous.

        Returns:
            Every output.

        Raises:
            GpuUnavailable: the GPU failed; ``lasting`` says whether this process can still use it.
            Exception: whatever the engine raises when it fails on this input; the model stays usable.
        """
        ...

    def warmed_up(self) -> None:
        """Warm-up is over: a shape that has not come by now is served without being prepared for.

        To prepare for a shape may disturb whatever else runs on the device, and takes memory for good.
        """
        ...

    def close(self) -> None:
        """Give the memory back. The engine is not used afterwards."""
        ...


OpenEngine = Callable[[Path, EngineOptions], Engine]
"""Loads a model file. Raises ``ModelLoadError``, ``GpuUnavailable`` and ``SettingsError``."""

ENGINES: Mapping[str, str] = {
    ".onnx": "byoc_server.engines.onnx:open_model",
    ".ort": "byoc_server.engines.onnx:open_model",
}
"""File suffix -> import string of what opens it."""


def engine_for(path: Path) -> OpenEngine:
    """The engine for a model file; the suffix is one of ``ENGINES``."""
    module, _, name = ENGINES[path.suffix.lower()].partition(":")
    return cast(OpenEngine, getattr(importlib.import_module(module), name))
