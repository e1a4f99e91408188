"""How much of the GPU is left over: images a second served, against ``session.run`` in a loop, for ResNet-50.

Three ways to run it: CUDA with float32, CUDA with float16, TensorRT with float16. 128 connections send one image a
request, 150 KB of bytes as ``application/x-npy``. The loop runs in a process of its own on the same GPU, with the same
execution providers, at the batch size that is best for it: sizes 1, 2, 4 ... 256 are tried first. Rounds alternate
between the two, and whichever is not measured has nothing to do; the ratio is the median of the ratios of each round.

The load comes from four generators, as one of them may be slower than the GPU. TensorRT is left out where it is not
installed, and the result file says so.

Run: python -m benchmarks.gpu_throughput    (about 10 minutes; needs an NVIDIA GPU and wrk)
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import gpu, gpu_offline, image_model, models, wrk
from benchmarks.offline import OfflineLoop
from benchmarks.processes import Server, byoc_command, serving
from benchmarks.report import BenchmarkError, Goal, Report, Row, median_ratio, progress, run
from byoc_server.engines.base import GpuOptions

_GENERATORS, _CONNECTIONS = 4, 128
_GOAL = 0.9
_SEED = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: for the table.
        half: weights of half precision.
        gpu: of the loop's session.
        flags: of the server, for the same.
    """

    name: str
    half: bool
    gpu: GpuOptions
    flags: tuple[str, ...] = ()


VARIANTS = (
    Variant("CUDA, float32", False, GpuOptions()),
    Variant("CUDA, float16", True, GpuOptions()),
    Variant(
        "TensorRT, float16",
        False,
        GpuOptions("tensorrt", tensorrt_precision="fp16"),
        ("--execution-provider", "tensorrt", "--tensorrt-precision", "fp16"),
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        build: writes the model.
        image: shape of one image.
        rounds: pairs of one served and one offline measurement.
        served_s: of one served measurement.
        offline_s: of one offline measurement.
        sweep_s: of one batch size when the best one is looked for.
    """

    build: Callable[[Path], Path]
    image: tuple[int, ...]
    rounds: int
    served_s: int
    offline_s: float
    sweep_s: float


FULL = Plan(models.resnet50, (3, models.IMAGE_PIXELS, models.IMAGE_PIXELS), 5, 10, 5.0, 1.0)
QUICK = Plan(partial(models.resnet, stages=(1, 1), width=8, pixels=32, classes=10), (3, 32, 32), 1, 1, 0.2, 0.02)


def measure(quick: bool) -> Report:
    settings: dict[str, object] = {"connections": _CONNECTIONS, "records_per_request": 1, **gpu.require_gpu()}
    rows: list[Row] = []
    rounds: list[Row] = []
    goals: list[Goal] = []
    for variant in VARIANTS:
        try:
            row, measured = compare(variant, QUICK if quick else FULL, "gpu")
        except BenchmarkError as error:
            if "cannot run with TensorRT" not in str(error):
                raise
            settings["left_out"] = f"{variant.name}: not installed"
            continue
        rows.append(row)
        rounds += measured
        ratio = float(str(row["served_to_offline"]))
        goals.append(Goal(f"ResNet-50, {variant.name}, served / offline", ratio, _GOAL, at_most=False))
    return Report(settings, rows, goals, rounds)


def compare(variant: Variant, plan: Plan, device: str) -> tuple[Row, list[Row]]:
    """Measure one variant.

    Args:
        variant: which.
        plan: how long.
        device: ``gpu``, or ``cpu`` to see that the benchmark works.

    Returns:
        Its row of the table, and the rounds behind it.
    """
    request = wrk.Request("application/x-npy", npy(plan.image))
    with prepared(variant, plan, device) as (loop, server):
        best_rows, by_rows = loop.sweep(variant.name, plan.sweep_s)
        loads, looped = [], []
        _load(server, request, plan.served_s)  # fills the caches that nobody warmed up
        for number in range(plan.rounds):
            server.empty_log()
            loads.append(_load(server, request, plan.served_s))
            looped.append(loop.run(best_rows, plan.offline_s).rows_per_s)
            figures = f"{_images_per_s(loads[-1]):,.0f} images/s served, {looped[-1]:,.0f} offline"
            progress(f"{variant.name}: round {number + 1} of {plan.rounds}: {figures}")
    served = [_images_per_s(parts) for parts in loads]
    row: Row = {
        "variant": variant.name,
        "served_images_per_s": statistics.median(served),
        "offline_images_per_s": statistics.median(looped),
        "served_to_offline": median_ratio(served, looped),
        "offline_batch_rows": best_rows,
        "offline_unbatched_images_per_s": by_rows[1],
        "served_p99_ms": statistics.median(max(part.p99_s for part in parts) for parts in loads) * 1e3,
    }
    rounds: list[Row] = [
        {"variant": variant.name, "served_images_per_s": s, "offline_images_per_s": o}
        for s, o in zip(served, looped, strict=True)
    ]
    return row, rounds


@contextlib.contextmanager
def prepared(variant: Variant, plan: Plan, device: str) -> Iterator[tuple[OfflineLoop, Server]]:
    """The loop and the server, both running. Engines that TensorRT builds for the loop serve the server as well."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        path = image_model.of_bytes(plan.build(Path(folder) / "model.onnx"), half=variant.half)
        options = dataclasses.replace(variant.gpu, tensorrt_cache_dir=cache) if device == "gpu" else None
        flags = ("--model", str(path), "--device", device, "--tensorrt-cache-dir", cache, *variant.flags)
        with gpu_offline.looping(path, options) as loop:
            loop.run(1, 0.0)  # by now they are built
            with serving(byoc_command(*flags), os.sched_getaffinity(0)) as server:
                yield loop, server


def npy(image: tuple[int, ...]) -> bytes:
    """One image as ``application/x-npy``."""
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(_SEED).integers(0, 256, (1, *image), np.uint8))
    return stream.getvalue()


def _load(server: Server, request: wrk.Request, duration_s: int) -> list[wrk.Load]:
    """Load from several generators at once, and what each of them saw."""
    with ThreadPoolExecutor(_GENERATORS) as threads:
        load = partial(wrk.load, server.port, request, _CONNECTIONS // _GENERATORS, duration_s, None)
        return [future.result() for future in [threads.submit(load) for _ in range(_GENERATORS)]]


def _images_per_s(parts: list[wrk.Load]) -> float:
    return sum(part.requests_per_s for part in parts)


if __name__ == "__main__":
    sys.exit(run("gpu_throughput", __doc__, measure))
