"""Counting cores under affinity and cgroup quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from byoc_server.device.cpu import cgroup_quota, parse_cfs, parse_cpu_max, usable_cores


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 1.5),
        ("50000 100000", 0.5),
        ("200000", None),
        ("", None),
        ("a b", None),
        ("1 2 3", None),
        ("-1 100000", None),
        ("100000 0", None),
    ],
)
def test_cpu_max(text: str, cores: float | None) -> None:
    assert parse_cpu_max(text) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1\n", "100000\n", None), ("400000\n", "100000\n", 4.0), ("x", "1", None)]
)
def test_cfs(quota: str, period: str, cores: float | None) -> None:
    assert parse_cfs(quota, period) == cores


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
        ({f"{V2}/cpu.max": "300000 100000\n"}, 3.0),
        ({"proc/self/cgroup": "nonsense\n", f"{V2}/cpu.max": "300000 100000\n"}, 3.0),
        # a group of the host's that is not to be seen from inside: only the mount's root has the file
        ({"proc/self/cgroup": "0::/docker/abc\n", f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        # the strictest of the group and all above it
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000\n",
                f"{V2}/a/cpu.max": "250000 100000\n",
                f"{V2}/cpu.max": "800000 100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/a\n0::/\n",
                f"{V1}/a/cpu.cfs_quota_us": "350000\n",
                f"{V1}/a/cpu.cfs_period_us": "100000\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
    ],
)
def test_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """Checklist 17."""
    assert cgroup_quota(lay(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "affinity", "cores"),
    [("150000", 8, 1), ("50000", 8, 1), ("400000", 8, 4), ("400000", 2, 2), ("max", 8, 8), ("399999", 8, 3)],
)
def test_usable_cores(tmp_path: Path, quota: str, affinity: int, cores: int) -> None:
    """Checklist 17: from quota and affinity, never from the host's count."""
    lay(tmp_path, {f"{V2}/cpu.max": f"{quota} 100000\n"})
    assert usable_cores(tmp_path, affinity) == cores


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
