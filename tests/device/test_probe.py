"""Trying a libcuda in a throw-away process: real processes, real shared libraries, no GPU."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_server.device import child_process, probe_child
from byoc_server.device import probe as probe_module
from byoc_server.device.probe import ProbeResult, probe
from tests.device.dummy_libraries import build_jit_compiler, build_libcuda, needs_compiler
from tests.device.test_child_process import no_process_is_left  # noqa: F401  # a fixture, used by its name
from tests.server_process import alive, wait_for

pytestmark = [needs_compiler, pytest.mark.usefixtures("no_process_is_left")]

ENOUGH_S = 30.0
SHORT_S = 1.0


def attempt(library: Path, timeout_s: float = ENOUGH_S, ld_library_path: str = "") -> ProbeResult:
    return probe(library, ld_library_path, timeout_s, retries_s=())


def test_success(tmp_path: Path) -> None:
    library = build_libcuda(tmp_path, cuda=13040, devices=8)
    result = attempt(library)
    assert result == ProbeResult(str(library), 0, (13, 4), 8, elapsed_s=result.elapsed_s)
    assert 0 < result.elapsed_s < ENOUGH_S
    assert str(library) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("code", [34, 100, 802, 803, 804, 999])
def test_codes_of_cu_init(tmp_path: Path, code: int) -> None:
    result = attempt(build_libcuda(tmp_path, init_code=code))
    assert (result.init_code, result.cuda, result.devices, result.failure) == (code, (12, 9), None, "")
    assert result.attempts == 1


def test_a_system_that_is_not_ready_is_tried_again(tmp_path: Path) -> None:
    library = build_libcuda(tmp_path, behaviour="ready_at_third")
    result = probe(library, "", ENOUGH_S, retries_s=(0.1, 0.2, ENOUGH_S))
    assert (result.init_code, result.attempts, result.devices) == (0, 3, 1)
    assert result.elapsed_s >= 0.3


def test_it_is_not_tried_again_for_ever(tmp_path: Path) -> None:
    result = probe(build_libcuda(tmp_path, init_code=802), "", ENOUGH_S, retries_s=(0.01, 0.01))
    assert (result.init_code, result.attempts, result.failure) == (802, 3, "")


def test_no_wait_goes_beyond_the_time(tmp_path: Path) -> None:
    result = probe(build_libcuda(tmp_path, init_code=802), "", ENOUGH_S, retries_s=(0.01, ENOUGH_S))
    assert (result.init_code, result.attempts) == (802, 2)
    assert result.elapsed_s < ENOUGH_S / 2


@pytest.mark.parametrize("code", [803, 0])
def test_nothing_but_802_is_tried_again(tmp_path: Path, code: int) -> None:
    result = probe(build_libcuda(tmp_path, init_code=code), "", ENOUGH_S)
    assert (result.init_code, result.attempts) == (code, 1)


def test_a_hang_ends_with_the_time(tmp_path: Path) -> None:
    """The process is gone then, and so are those it has started."""
    library = build_libcuda(tmp_path, behaviour="hang_with_child")
    result = attempt(library, SHORT_S)
    assert (result.init_code, result.failure) == (None, "timeout after 1 s")
    assert SHORT_S <= result.elapsed_s < SHORT_S + 1.5
    child = int(Path(f"{library}.child").read_text())
    wait_for(lambda: not alive(child), "the grandchild is gone")


def test_a_child_that_closes_its_output_and_hangs(tmp_path: Path) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour="close"), SHORT_S)
    assert result.failure == "timeout after 1 s"


def test_a_process_left_behind_is_neither_waited_for_nor_left(tmp_path: Path) -> None:
    library = build_libcuda(tmp_path, behaviour="leave_child")
    result = attempt(library)
    assert (result.init_code, result.failure) == (0, "")
    assert result.elapsed_s < ENOUGH_S / 2
    child = int(Path(f"{library}.child").read_text())
    wait_for(lambda: not alive(child), "the grandchild is gone")


def test_a_process_that_cannot_be_killed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stuck in the kernel's driver."""
    killed = []
    kill_group = os.killpg
    monkeypatch.setattr(os, "killpg", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(child_process, "_KILL_WAIT_S", 0.1)
    with pytest.warns(ResourceWarning, match="still running"):
        result = attempt(build_libcuda(tmp_path, behaviour="hang"), 0.2)
    assert result.failure == "timeout after 0.2 s"
    (pid,) = killed
    assert alive(pid)
    kill_group(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [("segfault", "killed by SIGSEGV"), ("abort", "killed by SIGABRT"), ("exit", "ended with status 3")],
)
def test_crashes(tmp_path: Path, behaviour: str, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a core dump would be written
    library = build_libcuda(tmp_path, behaviour=behaviour, links=False)
    result = attempt(library)
    assert (result.init_code, result.cuda, result.devices, result.failure) == (None, None, None, failure)
    assert os.listdir(tmp_path) == [library.name]


def test_a_flood_of_output_is_cut_off(tmp_path: Path) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour="flood", text="x" * 1000))
    assert result.failure == "said more than 4096 bytes"
    assert result.elapsed_s < ENOUGH_S / 2


def test_what_a_library_prints_is_not_heard(tmp_path: Path) -> None:
    result = attempt(build_libcuda(tmp_path, init_code=803, behaviour="print"))
    assert (result.init_code, result.failure) == (803, "")


def test_a_library_that_speaks_for_the_probe_is_not_believed(tmp_path: Path) -> None:
    lie = json.dumps({"init": 0, "version": 12090, "devices": 1}) + "\n"
    result = attempt(build_libcuda(tmp_path, init_code=803, behaviour="lie", text=lie))
    assert result.init_code is None
    assert result.failure.startswith("unexpected answer: b'{")


@pytest.mark.parametrize(
    "answer",
    [
        "x\n",
        "\n",
        "null\n",
        "[]\n",
        "{}\n",
        '{"init": 0, "version": 12090, "devices": 1}',
        '{"init": 0, "version": 12090, "devices": 1}\n\n',
        '{"init": 0, "version": 12090,\n"devices": 1}\n',
        '{"init": 0, "version": 12090}\n',
        '{"init": 0, "version": 12090, "devices": 1, "more": 1}\n',
        '{"init": true, "version": 12090, "devices": 1}\n',
        '{"init": 0.0, "version": 12090, "devices": 1}\n',
        '{"init": null, "version": 12090, "devices": 1}\n',
        '{"init": -1, "version": 12090, "devices": 1}\n',
        '{"init": 0, "version": "12090", "devices": 1}\n',
        '{"init": 0, "version": 12090, "devices": 1e3}\n',
        '{"init": 0, "version": 12090, "devices": NaN}\n',
        '{"init": 0, "version": 12090, "devices": %s}\n' % ("9" * 3900),
        '{"init": 0, "version": 1%s, "devices": 1}\n' % ("0" * 3900),
        '{"error": 5}\n',
        '{"error": "x", "init": 0}\n',
        "[" * 4000 + "\n",
    ],
)
def test_what_is_not_the_one_line_is_no_answer(tmp_path: Path, answer: str) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour="lie_and_leave", text=answer))
    assert result.init_code is None
    assert result.failure.startswith("unexpected answer: ")
    assert len(result.failure) < 600


def test_bytes_that_are_no_text() -> None:
    assert probe_module._parse("", b"\xff\xfe\n").failure == r"unexpected answer: b'\xff\xfe\n'"


def test_silence(tmp_path: Path) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour="lie_and_leave", text=""))
    assert result.failure == "ended without an answer"


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    result = attempt(tmp_path / "libcuda.so.1")
    assert result.failure.startswith("cannot load: ")
    assert "cannot open shared object file" in result.failure


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    library.write_text("text")
    assert "file too short" in attempt(library).failure


@pytest.mark.parametrize(
    ("behaviour", "symbol"),
    [("no_init", "cuInit"), ("no_version", "cuDriverGetVersion"), ("no_count", "DeviceGetCoun")],
)
def test_a_library_without_a_symbol(tmp_path: Path, behaviour: str, symbol: str) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour=behaviour))
    assert result.init_code is None
    assert "undefined symbol: " in result.failure
    assert symbol in result.failure


def test_a_long_error_is_cut(tmp_path: Path) -> None:
    folder = tmp_path / ("\U0001f600" * 60) / ("\U0001f600" * 60)
    folder.mkdir(parents=True)
    failure = attempt(folder / ("\U0001f600" * 60) / "libcuda.so.1").failure
    assert failure.startswith("cannot load: ")
    assert len(failure) == 300


@pytest.mark.parametrize(("behaviour", "cuda", "devices"), [("version_fails", None, 1), ("count_fails", (12, 9), None)])
def test_numbers_that_cannot_be_had(
    tmp_path: Path, behaviour: str, cuda: tuple[int, int] | None, devices: int | None
) -> None:
    result = attempt(build_libcuda(tmp_path, behaviour=behaviour))
    assert (result.init_code, result.cuda, result.devices) == (0, cuda, devices)


