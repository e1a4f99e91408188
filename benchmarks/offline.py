"""The other yardstick: ``session.run`` in a loop, without any server. A process of its own, told what to do by line.

Run by ``bench_batching`` and ``bench_defaults``. It reads ``ROWS SECONDS`` from stdin, runs batches of so many rows for
so long, and prints the rows a second it reached and the microseconds of CPU time that each row took; the session stays
the same from line to line.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.environment import ROOT
from benchmarks.processes import ENVIRONMENT
from benchmarks.report import progress

_SEED = 0
_BATCH_SIZES = tuple(2**power for power in range(9))
_SIZES_WITHOUT_GAIN = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """What the loop reached.

    Attributes:
        rows_per_s: throughput.
        cpu_us_per_row: CPU time, user and system, of all its threads.
    """

    rows_per_s: float
    cpu_us_per_row: float


class OfflineLoop:
    """The process, as benchmarks see it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, rows: int, seconds: float) -> Pace:
        """Run batches of ``rows`` for ``seconds``; one more before that is not counted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rows} {seconds}\n")
        self._process.stdin.flush()
        return Pace(*map(float, self._process.stdout.readline().split()))

    def sweep(self, name: str, seconds: float) -> tuple[int, dict[int, float]]:
        """The batch size with most rows a second, and the rows a second of every size tried.

        Args:
            name: of the model, for whoever waits.
            seconds: how long each size is tried.
        """
        rows_per_s: dict[int, float] = {}
        best_rows = without_gain = 0
        for rows in _BATCH_SIZES:
            rows_per_s[rows] = self.run(rows, seconds).rows_per_s
            progress(f"{name}: {rows_per_s[rows]:,.1f} rows/s offline in batches of {rows}")
            best_rows = max(rows_per_s, key=rows_per_s.__getitem__)
            without_gain = 0 if best_rows == rows else without_gain + 1
            if without_gain == _SIZES_WITHOUT_GAIN:
                break
        return best_rows, rows_per_s


@contextlib.contextmanager
def looping(model_path: Path, threads: int, cores: set[int]) -> Iterator[OfflineLoop]:
    """Start the process on some cores, and end it. With 0 threads ONNX Runtime starts one a core."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.offline", str(model_path), str(threads)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    with process:
        try:
            yield OfflineLoop(process)
        finally:
            process.kill()


def main() -> None:
    import onnxruntime as ort  # noqa: PLC0415  # only this process needs it

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    random = np.random.default_rng(_SEED)
    for line in sys.stdin:
        rows, seconds = line.split()
        batch = {"input": random.standard_normal((int(rows), *shape), dtype=np.float32)}
        session.run(None, batch)
        runs, begin_s, begin_cpu_s = 0, time.perf_counter(), time.process_time()
        while (passed_s := time.perf_counter() - begin_s) < float(seconds) or not runs:
            session.run(None, batch)
            runs += 1
        cpu_us = (time.process_time() - begin_cpu_s) * 1e6
        print(runs * int(rows) / passed_s, cpu_us / runs / int(rows), flush=True)


if __name__ == "__main__":
    main()
