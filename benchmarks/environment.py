"""What a result was measured on: stamped on every JSON file, without anything that names a machine or a person.

Print it: ``python -m benchmarks.environment``
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The root of the repository, where benchmarks start their processes."""

_PACKAGES = (
    "byoc-server",
    "gunicorn",
    "httptools",
    "numpy",
    "onnxruntime",
    "orjson",
    "starlette",
    "uvicorn",
    "uvloop",
)


def stamp() -> dict[str, object]:
    """Processor, kernel, versions, commit and date."""
    commit = _git("rev-parse", "HEAD")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "usable_cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
    }


def cpu_model(cpuinfo: str) -> str:
    """The model name in a ``/proc/cpuinfo``, or the architecture where there is none, as on ARM."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git prints; ``None`` outside a repository. Takes no locks, so it disturbs nobody's work."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(stamp(), indent=2))
