"""Latency of ResNet-50 on a GPU at half the load it can bear, with CUDA graphs and without.

Float16, one image a request, 150 KB of bytes as ``application/x-npy``. *Solo*: one request at a time. *Capacity*: 64
connections that each send the next request at once. *Half*: requests arrive at random (Poisson) at 50 % of the capacity
of the server without graphs in that round, at both servers. Both run all the time; one is measured while the other one
has nothing to do, and rounds alternate. The client counts from the moment a request was due.

Run: python -m benchmarks.gpu_latency    (about 3 minutes; needs an NVIDIA GPU)
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from benchmarks import gpu, gpu_throughput, image_model, open_loop, paced
from benchmarks.processes import Server, byoc_command, serving
from benchmarks.report import Goal, Report, Row, median_ratio, progress, run

_CONNECTIONS, _POISSON_CONNECTIONS = 64, 256
_LOAD = 0.5
_PATIENCE_S = 60.0
_OFF, _ON = "no graphs", "CUDA graphs"
_SEED = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        model: what is served.
        rounds: of each server.
        solo_requests: one after the other.
        capacity_requests: for one capacity.
        poisson_s: of one Poisson load.
    """

    model: gpu_throughput.Plan
    rounds: int
    solo_requests: int
    capacity_requests: int
    poisson_s: float


_FULL = Plan(gpu_throughput.FULL, 5, 200, 10_000, 10.0)
QUICK = Plan(gpu_throughput.QUICK, 1, 10, 100, 0.3)


def measure(quick: bool) -> Report:
    facts = gpu.require_gpu()
    servers = {_OFF: ("--device", "gpu"), _ON: ("--device", "gpu", "--cuda-graphs", "true")}
    rows, rounds = compare(servers, QUICK if quick else _FULL)
    figures = {
        name: {c: [cast(float, row[c]) for row in rounds if row["server"] == name] for c in ("solo_p50_ms", "p99_ms")}
        for name in servers
    }
    goals = [
        Goal(f"{what}, graphs / no graphs", median_ratio(figures[_ON][column], figures[_OFF][column]), 1.0)
        for what, column in (("p50 solo", "solo_p50_ms"), ("p99 at half load", "p99_ms"))
    ]
    return Report({"connections": _CONNECTIONS, "load": _LOAD, **facts}, rows, goals, rounds)


def compare(flags: Mapping[str, tuple[str, ...]], plan: Plan) -> tuple[list[Row], list[Row]]:
    """Measure servers of the same model.

    Args:
        flags: name -> flags of the server; the load is half of what the first of them bears.
        plan: how long.

    Returns:
        The table, and the rounds behind it.
    """
    request = paced.invocation("application/x-npy", gpu_throughput.npy(plan.model.image))
    rounds: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = image_model.of_bytes(plan.model.build(Path(folder) / "model.onnx"), half=True)
        servers = {
            name: stack.enter_context(serving(byoc_command("--model", str(path), *extra), os.sched_getaffinity(0)))
            for name, extra in flags.items()
        }
        for number in range(plan.rounds):
            progress(f"round {number + 1} of {plan.rounds}")
            order = list(servers)[:: -1 if number % 2 else 1]
            rounds += _round(servers, order, request, plan, number)
    columns = [column for column in rounds[0] if column != "server"]
    rows: list[Row] = [
        {
            "server": name,
            **{c: statistics.median(cast(float, row[c]) for row in rounds if row["server"] == name) for c in columns},
        }
        for name in servers
    ]
    return rows, rounds


def _round(servers: Mapping[str, Server], order: list[str], request: bytes, plan: Plan, number: int) -> list[Row]:
    """Solo and capacity of all, then all under the same Poisson load."""
    figures: dict[str, dict[str, float]] = {}
    for name in order:
        port = servers[name].port
        solo = open_loop.send(port, request, [0.0] * plan.solo_requests, 1, _PATIENCE_S)
        ended_s = sorted(answer.due_s + answer.latency_s for answer in solo.answers)
        solo_s = statistics.median(after - before for before, after in zip([0.0, *ended_s], ended_s, strict=False))
        full = open_loop.send(port, request, [0.0] * plan.capacity_requests, _CONNECTIONS, _PATIENCE_S)
        capacity = len(full.latencies_s()) / max(answer.due_s + answer.latency_s for answer in full.answers)
        figures[name] = {"solo_p50_ms": solo_s * 1e3, "capacity_images_per_s": capacity}
    rate_per_s = _LOAD * figures[next(iter(servers))]["capacity_images_per_s"]
    due_s = open_loop.poisson_s(rate_per_s, plan.poisson_s, _SEED + number)
    for name in order:
        replies = open_loop.send(servers[name].port, request, due_s, _POISSON_CONNECTIONS, _PATIENCE_S)
        figures[name] |= {
            "images_per_s": rate_per_s,
            "p50_ms": statistics.median(replies.latencies_s()) * 1e3,
            "p99_ms": replies.p99_s() * 1e3,
            "late_p99_ms": replies.late_p99_s() * 1e3,
        }
    return [{"server": name, **figures[name]} for name in servers]


if __name__ == "__main__":
    sys.exit(run("gpu_latency", __doc__, measure))
