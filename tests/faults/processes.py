"""The processes of a server in the split topology: which is which, and what they hold."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from benchmarks.processes import process_tree
from tests.server_process import ServerProcess, alive, wait_for

SPLIT = ("--topology", "split", "--workers", "1", "--core-processes", "1")
"""One front process and one core process."""


def core_pids(server: ServerProcess) -> list[int]:
    """The processes that run the model, oldest first."""
    return _pids(server, "core")


def front_pids(server: ServerProcess) -> list[int]:
    """The processes that serve HTTP, oldest first."""
    return _pids(server, "front")


def _pids(server: ServerProcess, role: str) -> list[int]:
    """By the line that each process logs when it starts."""
    return [line["pid"] for line in server.events("process") if line["role"] == role and alive(line["pid"])]


def wait_until_computing(pid: int) -> None:
    """Wait until a process has begun to use its processor; while it waits for requests it uses next to none."""
    used_s = _cpu_s(pid)
    wait_for(lambda: _cpu_s(pid) > used_s + 0.1, "the model runs")


def _cpu_s(pid: int) -> float:
    """CPU time a process has used, by its own clock, whose number is made from the pid (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def descriptors(server: ServerProcess) -> int:
    """Open descriptors of all processes of the server."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in process_tree(server.process.pid))


def zombies(server: ServerProcess) -> list[int]:
    """Processes of the server that have ended and that nobody has asked how."""
    return [pid for pid in process_tree(server.process.pid) if not alive(pid)]


def holders(server: ServerProcess, client_port: int, pids: list[int]) -> list[int]:
    """Those of the processes that hold the server's end of a connection.

    The kernel's table of sockets (proc(5), ``/proc/net/tcp``) names the inode of each, and a process' descriptors are
    links to inodes.

    Args:
        server: at the one end.
        client_port: at the other end.
        pids: where to look.
    """
    ends = [f"0100007F:{server.port:04X}", f"0100007F:{client_port:04X}"]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1:3] == ends}
    return [pid for pid in pids if not sockets.isdisjoint(_open_files(pid))]


def _open_files(pid: int) -> set[str]:
    """What the descriptors of a process lead to."""
    files = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            files.add(str(link.readlink()))
    return files
