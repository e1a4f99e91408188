"""From ``byoc serve`` to the process that serves: which ``libcuda`` it maps, on hosts laid out for the test."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_server.config import Settings
from byoc_server.device.nvml import NvmlReport
from byoc_server.device.runtime import RuntimePackage
from byoc_server.device.survey import Sources
from byoc_server.server.cuda_library import GUARD, check_mapped, settle
from byoc_server.server.entrypoint import confirm, enter
from tests.device.dummy_libraries import build_libcuda, needs_compiler
from tests.device.fake_root import BRANCHES_129, FakeRoot, closed_banner, open_banner
from tests.server.test_sandbox import can_unshare
from tests.server_process import SERVE, ServerProcess, running, wait_for

PACKAGE, OLDER, NEWER = "575.57.08", "535.54.03", "580.95.05"
NOTE = json.dumps({"format": 1, "CUDA version": "12.9", "driver": BRANCHES_129})

SOURCES = Sources(NvmlReport, lambda: ("not found", 127), RuntimePackage)


class Replaced(Exception):
    """Stands for the moment at which the process would be another."""


class Recorder:
    """Takes the place of ``os.execve``."""

    def __init__(self, error: OSError | None = None) -> None:
        self.environ: dict[str, str] = {}
        self.arguments: list[str] = []
        self.error = error

    def __call__(self, program: str, arguments: list[str], environ: dict[str, str]) -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert {signal.SIGTERM, signal.SIGINT} <= blocked
        self.environ, self.arguments = environ, arguments
        if self.error is not None:
            raise self.error
        raise Replaced


@pytest.fixture
def _signals() -> Iterator[None]:
    """A replacement that never comes leaves them blocked."""
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


@pytest.fixture
def older(tmp_path: Path) -> Path:
    FakeRoot(tmp_path).banner(closed_banner(OLDER)).nodes("nvidia0").compat(note=BRANCHES_129).host_library(OLDER)
    return tmp_path


@pytest.mark.usefixtures("_signals")
class TestSettle:
    """The thin part by itself, with a recorder in place of the system call."""

    def test_an_older_driver_gets_the_package(self, older: Path) -> None:
        execve = Recorder()
        with pytest.raises(Replaced):
            settle(Settings(cuda_compat="rule"), {"LD_LIBRARY_PATH": "/opt/lib:", "A": "b"}, older, SOURCES, execve)
        assert execve.environ["LD_LIBRARY_PATH"] == "/usr/local/cuda/compat:/opt/lib"
        assert execve.environ["A"] == "b"
        assert execve.arguments == [sys.executable, *sys.orig_argv[1:]]

    def test_the_replacement_does_not_decide_again(self, older: Path) -> None:
        execve = Recorder()
        with pytest.raises(Replaced):
            settle(Settings(cuda_compat="rule"), {}, older, SOURCES, execve)
        settle(Settings(cuda_compat="rule"), execve.environ, older, SOURCES, Recorder())

    @pytest.mark.parametrize(
        "guard",
        ['{"pid": 1, "libcuda": ""}', "nonsense", "{}", "[]", '{"pid": null}', "7", '{"pid": Infinity}', "[" * 100_000],
        ids=lambda guard: guard[:12],
    )
    def test_another_process_guard_does_not_count(self, older: Path, guard: str) -> None:
        with pytest.raises(Replaced):
            settle(Settings(cuda_compat="rule"), {GUARD: guard}, older, SOURCES, Recorder())

    def test_a_guard_for_another_library_does_not_count(self, older: Path) -> None:
        """Such as one in the environment of an image, whose server is always process 1."""
        guard = json.dumps({"pid": os.getpid(), "libcuda": "/elsewhere/libcuda.so.1"})
        with pytest.raises(Replaced):
            settle(Settings(cuda_compat="rule"), {GUARD: guard}, older, SOURCES, Recorder())

    @pytest.mark.parametrize("script", ["-", "", "gone.py"])
    def test_a_script_that_cannot_run_again_is_not_run_again(
        self, older: Path, script: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(sys, "argv", [script])
        settle(Settings(cuda_compat="rule"), {}, older, SOURCES, Recorder())
        assert "LD_LIBRARY_PATH=/usr/local/cuda/compat" in caplog.records[-1].getMessage()

    def test_the_right_library_in_place_needs_no_replacement(self, older: Path) -> None:
        environ = {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"}
        settle(Settings(cuda_compat="rule"), environ, older, SOURCES, Recorder())

    def test_failing_to_replace_is_an_error_that_says_what_to_set(
        self, older: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        settle(Settings(cuda_compat="rule"), {}, older, SOURCES, Recorder(PermissionError(13, "Permission denied")))
        assert "LD_LIBRARY_PATH=/usr/local/cuda/compat" in caplog.records[-1].getMessage()
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def test_nowhere_to_go_back_to_is_an_error(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        FakeRoot(tmp_path).banner(open_banner(NEWER)).nodes("nvidia0").compat(note=BRANCHES_129)
        FakeRoot(tmp_path).file("usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08")
        FakeRoot(tmp_path).link("usr/lib/x86_64-linux-gnu/libcuda.so.1", "libcuda.so.575.57.08")
        settle(Settings(cuda_compat="rule"), {}, tmp_path, SOURCES, Recorder())
        assert any("stays active" in record.getMessage() for record in caplog.records)


def test_a_server_for_the_cpu_looks_at_nothing(older: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="byoc_server"):
        enter(Settings(device="cpu"), {}, older)
    assert not caplog.records


def test_no_gpu_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FakeRoot(tmp_path).compat(note=BRANCHES_129)
    with caplog.at_level(logging.DEBUG, logger="byoc_server"):
        enter(Settings(), {}, tmp_path)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert vars(caplog.records[0])["decision"] == "SKIP_NO_GPU"


@pytest.mark.parametrize(("node", "decision"), [("nvidia0", "SKIP_NO_PACKAGE"), ("dxg", "SKIP_PLATFORM")])
def test_a_gpu_of_any_kind_is_looked_at(
    tmp_path: Path, node: str, decision: str, caplog: pytest.LogCaptureFixture
) -> None:
    FakeRoot(tmp_path).nodes(node)
    with caplog.at_level(logging.INFO, logger="byoc_server"):
        enter(Settings(cuda_compat="rule"), {}, tmp_path)
    assert vars(caplog.records[-1])["decision"] == decision


def test_nothing_of_it_is_imported_without_a_gpu() -> None:
    code = (
        "import sys; from pathlib import Path; from byoc_server.config import Settings;"
        "from byoc_server.server.entrypoint import confirm, enter; enter(Settings(), {}, Path('/nowhere'));"
        "confirm({}); print([name for name in sys.modules if 'cuda' in name or 'nvml' in name])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.strip() == "[]"


def test_without_proc_nothing_is_confirmed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", refuse)
    confirm({})
    assert not caplog.records


MAPS = "7f0000000000-7f0000001000 r-xp 00000000 08:01 42                         {}\n"


@pytest.mark.parametrize(
    ("chosen", "level"), [("", "INFO"), ("/compat/libcuda.so.575.57.08", "INFO"), ("/other/libcuda.so.1", "ERROR")]
)
def test_the_mapped_library_is_compared_with_the_chosen_one(
    chosen: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {GUARD: json.dumps({"pid": 1, "libcuda": chosen})} if chosen else {}
    with caplog.at_level(logging.INFO, logger="byoc_server"):
        check_mapped(environ, MAPS.format("/compat/libcuda.so.575.57.08"))
    assert [record.levelname for record in caplog.records] == [level]


def test_without_cuda_there_is_nothing_to_compare(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="byoc_server"):
        check_mapped({GUARD: json.dumps({"pid": 1, "libcuda": "/x"})}, MAPS.format("/usr/lib/libc.so.6"))
    assert not caplog.records


@contextlib.contextmanager
def host(
    folder: Path,
    driver: str,
    *arguments: str,
    library_path: str = "",
    behaviour: str = "plain",
    init_code: int = 0,
    ready: bool = True,
    **settings: str,
) -> Iterator[ServerProcess]:
    """Run the server on a host with this driver, a package and a driver library of dummies.

    The driver is what a mount over ``/proc/driver`` says. ``LD_PRELOAD`` makes every process load whichever
    ``libcuda.so.1`` the linker finds, as ONNX Runtime would.
    """
    FakeRoot(folder).file("proc/nvidia/version", open_banner(driver))
    build_libcuda(folder / "compat", PACKAGE, init_code, behaviour=behaviour, note=NOTE)
    build_libcuda(folder / "host", driver)
    mounted = f'mount --bind {folder}/proc /proc/driver && exec "$@"'
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mounted, "sh", *SERVE)
    environ = {
        "BYOC_CUDA_COMPAT_DIR": str(folder / "compat"),
        "NVIDIA_CTK_LIBCUDA_DIR": str(folder / "host"),
        "LD_PRELOAD": "libcuda.so.1",
        "LD_LIBRARY_PATH": library_path,
        "TMPDIR": str(folder),
        **{f"BYOC_{name.upper()}": value for name, value in settings.items()},
    }
    with running(*arguments, "--log-format", "json", command=command, environ=environ, ready=ready) as server:
        yield server


def mapped(pid: int) -> set[str]:
    """Every ``libcuda`` in a process."""
    return {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "libcuda" in line}


needs_mounts = pytest.mark.skipif(not can_unshare("--mount"), reason="needs the right to mount")


@needs_compiler
@needs_mounts
class TestServe:
    """The real command, replaced for real."""

    @pytest.mark.parametrize("mode", ["auto", "rule"])
    def test_an_older_driver_runs_on_the_package(self, tmp_path: Path, mode: str) -> None:
        with host(tmp_path, OLDER, cuda_compat=mode) as server:
            assert mapped(server.process.pid) == {str(tmp_path / "compat" / f"libcuda.so.{PACKAGE}")}
            (line,) = [line for line in server.events("cuda_compat") if "decision" in line]
            assert line["decision"] == "ENABLE"
            assert ("probe_compat" in line) == (mode == "auto")
            (loaded,) = server.events("cuda_library")
            assert loaded["level"] == "info"
            assert server.invoke("5.1,3.5,1.4,0.2", Content_Type="text/csv").status_code == 200
            assert server.stop() == 0

    def test_workers_run_on_it_too(self, tmp_path: Path) -> None:
        with host(tmp_path, OLDER, "--workers", "2") as server:
            for pid in server.worker_pids():
                assert mapped(pid) == {str(tmp_path / "compat" / f"libcuda.so.{PACKAGE}")}
            assert server.stop() == 0

    def test_a_newer_driver_gets_its_own_library_back(self, tmp_path: Path) -> None:
        with host(tmp_path, NEWER, library_path=str(tmp_path / "compat")) as server:
            assert mapped(server.process.pid) == {str(tmp_path / "host" / f"libcuda.so.{NEWER}")}
            (line,) = [line for line in server.events("cuda_compat") if "decision" in line]
            assert (line["decision"], line["level"]) == ("EVICT", "warning")

    def test_a_newer_driver_is_left_alone(self, tmp_path: Path) -> None:
        with host(tmp_path, NEWER, library_path=str(tmp_path / "host")) as server:
            assert mapped(server.process.pid) == {str(tmp_path / "host" / f"libcuda.so.{NEWER}")}
            (line,) = [line for line in server.events("cuda_compat") if "decision" in line]
            assert line["decision"] == "SKIP_DRIVER_NEWER"

    def test_off_evicts(self, tmp_path: Path) -> None:
        with host(tmp_path, OLDER, library_path=str(tmp_path / "compat"), cuda_compat="off") as server:
            assert mapped(server.process.pid) == {str(tmp_path / "host" / f"libcuda.so.{OLDER}")}

    @pytest.mark.parametrize(
        ("behaviour", "init_code", "decision"),
        [
            ("plain", 803, "SKIP_PROBE_803"),
            ("plain", 804, "SKIP_PROBE_804"),
            ("segfault", 0, "SKIP_PROBE_FAILED"),
            ("lie", 0, "SKIP_PROBE_FAILED"),
        ],
    )
    def test_a_probe_that_fails_keeps_the_host(
        self, tmp_path: Path, behaviour: str, init_code: int, decision: str
    ) -> None:
        own = str(tmp_path / "host")
        with host(tmp_path, OLDER, library_path=own, behaviour=behaviour, init_code=init_code) as server:
            assert mapped(server.process.pid) == {str(tmp_path / "host" / f"libcuda.so.{OLDER}")}
            (line,) = [line for line in server.events("cuda_compat") if "decision" in line]
            assert (line["decision"], line["level"]) == (decision, "error")

    def test_a_probe_that_hangs_costs_its_time(self, tmp_path: Path) -> None:
        with host(tmp_path, OLDER, behaviour="hang", cuda_compat_timeout_s="0.5") as server:
            (line,) = [line for line in server.events("cuda_compat") if "decision" in line]
            assert line["decision"] == "SKIP_PROBE_FAILED"
            assert "timeout" in line["probe_compat"]
            assert 500 <= line["elapsed_ms"] < 10_000

    def test_sigterm_ends_a_server_that_probes(self, tmp_path: Path) -> None:
        with host(tmp_path, OLDER, behaviour="hang_with_child", ready=False) as server:
            noted = tmp_path / "compat" / f"libcuda.so.{PACKAGE}.child"
            wait_for(lambda: noted.exists() and noted.read_text().strip(), "the probe hangs")
            start_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - start_s < 10
            pid = int(noted.read_text())
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), "its children are gone")


def test_start_without_a_gpu_says_one_line() -> None:
    with running("--log-format", "json") as server:
        lines = server.events("cuda_compat")
    assert [line["level"] for line in lines] == ["info"]
    assert lines[0]["decision"] == "SKIP_NO_GPU"
