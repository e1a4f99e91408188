"""The largest rate of random arrivals that a server bears with short answers, with batching and without.

The method is that of the "server" scenario of MLPerf Inference (see ``open_loop``): requests arrive at random, by a
Poisson process, and the figure is the largest rate at which the slowest hundredth is still within a bound. The bound is
five times the median latency of the batching server at one connection; it is the same for both servers. The one is
started with its default settings but for one inference thread, the other one also with ``--max-batch-size 1``. A
request is one record of 512 numbers as ``application/x-npy``.

A rate is borne if p99 is within the bound in one of three tries: whoever else uses the machine for a moment would end
the search otherwise. Refused or unanswered requests count as infinitely late. The largest rate is found by bisection
between nothing and what the server answers to 64 connections that wait for nothing. Each round bisects both servers,
with the same arrivals; figures are medians over the rounds.

Cores as in ``bench_batching``: the inference thread has one for itself, all else of the servers and the client the
other. The client must not be what is measured: latency counts from when a request was due, so that whatever holds the
client up makes the figures worse and never better, and the table shows how late its requests left (``late_p99_ms``) at
the largest rate that was borne. ``client_p99_ms`` is the p99 of the same requests at the same rate to a bare echo on
the same core, which answers as many bytes: what is left of the latency if the server does nothing.

Run: python -m benchmarks.bench_server_scenario    (about 4 minutes; needs two cores and wrk)
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import models, open_loop, paced, wrk
from benchmarks.bench_batching import npy_body
from benchmarks.open_loop import Replies
from benchmarks.processes import Server, byoc_command, echo_command, pin_inference, serving, two_cores
from benchmarks.report import BenchmarkError, Goal, Report, Row, in_turns, median_ratio, progress, run

_GOAL = 3.0
_MEDIA_TYPE = "application/x-npy"
_CONNECTIONS = 256
_SEED = 1
_TRIES = 3
_PATIENCE_S = 5.0
_ANSWER_BYTES = 4128
"""Of the model: 1,000 numbers behind a header of 128 bytes."""


@dataclass(frozen=True, slots=True)
class _Plan:
    rounds: int
    steps: int
    bound: float
    probe_s: float
    solo_s: float
    load_s: int


_FULL = _Plan(rounds=3, steps=6, bound=5.0, probe_s=2.0, solo_s=2.0, load_s=3)
_QUICK = _Plan(rounds=1, steps=2, bound=1e6, probe_s=0.3, solo_s=0.3, load_s=1)


@dataclass(frozen=True, slots=True)
class _Borne:
    """The largest rate that was borne, and what came back at it."""

    rate_per_s: float
    replies: Replies


def measure(quick: bool) -> Report:
    plan = _QUICK if quick else _FULL
    inference_core, other_core = two_cores()
    cores = {inference_core, other_core}
    body = npy_body((1, models.WIDE_MLP[0]))
    request = paced.invocation(_MEDIA_TYPE, body)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = str(models.mlp(Path(folder) / "model.onnx", models.WIDE_MLP))
        command = byoc_command("--threads", "1", "--request-log", "off", "--model", model)
        servers = {
            "batches": stack.enter_context(serving(command, cores)),
            "one by one": stack.enter_context(serving([*command, "--max-batch-size", "1"], cores)),
        }
        echo = stack.enter_context(serving(echo_command(_ANSWER_BYTES), {other_core}))
        stack.enter_context(open_loop.on_core(other_core))
        capacity_per_s: dict[str, float] = {}
        for name, server in servers.items():
            load = partial(wrk.load, server.port, wrk.Request(_MEDIA_TYPE, body), 64, plan.load_s, other_core)
            pin_inference(server, load, inference_core, other_core)
            capacity_per_s[name] = max(load().requests_per_s for _ in range(2))
        solo_s = statistics.median(
            paced.latencies_s(servers["batches"].port, request, rate_per_s=1000, duration_s=plan.solo_s)
        )
        bound_s = plan.bound * solo_s
        progress(f"alone {solo_s * 1e3:.2f} ms, bound {bound_s * 1e3:.2f} ms, capacity {capacity_per_s}")
        samples = in_turns(
            {
                name: partial(_bisect, name, server, request, capacity_per_s[name], bound_s, plan)
                for name, server in servers.items()
            },
            plan.rounds,
        )
        rows = [
            _row(name, own, capacity_per_s[name], partial(_probe, echo, request, plan=plan))
            for name, own in samples.items()
        ]
    rates = {name: [borne.rate_per_s for borne in own] for name, own in samples.items()}
    settings: Row = {
        "model": "MLP " + "-".join(map(str, models.WIDE_MLP)),
        "rounds": plan.rounds,
        "probe_s": plan.probe_s,
        "steps": plan.steps,
        "connections": _CONNECTIONS,
        "solo_p50_ms": solo_s * 1e3,
        "bound_p99_ms": bound_s * 1e3,
    }
    ratio = median_ratio(*rates.values())
    goal = Goal("largest Poisson rate with p99 <= 5x solo latency, batches / one by one", ratio, _GOAL, at_most=False)
    singles = [dict(zip(rates, pair, strict=True)) for pair in zip(*rates.values(), strict=True)]
    return Report(settings, rows, [goal], singles)


def _bisect(name: str, server: Server, request: bytes, capacity_per_s: float, bound_s: float, plan: _Plan) -> _Borne:
    borne: _Borne | None = None
    low, high = 0.0, capacity_per_s
    for _ in range(plan.steps):
        rate = (low + high) / 2
        for _ in range(_TRIES):
            replies = _probe(server, request, rate, plan)
            is_borne = replies.p99_s() <= bound_s
            if is_borne:
                break
        progress(f"{name}: {rate:,.0f}/s, p99 {replies.p99_s() * 1e3:.2f} ms{'' if is_borne else ', too long'}")
        if is_borne:
            low, borne = rate, _Borne(rate, replies)
        else:
            high = rate
    if borne is None:
        raise BenchmarkError(f"the server {name!r} bore no rate; the least one tried was {rate:,.1f} requests a second")
    return borne


def _probe(server: Server, request: bytes, rate_per_s: float, plan: _Plan) -> Replies:
    due_s = open_loop.poisson_s(rate_per_s, plan.probe_s, _SEED)
    return open_loop.send(server.port, request, due_s, _CONNECTIONS, _PATIENCE_S)


def _row(name: str, borne: Sequence[_Borne], capacity_per_s: float, client: Callable[[float], Replies]) -> Row:
    """One server; ``client`` sends the same to the echo at a rate."""
    rate_per_s = statistics.median(one.rate_per_s for one in borne)
    return {
        "server": name,
        "poisson_requests_per_s": rate_per_s,
        "p99_ms": statistics.median(one.replies.p99_s() for one in borne) * 1e3,
        "p50_ms": statistics.median(statistics.median(one.replies.latencies_s()) for one in borne) * 1e3,
        "capacity_requests_per_s": capacity_per_s,
        "late_p99_ms": statistics.median(one.replies.late_p99_s() for one in borne) * 1e3,
        "client_p99_ms": client(rate_per_s).p99_s() * 1e3,
    }


if __name__ == "__main__":
    sys.exit(run("bench_server_scenario", __doc__, measure))
