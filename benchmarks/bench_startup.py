"""How long a start takes: from the start of the process to the first 200 on ``/ping``, with the demo model.

It is compared with what cannot be saved: the start of a bare echo on the same uvicorn until it answers, plus
``python -c "import onnxruntime"`` from start to end. Rounds take all three in turns, in another order each round,
after one round that warms the disk cache. Every process may use all cores. A raw socket pings every 2 ms on one
connection. Figures are medians over the rounds, the ratio is the median of the ratios of each round.

Run: python -m benchmarks.bench_startup    (about 1 minute)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.environment import ROOT
from benchmarks.processes import ENVIRONMENT, byoc_command, echo_command, serving
from benchmarks.report import Goal, Report, Row, in_turns, run
from byoc_server.models.repository import DEMO_MODEL

_GOAL = 1.3
_ROUNDS, _QUICK_ROUNDS = 15, 1
_ANSWER_BYTES = 32
_IMPORT_TIMEOUT_S = 60
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Start:
    """One start.

    Attributes:
        ready_s: until it was ready, or had ended.
        cpu_s: CPU time it took until then.
        resident_bytes: memory it had then; 0 for a process that has ended.
    """

    ready_s: float
    cpu_s: float
    resident_bytes: int


def measure(quick: bool) -> Report:
    starts: Mapping[str, Callable[[], _Start]] = {
        "byoc serve, demo model": lambda: _start_server(byoc_command("--model", str(DEMO_MODEL))),
        "bare echo on uvicorn": lambda: _start_server(echo_command(_ANSWER_BYTES)),
        "import onnxruntime": _import_onnxruntime,
    }
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    samples = in_turns(starts, rounds)
    ours, echo, imports = samples.values()
    ratio = statistics.median(o.ready_s / (e.ready_s + i.ready_s) for o, e, i in zip(ours, echo, imports, strict=True))
    rows = [_row(name, own) for name, own in samples.items()]
    return Report(
        {"rounds": rounds, "ratio_ready": ratio},
        rows,
        [Goal("start of the server / (start of the echo + import of ONNX Runtime)", ratio, _GOAL)],
        [
            {name: sample.ready_s for name, sample in zip(samples, group, strict=True)}
            for group in zip(*samples.values(), strict=True)
        ],
    )


def _start_server(command: Sequence[str]) -> _Start:
    with serving(command, os.sched_getaffinity(0)) as server:
        return _Start(server.start_s, server.cpu_s(), server.resident_bytes())


def _import_onnxruntime() -> _Start:
    before = os.times()
    begin_s = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import onnxruntime"], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=_IMPORT_TIMEOUT_S
    )
    ready_s = time.perf_counter() - begin_s
    after = os.times()
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return _Start(ready_s, used_s, 0)


def _row(name: str, samples: Sequence[_Start]) -> Row:
    resident_bytes = statistics.median(sample.resident_bytes for sample in samples)
    return {
        "start of": name,
        "ready_ms": statistics.median(sample.ready_s for sample in samples) * 1e3,
        "fastest_ms": min(sample.ready_s for sample in samples) * 1e3,
        "slowest_ms": max(sample.ready_s for sample in samples) * 1e3,
        "cpu_ms": statistics.median(sample.cpu_s for sample in samples) * 1e3,
        "resident_mib": resident_bytes / _MIB if resident_bytes else "",
    }


if __name__ == "__main__":
    sys.exit(run("bench_startup", __doc__, measure))
