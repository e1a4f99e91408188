"""Ten times more requests than the server can answer, for 20 seconds: how much it still does, and how soon it is well.

A request holds 32 records of 512 numbers as ``application/x-npy`` and may take one second; else the settings are the
default ones but for one inference thread and no request log. What the server can do is measured before and after by 16
connections that wait for nothing. Then requests arrive at random (see ``open_loop``) at ten times that rate, and after
that, for three seconds, twenty a second.

- Goodput: requests a second that were answered with 200, divided by what the server can do.
- Refusals: latency of the answers 503.
- Accepted: p99 of the latency of the answers 200. Latency counts from when a request was due.
- Memory: resident memory of all processes, the most seen during the overload against that before it.
- Recovery: from the end of the overload to the end of the first answer 200 to a request that came after it.

Cores as in ``bench_batching``. Figures are medians over the rounds; ``late_p99_ms`` says how late the client sent.

Run: python -m benchmarks.bench_overload    (about 3 minutes; needs two cores and wrk)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import models, open_loop, paced, wrk
from benchmarks.bench_batching import npy_body
from benchmarks.open_loop import Replies, p99
from benchmarks.processes import Server, byoc_command, pin_inference, serving, two_cores
from benchmarks.report import BenchmarkError, Goal, Report, Row, progress, run

_WIDTHS = (512, 4096, 4096, 4096, 1000)
"""Of the layers: slow enough that one core can send ten times more."""
_TIMES = 10
_DEADLINE_S = 1.0
_GOODPUT_GOAL, _MEMORY_GOAL, _RECOVERY_GOAL_S = 0.9, 1.05, 1.0
_ROWS = 32
_CONNECTIONS, _CLOSED_CONNECTIONS = 512, 16
_AFTER_PER_S = 20.0
_PATIENCE_S = 10.0
_SAMPLE_S = 0.5
_SEED = 1
_MEDIA_TYPE = "application/x-npy"
_TOPOLOGIES = {
    "inline": ("--topology", "inline"),
    "split": ("--topology", "split", "--workers", "1", "--core-processes", "1"),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    rounds: int
    overload_s: float
    after_s: float
    closed_s: int


_FULL = _Plan(rounds=3, overload_s=20.0, after_s=3.0, closed_s=3)
_QUICK = _Plan(rounds=1, overload_s=2.5, after_s=1.5, closed_s=1)


def measure(quick: bool) -> Report:
    plan = _QUICK if quick else _FULL
    with tempfile.TemporaryDirectory() as folder:
        model = str(models.mlp(Path(folder) / "model.onnx", _WIDTHS))
        rounds = {name: _measure_topology(name, flags, model, plan) for name, flags in _TOPOLOGIES.items()}
    rows = [
        {"topology": name, **{figure: statistics.median(float(one[figure]) for one in own) for figure in own[0]}}
        for name, own in rounds.items()
    ]
    settings: Row = {
        "model": "MLP " + "-".join(map(str, _WIDTHS)),
        "records_per_request": _ROWS,
        "times_capacity": _TIMES,
        "overload_s": plan.overload_s,
        "deadline_s": _DEADLINE_S,
        "rounds": plan.rounds,
    }
    singles = [{"topology": name, **one} for name, own in rounds.items() for one in own]
    return Report(settings, rows, [goal for row in rows for goal in _goals(row)], singles)


def _measure_topology(name: str, flags: Sequence[str], model: str, plan: _Plan) -> list[dict[str, float]]:
    inference_core, other_core = two_cores()
    shape = (_ROWS, _WIDTHS[0])
    command = byoc_command(*flags, "--threads", "1", "--request-timeout-s", str(_DEADLINE_S), "--request-log", "off")
    with (
        serving([*command, "--model", model], {inference_core, other_core}) as server,
        open_loop.on_core(other_core),
    ):
        request = wrk.Request(_MEDIA_TYPE, npy_body(shape))
        closed = partial(wrk.load, server.port, request, _CLOSED_CONNECTIONS, plan.closed_s, other_core)
        pin_inference(server, closed, inference_core, other_core)
        rounds = []
        for _ in range(plan.rounds):
            before_per_s = closed().requests_per_s
            before_bytes = server.resident_bytes()
            replies, most_bytes = _overload(server, before_per_s * _TIMES, plan)
            capacity_per_s = (before_per_s + closed().requests_per_s) / 2
            rounds.append(
                {"capacity_per_s": capacity_per_s}
                | _figures(replies, capacity_per_s, plan.overload_s)
                | {"memory_growth": most_bytes / before_bytes}
            )
            progress(f"{name}: {rounds[-1]}")
    return rounds


def _overload(server: Server, rate_per_s: float, plan: _Plan) -> tuple[Replies, int]:
    """The answers, and the most memory that was seen."""
    due_s = open_loop.poisson_s(rate_per_s, plan.overload_s, _SEED)
    due_s += [plan.overload_s + number / _AFTER_PER_S for number in range(int(plan.after_s * _AFTER_PER_S))]
    request = paced.invocation(_MEDIA_TYPE, npy_body((_ROWS, _WIDTHS[0])))
    ended = threading.Event()
    resident_bytes: list[int] = [server.resident_bytes()]

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            resident_bytes.append(server.resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        replies = open_loop.send(server.port, request, sorted(due_s), _CONNECTIONS, _PATIENCE_S)
    finally:
        ended.set()
        thread.join()
    return replies, max(resident_bytes)


def _figures(replies: Replies, capacity_per_s: float, overload_s: float) -> dict[str, float]:
    during = [answer for answer in replies.answers if answer.due_s < overload_s]
    accepted_s = [answer.latency_s for answer in during if answer.ok]
    refused_s = [answer.latency_s for answer in during if not answer.ok]
    if not accepted_s or not refused_s:
        raise BenchmarkError(f"{len(accepted_s)} requests were accepted, {len(refused_s)} refused: that is no overload")
    in_time = sum(answer.ok and answer.due_s + answer.latency_s < overload_s for answer in during)
    after_s = [
        answer.due_s + answer.latency_s for answer in replies.answers if answer.due_s >= overload_s and answer.ok
    ]
    return {
        "goodput": in_time / overload_s / capacity_per_s,
        "accepted_p99_ms": p99(accepted_s) * 1e3,
        "refused_p50_ms": statistics.median(refused_s) * 1e3,
        "refused_p99_ms": p99(refused_s) * 1e3,
        "recovery_s": min(after_s, default=float("inf")) - overload_s,
        "unanswered": float(replies.unanswered),
        "late_p99_ms": replies.late_p99_s() * 1e3,
    }


def _goals(row: Row) -> list[Goal]:
    figures = {name: value for name, value in row.items() if isinstance(value, float)}
    name = row["topology"]
    return [
        Goal(f"{name}: goodput under 10x overload / capacity", figures["goodput"], _GOODPUT_GOAL, at_most=False),
        Goal(f"{name}: p99 of accepted requests, ms", figures["accepted_p99_ms"], _DEADLINE_S * 1e3),
        Goal(f"{name}: resident memory under overload / before", figures["memory_growth"], _MEMORY_GOAL),
        Goal(f"{name}: recovery, s", figures["recovery_s"], _RECOVERY_GOAL_S),
    ]


if __name__ == "__main__":
    sys.exit(run("bench_overload", __doc__, measure))
