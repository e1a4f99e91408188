"""What the images weigh, how soon their containers answer, and what they hold of memory at rest; demo model, no GPU.

The yardstick is an image of a bare echo on the same versions of uvicorn, uvloop and httptools, made from the same base
in the same run. A start is timed from the moment at which the engine says that the container's process started to the
first 200 on ``/ping`` (`ready_ms`), and, engine included, from the command that runs the container (`run_ms`).
Containers take turns, in another order each round, after one round that warms the disk cache; they share the host's
network and may use all cores. A raw socket pings every 2 ms on one connection. Memory is the resident memory of all of
a container's processes, once it is ready. Figures are medians over the rounds, ratios the medians of the ratios of each
round.

The base images have no bytecode of the standard library; ours do, the echo's does not. So the echo is also run in our
image, which shows how much of the start that is.

The share of the CUDA compatibility decision is taken from the log of the GPU image: ``elapsed_ms`` of the line
``cuda_compat``, by the time to ready.

Needs docker or podman on this machine. PYTHON_IMAGE names the base.

Run: python -m benchmarks.bench_images --output benchmarks/images.json    (about 4 minutes)
"""

from __future__ import annotations

import contextlib
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.processes import Server, answers_ping
from benchmarks.report import BenchmarkError, Goal, Report, Row, in_turns, median_ratio, progress, run
from tests.container.engine import PYTHON_IMAGE, Engine, find_engine
from tests.server_process import free_port

_MAX_CPU_IMAGE_MB, _MAX_START_RATIO, _MAX_RESIDENT_MB, _MAX_COMPAT_SHARE = 330.0, 1.5, 130.0, 0.05
_ROUNDS, _QUICK_ROUNDS = 11, 1
_START_TIMEOUT_S = 60.0
_MB = 1e6
_ECHO = "echo_app.py"
_ECHO_ARGUMENTS = ("--answer-bytes", "32", "--port")
_ECHO_DOCKERFILE = """\
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY constraints.txt echo_app.py /echo/
RUN pip install --no-cache-dir --constraint /echo/constraints.txt uvicorn uvloop httptools
ENTRYPOINT ["python", "/echo/echo_app.py"]
"""
_CPU, _GPU = "byoc-server:cpu", "byoc-server:gpu, no GPU there"
_ECHO_IMAGE, _ECHO_IN_OURS = "bare echo on uvicorn", "bare echo, in byoc-server:cpu"


