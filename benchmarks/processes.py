"""Servers as processes: started on given cores, watched through ``/proc``, ended whatever happens. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.report import BenchmarkError

ENVIRONMENT: Mapping[str, str] = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
"""Of every process a benchmark starts: ONNX Runtime must not use the network."""
_START_TIMEOUT_S, _STOP_TIMEOUT_S = 120.0, 30.0
_POLL_S = 0.002
_PING = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        pid: of its first process.
        port: where it listens, on 127.0.0.1.
        start_s: from the start of the process to the first 200 on ``/ping``.
        log_path: what it writes on stdout and stderr.
    """

    pid: int
    port: int
    start_s: float
    log_path: Path

    def cpu_s(self) -> float:
        """CPU time, user and system, of all its processes so far; counted by the kernel in steps of 10 ms."""
        return sum(_cpu_s(Path(f"/proc/{pid}/stat")) for pid in process_tree(self.pid))

    def resident_bytes(self) -> int:
        """Resident memory of all its processes; pages they share count in each."""
        return sum(resident_bytes(pid) for pid in process_tree(self.pid))

    def open_descriptors(self) -> int:
        """Descriptors that its processes have open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in process_tree(self.pid))

    def thread_cpu_s(self) -> dict[int, float]:
        """CPU time of every thread of all its processes, by the number of the thread."""
        tasks = [task for pid in process_tree(self.pid) for task in Path(f"/proc/{pid}/task").iterdir()]
        return {int(task.name): _cpu_s(task / "stat") for task in tasks}

    def empty_log(self) -> None:
        """Forget the log, which a request log makes large."""
        os.truncate(self.log_path, 0)


def byoc_command(*flags: str) -> list[str]:
    """The command that starts this project's server, but for its port."""
    return [sys.executable, "-m", "byoc_server", "serve", "--host", "127.0.0.1", *flags]


def echo_command(answer_bytes: int) -> list[str]:
    """The command that starts the bare echo, but for its port."""
    return [sys.executable, "-m", "benchmarks.echo_app", "--answer-bytes", str(answer_bytes)]


@contextlib.contextmanager
def serving(command: Sequence[str], cores: set[int]) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end it.

    Args:
        command: takes ``--port`` as one more flag.
        cores: where it may run.

    Raises:
        BenchmarkError: it did not become ready; the message has the end of its log.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        begin_s = time.perf_counter()
        process = _start([*command, "--port", str(port)], cores, log_path)
        try:
            if not answers_ping(port, begin_s + _START_TIMEOUT_S, lambda: process.poll() is None):
                state = "did not become ready" if process.poll() is None else f"ended with {process.returncode}"
                raise BenchmarkError(f"the server {state}; the end of its log:\n{log_path.read_text()[-2000:]}")
            yield Server(process.pid, port, time.perf_counter() - begin_s, log_path)
        finally:
            _stop(process)


def pin_inference(server: Server, load: Callable[[], object], inference_core: int, other_core: int) -> None:
    """Give the thread of a server that runs the model a core for itself, and all others another one.

    Python 3.11 does not tell the kernel the names of its threads, so the inference thread is found by what it does: of
    all threads but the main ones, it is the one that uses most CPU time under load.

    Args:
        server: one process of it runs the model.
        load: puts load on it, for long enough to tell its threads apart.
        inference_core: for the inference thread; where there are none but main threads, for the busiest of them, as a
            model that is quick enough runs on the event loop.
        other_core: for all others.
    """
    before_s = server.thread_cpu_s()
    load()
    used_s = {thread: cpu_s - before_s.get(thread, 0.0) for thread, cpu_s in server.thread_cpu_s().items()}
    inference_thread = max(used_s.keys() - {*process_tree(server.pid)} or used_s, key=used_s.__getitem__)
    for thread in used_s:
        os.sched_setaffinity(thread, {inference_core if thread == inference_thread else other_core})


def two_cores() -> tuple[int, int]:
    """The first two cores this process may use: one for what is measured, one for what measures.

    Raises:
        BenchmarkError: there is only one.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("this benchmark needs two cores: one for the server and one for the load generator")
    return cores[0], cores[1]


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(stat_fields(folder / "stat")[1]), []).append(int(folder.name))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return tree


def stat_fields(path: Path) -> list[str]:
    """The fields of a ``stat`` file from the state on; the program's name before it may hold blanks (proc(5))."""
    return path.read_text().rpartition(")")[2].split()


def _cpu_s(path: Path) -> float:
    fields = stat_fields(path)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 for a zombie."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: Sequence[str], cores: set[int], log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:  # appending, so that writing goes on at the start of an emptied log
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def answers_ping(port: int, end_s: float, alive: Callable[[], bool] = lambda: True) -> bool:
    """Ping until the answer is 200, every 2 ms, on one connection: asking must cost a starting server little.

    Args:
        port: on 127.0.0.1.
        end_s: when to give up, by ``time.perf_counter``.
        alive: whether there is still somebody to ask.
    """
    with contextlib.ExitStack() as stack:
        connection: socket.socket | None = None
        while time.perf_counter() < end_s and alive():
            try:
                if connection is None:
                    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), _START_TIMEOUT_S))
                connection.sendall(_PING)
                if connection.recv(65536).startswith(b"HTTP/1.1 200 "):
                    return True
            except OSError:
                connection = None
            time.sleep(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
