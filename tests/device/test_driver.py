"""The driver's version: reading every source, and whom to believe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from byoc_server.device import child_process
from byoc_server.device.driver import DriverReading, parse_banner, parse_smi, read_driver, run_nvidia_smi
from byoc_server.device.nvml import NvmlReport
from byoc_server.device.version import DriverVersion
from tests.device.fake_root import FakeRoot, closed_banner, open_banner
from tests.device.test_child_process import assert_gone, no_process_is_left  # noqa: F401  # a fixture, used by its name
from tests.server_process import alive, wait_for

pytestmark = pytest.mark.usefixtures("no_process_is_left")

GCC = "GCC version:  gcc version 9.4.0 (Ubuntu 9.4.0-1ubuntu1~20.04.1)\n"


def version(text: str) -> DriverVersion:
    parsed = DriverVersion.parse(text)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (closed_banner("470.57.02"), "470.57.02"),
        (closed_banner("580.173.02", "aarch64"), "580.173.02"),
        (open_banner("580.142"), "580.142"),
        (open_banner("580.65.06", "aarch64"), "580.65.06"),
        (open_banner("580.142").replace("Release", "Debug"), "580.142"),
        (open_banner("580.142").replace("Release", "Develop"), "580.142"),
        ("NVRM version: NVIDIA UNIX Kernel Module for aarch64  34.1.1  Release Build  (buildbrain@mobile)\n", "34.1.1"),
        # vectors 18 and 23
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.173.02  Release Build  "
            "(dvs-builder@U22)  Mon Sep  1 10:00:00 UTC 2026",
            "580.173.02",
        ),
        ("\r\nNVRM version: NVIDIA UNIX x86_64 Kernel Module  418.40.04  Fri Mar 15\r\n", "418.40.04"),
        # the compiler's line first, and one of its two numbers in the shape of a driver's
        (GCC + closed_banner("535.54.03"), "535.54.03"),
        # a form nobody has seen yet: the first whole word that is a version
        ("NVRM version: NVIDIA Module 1 v9.9 600.10.01 700.10.01\n", "600.10.01"),
        ("NVRM version: 600.10\n", "600.10"),
        ("NVRM version: NVIDIA UNIX 500.10 Kernel Module  600.10  Release Build\n", "600.10"),
        ("NVRM version: NVIDIA UNIX Kernel Module for 580.95.05 Release\n", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Kernel Module for x86_64\n", None),
        # vectors 20 to 22
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 malformed", None),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 malformed\n" + GCC, None),
        (GCC, None),
        ("", None),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535  Tue\n" + GCC, None),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03.01  Tue\n", None),
        ("the NVRM version: 600.10.01\n", None),
        ("NVRM version:", None),
    ],
)
def test_banner(text: str, expected: str | None) -> None:
    parsed = parse_banner(text)
    assert (str(parsed) if parsed else None) == expected


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        # vectors 26 to 33
        ("535.54.03\n" * 4, 0, "535.54.03"),
        ("535.54.03\n550.54.15\n", 0, None),
        ("[N/A]\n", 0, None),
        (NO_DRIVER, 0, None),
        (NO_DRIVER, 9, None),
        (MISMATCH, 0, None),
        (MISMATCH, 18, None),
        ("No devices were found\n", 0, None),
        ("535\n", 0, None),
        ("535.54.03.01\n", 0, None),
        ("580.142\r\n\r\n", 0, "580.142"),
        ("  580.142  ", 0, "580.142"),
        ("535.54.03\n", 1, None),
        ("535.54.03\n", -11, None),
        ("535.54.03\n[N/A]\n", 0, None),
        ("", 0, None),
        ("\n\n", 0, None),
    ],
)
def test_smi(output: str, code: int, expected: str | None) -> None:
    parsed = parse_smi(output, code)
    assert (str(parsed) if parsed else None) == expected


def forbidden() -> tuple[str, int]:
    raise AssertionError("nvidia-smi is slow, and was not needed")


def smi(output: str, code: int = 0) -> Callable[[], tuple[str, int]]:
    return lambda: (output, code)


def test_order_of_trust(tmp_path: Path) -> None:
    """Each source in turn is the best there is."""
    root = FakeRoot(tmp_path)
    v = {name: version(f"{number}.10.01") for name, number in zip("abcde", range(500, 505), strict=True)}
    reading = read_driver(tmp_path, NvmlReport(), smi("", 9), v["e"])
    assert reading == DriverReading(v["e"], "libcuda", ignored=(("nvidia-smi", ""),))
    reading = read_driver(tmp_path, NvmlReport(), smi("503.10.01\n"), v["e"])
    assert reading == DriverReading(v["d"], "nvidia-smi")
    reading = read_driver(tmp_path, NvmlReport("502.10.01"), forbidden, v["e"])
    assert reading == DriverReading(v["c"], "nvml")
    root.sysfs("501.10.01\n")
    reading = read_driver(tmp_path, NvmlReport("502.10.01"), forbidden, None)
    assert reading == DriverReading(v["b"], "sysfs", differing=(("nvml", v["c"]),))
    root.banner(closed_banner("500.10.01"))
    reading = read_driver(tmp_path, NvmlReport("502.10.01"), forbidden, v["e"])
    differing = (("sysfs", v["b"]), ("nvml", v["c"]))
    assert reading == DriverReading(v["a"], "proc", differing=differing)


def test_no_source_at_all(tmp_path: Path) -> None:
    """Vector 34."""
    reading = read_driver(tmp_path, NvmlReport(), smi("nvidia-smi cannot be run: No such file", 127), None)
    assert reading == DriverReading(None, ignored=(("nvidia-smi", "nvidia-smi cannot be run: No such file"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (open_banner("580.173.02", "aarch64"), "580.173.02"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 malformed", None),
        (GCC, None),
        ("", None),
        ("\r\nNVRM version: NVIDIA UNIX x86_64 Kernel Module  418.40.04  Fri Mar 15\r\n", "418.40.04"),
    ],
)
def test_proc(tmp_path: Path, text: str, expected: str | None) -> None:
    """Vectors 18 to 23: a banner that tells nothing is ignored, and the next source asked."""
    reading = read_driver(FakeRoot(tmp_path).banner(text).path, NvmlReport(), smi("", 9), None)
    assert (str(reading.version) if reading.version else None) == expected
    assert ("proc" in dict(reading.ignored)) is (expected is None)


@pytest.mark.parametrize("text", ["", "[N/A]", "535", "535.54.03.01", "error: no such module", "535.54\n550.54\n"])
def test_malformed_values_are_ignored(tmp_path: Path, text: str) -> None:
    """Row 15, for each source; what it said is kept for the log, in one line."""
    root = FakeRoot(tmp_path).banner(text).sysfs(text)
    reading = read_driver(root.path, NvmlReport(text, error="x"), smi(text), version("535.54.03"))
    said = " ".join(text.split())
    ignored = (("proc", said), ("sysfs", said), ("nvml", said or "x"), ("nvidia-smi", said))
    assert reading == DriverReading(version("535.54.03"), "libcuda", ignored=ignored)


def test_long_nonsense_is_cut(tmp_path: Path) -> None:
    reading = read_driver(FakeRoot(tmp_path).sysfs("x" * 100_000).path, NvmlReport("1.2"), forbidden, None)
    assert reading.ignored == (("sysfs", "x" * 200),)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).file("sys/module/nvidia/version", b"\xff\xfe535.54.03\n")
    reading = read_driver(root.path, NvmlReport("550.144.03"), forbidden, None)
    assert reading.source == "nvml"
    assert reading.ignored == (("sysfs", "��535.54.03"),)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).folder("proc/driver/nvidia/version").sysfs("535.183.01\n")
    assert read_driver(root.path, NvmlReport(), forbidden, None) == DriverReading(version("535.183.01"), "sysfs")


def test_equal_in_other_words(tmp_path: Path) -> None:
    """575.64 and 575.64.00 are the same version."""
    root = FakeRoot(tmp_path).banner(closed_banner("575.64")).sysfs("575.64.00\n")
    assert read_driver(root.path, NvmlReport("575.064.0"), forbidden, None).differing == ()


def test_mismatch(tmp_path: Path) -> None:
    """Vector 49, row 17: the banner counts."""
    nvml = NvmlReport(error="RM has detected an NVML/RM version mismatch.", error_code=18)
    root = FakeRoot(tmp_path).banner(closed_banner("535.54.03"))
    reading = read_driver(root.path, nvml, forbidden, None)
    assert reading == DriverReading(version("535.54.03"), "proc", ignored=(("nvml", nvml.error),), nvml_mismatch=True)


def test_other_errors_are_no_mismatch(tmp_path: Path) -> None:
    """A GPU that is lost does not take back the driver's version."""
    nvml = NvmlReport("535.54.03", error="nvmlDeviceGetName: GPU is lost", error_code=15)
    assert read_driver(tmp_path, nvml, forbidden, None) == DriverReading(version("535.54.03"), "nvml")


