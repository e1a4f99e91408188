"""Whether large bodies hold up small requests and pings: their latency alone, and beside 6 MB of JSON at a time.

One client sends JSON requests of one record, another one pings, each on a connection of its own and at most 200 a
second, never before the last one is answered. Beside them a third one sends JSON bodies of 6 MB back to back. The
model is one matrix product of 16 to 3, so that what is seen is decoding, and not inference. Server and clients share
all cores; the server has its default settings but for one inference thread. Rounds without and with the third client
alternate; percentiles are over all rounds.

Run: python -m benchmarks.bench_stalls    (about 40 seconds; needs two cores)
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import models, paced
from benchmarks.bench_overhead import make_body
from benchmarks.processes import byoc_command, serving, two_cores
from benchmarks.report import Report, Row, in_turns, run

_RATE_PER_S = 200
_LARGE_ROWS, _OUTPUTS = 18_000, 3
_ROUNDS, _ROUND_S = 3, 5.0
_QUICK_ROUNDS, _QUICK_ROUND_S = 1, 0.5
_SEED = 1


def measure(quick: bool) -> Report:
    two_cores()
    rounds, round_s = (_QUICK_ROUNDS, _QUICK_ROUND_S) if quick else (_ROUNDS, _ROUND_S)
    large = paced.invocation("application/json", large_body())
    tiny = paced.invocation("application/json", make_body("application/json"))
    with tempfile.TemporaryDirectory() as folder:
        model_path = models.mlp(Path(folder) / "model.onnx", (models.TINY_MLP[0], _OUTPUTS))
        command = byoc_command("--threads", "1", "--model", str(model_path))
        with serving(command, os.sched_getaffinity(0)) as server:
            requests = {"JSON 1x16": tiny, "ping": paced.ping()}
            ask = partial(_round, server.port, requests, round_s)
            samples = in_turns({"alone": partial(ask, None), "beside 6 MB JSON": partial(ask, large)}, rounds)
    rows: list[Row] = []
    singles: list[Row] = []
    for load, taken in samples.items():
        for kind in requests:
            latencies = [latency for latency_s, _ in taken for latency in latency_s[kind]]
            rows.append({"request": kind, "load": load, **_percentiles_us(latencies), "requests": len(latencies)})
            singles += [{"request": kind, "load": load, **_percentiles_us(latency_s[kind])} for latency_s, _ in taken]
    beside_s = [second for _, seconds in samples["beside 6 MB JSON"] for second in seconds]
    settings: Row = {
        "rate_per_s": _RATE_PER_S,
        "rounds": rounds,
        "round_s": round_s,
        "large_body_bytes": len(large),
        "large_requests": len(beside_s),
        "large_median_ms": statistics.median(beside_s) * 1e3,
    }
    return Report(settings, rows, [], singles)


def large_body() -> bytes:
    """JSON of 6 MB, as a Python client writes float32: 18,000 records of 16 numbers of up to 21 characters."""
    array = np.random.default_rng(_SEED).standard_normal((_LARGE_ROWS, models.TINY_MLP[0]), dtype=np.float32)
    return json.dumps({"instances": array.tolist()}).encode()


def _round(
    port: int, requests: dict[str, bytes], round_s: float, large: bytes | None
) -> tuple[dict[str, list[float]], list[float]]:
    """Latencies of the small requests, and of the large ones beside them, in seconds."""
    with contextlib.ExitStack() as stack:
        taken_s = [] if large is None else stack.enter_context(paced.back_to_back(port, large))
        pool = stack.enter_context(ThreadPoolExecutor(len(requests)))
        ask = partial(paced.latencies_s, port, rate_per_s=_RATE_PER_S, duration_s=round_s)
        return dict(zip(requests, pool.map(ask, requests.values()), strict=True)), taken_s


def _percentiles_us(latencies_s: list[float]) -> dict[str, float]:
    p50, p99, highest = np.percentile(latencies_s, [50, 99, 100]) * 1e6
    return {"p50_us": float(p50), "p99_us": float(p99), "max_us": float(highest)}


if __name__ == "__main__":
    sys.exit(run("bench_stalls", __doc__, measure))
