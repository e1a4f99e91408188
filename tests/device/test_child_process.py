"""Running programs that misbehave: real processes, none of which is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byoc_server.device import child_process
from byoc_server.device.child_process import ChildResult, ChildTimeoutError, parse_line, run_child
from tests.server_process import alive, wait_for

ENOUGH_S = 30.0
LIMIT_BYTES = 1000


def children() -> set[str]:
    """Process ids of this process' children, those included that have ended and wait to be reaped."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


pytestmark = pytest.mark.usefixtures("no_process_is_left")


def shell(script: str, timeout_s: float = ENOUGH_S, **environ: str) -> ChildResult:
    return run_child(["sh", "-c", script], timeout_s, LIMIT_BYTES, {"PATH": os.environ["PATH"], **environ})


def assert_gone(pid_file: Path) -> None:
    pid = int(pid_file.read_text())
    wait_for(lambda: not alive(pid), f"the process of {pid_file.name} is gone")


def test_output_in_pieces_and_without_complaints() -> None:
    child = shell("printf one; echo complaint >&2; printf two; cat")
    assert child == ChildResult(b"onetwo", 0)
    assert child.failure == ""


def test_silence() -> None:
    assert shell("exit 0").failure == "ended without an answer"


def test_bad_ends_keep_what_was_said() -> None:
    child = shell("echo x; exit 3")
    assert (child, child.failure) == (ChildResult(b"x\n", 3), "ended with status 3")
    child = shell("echo x; kill -SEGV $$")
    assert (child, child.failure) == (ChildResult(b"x\n", -11), "killed by SIGSEGV")
    number = signal.SIGRTMIN + 3
    assert shell(f"kill -{number:d} $$").failure == f"killed by signal {number:d}"


def test_as_much_as_is_allowed() -> None:
    child = shell(f"head -c {LIMIT_BYTES} /dev/zero")
    assert (child, child.failure) == (ChildResult(bytes(LIMIT_BYTES), 0), "")


@pytest.mark.parametrize("script", ["exec yes", f"head -c {LIMIT_BYTES + 1} /dev/zero"])
def test_a_flood_is_cut(script: str) -> None:
    begin_s = time.monotonic()
    child = shell(script)
    assert (len(child.output), child.cut) == (LIMIT_BYTES, True)
    assert child.status == -signal.SIGKILL
    assert child.failure == f"said more than {LIMIT_BYTES} bytes"
    assert time.monotonic() - begin_s < ENOUGH_S / 2


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one given, or this process'."""
    monkeypatch.setenv("NAME", "of this process")
    script = 'echo "$NAME"'
    assert shell(script, NAME="given").output == b"given\n"
    assert shell(script).output == b"\n"
    assert run_child(["sh", "-c", script], ENOUGH_S, LIMIT_BYTES).output == b"of this process\n"


def test_a_session_of_its_own() -> None:
    """So that no terminal, and nothing sent to this process' group, reaches it."""
    script = "import os; print(os.getpid(), os.getsid(0), os.getpgrp())"
    ids = run_child([sys.executable, "-I", "-S", "-c", script], ENOUGH_S, LIMIT_BYTES).output.split()
    assert len(set(ids)) == 1
    assert int(ids[0]) != os.getsid(0)


def test_time_is_up(tmp_path: Path) -> None:
    """It is killed, together with what it started."""
    begin_s = time.monotonic()
    with pytest.raises(ChildTimeoutError):
        shell(f"sleep 60 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/pid; echo x; wait", 1.0)
    assert 1.0 <= time.monotonic() - begin_s < ENOUGH_S / 2
    assert_gone(tmp_path / "child")
    assert_gone(tmp_path / "pid")


@pytest.mark.parametrize("timeout_s", [0.0, -5.0])
def test_no_time_at_all(timeout_s: float) -> None:
    with pytest.raises(ChildTimeoutError):
        shell("exec sleep 60", timeout_s)


def test_a_closed_output_is_no_end() -> None:
    with pytest.raises(ChildTimeoutError):
        shell("exec >&- sleep 60", 0.5)


