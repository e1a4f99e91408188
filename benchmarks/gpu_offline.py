"""The yardstick on a GPU: ``session.run`` in a loop, without any server. A process of its own, told what to do by line.

As ``benchmarks.offline``, which says what goes in and out, with the execution providers of the GPU and images as bytes.
Its first line is ``ready``, or why the model cannot be run. Run by ``gpu_throughput``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.environment import ROOT
from benchmarks.offline import OfflineLoop
from benchmarks.processes import ENVIRONMENT
from benchmarks.report import BenchmarkError
from byoc_server.engines.base import GpuOptions
from byoc_server.errors import StartupError

_CPU, _READY = "cpu", "ready"


@contextlib.contextmanager
def looping(model_path: Path, gpu: GpuOptions | None) -> Iterator[OfflineLoop]:
    """Start the process, and end it.

    Args:
        model_path: one input of uint8 with an open batch axis.
        gpu: how the session is opened; ``None`` for the CPU.

    Raises:
        BenchmarkError: the model cannot be run so.
    """
    options = _CPU if gpu is None else json.dumps(asdict(gpu))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_offline", str(model_path), options],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            state = process.stdout.readline().strip()
            if state != _READY:
                raise BenchmarkError(state or "the loop ended before it began")
            yield OfflineLoop(process)
        finally:
            process.kill()


def main() -> None:
    from byoc_server.engines.gpu_session import open_on_gpu  # noqa: PLC0415  # only this process needs ONNX Runtime
    from byoc_server.engines.onnx_runtime import ort, session_options  # noqa: PLC0415  # likewise

    path = Path(sys.argv[1])
    try:
        if sys.argv[2] == _CPU:
            session = ort.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
        else:
            session = open_on_gpu(path, 1, GpuOptions(**json.loads(sys.argv[2])))
    except StartupError as error:
        print(error.message, flush=True)
        return
    print(_READY, flush=True)
    source = session.get_inputs()[0]
    random = np.random.default_rng(0)
    for line in sys.stdin:
        rows, seconds = line.split()
        batch = {source.name: random.integers(0, 256, (int(rows), *source.shape[1:]), np.uint8)}
        session.run(None, batch)
        runs, begin_s, begin_cpu_s = 0, time.perf_counter(), time.process_time()
        while (passed_s := time.perf_counter() - begin_s) < float(seconds) or not runs:
            session.run(None, batch)
            runs += 1
        cpu_us = (time.process_time() - begin_cpu_s) * 1e6
        print(runs * int(rows) / passed_s, cpu_us / runs / int(rows), flush=True)


if __name__ == "__main__":
    main()
