"""The benchmark of the images runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_images
from tests.container.engine import ROOT, Engine

pytestmark = [pytest.mark.container, pytest.mark.slow]


def test_the_benchmark_runs(engine: Engine, cpu_image: str, gpu_image: str, tmp_path: Path) -> None:
    """The images of the other tests are asked for so that these builds find theirs in the engine's cache."""
    output = tmp_path / "images.json"
    command = [sys.executable, "-m", "benchmarks.bench_images", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["benchmark"] == "bench_images"
    assert result["rows"][0]["image"] == "byoc-server:cpu"
    assert all(row["ready_ms"] > 0 and row["resident_mb"] > 0 for row in result["rows"])
    assert result["rows"][1]["compat_ms"] > 0
    assert len(result["goals"]) == 4


@pytest.mark.parametrize(
    "text",
    ["2026-11-21T11:27:01.123456789Z", "2026-11-21T12:27:01.123456+01:00", "2026-11-21T11:27:01.1234560001+00:00"],
)
def test_times_of_an_engine_are_read_to_the_microsecond(text: str) -> None:
    assert bench_images.clock_s(text) == 1795260421.123456
