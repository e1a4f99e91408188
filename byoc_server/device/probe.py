"""Trying a ``libcuda`` in a throw-away process: the evidence beyond the rules.

A wrong user-mode driver can do worse than return an error: crash, hang in the kernel, start programs. And the first
``libcuda`` a process has loaded is the one it keeps. So this process never loads one: each attempt is a new, bare
interpreter (``probe_child.py``) in a session of its own, with a limit on its time and on what it may say, and whatever
comes of it is a value, never an exception.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NOT_READY = 802
"""``CUDA_ERROR_SYSTEM_NOT_READY``: on hosts with NVSwitch, until the fabric manager runs (CUDA driver API, 13.0)."""

_CHILD = Path(__file__).with_name("probe_child.py")
_MAX_ANSWER_BYTES = 4096
_MAX_NUMBER = 10**6


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of loading one ``libcuda`` and initialising it.

    Attributes:
        path: of the library that was tried.
        init_code: what ``cuInit`` returned (a ``CUresult``); ``None`` if the process did not get that far.
        cuda: CUDA level from ``cuDriverGetVersion``; ``None`` if unknown.
        devices: number of devices; ``None`` if unknown.
        failure: why there is no ``init_code``: "timeout after 20 s", "killed by SIGSEGV", "cannot load: ..."; or empty.
        elapsed_s: seconds the probe took, all attempts together.
        attempts: how often it was tried; more than once only while the system was not ready (802).
    """

    path: str
    init_code: int | None
    cuda: tuple[int, int] | None = None
    devices: int | None = None
    failure: str = ""
    elapsed_s: float = 0.0
    attempts: int = 1


def probe(
    library: Path, ld_library_path: str, timeout_s: float, *, retries_s: Sequence[float] = (1.0, 2.0, 4.0)
) -> ProbeResult:
    """Load and initialise a ``libcuda`` in a process of its own; nothing that happens there is an exception here.

    The process and all it has started are gone afterwards, except what moved to another session or is stuck in the
    kernel.

    Args:
        library: path of the library.
        ld_library_path: by which its companions (the JIT compiler) are found; empty = not set.
        timeout_s: for all attempts together.
        retries_s: seconds to wait before each further attempt while the system is not ready (802), as long as
            ``timeout_s`` has room for the wait.
    """
    start_s = time.monotonic()
    deadline_s = start_s + timeout_s
    result = _attempt(library, ld_library_path, deadline_s, timeout_s)
    attempts = 1
    for wait_s in retries_s:
        if result.init_code != NOT_READY or time.monotonic() + wait_s >= deadline_s:
            break
        time.sleep(wait_s)
        result = _attempt(library, ld_library_path, deadline_s, timeout_s)
        attempts += 1
    return replace(result, elapsed_s=time.monotonic() - start_s, attempts=attempts)


def _attempt(library: Path, ld_library_path: str, deadline_s: float, timeout_s: float) -> ProbeResult:
    from byoc_server.device import child_process  # noqa: PLC0415  # slow to import, and seldom needed

    command = [sys.executable, "-I", "-S", str(_CHILD), os.path.abspath(library)]
    environ = _child_environ(os.environ, ld_library_path)
    try:
        child = child_process.run_child(command, deadline_s - time.monotonic(), _MAX_ANSWER_BYTES, environ)
    except child_process.ChildTimeoutError:
        failure = f"timeout after {timeout_s:g} s"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        failure = f"cannot start a process: {error}"
    else:
        failure = child.failure
        if not failure:
            return _parse(str(library), child.output)
    return ProbeResult(str(library), None, failure=failure)


def _child_environ(environ: Mapping[str, str], ld_library_path: str) -> dict[str, str]:
    """What the child gets to see: only what has a say in which GPUs CUDA sees, and how."""
    kept = {name: value for name, value in environ.items() if name.startswith(("CUDA_", "NVIDIA_")) or name == "PATH"}
    return {**kept, "LD_LIBRARY_PATH": ld_library_path} if ld_library_path else kept


def _parse(path: str, answer: bytes) -> ProbeResult:
    """Read the child's one line; whatever else it is, it is no answer."""
    from byoc_server.device.child_process import parse_line  # noqa: PLC0415  # slow to import, and seldom needed

    try:
        values = parse_line(answer)
    except ValueError:
        values = None
    match values:
        case {"error": str(text)} if len(values) == 1:
            return ProbeResult(path, None, failure=text)
        case {"init": init, "version": version, "devices": devices} if len(values) == 3:
            if _is_number(init) and _is_number(version) and (devices is None or _is_number(devices)):
                cuda = (version // 1000, version % 1000 // 10) if version else None
                return ProbeResult(path, init, cuda, devices)
    return ProbeResult(path, None, failure=f"unexpected answer: {answer[:100]!r}")


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER
