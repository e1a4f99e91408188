"""What it gains on a GPU that records of different lengths share a batch: ``bench_lengths``, where there is one.

Run: python -m benchmarks.gpu_padding    (about 4 minutes; needs an NVIDIA GPU)
"""

from __future__ import annotations

import dataclasses
import sys

from benchmarks import bench_lengths, gpu
from benchmarks.report import Report, run


def measure(quick: bool) -> Report:
    facts = gpu.require_gpu()  # the servers take it by themselves
    report = bench_lengths.measure(quick)
    return dataclasses.replace(report, settings={**report.settings, **facts})


if __name__ == "__main__":
    sys.exit(run("gpu_padding", f"{__doc__}\n{bench_lengths.__doc__}", measure))
