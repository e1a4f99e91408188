"""Whether the memory of a GPU stays flat: 10,000 batches of 1 to 64 images in any order, with CUDA graphs and without.

The engine alone, in this process, with ResNet-50 of float16. Half of the sizes are warmed up, as a ladder would be, the
others come as they come. What counts is the memory in use on the GPU, as the driver tells it (NVML), after the first
tenth of the batches against the most after that. Nothing else may use the GPU meanwhile.

Run: python -m benchmarks.gpu_memory    (about 5 minutes; needs an NVIDIA GPU)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import gpu, gpu_throughput, image_model
from benchmarks.report import Goal, Report, Row, progress, run
from byoc_server.engines.base import Engine, EngineOptions, GpuOptions
from byoc_server.engines.onnx import open_model

_MIB = 1024 * 1024
_LARGEST = 64
_BATCHES, _QUICK_BATCHES = 10_000, 100
_SAMPLES = 50
_GOAL_MIB = 16.0
"""Allowed growth: the driver gives memory out in pieces of 2 MiB."""
_SEED = 1


def measure(quick: bool) -> Report:
    facts = gpu.require_gpu()
    rows: list[Row] = []
    rounds: list[Row] = []
    goals: list[Goal] = []
    for graphs in (False, True):
        name = "CUDA graphs" if graphs else "no graphs"
        options = EngineOptions(1, "gpu", gpu=GpuOptions(cuda_graphs=graphs))
        used = watch(options, gpu_throughput.QUICK if quick else gpu_throughput.FULL, _count(quick), gpu.used_bytes)
        rows.append({"engine": name, **summary(used)})
        rounds += [{"engine": name, "batches": batches, "used_mib": mib} for batches, mib in used]
        goals.append(Goal(f"growth in MiB, {name}", float(str(rows[-1]["growth_mib"])), _GOAL_MIB))
    return Report({"batches": _count(quick), "rows": [1, _LARGEST], **facts}, rows, goals, rounds)


def watch(
    options: EngineOptions, plan: gpu_throughput.Plan, batches: int, used_bytes: Callable[[], int]
) -> list[tuple[int, float]]:
    """Run batches of mixed size.

    Args:
        options: of the engine.
        plan: has the model.
        batches: how many.
        used_bytes: tells the memory in use.

    Returns:
        Batches so far and the MiB in use then, ascending.
    """
    random = np.random.default_rng(_SEED)
    used: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        engine = open_model(image_model.of_bytes(plan.build(Path(folder) / "model.onnx"), half=True), options)
        pixels = random.integers(0, 256, (_LARGEST, *plan.image), np.uint8)
        _warm_up(engine, pixels)
        for number, rows in enumerate(random.integers(1, _LARGEST + 1, batches).tolist(), start=1):
            engine.infer({"input": pixels[:rows]})
            if number % max(1, batches // _SAMPLES) == 0:
                used.append((number, used_bytes() / _MIB))
                progress(f"{number} batches: {used[-1][1]:,.0f} MiB")
        engine.close()
    return used


def summary(used: Sequence[tuple[int, float]]) -> Row:
    """Memory after a tenth of the batches, at most after that, and by how much it grew."""
    settled = used[len(used) // 10][1]
    most = max(mib for _, mib in used[len(used) // 10 :])
    return {"settled_mib": settled, "most_mib": most, "growth_mib": most - settled}


def _warm_up(engine: Engine, pixels: np.typing.NDArray[np.uint8]) -> None:
    """As a model's warm-up does: the largest size first, each until it is prepared for."""
    for rows in range(_LARGEST, 0, -2):
        for _ in range(3):
            engine.infer({"input": pixels[:rows]})
    engine.warmed_up()


def _count(quick: bool) -> int:
    return _QUICK_BATCHES if quick else _BATCHES


if __name__ == "__main__":
    sys.exit(run("gpu_memory", __doc__, measure))
