"""What decoding and encoding cost, each codec against what a user would write by hand in a handler.

Both read or write the same bytes in the same process, in turns, warm. Figures are CPU time of the process a call, user
and system, over loops of about 50 ms; medians over the rounds; ratios are medians of the ratios of each round. Before
that their results are compared.

By hand means: orjson and numpy.array for JSON, numpy.load, numpy.loadtxt, csv.writer, Pillow and NumPy; protobuf's
classes in pure Python in a loop over the frames; for the Open Inference Protocol json.loads and numpy.frombuffer on a
slice, as Triton's own client does; for Arrow pyarrow's ``to_numpy`` and numpy.stack. ``small_us`` is the codec on one
record of 6 KB where the others are of 600 KB: what is used in place must not cost more for being larger.

Run: python -m benchmarks.bench_codecs    (about a minute)
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import sys
import time
from functools import partial

from benchmarks.codec_cases import Call, Case, cases
from benchmarks.report import Goal, Report, Row, in_turns, median_ratio, progress, run

_GROWTH_GOAL = 1.3
_ROUNDS, _SAMPLE_S = 21, 0.05
_QUICK_ROUNDS, _QUICK_SAMPLE_S = 1, 0.001
_LIBRARIES = ("orjson", "numpy", "pillow", "protobuf", "pyarrow")
_PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
"""Which protobuf is loaded; it is read when that is first imported."""


def measure(quick: bool) -> Report:
    rounds, sample_s = (_QUICK_ROUNDS, _QUICK_SAMPLE_S) if quick else (_ROUNDS, _SAMPLE_S)
    rows: list[Row] = []
    goals: list[Goal] = []
    singles: list[Row] = []
    for case in cases():
        progress(case.name)
        case.check()
        calls = {"ours": case.ours, "by_hand": case.by_hand, **({"small": case.small} if case.small else {})}
        samples = in_turns(
            {name: partial(_cpu_us, call, _loops(call, sample_s)) for name, call in calls.items()}, rounds
        )
        rows.append(_row(case, samples))
        goals += _goals(case, samples)
        singles += [
            {"case": case.name, **dict(zip(samples, figures, strict=True))}
            for figures in zip(*samples.values(), strict=True)
        ]
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    settings: Row = {"rounds": rounds, "sample_s": sample_s, "libraries": versions}
    return Report(settings, rows, goals, singles)


def _loops(call: Call, sample_s: float) -> int:
    """How many calls fill a sample, by the quickest of three."""
    seconds = []
    for _ in range(3):
        begin_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin_s)
    return max(1, round(sample_s / min(seconds)))


def _cpu_us(call: Call, loops: int) -> float:
    begin_ns = time.process_time_ns()
    for _ in range(loops):
        call()
    return (time.process_time_ns() - begin_ns) / loops / 1000


def _row(case: Case, samples: dict[str, list[float]]) -> Row:
    row: dict[str, object] = {"case": case.name}
    row |= {f"{name}_us": statistics.median(samples[name]) for name in ("ours", "by_hand")}
    row["speed_up"] = median_ratio(samples["by_hand"], samples["ours"])
    row["small_us"] = statistics.median(samples["small"]) if "small" in samples else ""
    row["large_to_small"] = median_ratio(samples["ours"], samples["small"]) if "small" in samples else ""
    return row


def _goals(case: Case, samples: dict[str, list[float]]) -> list[Goal]:
    ours, by_hand = samples["ours"], samples["by_hand"]
    if case.at_most:
        goals = [Goal(f"{case.name}, cost / by hand", median_ratio(ours, by_hand), case.bound)]
    else:
        goals = [Goal(f"{case.name}, speed-up", median_ratio(by_hand, ours), case.bound, at_most=False)]
    if "small" in samples:
        growth = median_ratio(ours, samples["small"])
        goals.append(Goal(f"{case.name}, cost / at 6 KB", growth, _GROWTH_GOAL))
    return goals


if __name__ == "__main__":
    if os.environ.get(_PROTOBUF) != "python":
        environment = {**os.environ, _PROTOBUF: "python"}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.bench_codecs", *sys.argv[1:]], environment)
    sys.exit(run("bench_codecs", __doc__, measure))
