"""A million requests to one server in the split topology: whether its memory and its descriptors stay the same.

The model is a perceptron of 16-64-64-3 units. Load comes in slices, in turns of four kinds: one record as JSON, one as
CSV, 64 as ``application/x-npy``, and 4,096 of them, 256 KB, which is large enough for shared memory; from 64
connections, 8 for the large ones. After each turn, without any connection, the resident memory of every process and the
open descriptors of all are read from /proc. The first fifth of the turns counts as settling; growth is the median of
the last fifth by the median of the second. The processes must be the same ones at the end.

Server and load generator share all cores; the server has its default settings but for one process of each kind, and its
request log goes to a file.

Run: python -m benchmarks.soak    (about 2 minutes; needs wrk)
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models, wrk
from benchmarks.bench_batching import npy_body
from benchmarks.bench_overhead import make_body
from benchmarks.processes import Server, byoc_command, process_tree, resident_bytes, serving
from benchmarks.report import BenchmarkError, Goal, Report, Row, progress, run

_GROWTH_GOAL = 1.05
_SPLIT = ("--topology", "split", "--workers", "1", "--core-processes", "1")
_REQUESTS, _QUICK_REQUESTS = 1_000_000, 1000
_SLICE_S, _QUICK_SLICE_S = 2, 1
_LEAST_TURNS, _FIFTHS = 3, 5
_SETTLE_S = 0.5
"""For the server to see that connections were closed."""
_MIB = 1024 * 1024
_WIDTH = models.TINY_MLP[0]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    request: wrk.Request
    connections: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was seen after one turn of all kinds: requests so far, resident bytes by process, open descriptors."""

    requests: int
    resident_bytes: Mapping[int, int]
    descriptors: int


def measure(quick: bool) -> Report:
    wanted = _QUICK_REQUESTS if quick else _REQUESTS
    slice_s = _QUICK_SLICE_S if quick else _SLICE_S
    with tempfile.TemporaryDirectory() as folder:
        command = byoc_command(*_SPLIT, "--model", str(models.mlp(Path(folder) / "mlp.onnx", models.TINY_MLP)))
        with serving(command, os.sched_getaffinity(0)) as server:
            names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in process_tree(server.pid)}
            counts, turns = _soak(server, wanted, slice_s)
    if any(turn.resident_bytes.keys() != names.keys() for turn in turns):
        raise BenchmarkError("a process of the server was replaced meanwhile; see its log")
    fifth = max(1, len(turns) // _FIFTHS)
    rows = [_row(f"{number}: {name}", pid, turns, fifth) for number, (pid, name) in enumerate(names.items())]
    descriptors = [turn.descriptors for turn in turns[fifth:]]
    goals = [
        Goal(f"resident memory of process {row['process']}, end / settled", _growth(pid, turns, fifth), _GROWTH_GOAL)
        for row, pid in zip(rows, names, strict=True)
    ]
    goals.append(Goal("descriptors opened and kept", float(descriptors[-1] - descriptors[0]), 0.0))
    settings: Row = {"requests": turns[-1].requests, "by_kind": counts, "slice_s": slice_s, "turns": len(turns)}
    singles = [
        {
            "requests": turn.requests,
            "descriptors": turn.descriptors,
            "resident_mib": [round(turn.resident_bytes[pid] / _MIB, 1) for pid in names],
        }
        for turn in turns
    ]
    return Report(settings, rows, goals, singles)


def _kinds() -> list[_Kind]:
    return [
        _Kind("JSON 1", wrk.Request("application/json", make_body("application/json")), 64),
        _Kind("CSV 1", wrk.Request("text/csv", make_body("text/csv")), 64),
        _Kind("npy 64", wrk.Request("application/x-npy", npy_body((64, _WIDTH))), 64),
        _Kind("npy 4096", wrk.Request("application/x-npy", npy_body((4096, _WIDTH))), 8),
    ]


def _soak(server: Server, wanted: int, slice_s: int) -> tuple[dict[str, int], list[_Turn]]:
    """How many requests of each kind were answered, and what was seen turn by turn."""
    kinds = _kinds()
    counts = {kind.name: 0 for kind in kinds}
    turns: list[_Turn] = []
    while sum(counts.values()) < wanted or len(turns) < _LEAST_TURNS:
        for kind in kinds:
            counts[kind.name] += wrk.load(server.port, kind.request, kind.connections, slice_s, core=None).requests
        server.empty_log()
        time.sleep(_SETTLE_S)
        memory = {pid: resident_bytes(pid) for pid in process_tree(server.pid)}
        turns.append(_Turn(sum(counts.values()), memory, server.open_descriptors()))
        progress(f"{turns[-1].requests:,} requests, {sum(memory.values()) / _MIB:,.1f} MiB")
    return counts, turns


def _row(name: str, pid: int, turns: Sequence[_Turn], fifth: int) -> Row:
    memory_mib = [turn.resident_bytes[pid] / _MIB for turn in turns]
    return {
        "process": name,
        "first_mib": memory_mib[0],
        "settled_mib": statistics.median(memory_mib[fifth : 2 * fifth]),
        "end_mib": statistics.median(memory_mib[-fifth:]),
        "most_mib": max(memory_mib),
        "growth": _growth(pid, turns, fifth),
    }


def _growth(pid: int, turns: Sequence[_Turn], fifth: int) -> float:
    memory = [turn.resident_bytes[pid] for turn in turns]
    return statistics.median(memory[-fifth:]) / statistics.median(memory[fifth : 2 * fifth])


if __name__ == "__main__":
    sys.exit(run("soak", __doc__, measure))
