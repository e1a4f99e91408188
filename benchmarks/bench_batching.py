"""How much of the hardware is left over: rows a second served, against ``session.run`` in a loop.

64 connections send one record a request as ``application/x-npy``; the server finds its batch size itself. The loop
runs in a process of its own, with the same number of threads (one), at the batch size that is best for it: sizes 1, 2,
4 ... 256 are tried first, until three in a row bring no more. Rounds alternate between the two; figures are medians
over the rounds, the ratio is the median of the ratios of each round.

64 connections have 64 records under way, of which half wait while half run: larger batches cannot form, however large
the best one is. So the loop is also run in batches of 32, and ``served_to_offline_32`` compares with that.

Cores: an inference has one core for itself in both cases. The server's inference thread and the loop are pinned to one
core, all other threads of the server (HTTP, decoding, encoding) and the load generator to the other.

What the load generator has not got at the end of a round does not count, which is at most one batch.

Run: python -m benchmarks.bench_batching    (about 7 minutes; needs two cores and wrk)
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import models, offline, wrk
from benchmarks.processes import byoc_command, pin_inference, serving, two_cores
from benchmarks.report import Goal, Report, Row, median_ratio, progress, run

_CONNECTIONS = 64
_RUNNING_ROWS = _CONNECTIONS // 2
_THREADS = 1
_SEED = 1


@dataclass(frozen=True, slots=True)
class _Case:
    """One model under load.

    Attributes:
        name: for the table.
        build: writes the model.
        record_shape: of one record.
        goal: wanted share of the loop's rows a second; ``None`` for none.
        rounds: pairs of one served and one offline measurement.
        served_s: of one served measurement.
        offline_s: of one offline measurement.
        sweep_s: of one batch size when the best one is looked for.
    """

    name: str
    build: Callable[[Path], Path]
    record_shape: tuple[int, ...]
    goal: float | None
    rounds: int
    served_s: int
    offline_s: float
    sweep_s: float


_IMAGE = (3, models.IMAGE_PIXELS, models.IMAGE_PIXELS)
_FULL = (
    _Case("MLP 512-2048-2048-1000", partial(models.mlp, widths=models.WIDE_MLP), (512,), 0.92, 7, 5, 3.0, 1.0),
    _Case("ResNet-50", models.resnet50, _IMAGE, 0.95, 3, 20, 8.0, 2.0),
)
_TINY_RESNET = partial(models.resnet, stages=(1, 1), width=8, pixels=32, classes=10)
_QUICK = (
    _Case("MLP 512-512-10", partial(models.mlp, widths=(512, 512, 10)), (512,), None, 1, 1, 0.2, 0.05),
    _Case("small residual network", _TINY_RESNET, (3, 32, 32), None, 1, 1, 0.2, 0.05),
)


def measure(quick: bool) -> Report:
    rows: list[Row] = []
    rounds: list[Row] = []
    goals: list[Goal] = []
    for case in _QUICK if quick else _FULL:
        row, served, looped = _measure_case(case)
        rows.append(row)
        rounds += [
            {"model": case.name, "served_rows_per_s": s, "offline_rows_per_s": o}
            for s, o in zip(served, looped, strict=True)
        ]
        if case.goal is not None:
            goals.append(Goal(f"{case.name}, served / offline", median_ratio(served, looped), case.goal, at_most=False))
    settings: Row = {"connections": _CONNECTIONS, "threads": _THREADS, "records_per_request": 1}
    return Report(settings, rows, goals, rounds)


def _measure_case(case: _Case) -> tuple[Row, list[float], list[float]]:
    """One model: its row of the table, and rows a second served and offline, round by round."""
    inference_core, other_core = two_cores()
    request = wrk.Request("application/x-npy", npy_body((1, *case.record_shape)))
    loads: list[wrk.Load] = []
    looped: list[float] = []
    looped_running: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model_path = case.build(Path(folder) / "model.onnx")
        command = byoc_command("--threads", str(_THREADS), "--model", str(model_path))
        with (
            offline.looping(model_path, _THREADS, {inference_core}) as loop,
            serving(command, {inference_core, other_core}) as server,
        ):
            serve = partial(wrk.load, server.port, request, _CONNECTIONS, case.served_s, other_core)
            best_rows, looped_by_rows = loop.sweep(case.name, case.sweep_s)
            pin_inference(server, serve, inference_core, other_core)
            for number in range(case.rounds):
                server.empty_log()
                loads.append(serve())
                looped.append(loop.run(best_rows, case.offline_s).rows_per_s)
                looped_running.append(loop.run(_RUNNING_ROWS, case.offline_s).rows_per_s)
                figures = f"{loads[-1].requests_per_s:,.1f} rows/s served, {looped[-1]:,.1f} offline"
                progress(f"{case.name}: round {number + 1} of {case.rounds}: {figures}")
    served = [load.requests_per_s for load in loads]
    row: Row = {
        "model": case.name,
        "served_rows_per_s": statistics.median(served),
        "offline_rows_per_s": statistics.median(looped),
        "served_to_offline": median_ratio(served, looped),
        "offline_batch_rows": best_rows,
        f"offline_{_RUNNING_ROWS}_rows_per_s": statistics.median(looped_running),
        f"served_to_offline_{_RUNNING_ROWS}": median_ratio(served, looped_running),
        "offline_unbatched_rows_per_s": looped_by_rows[1],
        "served_p50_ms": statistics.median(load.p50_s for load in loads) * 1e3,
        "served_p99_ms": statistics.median(load.p99_s for load in loads) * 1e3,
    }
    return row, served, looped


def npy_body(shape: Sequence[int]) -> bytes:
    """Random records as ``application/x-npy``, float32."""
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32))
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(run("bench_batching", __doc__, measure))
