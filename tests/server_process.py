"""Starts the real server as a process and talks to it over a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pytest
import requests

START_TIMEOUT_S = 30.0
SERVE = (sys.executable, "-m", "byoc_server", "serve")
ORDINARY_LANE = ("--fast-lane", "off")
"""Everything goes through ASGI; without it, what can goes through the fast lane."""
LANES = {"fast": (), "ordinary": ORDINARY_LANE}
"""Name of a lane -> the flags of a server that has it."""
LANE_PARAMS = ("fast", pytest.param("ordinary", marks=pytest.mark.soak))
"""For tests of what ``tests/lanes`` shows to be the same; the other lane of these takes its time."""


@dataclass
class Answer:
    """One response as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ServerProcess:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """All complete JSON log lines of one event."""
        lines = [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("}\n")]
        return [line for line in lines if line["event"] == name]

    def ping(self) -> requests.Response:
        return self.session.get(f"{self.url}/ping", timeout=5)

    def invoke(self, body: bytes | str, **headers: str) -> requests.Response:
        """POST /invocations; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.post(f"{self.url}/invocations", data=body, headers=named, timeout=60)

    def connect(self, timeout_s: float = 30.0) -> socket.socket:
        """Open a plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def exchange(self, raw: bytes, timeout_s: float = 30.0) -> Answer:
        """Send bytes on a connection of their own and read one answer."""
        with self.connect(timeout_s) as connection, connection.makefile("rb") as stream:
            connection.sendall(raw)
            return read_answer(stream)

    def worker_pids(self) -> list[int]:
        """The children of the server process."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def signal_all(self, number: int) -> None:
        """Send a signal to the server process and its children."""
        for pid in (self.process.pid, *self.worker_pids()):
            os.kill(pid, number)

    def wait_until_ready(self) -> None:
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            with contextlib.suppress(requests.RequestException):
                if self.ping().status_code == 200:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.02)
        raise AssertionError(f"the server did not become ready:\n{self.log}")

    def stop(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def post(body: bytes, **headers: str) -> bytes:
    """The bytes of an invocation; header names are given with underscores."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = ["POST /invocations HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


PING = b"GET /ping HTTP/1.1\r\nHost: test\r\n\r\n"


def read_answer(stream: BinaryIO) -> Answer:
    """Read one answer; raises ``EOFError`` when the connection ends before it is complete."""
    status_line = stream.readline()
    if not status_line.endswith(b"\n"):
        raise EOFError(f"connection ended after {status_line!r}")
    headers = {}
    while (line := stream.readline().decode("latin-1")).strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    body = stream.read(length)
    if len(body) < length:
        raise EOFError(f"connection ended after {len(body)} of {length} bytes")
    return Answer(int(status_line.split()[1]), headers, body)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without settings of the server, and ``environ``."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("BYOC_", "SAGEMAKER_"))}
    return {**kept, **environ}


def run_to_end(
    *arguments: str,
    command: Sequence[str] = SERVE,
    timeout_s: float = 30.0,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout_s, env=environment(environ)
    )


@contextlib.contextmanager
def running(
    *arguments: str,
    ready: bool = True,
    command: Sequence[str] = SERVE,
    port: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ServerProcess]:
    """Start ``byoc serve ARGUMENTS`` on a free port; end it whatever happens.

    Args:
        arguments: of the command.
        ready: wait until it answers pings with 200.
        command: what to start.
        port: where it will listen when neither ``--host`` nor ``--port`` is to be added to the arguments.
        environ: variables, beside those of this process.
    """
    if port is None:
        port = free_port()
        arguments = ("--host", "127.0.0.1", "--port", str(port), *arguments)
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=environment(environ))
        server = ServerProcess(process, port, log_path)
        try:
            if ready:
                server.wait_until_ready()
            yield server
        finally:
            server.session.close()
            try:
                server.stop(timeout_s=10)
            except subprocess.TimeoutExpired:
                for pid in server.worker_pids():
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.wait()