@dataclass(frozen=True, slots=True)
class _Start:
    """One start of a container.

    Attributes:
        run_s: from the engine's command to the first 200.
        ready_s: from the start of the container's process to it.
        resident_bytes: memory of its processes then.
        compat_s: what the decision on CUDA compatibility took; ``None`` where none was logged.
    """

    run_s: float
    ready_s: float
    resident_bytes: int
    compat_s: float | None


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is started: an image, with options of the engine and arguments, the port last."""

    image: str
    arguments: Sequence[str]
    options: Sequence[str] = ()


def measure(quick: bool) -> Report:
    engine = find_engine()
    if engine is None:
        raise BenchmarkError("no container engine answers: start docker or podman, or name it with CONTAINER_ENGINE")
    with _images(engine) as (cpu, gpu, echo):
        kinds = {
            _CPU: _Kind(cpu, ("serve", "--port")),
            _GPU: _Kind(gpu, ("serve", "--port")),
            _ECHO_IMAGE: _Kind(echo, _ECHO_ARGUMENTS),
            _ECHO_IN_OURS: _Kind(
                cpu,
                (f"/echo/{_ECHO}", *_ECHO_ARGUMENTS),
                ("--entrypoint=/opt/venv/bin/python", f"--volume={ROOT / 'benchmarks' / _ECHO}:/echo/{_ECHO}:ro"),
            ),
        }
        sizes = {name: engine.inspect_image(kind.image)["Size"] / _MB for name, kind in kinds.items()}
        rounds = _QUICK_ROUNDS if quick else _ROUNDS
        samples = in_turns({name: partial(_start, engine, kind) for name, kind in kinds.items()}, rounds)
    rows = [_row(name, sizes[name], own) for name, own in samples.items()]
    ratio = _ratio(samples[_CPU], samples[_ECHO_IMAGE])
    shares = [start.compat_s / start.ready_s for start in samples[_GPU] if start.compat_s is not None]
    goals = [
        Goal("size of the CPU image, MB", sizes[_CPU], _MAX_CPU_IMAGE_MB),
        Goal("start of the CPU image / start of the echo's image", ratio, _MAX_START_RATIO),
        Goal("memory of the CPU image at rest, MB", float(str(rows[0]["resident_mb"])), _MAX_RESIDENT_MB),
    ]
    if shares:
        goals.append(Goal("share of the CUDA decision in the start", statistics.median(shares), _MAX_COMPAT_SHARE))
    settings = {
        "rounds": rounds,
        "engine": Path(engine.command).name,
        "engine_version": engine.check("--version").split()[2].strip(","),
        "base": PYTHON_IMAGE,
        "ratio_ready": ratio,
        "ratio_ready_to_echo_in_our_image": _ratio(samples[_CPU], samples[_ECHO_IN_OURS]),
        "ratio_run": median_ratio([s.run_s for s in samples[_CPU]], [s.run_s for s in samples[_ECHO_IMAGE]]),
    }
    singles = [
        {name: sample.ready_s for name, sample in zip(samples, group, strict=True)}
        for group in zip(*samples.values(), strict=True)
    ]
    return Report(settings, rows, goals, singles)


@contextlib.contextmanager
def _images(engine: Engine) -> Iterator[tuple[str, str, str]]:
    """The CPU image, the GPU image and the echo's, under tags of their own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / _ECHO).write_bytes((ROOT / "benchmarks" / _ECHO).read_bytes())
        (folder / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
        (folder / "Dockerfile").write_text(_ECHO_DOCKERFILE)
        images = []
        for dockerfile, context in (
            (ROOT / "Dockerfile.cpu", ROOT),
            (ROOT / "Dockerfile.gpu", ROOT),
            (folder / "Dockerfile", folder),
        ):
            progress(f"building {dockerfile.name}")
            images.append(stack.enter_context(engine.image(dockerfile, context=context)))
        yield images[0], images[1], images[2]


def _start(engine: Engine, kind: _Kind) -> _Start:
    port = free_port()
    begin_s, options = time.time(), ["--network=host", *kind.options]
    with engine.running(kind.image, *kind.arguments, str(port), options=options) as container:
        if not answers_ping(port, time.perf_counter() + _START_TIMEOUT_S):
            raise BenchmarkError(f"the container did not become ready; its log:\n{container.log()[-2000:]}")
        ready_s = time.time()
        state = container.state()
        resident_bytes = Server(state["Pid"], port, 0.0, Path()).resident_bytes()
        lines = [line["elapsed_ms"] for line in container.events("cuda_compat") if "elapsed_ms" in line]
        compat_s = sum(lines) / 1e3 if lines else None
        return _Start(ready_s - begin_s, ready_s - clock_s(state["StartedAt"]), resident_bytes, compat_s)


def clock_s(text: str) -> float:
    """Seconds since 1970 of a time as the engine gives it, in nanoseconds: cut to microseconds for Python."""
    whole, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :]
    return datetime.datetime.fromisoformat(f"{whole}.{digits[:6]}{zone}").timestamp()


def _ratio(ours: Sequence[_Start], others: Sequence[_Start]) -> float:
    return median_ratio([start.ready_s for start in ours], [start.ready_s for start in others])


def _row(name: str, size_mb: float, samples: Sequence[_Start]) -> Row:
    decisions = [sample.compat_s for sample in samples if sample.compat_s is not None]
    return {
        "image": name,
        "size_mb": size_mb,
        "ready_ms": statistics.median(sample.ready_s for sample in samples) * 1e3,
        "fastest_ms": min(sample.ready_s for sample in samples) * 1e3,
        "slowest_ms": max(sample.ready_s for sample in samples) * 1e3,
        "run_ms": statistics.median(sample.run_s for sample in samples) * 1e3,
        "resident_mb": statistics.median(sample.resident_bytes for sample in samples) / _MB,
        "compat_ms": statistics.median(decisions) * 1e3 if decisions else "",
    }


if __name__ == "__main__":
    sys.exit(run("bench_images", __doc__, measure))
