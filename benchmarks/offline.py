"""The other yardstick: ``session.run`` in a loop, without any server. A process of its own, told what to do by line.

Run by ``bench_batching``. It reads ``ROWS SECONDS`` from stdin, runs batches of so many rows for so long, and prints
the rows a second it reached; the session stays the same from line to line.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.environment import ROOT
from benchmarks.processes import ENVIRONMENT

_SEED = 0


class OfflineLoop:
    """The process, as ``bench_batching`` sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def rows_per_s(self, rows: int, seconds: float) -> float:
        """Run batches of ``rows`` for ``seconds``; one more before that is not counted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rows} {seconds}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextlib.contextmanager
def looping(model_path: Path, threads: int, core: int) -> Iterator[OfflineLoop]:
    """Start the process on one core, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.offline", str(model_path), str(threads)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
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
        runs, begin_s = 0, time.perf_counter()
        while (passed_s := time.perf_counter() - begin_s) < float(seconds) or not runs:
            session.run(None, batch)
            runs += 1
        print(runs * int(rows) / passed_s, flush=True)


if __name__ == "__main__":
    main()
