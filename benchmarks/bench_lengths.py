"""What it gains that records of different lengths share a batch: rows a second, against the same server without that.

The model is an encoder of 6 layers, 384 wide. A request is one record as JSON, of 8 to 256 positions, all lengths as
often as each other; both servers get the same requests in the same order. Both run all the time, with their default
settings but for ``pad_lengths``; one is measured while the other one has nothing to do. Rounds alternate. Server and
load generator share all cores.

Three things are measured. *Solo*: one request at a time, whose mean latency, times five, is the limit below.
*Capacity*: 64 connections that each send the next request at once, and the CPU time the server takes for a row
meanwhile. *Poisson*: requests arrive at random at 80 % of the capacity of the padding server in that round, at both
servers; what counts is answers within the limit a second.

On a CPU a single record of more than 32 positions keeps a core nearly as busy as many do, so there is little to gain:
with ``session.run`` alone 7 % of the CPU time, and 22 % more rows a second on two cores, which one record does not
fill.

Run: python -m benchmarks.bench_lengths    (about 4 minutes)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks import models, open_loop, paced
from benchmarks.processes import Server, byoc_command, serving
from benchmarks.report import Goal, Report, Row, median_ratio, progress, run

_SHORTEST, _LONGEST = 8, 256
_IDS = 1000
_CONNECTIONS, _POISSON_CONNECTIONS = 64, 256
_LOAD = 0.8
_LIMIT = 5.0
_GOAL = 1.5
_PATIENCE_S = 60.0
_PADDED, _UNPADDED = "padded", "only equal lengths"
_SEED = 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured.

    Attributes:
        build: writes the model.
        rounds: of each server.
        solo_requests: one after the other, of each server.
        capacity_s: seconds of one capacity, about.
        poisson_s: of one Poisson load.
    """

    build: Callable[[Path], Path]
    rounds: int
    solo_requests: int
    capacity_s: float
    poisson_s: float


_FULL = _Plan(models.encoder6, 5, 100, 8.0, 12.0)
_TINY = partial(models.encoder, layers=1, width=32, heads=2, words=_IDS, positions=_LONGEST)
_QUICK = _Plan(_TINY, 1, 20, 0.3, 0.5)


def measure(quick: bool) -> Report:
    plan = _QUICK if quick else _FULL
    requests = make_requests(512)
    rounds: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = str(plan.build(Path(folder) / "model.onnx"))
        servers = {
            name: stack.enter_context(
                serving(byoc_command("--model", model, "--pad-lengths", flag), os.sched_getaffinity(0))
            )
            for name, flag in ((_PADDED, "true"), (_UNPADDED, "false"))
        }
        alone = requests[: plan.solo_requests]
        solo_rows_per_s = {
            name: _rows_per_s(open_loop.send(server.port, alone, [0.0] * len(alone), 1, _PATIENCE_S))
            for name, server in servers.items()
        }
        limit_s = _LIMIT / max(solo_rows_per_s.values())
        rows_per_s = solo_rows_per_s[_PADDED]
        for number in range(plan.rounds):
            progress(f"round {number + 1} of {plan.rounds}")
            order = list(servers)[:: -1 if number % 2 else 1]
            taken = _round(servers, order, requests, plan, rows_per_s, limit_s, number)
            rounds += [{"server": name, **taken[name]} for name in servers]
            rows_per_s = taken[_PADDED]["capacity_rows_per_s"]
    columns = [column for column in rounds[0] if column != "server"]
    by_server = {
        name: {c: [cast(float, row[c]) for row in rounds if row["server"] == name] for c in columns} for name in servers
    }
    rows: list[Row] = [
        {"server": name, **{column: statistics.median(values) for column, values in by_server[name].items()}}
        for name in servers
    ]
    goals = [
        Goal(
            f"{what}, padded / only equal lengths",
            median_ratio(by_server[_PADDED][column], by_server[_UNPADDED][column]),
            _GOAL,
            at_most=False,
        )
        for what, column in (
            ("rows/s within the limit at Poisson load", "rows_per_s_in_limit"),
            ("capacity in rows/s", "capacity_rows_per_s"),
        )
    ]
    settings: Row = {
        "lengths": [_SHORTEST, _LONGEST],
        "connections": _CONNECTIONS,
        "poisson_connections": _POISSON_CONNECTIONS,
        "load": _LOAD,
        "limit_ms": limit_s * 1e3,
        "rounds": plan.rounds,
        "capacity_s": plan.capacity_s,
        "poisson_s": plan.poisson_s,
    }
    return Report(settings, rows, goals, rounds)


def make_requests(count: int) -> list[bytes]:
    """Requests of one record each, as they go over the wire."""
    random = np.random.default_rng(_SEED)
    return [_request(random.integers(1, _IDS, length)) for length in random.integers(_SHORTEST, _LONGEST + 1, count)]


def _request(ids: np.typing.NDArray[np.int64]) -> bytes:
    record = {
        "input_ids": ids.tolist(),
        "attention_mask": [1] * len(ids),
        "token_type_ids": [0] * len(ids),
    }
    return paced.invocation("application/json", json.dumps({"instances": [record]}).encode())


def _round(
    servers: Mapping[str, Server],
    order: Sequence[str],
    requests: Sequence[bytes],
    plan: _Plan,
    rows_per_s: float,
    limit_s: float,
    number: int,
) -> dict[str, dict[str, float]]:
    """Capacity of both, then both under the same Poisson load."""
    taken: dict[str, dict[str, float]] = {}
    at_once = [0.0] * max(_CONNECTIONS, round(rows_per_s * plan.capacity_s))
    for name in order:
        before_s = servers[name].cpu_s()
        replies = open_loop.send(servers[name].port, requests, at_once, _CONNECTIONS, _PATIENCE_S)
        used_s = servers[name].cpu_s() - before_s
        taken[name] = {
            "capacity_rows_per_s": _rows_per_s(replies),
            "cpu_ms_per_row": used_s / len(at_once) * 1e3,
        }
    rate_per_s = _LOAD * taken[_PADDED]["capacity_rows_per_s"]
    due_s = open_loop.poisson_s(rate_per_s, plan.poisson_s, _SEED + number)
    for name in order:
        replies = open_loop.send(servers[name].port, requests, due_s, _POISSON_CONNECTIONS, _PATIENCE_S)
        taken[name] |= {
            "poisson_rate_per_s": rate_per_s,
            "rows_per_s_in_limit": _rows_per_s(replies, limit_s),
            "p50_ms": statistics.median(replies.latencies_s()) * 1e3,
            "p99_ms": replies.p99_s() * 1e3,
        }
    return taken


def _rows_per_s(replies: open_loop.Replies, limit_s: float = math.inf) -> float:
    """Answers a second, until the last one, of those with no more latency than the limit."""
    ended_s = max(answer.due_s + answer.latency_s for answer in replies.answers)
    return sum(answer.ok and answer.latency_s <= limit_s for answer in replies.answers) / ended_s


if __name__ == "__main__":
    sys.exit(run("bench_lengths", __doc__, measure))
