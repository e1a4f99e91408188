"""The server as the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.server_process import SERVE, running

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def children(pid: int) -> list[tuple[int, str]]:
    """Process id and state of the children of ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if int(parent) == pid:
            found.append((int(head.split()[0]), state))
    return found


def can_make_a_pid_namespace() -> bool:
    tools = shutil.which("unshare") and shutil.which("nsenter")
    return bool(tools) and subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_make_a_pid_namespace(), reason="needs unshare, nsenter and the right to a PID namespace")
def test_orphans_of_the_container_do_not_stay_as_zombies() -> None:
    """Checklist 16."""
    with running(command=[*NAMESPACE, *SERVE]) as server:
        ((pid, _),) = children(server.process.pid)
        enter = ["nsenter", "--target", str(pid), "--pid", "--mount"]
        subprocess.run([*enter, "sh", "-c", "sleep 0.2 & sleep 0.2 & exit 0"], check=True)
        deadline_s = time.monotonic() + 10
        while children(pid) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert children(pid) == []
        assert server.ping().status_code == 200
        os.kill(pid, signal.SIGTERM)
        assert server.process.wait(20) == 0