def test_a_relative_path_is_not_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build_libcuda(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert attempt(Path(library.name)).init_code == 0


def test_the_companion_is_found_by_the_path_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is loaded by its path, what it loads itself is not: this decides which JIT compiler it gets."""
    library = build_libcuda(tmp_path / "compat", behaviour="jit")
    build_jit_compiler(tmp_path / "compat", code=0)
    build_jit_compiler(tmp_path / "host", code=999)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "host"))  # of this process; the child does not get it
    assert attempt(library, ld_library_path=f"{tmp_path}/compat:{tmp_path}/host").init_code == 0
    assert attempt(library, ld_library_path=f"{tmp_path}/host:{tmp_path}/compat").init_code == 999
    assert attempt(library).init_code == 221


def test_a_session_of_its_own(tmp_path: Path) -> None:
    """So that no terminal, and nothing sent to this process' group, reaches it."""
    library = build_libcuda(tmp_path, behaviour="session")
    assert attempt(library).init_code == 0
    pid, session = (int(Path(f"{library}.{name}").read_text()) for name in ("pid", "session"))
    assert pid == session != os.getsid(0)


def test_it_ends_with_who_has_started_it(tmp_path: Path) -> None:
    library = build_libcuda(tmp_path, behaviour="hang")
    script = "import sys; from pathlib import Path; from byoc_server.device.probe import probe; "
    script += "probe(Path(sys.argv[1]), '', 60)"
    with subprocess.Popen([sys.executable, "-c", script, str(library)]) as process:
        wait_for(Path(f"{library}.pid").exists, "the library hangs")
        wait_for(lambda: Path(f"{library}.pid").read_text() != "", "its process id is written")
        process.kill()
    child = int(Path(f"{library}.pid").read_text())
    wait_for(lambda: not alive(child), "the child is gone")


def test_environment() -> None:
    environ = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "LD_LIBRARY_PATH": "/x",
        "LD_PRELOAD": "/y.so",
        "PYTHONPATH": "/z",
        "SECRET": "s",
    }
    kept = {name: environ[name] for name in ("PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")}
    assert probe_module._child_environ(environ, "/a:/b") == {**kept, "LD_LIBRARY_PATH": "/a:/b"}
    assert probe_module._child_environ(environ, "") == kept


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    assert attempt(tmp_path).failure.startswith("cannot start a process: [Errno 2]")


def test_no_process_can_be_forked(tmp_path: Path) -> None:
    """The limit on processes holds for everyone but root, so another user meets it."""
    script = """
import os, resource, sys
from pathlib import Path
from byoc_server.device import child_process  # the other user may not read it
from byoc_server.device.probe import probe
if os.getuid() == 0:
    os.setresuid(54321, 54321, 54321)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
print(probe(Path(sys.argv[1]), "", 20.0).failure)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False, env={}
    )
    assert result.stdout.startswith("cannot start a process: [Errno 11]"), result.stdout + result.stderr


def test_a_path_that_cannot_be_passed_on(tmp_path: Path) -> None:
    assert attempt(tmp_path / "a\0b").failure == "cannot start a process: embedded null byte"
    assert attempt(tmp_path, ld_library_path="a\0b").failure == "cannot start a process: embedded null byte"


def test_where_sigchld_is_ignored(tmp_path: Path) -> None:
    """Started by a program that ignores SIGCHLD: the kernel then reaps the child, and its status is lost."""
    good = build_libcuda(tmp_path / "good")
    bad = build_libcuda(tmp_path / "bad", behaviour="segfault")
    hanging = build_libcuda(tmp_path / "hanging", behaviour="hang_with_child")
    script = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from byoc_server.device.probe import probe
results = [probe(Path(path), "", float(time)) for path, time in zip(sys.argv[1::2], sys.argv[2::2])]
print(json.dumps([[result.init_code, result.failure] for result in results]))
"""
    arguments = [str(good), "20", str(bad), "20", str(hanging), "0.5"]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(result.stdout) == [[0, ""], [None, "ended without an answer"], [None, "timeout after 0.5 s"]]
    child = int(Path(f"{hanging}.child").read_text())
    wait_for(lambda: not alive(child), "the grandchild is gone")


@pytest.mark.parametrize(("code", "devices"), [(0, 1), (803, None)])
def test_the_child_s_part(tmp_path: Path, code: int, devices: int | None) -> None:
    library = build_libcuda(tmp_path, init_code=code)
    assert probe_child.examine(str(library)) == {"init": code, "version": 12090, "devices": devices}


def test_the_child_s_part_without_what_it_needs(tmp_path: Path) -> None:
    assert str(probe_child.examine(str(tmp_path / "x"))["error"]).startswith("cannot load: ")
    failing = build_libcuda(tmp_path, behaviour="version_fails")
    assert probe_child.examine(str(failing)) == {"init": 0, "version": 0, "devices": 1}


def test_the_child_keeps_its_output_to_itself(tmp_path: Path) -> None:
    """And leaves no core dump, and nothing of its output to programs that it starts."""
    script = """
import os, resource, sys
from byoc_server.device import probe_child
probe_child.main(sys.argv[1])
print("not to be heard", flush=True)
os.system("echo neither is this")
print(resource.getrlimit(resource.RLIMIT_CORE), file=sys.stderr)
"""
    command = [sys.executable, "-c", script, str(build_libcuda(tmp_path, behaviour="print"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(result.stdout) == {"init": 0, "version": 12090, "devices": 1}
    assert result.stderr == "(0, 0)\n"


def test_the_child_needs_the_standard_library_alone() -> None:
    """It runs without the folder of the package on its path."""
    command = [sys.executable, "-I", "-S", str(probe_module._CHILD), "/nowhere/libcuda.so.1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd="/", env={})
    assert json.loads(result.stdout)["error"].startswith("cannot load: ")
    assert result.stderr == ""


def test_dummies_are_what_they_should_be(tmp_path: Path) -> None:
    """A second library in the place of a loaded one does no harm to who has loaded the first."""
    first = ctypes.CDLL(str(build_libcuda(tmp_path, init_code=803)))
    assert os.path.samefile(build_libcuda(tmp_path, init_code=804), tmp_path / "libcuda.so.1")
    assert first.cuInit(0) == 803
