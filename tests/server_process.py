"""Starts the real server as a process and talks to it over a real socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

START_TIMEOUT_S = 30.0


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

    def ping(self) -> requests.Response:
        return self.session.get(f"{self.url}/ping", timeout=5)

    def invoke(self, body: bytes | str, **headers: str) -> requests.Response:
        """POST /invocations; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.post(f"{self.url}/invocations", data=body, headers=named, timeout=60)

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*arguments: str, ready: bool = True, **environ: str) -> Iterator[ServerProcess]:
    """Start ``byoc serve ARGUMENTS`` on a free port; end it whatever happens."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        command = [sys.executable, "-m", "byoc_server", "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environ})
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
                process.kill()
                process.wait()
