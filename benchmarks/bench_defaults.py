"""What a row costs with everything at its default: CPU time served, against that of ``session.run`` in a loop.

64 connections send one record a request as ``application/x-npy``. Server, loop and load generator may use all cores;
the server has its default settings but for the place of its request log, a file. The loop runs in a process of its own
with the threads that ONNX Runtime chooses, at the batch size with most rows a second. CPU time is user and system time
of all processes of the server, from /proc, divided by the rows answered; of the loop, that of its process. Rounds
alternate between the two; figures are medians over the rounds, ratios the medians of the ratios of each round.

Run: python -m benchmarks.bench_defaults    (about a minute; needs wrk)
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import models, offline, wrk
from benchmarks.bench_batching import npy_body
from benchmarks.processes import Server, byoc_command, serving
from benchmarks.report import Goal, Report, Row, in_turns, median_ratio, run

_GOAL = 1.25
_CONNECTIONS = 64
_ROUNDS, _SERVED_S, _OFFLINE_S, _SWEEP_S = 7, 4, 3.0, 0.5
_QUICK_ROUNDS, _QUICK_SERVED_S, _QUICK_OFFLINE_S, _QUICK_SWEEP_S = 1, 1, 0.2, 0.05


def measure(quick: bool) -> Report:
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    served_s, offline_s = (_QUICK_SERVED_S, _QUICK_OFFLINE_S) if quick else (_SERVED_S, _OFFLINE_S)
    name = "MLP " + "-".join(map(str, models.WIDE_MLP))
    request = wrk.Request("application/x-npy", npy_body((1, models.WIDE_MLP[0])))
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        model_path = models.mlp(Path(folder) / "model.onnx", models.WIDE_MLP)
        with (
            offline.looping(model_path, 0, cores) as loop,
            serving(byoc_command("--model", str(model_path)), cores) as server,
        ):
            best_rows, _ = loop.sweep(name, _QUICK_SWEEP_S if quick else _SWEEP_S)
            samples = in_turns(
                {
                    "served": lambda: _serve(server, request, served_s),
                    "offline": lambda: loop.run(best_rows, offline_s),
                },
                rounds,
            )
    rows = [
        {
            "way": way,
            "cpu_us_per_row": statistics.median(pace.cpu_us_per_row for pace in paces),
            "rows_per_s": statistics.median(pace.rows_per_s for pace in paces),
        }
        for way, paces in samples.items()
    ]
    cpu_us = {way: [pace.cpu_us_per_row for pace in paces] for way, paces in samples.items()}
    ratio = median_ratio(cpu_us["served"], cpu_us["offline"])
    settings: Row = {
        "model": name,
        "connections": _CONNECTIONS,
        "records_per_request": 1,
        "rounds": rounds,
        "served_s": served_s,
        "offline_s": offline_s,
        "offline_batch_rows": best_rows,
    }
    singles = [dict(zip(cpu_us, pair, strict=True)) for pair in zip(*cpu_us.values(), strict=True)]
    return Report(settings, rows, [Goal("CPU time per row, served / offline", ratio, _GOAL)], singles)


def _serve(server: Server, request: wrk.Request, duration_s: int) -> offline.Pace:
    before_s = server.cpu_s()
    load = wrk.load(server.port, request, _CONNECTIONS, duration_s, core=None)
    cpu_s = server.cpu_s() - before_s
    server.empty_log()
    return offline.Pace(load.requests_per_s, cpu_s * 1e6 / load.requests)


if __name__ == "__main__":
    sys.exit(run("bench_defaults", __doc__, measure))
