"""What it costs that the model runs in a process of its own: the split topology against the inline one.

Small requests: a perceptron of 16-64-64-3 units, one record as JSON a request, both topologies with one process for
HTTP and one inference thread, the split one with one core process. Large ones: 600 KB of ``application/x-npy``, one
image of 3x224x224 as float32, to a model that gives it back; against the bare echo, which reads the body and answers
as many bytes.

All servers run at the same time on one core, all of their processes, and the load generator on another. Each round
loads them in turns, in another order each time, after one that is not counted. CPU time is user and system time of
all processes of a server (parent, fronts, cores), from /proc, divided by the requests answered. Figures are medians
over the rounds; ratios are medians of the ratios of each round.

Run: python -m benchmarks.bench_split    (about 2 minutes; needs two cores and wrk)
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import models, wrk
from benchmarks.bench_batching import npy_body
from benchmarks.bench_overhead import make_body
from benchmarks.processes import Server, byoc_command, echo_command, serving, two_cores
from benchmarks.report import Goal, Report, Row, in_turns, median_ratio, progress, run
from tests.onnx_models import identity

_CPU_GOAL, _P50_GOAL, _BYTES_GOAL = 1.20, 1.6, 0.6
_INLINE = ("--topology", "inline", "--threads", "1")
_SPLIT = ("--topology", "split", "--workers", "1", "--core-processes", "1", "--threads", "1")
_IMAGE = (1, 3, 224, 224)
_IMAGE_CONNECTIONS = 16
_ROUNDS, _ROUND_S = 7, 2
_QUICK_ROUNDS, _QUICK_ROUND_S = 1, 1


@dataclass(frozen=True, slots=True)
class _Sample:
    """One server under load for one round."""

    cpu_us: float
    p50_us: float
    p99_us: float
    requests_per_s: float


Samples = Mapping[str, Sequence[_Sample]]
"""Server -> its rounds."""


def measure(quick: bool) -> Report:
    rounds, round_s = (_QUICK_ROUNDS, _QUICK_ROUND_S) if quick else (_ROUNDS, _ROUND_S)
    with tempfile.TemporaryDirectory() as folder:
        small = _small(Path(folder) / "mlp.onnx", rounds, round_s)
        large = _large(Path(folder) / "identity.onnx", rounds, round_s)
    by_load: dict[str, Samples] = {**small, f"600 KB npy, {_IMAGE_CONNECTIONS} connections": large}
    many, one = small.values()
    goals = [
        Goal("CPU time per JSON request at 64 connections, split / inline", _ratio(many, "cpu_us"), _CPU_GOAL),
        Goal("p50 of JSON at 1 connection, split / inline", _ratio(one, "p50_us"), _P50_GOAL),
        Goal(
            "bytes a second of 600 KB npy, split / bare echo",
            _ratio(large, "requests_per_s", to="echo"),
            _BYTES_GOAL,
            at_most=False,
        ),
    ]
    settings: Row = {"rounds": rounds, "round_s": round_s, "large_body_bytes": len(npy_body(_IMAGE))}
    return Report(settings, _rows(by_load), goals, _singles(by_load))


def _small(model_path: Path, rounds: int, round_s: int) -> dict[str, Samples]:
    """JSON at 64 connections and at one."""
    model = ("--model", str(models.mlp(model_path, models.TINY_MLP)))
    request = wrk.Request("application/json", make_body("application/json"))
    commands = {"split": byoc_command(*_SPLIT, *model), "inline": byoc_command(*_INLINE, *model)}
    return {
        f"JSON 1x16, {connections} connections": _loaded(commands, request, connections, rounds, round_s)
        for connections in (64, 1)
    }


def _large(model_path: Path, rounds: int, round_s: int) -> Samples:
    """600 KB to the identity, and to the echo."""
    body = npy_body(_IMAGE)
    model = ("--model", str(identity(model_path, shape=("N", *_IMAGE[1:]))))
    commands = {
        "split": byoc_command(*_SPLIT, *model),
        "inline": byoc_command(*_INLINE, *model),
        "echo": echo_command(len(body)),
    }
    return _loaded(commands, wrk.Request("application/x-npy", body), _IMAGE_CONNECTIONS, rounds, round_s)


def _loaded(
    commands: Mapping[str, Sequence[str]], request: wrk.Request, connections: int, rounds: int, round_s: int
) -> Samples:
    """Load the servers in turns."""
    server_core, load_core = two_cores()
    with contextlib.ExitStack() as stack:
        samplers: dict[str, Callable[[], _Sample]] = {}
        for name, command in commands.items():
            progress(f"{request.media_type}, {connections} connections: {name} starts")
            server = stack.enter_context(serving(command, {server_core}))
            samplers[name] = partial(_sample, server, request, connections, round_s, load_core)
        return in_turns(samplers, rounds)


def _sample(server: Server, request: wrk.Request, connections: int, round_s: int, core: int) -> _Sample:
    before_s = server.cpu_s()
    load = wrk.load(server.port, request, connections, round_s, core)
    cpu_us = (server.cpu_s() - before_s) * 1e6 / load.requests
    server.empty_log()
    return _Sample(cpu_us, load.p50_s * 1e6, load.p99_s * 1e6, load.requests_per_s)


def _ratio(samples: Samples, figure: str, to: str = "inline") -> float:
    ours, theirs = ([float(getattr(sample, figure)) for sample in samples[name]] for name in ("split", to))
    return median_ratio(ours, theirs)


def _rows(by_load: Mapping[str, Samples]) -> list[Row]:
    return [
        {
            "load": load,
            "server": name,
            **{
                figure: float(statistics.median(getattr(sample, figure) for sample in own))
                for figure in _Sample.__slots__
            },
        }
        for load, samples in by_load.items()
        for name, own in samples.items()
    ]


def _singles(by_load: Mapping[str, Samples]) -> list[Row]:
    return [
        {"load": load, "server": name, "cpu_us": sample.cpu_us, "p50_us": sample.p50_us}
        for load, samples in by_load.items()
        for name, own in samples.items()
        for sample in own
    ]


if __name__ == "__main__":
    sys.exit(run("bench_split", __doc__, measure))