def test_disagreement(tmp_path: Path) -> None:
    """Vector 50, row 16."""
    root = FakeRoot(tmp_path).banner(closed_banner("535.183.01"))
    reading = read_driver(root.path, NvmlReport("535.161.07"), forbidden, None)
    assert reading == DriverReading(version("535.183.01"), "proc", differing=(("nvml", version("535.161.07")),))


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an ``nvidia-smi`` of this text first on the path."""
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments; no input; complaints are not mixed with the answer; and the answer in pieces."""
    script = f'echo "$@" >{tmp_path}/arguments; cat >&2; echo warning >&2; printf 535.54; printf ".03\\n535.54.03\\n"'
    program(tmp_path, monkeypatch, script)
    output, code = run_nvidia_smi()
    assert (output, code) == ("535.54.03\n535.54.03\n", 0)
    assert (tmp_path / "arguments").read_text() == "--query-gpu=driver_version --format=csv,noheader\n"


def test_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, f'echo "{NO_DRIVER}"; exit 9')
    assert run_nvidia_smi() == (NO_DRIVER + "\n", 9)


def test_run_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exit 6")
    assert run_nvidia_smi() == ("nvidia-smi printed nothing and ended with code 6", 6)


def test_run_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo 535.54.03; kill -SEGV $$")
    assert run_nvidia_smi() == ("535.54.03\n", -11)


