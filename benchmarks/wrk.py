"""The load generator: wrk, one thread, a fixed number of connections that each send the next request at once.

It prints its figures through a script of its own, in whole microseconds, where its usual output has three digits.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import BenchmarkError

_TIMEOUT_S = 60
"""A request that takes longer counts as an error."""
_GRACE_S = 60
_RESULT = re.compile(r"^result ((?:\w+=\d+ ?)+)$", re.MULTILINE)
_ERRORS = ("connect", "read", "write", "status", "timeout")
_DONE = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "result requests=%d duration_us=%d p50_us=%d p99_us=%d connect=%d read=%d write=%d status=%d timeout=%d\\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, again and again, as POST /invocations.

    Attributes:
        media_type: Content-Type and Accept.
        body: any bytes.
    """

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What came back.

    Attributes:
        requests: answered, all of them well.
        duration_s: as the load generator measured it.
        p50_s: median latency.
        p99_s: latency of the slowest hundredth.
    """

    requests: int
    duration_s: float
    p50_s: float
    p99_s: float

    @property
    def requests_per_s(self) -> float:
        """Throughput."""
        return self.requests / self.duration_s


def load(port: int, request: Request, connections: int, duration_s: int, core: int | None) -> Load:
    """Load a server on 127.0.0.1.

    Args:
        port: of the server.
        request: to send.
        connections: held open, each with one request under way.
        duration_s: whole seconds.
        core: where the load generator runs; ``None`` for any.

    Raises:
        BenchmarkError: wrk is missing or failed, or a request was not answered well.
    """
    if shutil.which("wrk") is None:
        raise BenchmarkError("the load generator wrk is missing; install it with `apt-get install wrk`")
    with tempfile.TemporaryDirectory() as folder:
        script_path = Path(folder) / "request.lua"
        script_path.write_text(script(request))
        command = [] if core is None else ["taskset", "--cpu-list", str(core)]
        command += ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{duration_s}s", "--timeout", f"{_TIMEOUT_S}s", "--script", str(script_path)]
        command.append(f"http://127.0.0.1:{port}/invocations")
        done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + _GRACE_S, check=False)
    return parse(done.stdout + done.stderr)


def script(request: Request) -> str:
    """The Lua script that makes wrk send a request and print its figures."""
    return (
        'wrk.method = "POST"\n'
        f'wrk.headers["Content-Type"] = {lua_string(request.media_type.encode())}\n'
        f'wrk.headers["Accept"] = {lua_string(request.media_type.encode())}\n'
        f"wrk.body = {lua_string(request.body)}\n{_DONE}"
    )


def lua_string(content: bytes) -> str:
    """Any bytes as a Lua literal: each as its decimal escape, which Lua takes for all 256 of them."""
    return '"' + "".join([f"\\{byte:03d}" for byte in content]) + '"'


def parse(output: str) -> Load:
    """Read what the script printed.

    Raises:
        BenchmarkError: nothing was printed, nothing was answered, or there were errors.
    """
    match = _RESULT.search(output)
    if match is None:
        raise BenchmarkError(f"wrk failed:\n{output}")
    figures = {name: int(value) for name, _, value in (part.partition("=") for part in match[1].split())}
    errors = {name: figures[name] for name in _ERRORS if figures[name]}
    if errors or not figures["requests"]:
        raise BenchmarkError(f"{figures['requests']} requests were answered, with errors: {errors or 'none'}")
    return Load(figures["requests"], figures["duration_us"] / 1e6, figures["p50_us"] / 1e6, figures["p99_us"] / 1e6)
