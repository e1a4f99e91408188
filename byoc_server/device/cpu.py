"""How many CPU cores this process may really use.

``os.cpu_count`` tells of the host. In a container three other things bound it: the affinity mask (which a cpuset
shows up in), and the quota of cgroup v2 (``cpu.max``) or v1 (``cpu.cfs_quota_us``), set on the container or on any
group above it. Sources: kernel documentation, "Control Group v2", section CPU interface files, and "CFS Bandwidth
Control", both Linux 6.1.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Whole cores this process may use, at least one.

    A quota of 1.5 cores counts as one: a second thread would be throttled half of the time.

    Args:
        root: where ``proc`` and ``sys`` lie; another folder in tests.
        affinity: cores in the affinity mask; read from the kernel when ``None``.
    """
    cores = float(len(os.sched_getaffinity(0)) if affinity is None else affinity)
    quota = cgroup_quota(root)
    return max(1, math.floor(min(cores, quota) if quota is not None else cores))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The strictest CPU quota over this process' group and all above it, in cores; ``None`` when there is none."""
    quotas = []
    for controllers, path in _own_groups(root):
        if controllers == "":
            quotas += [parse_cpu_max(text) for text in _texts(root / "sys/fs/cgroup", path, "cpu.max")]
        elif "cpu" in controllers.split(","):
            for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
                periods = _texts(root / mount, path, "cpu.cfs_period_us")
                limits = _texts(root / mount, path, "cpu.cfs_quota_us")
                quotas += [parse_cfs(limit, period) for limit, period in zip(limits, periods, strict=False)]
    return min((quota for quota in quotas if quota is not None), default=None)


def parse_cpu_max(text: str) -> float | None:
    """Cores granted by a ``cpu.max`` file, ``QUOTA PERIOD`` in microseconds; ``None`` for ``max`` or nonsense."""
    fields = text.split()
    return parse_cfs(fields[0], fields[1]) if len(fields) == 2 else None


def parse_cfs(quota_us: str, period_us: str) -> float | None:
    """Cores granted by a quota and a period; ``None`` when unlimited (``max``, ``-1``) or nonsense."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _own_groups(root: Path) -> list[tuple[str, str]]:
    """(controllers, path) of this process in every hierarchy; the root groups when the kernel does not say."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = [(fields[1], fields[2]) for line in lines if len(fields := line.split(":", 2)) == 3]
    return groups or [("", "/"), ("cpu", "/")]


def _texts(mount: Path, group: str, name: str) -> list[str]:
    """Contents of the file ``name`` in the group and every group above it, as far as this process can see them.

    In a container without a cgroup namespace the path is the host's, while the mount begins at the container's own
    group: then only the mount's root has the file, which is why the root is always among the places looked at.
    """
    texts = []
    for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
        try:
            texts.append((mount / str(folder).lstrip("/") / name).read_text())
        except OSError:
            continue
    return texts