def test_a_process_in_the_background_is_neither_waited_for_nor_left(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    assert shell(f"sleep 60 & echo $! >{tmp_path}/child; echo x") == ChildResult(b"x\n", 0)
    assert time.monotonic() - begin_s < ENOUGH_S / 2
    assert_gone(tmp_path / "child")


class EndedError(BaseException):
    pass


@pytest.fixture
def a_signal_ends() -> Iterator[None]:
    """SIGUSR1 raises, as the server's own handler for SIGTERM does."""

    def end(*_: object) -> None:
        raise EndedError

    previous = signal.signal(signal.SIGUSR1, end)
    yield
    signal.signal(signal.SIGUSR1, previous)


@pytest.fixture
def another_thread() -> Iterator[None]:
    """One that the kernel may hand a signal to when the main thread would not take it."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("a_signal_ends", "another_thread")
def test_a_signal_handler_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EndedError):
        shell(f"sleep 60 & echo $! >{tmp_path}/child; kill -USR1 {os.getpid()}; wait")
    assert_gone(tmp_path / "child")


@pytest.mark.usefixtures("a_signal_ends", "another_thread")
def test_a_signal_while_the_process_is_being_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_slowly(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        wait_for((tmp_path / "child").exists, "the child has written its process id")
        os.kill(os.getpid(), signal.SIGUSR1)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_slowly)
    with pytest.raises(EndedError):
        shell(f"sleep 60 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait")
    assert_gone(tmp_path / "child")
    assert callable(signal.getsignal(signal.SIGUSR1))


@pytest.mark.usefixtures("a_signal_ends")
def test_the_child_has_no_signal_blocked() -> None:
    assert shell("grep SigBlk /proc/self/status").output.split() == [b"SigBlk:", b"0" * 16]


def time_is_up(script: str) -> bool:
    """Without ``pytest.raises``, which keeps the frames of the exception, and with them the process, alive."""
    try:
        shell(script, 0.2)
    except ChildTimeoutError:
        return True
    return False


def test_a_process_that_cannot_be_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stuck in the kernel's driver; here, one whose killing is refused."""
    refused = []

    def refuse(pid: int, _number: int) -> None:
        refused.append(pid)
        raise PermissionError

    kill_group = os.killpg
    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(child_process, "_KILL_WAIT_S", 0.1)
    with pytest.warns(ResourceWarning, match="still running"):
        assert time_is_up("exec sleep 60")
    (pid,) = refused
    assert alive(pid)
    kill_group(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_where_sigchld_is_ignored() -> None:
    """The kernel then reaps the child, and its status is lost; what it said is not, and the limits hold."""
    script = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from byoc_server.device.child_process import ChildTimeoutError, run_child
for command in "echo x", "echo x; kill -SEGV $$":
    print(run_child(["sh", "-c", command], 20.0, 10))
try:
    run_child(["sleep", "60"], 0.5, 10)
except ChildTimeoutError:
    print("time is up")
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines() == [*[str(ChildResult(b"x\n", 0))] * 2, "time is up"]


def test_what_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_child([str(tmp_path / "nowhere")], ENOUGH_S, LIMIT_BYTES)
    with pytest.raises(ValueError, match="null byte"):
        run_child(["sh", "a\0b"], ENOUGH_S, LIMIT_BYTES)


def test_one_line() -> None:
    assert parse_line(b'{"a": [1, null]}\n') == {"a": [1, None]}


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b"", "not one line"),
        (b"1", "not one line"),
        (b"1\n\n", "not one line"),
        (b"1\n2\n", "not one line"),
        (b"\n1\n", "not one line"),
        (b"[1,\n2]\n", "not one line"),
        (b"\n", "Expecting value"),
        (b"x\n", "Expecting value"),
        (b"\xff\xfe\n", "decode"),
        (b"[" * 100_000 + b"\n", "nested"),
        (b"9" * 5000 + b"\n", "digits"),  # Python's own limit is 4300
    ],
)
def test_what_is_not_one_line_of_json(output: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_line(output)