def test_run_without_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    output, code = run_nvidia_smi()
    assert output == "nvidia-smi cannot be run: No such file or directory"
    assert code == 127
    (tmp_path / "nvidia-smi").write_text("not a program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert run_nvidia_smi() == ("nvidia-smi cannot be run: Exec format error", 127)


def test_run_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, together with what it started."""
    program(tmp_path, monkeypatch, f"sleep 60 & echo $! >{tmp_path}/child; echo 535.54.03; wait")
    begin = time.monotonic()
    assert run_nvidia_smi(timeout_s=1.0) == ("nvidia-smi did not end within 1 s", 124)
    assert time.monotonic() - begin < 10
    assert_gone(tmp_path / "child")


def test_run_ends_with_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while the server starts: its handler raises SystemExit in the middle of the wait."""
    program(tmp_path, monkeypatch, f"sleep 60 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/pid; wait")
    script = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
from byoc_server.device.driver import run_nvidia_smi
run_nvidia_smi(60.0)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        pid = tmp_path / "pid"
        wait_for(lambda: pid.exists() and pid.read_text(), "nvidia-smi hangs")
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert_gone(pid)
    assert_gone(tmp_path / "child")


def test_run_ends_and_leaves_the_pipe_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in the background holds the pipe: the answer counts at once, and that process is killed."""
    program(tmp_path, monkeypatch, f"sleep 60 & echo $! >{tmp_path}/child; echo 535.54.03")
    begin = time.monotonic()
    assert run_nvidia_smi(timeout_s=30.0) == ("535.54.03\n", 0)
    assert time.monotonic() - begin < 10
    assert_gone(tmp_path / "child")


def test_run_prints_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exec yes 535.54.03")
    output, code = run_nvidia_smi()
    assert len(output) == 16 * 1024
    assert code == -signal.SIGKILL
    assert parse_smi(output, code) is None


def test_run_cannot_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process stuck inside the kernel; here, one whose killing is prevented. The server goes on without it."""
    program(tmp_path, monkeypatch, "exec sleep 60")
    started = []
    kill_group = os.killpg
    monkeypatch.setattr(os, "killpg", lambda pid, _number: started.append(pid))
    monkeypatch.setattr(child_process, "_KILL_WAIT_S", 0.05)
    with pytest.warns(ResourceWarning, match="still running"):
        assert run_nvidia_smi(timeout_s=0.2) == ("nvidia-smi did not end within 0.2 s", 124)
    (pid,) = started
    assert alive(pid)
    kill_group(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_importing_it_is_light() -> None:
    """Most servers start without asking any program."""
    script = "import sys, byoc_server.device.probe, byoc_server.device.driver; print('subprocess' in sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.extend({sys.path!r}); {script}"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
