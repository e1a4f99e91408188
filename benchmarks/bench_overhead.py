"""What a request costs besides its inference: this server against a bare echo on the same uvicorn.

The model is a perceptron of 16-64-64-3 units, whose inference takes microseconds; a request holds one record. The
server runs with its default settings (request log on, written to a file) and one inference thread. The echo reads the
body and answers as many bytes as the server does; it is the cheapest ASGI application there can be.

JSON at 64 connections goes to a server in the split topology, too: one process for HTTP, one that runs the model.

Both servers run at the same time on one core, the load generator on another. Each round loads one, then the other,
the next round the other way round. CPU time is user and system time of all processes of the server, from /proc,
divided by the requests answered. Figures are medians over the rounds; ratios are medians of the ratios of each round.

Run: python -m benchmarks.bench_overhead    (about 6 minutes; needs two cores and wrk)
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import models, wrk
from benchmarks.processes import Server, byoc_command, echo_command, serving, two_cores
from benchmarks.report import Goal, Report, Row, median_ratio, progress, run

_JSON_CPU_GOAL, _NPY_CPU_GOAL, _P50_GOAL, _TAIL_GOAL, _SPLIT_CPU_GOAL = 0.60, 0.55, 1.3, 3.0, 0.80
_SPLIT = ("--topology", "split", "--workers", "1", "--core-processes", "1")


@dataclass(frozen=True, slots=True)
class _Plan:
    media_types: Sequence[str]
    connections: Sequence[int]
    rounds: int
    round_s: int
    warm_up_s: int


_FULL = _Plan(("application/json", "text/csv", "application/x-npy"), (1, 16, 64, 256), 7, 2, 1)
_QUICK = _Plan(("application/json",), (1, 64), 1, 1, 1)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One server under load for one round."""

    cpu_us: float
    p50_us: float
    p99_us: float
    requests_per_s: float


def make_body(media_type: str) -> bytes:
    """One record of 16 numbers with one decimal."""
    values = [i / 10 for i in range(1, models.TINY_MLP[0] + 1)]
    text = ",".join(map(str, values))
    if media_type == "application/json":
        return f'{{"instances":[[{text}]]}}'.encode()
    if media_type == "text/csv":
        return text.encode()
    stream = io.BytesIO()
    np.save(stream, np.array([values], np.float32))
    return stream.getvalue()


def measure(quick: bool) -> Report:
    plan = _QUICK if quick else _FULL
    server_core, load_core = two_cores()
    rows: list[Row] = []
    rounds: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        model_path = models.mlp(Path(folder) / "mlp.onnx", models.TINY_MLP)
        inline = byoc_command("--threads", "1", "--model", str(model_path))
        loads = [("inline", inline, media_type, plan.connections) for media_type in plan.media_types]
        loads.append(("split", [*inline, *_SPLIT], "application/json", (64,)))
        for topology, command, media_type, all_connections in loads:
            request = wrk.Request(media_type, make_body(media_type))
            with serving(command, {server_core}) as server:
                answer_bytes = len(_answer(server.port, request))
                with serving(echo_command(answer_bytes), {server_core}) as echo:
                    for one in (echo, server):
                        wrk.load(one.port, request, max(all_connections), plan.warm_up_s, load_core)
                    for connections in all_connections:
                        progress(f"{topology}, {media_type}, {connections} connections")
                        samples = _alternate([echo, server], request, connections, plan, load_core)
                        load: Row = {
                            "topology": topology,
                            "format": media_type.removeprefix("application/"),
                            "connections": connections,
                        }
                        rows.append({**load, **_figures(*samples)})
                        rounds += [{**load, **figures} for figures in _rounds(*samples)]
    settings: Row = {
        "model": "MLP " + "-".join(map(str, models.TINY_MLP)),
        "records_per_request": 1,
        "rounds": plan.rounds,
        "round_s": plan.round_s,
        "warm_up_s": plan.warm_up_s,
    }
    return Report(settings, rows, _goals(rows), rounds)


def _answer(port: int, request: wrk.Request) -> bytes:
    headers = {"Content-Type": request.media_type, "Accept": request.media_type}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", request.body, headers)
    with urllib.request.urlopen(asked, timeout=10) as response:
        answer: bytes = response.read()
    return answer


def _alternate(
    servers: Sequence[Server], request: wrk.Request, connections: int, plan: _Plan, core: int
) -> list[list[_Sample]]:
    """Load the servers in turns; one list of samples a server."""
    samples: list[list[_Sample]] = [[] for _ in servers]
    for number in range(plan.rounds):
        turns = list(zip(servers, samples, strict=True))
        for server, own in turns if number % 2 == 0 else turns[::-1]:
            own.append(_sample(server, request, connections, plan.round_s, core))
    return samples


def _sample(server: Server, request: wrk.Request, connections: int, round_s: int, core: int) -> _Sample:
    before_s = server.cpu_s()
    load = wrk.load(server.port, request, connections, round_s, core)
    cpu_us = (server.cpu_s() - before_s) * 1e6 / load.requests
    server.empty_log()
    return _Sample(cpu_us, load.p50_s * 1e6, load.p99_s * 1e6, load.requests_per_s)


def _figures(echo: Sequence[_Sample], server: Sequence[_Sample]) -> Row:
    row: dict[str, object] = {}
    for name in ("cpu_us", "p50_us", "p99_us"):
        ours, theirs = ([getattr(sample, name) for sample in samples] for samples in (server, echo))
        row[name] = float(statistics.median(ours))
        row[f"echo_{name}"] = float(statistics.median(theirs))
        row[f"{name.partition('_')[0]}_ratio"] = median_ratio(ours, theirs)
    row["tail_ratio"] = statistics.median(sample.p99_us / sample.p50_us for sample in server)
    row["requests_per_s"] = statistics.median(sample.requests_per_s for sample in server)
    return row


def _rounds(echo: Sequence[_Sample], server: Sequence[_Sample]) -> list[Row]:
    return [
        {
            "cpu_us": ours.cpu_us,
            "echo_cpu_us": theirs.cpu_us,
            "p50_us": ours.p50_us,
            "echo_p50_us": theirs.p50_us,
        }
        for ours, theirs in zip(server, echo, strict=True)
    ]


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """Those whose load was measured; a quick run measures few."""
    figures = {(row["topology"], row["format"], row["connections"]): row for row in rows}
    wanted = [
        ("CPU time per JSON request at 64 connections / echo's", ("inline", "json", 64), "cpu_ratio", _JSON_CPU_GOAL),
        ("CPU time per NumPy request at 64 connections / echo's", ("inline", "x-npy", 64), "cpu_ratio", _NPY_CPU_GOAL),
        ("p50 of JSON at 1 connection / echo's", ("inline", "json", 1), "p50_ratio", _P50_GOAL),
        ("p99 / p50 of JSON at 256 connections", ("inline", "json", 256), "tail_ratio", _TAIL_GOAL),
        (
            "CPU time per JSON request at 64 connections, all processes of the split topology / echo's",
            ("split", "json", 64),
            "cpu_ratio",
            _SPLIT_CPU_GOAL,
        ),
    ]
    goals = []
    for text, load, figure, bound in wanted:
        if load in figures:
            measured = figures[load][figure]
            assert isinstance(measured, float)
            goals.append(Goal(text, measured, bound))
    return goals


if __name__ == "__main__":
    sys.exit(run("bench_overhead", __doc__, measure))
