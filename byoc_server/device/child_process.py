"""Running a program that may do anything: crash, hang in the kernel, start others, talk without end.

For questions to the GPU's driver that a server cannot ask in its own process. A child is alone in a session, with a
limit on its time and on what it may say, and however the wait for it ends, by an exception of a signal handler too, it
does not stay behind.

Imported when a child is to be started: ``subprocess`` is slow to import, and a machine without a GPU needs none.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_POLL_S = 0.05  # how soon the end of a child is seen whose own children hold its output open
_KILL_WAIT_S = 2.0  # a process that is stuck in the kernel cannot be killed, nor waited for
_CHUNK_BYTES = 64 * 1024  # as much as a pipe holds


class ChildTimeoutError(Exception):
    """The child had not ended when its time was up, and was killed."""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What came of a child.

    Where SIGCHLD is ignored, which a process inherits from the one that started it, the kernel keeps no exit status,
    and ``subprocess`` reports 0. So 0 says nothing; only what the child has said can prove that all went well.

    Attributes:
        output: what it wrote to standard output, cut at the limit.
        status: exit status; the negative number of the signal that ended it.
        cut: it wrote more than the limit, and was killed for that.
    """

    output: bytes
    status: int
    cut: bool = False

    @property
    def failure(self) -> str:
        """Why its output is no answer, in a few words; empty if it may be one."""
        if self.cut:
            return f"said more than {len(self.output)} bytes"
        if self.status < 0:
            return f"killed by {_signal_name(-self.status)}"
        if self.status > 0:
            return f"ended with status {self.status}"
        return "" if self.output else "ended without an answer"


def run_child(
    command: Sequence[str], timeout_s: float, max_output_bytes: int, environ: Mapping[str, str] | None = None
) -> ChildResult:
    """Run a program to its end, without input, and take what it writes to standard output.

    The process and all it has started are gone afterwards, except what moved to another session or is stuck in the
    kernel.

    Args:
        command: the program and its arguments.
        timeout_s: seconds after which it is killed.
        max_output_bytes: it is also killed when it writes more than these.
        environ: its environment; this process' if ``None``.

    Raises:
        ChildTimeoutError: it has not ended in time.
        OSError: it could not be started.
        ValueError: the command or the environment has a zero byte.
    """
    deadline_s = time.monotonic() + timeout_s
    handlers = _HeldHandlers()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
        assert process.stdout is not None  # it was asked for above
        try:
            handlers.release()
            output = _read(process, process.stdout.fileno(), max_output_bytes, deadline_s)
            if len(output) > max_output_bytes:
                return ChildResult(output[:max_output_bytes], -signal.SIGKILL, cut=True)
            return ChildResult(output, process.wait(max(0.0, deadline_s - time.monotonic())))
        except subprocess.TimeoutExpired:
            raise ChildTimeoutError from None
        finally:
            with contextlib.suppress(OSError):  # the whole group has ended; its number is not given away again so soon
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_WAIT_S)
            process.stdout.close()
    finally:
        handlers.release()


def parse_line(output: bytes) -> Any:
    """The JSON value in the one line that a child's output has to be.

    Raises:
        ValueError: it is anything else.
    """
    if not output.endswith(b"\n") or output.count(b"\n") != 1:
        raise ValueError("not one line")
    try:
        return json.loads(output)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _HeldHandlers:
    """The signal handlers of Python code, held back from when this is made until they are released.

    One that raises while a process is being started, as the server's own for SIGTERM does, would leave the process.
    Blocking the signals is not enough: the kernel hands them to another thread of this process, and Python then runs
    the handler in the main one all the same; and the process started would have them blocked too. Python runs no
    handlers in other threads than the main one, so there is nothing to hold there.
    """

    def __init__(self) -> None:
        self._arrived: list[int] = []
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._arrive)

    def _arrive(self, number: int, _frame: object) -> None:
        self._arrived.append(number)

    def release(self) -> None:
        """Put the handlers back and run those whose signals came meanwhile; what one raises is raised here."""
        for number, handler in list(self._handlers.items()):
            signal.signal(number, handler)
            del self._handlers[number]
        while self._arrived:
            signal.raise_signal(self._arrived.pop(0))


def _read(process: subprocess.Popen[bytes], stdout: int, max_bytes: int, deadline_s: float) -> bytes:
    """What the child says until it ends, or a little more than ``max_bytes``; its children may hold the pipe longer."""
    poller = select.poll()
    poller.register(stdout, select.POLLIN)
    output = b""
    while len(output) <= max_bytes:
        has_ended = process.poll() is not None
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 and not has_ended:
            raise subprocess.TimeoutExpired(process.args, 0)
        if poller.poll(0 if has_ended else 1000 * min(left_s, _POLL_S)):
            chunk = os.read(stdout, _CHUNK_BYTES)
            if not chunk:
                break
            output += chunk
        elif has_ended:
            break
    return output


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
