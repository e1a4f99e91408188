"""Asking NVML, with every way it has to fail: a fake module, and shared libraries in a process of their own."""

from __future__ import annotations

import ctypes.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from byoc_server.device import nvml, nvml_child
from byoc_server.device.nvml import Gpu, NvmlReport, ask_nvml, ineligible_gpu, read_nvml
from tests.device.dummy_libraries import _put, needs_compiler
from tests.device.test_child_process import assert_gone, no_process_is_left  # noqa: F401  # a fixture, used by its name
from tests.server_process import wait_for

pytestmark = pytest.mark.usefixtures("no_process_is_left")

T4 = Gpu("Tesla T4", 14, 16 * 1024**3, (7, 5))
H100 = Gpu("NVIDIA H100 80GB HBM3", 14, 80 * 1024**3, (9, 0), mig=True)


class NvmlError(Exception):
    """As pynvml's: a number, and a text that is looked up."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return {9: "Driver Not Loaded", 15: "GPU is lost", 18: "RM has detected an NVML/RM version mismatch."}.get(
            self.value, f"NVML Error with code {self.value}"
        )


@dataclass(frozen=True)
class Answer:
    """In place of a fault: what a function returns."""

    value: Any


Faults = Mapping[str | tuple[str, int], BaseException | Answer]


class FakeNvml:
    """Looks like the module pynvml.

    Args:
        gpus: the devices.
        faults: function, or function and number of the device -> what it raises or answers instead.
        missing: functions the module does not have.
    """

    def __init__(self, *gpus: Gpu, faults: Faults | None = None, missing: str = "") -> None:
        self.gpus = gpus
        self.faults = faults or {}
        self.missing = missing
        self.calls: list[str] = []
        self.open = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == self.missing:
            raise AttributeError(f"module 'pynvml' has no attribute '{name}'")

        def function(*args: int) -> Any:
            self.calls.append(name)
            fault = self.faults.get((name, args[0]) if args else name, self.faults.get(name))
            if isinstance(fault, BaseException):
                raise fault
            return fault.value if fault is not None else self.answer(name, *args)

        return function

    def answer(self, name: str, *args: int) -> Any:
        if name in ("nvmlInit", "nvmlShutdown"):
            self.open += 1 if name == "nvmlInit" else -1
            return None
        assert self.open == 1, f"{name} on a closed library"
        if name == "nvmlSystemGetDriverVersion":
            return "535.54.03"
        if name == "nvmlDeviceGetCount":
            return len(self.gpus)
        if name == "nvmlDeviceGetHandleByIndex":
            return args[0]
        gpu = self.gpus[args[0]]
        return {
            "nvmlDeviceGetName": gpu.name,
            "nvmlDeviceGetBrand": gpu.brand,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=gpu.memory_bytes, free=1, used=2),
            "nvmlDeviceGetCudaComputeCapability": gpu.compute_capability,
            "nvmlDeviceGetMigMode": [int(gpu.mig), 0],
        }[name]


def test_all_well() -> None:
    module = FakeNvml(T4, H100)
    assert ask_nvml(module) == NvmlReport("535.54.03", (T4, H100))
    assert module.open == 0
    assert module.calls[-1] == "nvmlShutdown"


def test_never_asks_for_the_cuda_version() -> None:
    """That would load libcuda into this process, before it is decided which one."""
    module = FakeNvml(T4)
    ask_nvml(module)
    assert not [name for name in module.calls if "CudaDriverVersion" in name]


@pytest.mark.parametrize(("code", "text"), [(9, "Driver Not Loaded"), (18, "version mismatch"), (4, "4"), (999, "999")])
def test_init_fails(code: int, text: str) -> None:
    module = FakeNvml(T4, faults={"nvmlInit": NvmlError(code)})
    report = ask_nvml(module)
    assert (report.driver, report.gpus, report.error_code) == ("", (), code)
    assert text in report.error
    assert module.calls == ["nvmlInit"]


def test_errors_of_the_real_module() -> None:
    """Its error classes are made by the module itself, and look their text up in a library that is not there."""
    import pynvml  # type: ignore[import-untyped]  # it has no type information

    for code in (9, 12, 18, 4, 4711):
        report = ask_nvml(FakeNvml(faults={"nvmlInit": pynvml.NVMLError(code)}))
        assert report.error_code == code
        assert report.error
    lost: Faults = {("nvmlDeviceGetName", 0): pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)}
    assert ask_nvml(FakeNvml(T4, faults=lost)).error_code == 15


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_no_library() -> None:
    """The real module on a machine without NVML; and once more, because the module keeps state."""
    for ask in (ask_nvml, ask_nvml, read_nvml):
        assert ask() == NvmlReport(error="NVML Shared Library Not Found", error_code=12)


def test_module_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    report = ask_nvml()
    assert report.gpus == ()
    assert "pynvml" in report.error
    assert report.error_code == 0


def test_gpu_lost_in_the_middle() -> None:
    """What was read is kept, and the other GPU is listed whole."""
    lost = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode")
    module = FakeNvml(H100, T4, faults={(name, 0): NvmlError(15) for name in lost})
    report = ask_nvml(module)
    assert report.gpus == (Gpu(H100.name, 14), T4)
    assert report.error == "nvmlDeviceGetMemoryInfo: GPU is lost"
    assert report.error_code == 15
    assert report.driver == "535.54.03"
    assert module.open == 0


def test_gpu_without_a_handle() -> None:
    report = ask_nvml(FakeNvml(H100, T4, faults={("nvmlDeviceGetHandleByIndex", 0): NvmlError(4)}))
    assert report.gpus == (T4,)
    assert report.error_code == 4


def test_no_such_thing_is_no_error() -> None:
    """A T4 has no Multi-Instance GPU, and devices that share the machine's memory have none of their own."""
    faults: Faults = {
        "nvmlDeviceGetMigMode": NvmlError(3),
        "nvmlDeviceGetMemoryInfo": NvmlError(3),
    }
    assert ask_nvml(FakeNvml(T4, faults=faults)) == NvmlReport("535.54.03", (Gpu("Tesla T4", 14, 0, (7, 5)),))


def test_function_missing_in_the_driver() -> None:
    report = ask_nvml(FakeNvml(T4, faults={"nvmlDeviceGetMigMode": NvmlError(13)}))
    assert report.gpus == (T4,)
    assert report.error_code == 13


def test_function_missing_in_the_module() -> None:
    report = ask_nvml(FakeNvml(T4, missing="nvmlDeviceGetBrand"))
    assert report.gpus == (Gpu("Tesla T4", 0, T4.memory_bytes, (7, 5)),)
    assert "nvmlDeviceGetBrand" in report.error
    assert report.error_code == 0


def test_the_first_error_is_reported() -> None:
    faults: Faults = {
        "nvmlSystemGetDriverVersion": NvmlError(999),
        "nvmlDeviceGetName": NvmlError(15),
    }
    report = ask_nvml(FakeNvml(T4, faults=faults))
    assert report.driver == ""
    assert report.error_code == 999
    assert report.error.startswith("nvmlSystemGetDriverVersion")


def test_bytes() -> None:
    """As the bindings gave them once."""
    faults: Faults = {
        "nvmlSystemGetDriverVersion": Answer(b"470.57.02\0\n"),
        "nvmlDeviceGetName": Answer(b"Tesla \xff T4"),
    }
    report = ask_nvml(FakeNvml(T4, faults=faults))
    assert report.driver == "470.57.02"
    assert report.gpus[0].name == "Tesla � T4"
    assert report.error == ""


@pytest.mark.parametrize("count", [-1, 10**9, None, "2", 1.5])
def test_absurd_count(count: object) -> None:
    report = ask_nvml(FakeNvml(T4, faults={"nvmlDeviceGetCount": Answer(count)}))
    assert report.gpus == ()
    assert report.driver == "535.54.03"
    assert report.error == f"nvmlDeviceGetCount: {count!r} makes no sense"


class Unprintable:
    """An answer that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("function", "value", "gpu"),
    [
        ("nvmlDeviceGetName", None, Gpu("", 14, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetName", Unprintable(), Gpu("", 14, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetBrand", "GeForce", Gpu(T4.name, 0, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetBrand", True, Gpu(T4.name, 0, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetBrand", -3, Gpu(T4.name, 0, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetMemoryInfo", None, Gpu(T4.name, 14, 0, (7, 5))),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=2**64 - 1), Gpu(T4.name, 14, 0, (7, 5))),
        ("nvmlDeviceGetCudaComputeCapability", (7,), Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetCudaComputeCapability", (-1, -1), Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetCudaComputeCapability", 7.5, Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetMigMode", None, T4),
        ("nvmlDeviceGetMigMode", ["on", "on"], T4),
    ],
)
def test_absurd_values(function: str, value: object, gpu: Gpu) -> None:
    """What makes no sense counts as not told."""
    report = ask_nvml(FakeNvml(T4, faults={function: Answer(value)}))
    assert report.gpus == (gpu,)
    assert report.error.startswith(f"{function}: ")
    assert report.error_code == 0


def test_long_names_are_cut() -> None:
    assert len(ask_nvml(FakeNvml(Gpu("x" * 10**6, 14))).gpus[0].name) == 200


class Speechless(NvmlError):
    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_an_error_without_a_text() -> None:
    report = ask_nvml(FakeNvml(faults={"nvmlInit": Speechless(7)}))
    assert report.error == "Speechless"
    assert report.error_code == 7


def test_an_error_with_an_odd_number() -> None:
    class OddError(Exception):
        value = "18"

    assert ask_nvml(FakeNvml(faults={"nvmlInit": OddError("odd")})) == NvmlReport(error="odd")


def test_shutdown_fails() -> None:
    """Everything is known by then."""
    assert ask_nvml(FakeNvml(T4, faults={"nvmlShutdown": NvmlError(999)})) == NvmlReport("535.54.03", (T4,))


def test_shut_down_even_when_interrupted() -> None:
    module = FakeNvml(T4, faults={"nvmlDeviceGetName": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        ask_nvml(module)
    assert module.open == 0


@pytest.mark.parametrize("brand", [5, 6, 15, 16])
def test_ineligible_by_brand(brand: int) -> None:
    gpu = Gpu("a product", brand)
    assert ineligible_gpu([T4, gpu, H100]) is gpu


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090", "GEFORCE GTX 1650", "NVIDIA TITAN V", "Titan RTX", "NVIDIA TITAN Xp"]
)
def test_ineligible_by_name(name: str) -> None:
    """Only when NVML does not know the brand."""
    assert ineligible_gpu([Gpu(name, 0)]) == Gpu(name, 0)
    assert ineligible_gpu([Gpu(name, 14)]) is None


@pytest.mark.parametrize("brand", [0, 1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 18, 4711])
def test_eligible(brand: int) -> None:
    assert ineligible_gpu([Gpu("NVIDIA A10G", brand)]) is None


def test_no_gpu_is_ineligible() -> None:
    assert ineligible_gpu([]) is None


_LIBRARY = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((unused)) static void note(const char *path, int number) {
    FILE *file = fopen(path, "w");
    fprintf(file, "%d\n", number);
    fclose(file);
}
__attribute__((unused)) static int forked(void) {
    int pid = fork();
    while (!pid) pause();
    return pid;
}
int nvmlInitWithFlags(unsigned flags) { @INIT@ return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "550.144.03"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, long *handle) { *handle = index + 1; return 0; }
int nvmlDeviceGetName(long handle, char *text, unsigned size) {
    snprintf(text, size, handle == 1 ? "Tesla T4" : "NVIDIA H100 80GB HBM3");
    return 0;
}
int nvmlDeviceGetBrand(long handle, unsigned *brand) { *brand = 14; return 0; }
int nvmlDeviceGetMemoryInfo(long handle, unsigned long long *total_free_used) {
    total_free_used[0] = (handle == 1 ? 16ull : 80ull) << 30;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(long handle, int *major, int *minor) {
    *major = handle == 1 ? 7 : 9;
    *minor = handle == 1 ? 5 : 0;
    return 0;
}
int nvmlDeviceGetMigMode(long handle, unsigned *current, unsigned *pending) {
    if (handle == 1) return 3; /* not supported */
    *current = *pending = 1;
    return 0;
}
"""
FLOOD = 'for (;;) for (int fd = 1; fd < 64; fd++) write(fd, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 31);'


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a ``libnvidia-ml.so.1`` with this body of ``nvmlInit`` where the dynamic linker looks first."""

    def build(init: str = "") -> None:
        source = _LIBRARY.replace("@INIT@", init)
        _put(tmp_path / "lib", "libnvidia-ml.so.550.144.03", "libnvidia-ml.so.1", source, ())
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))

    return build


Build = Callable[..., None]


@needs_compiler
class TestInAProcessOfItsOwn:
    def test_all_well(self, library: Build, tmp_path: Path) -> None:
        """The library is found by LD_LIBRARY_PATH, prints what it likes, and never gets into this process."""
        library('printf("a banner\\n"); fflush(stdout);')
        assert read_nvml() == NvmlReport("550.144.03", (T4, H100))
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()

    def test_an_error_of_nvml(self, library: Build) -> None:
        library("return 18;")
        report = read_nvml()
        assert (report.driver, report.gpus, report.error_code) == ("", (), 18)
        assert report.error

    def test_a_hang_ends_with_the_time(self, library: Build, tmp_path: Path) -> None:
        """The process is gone then, and so is what it has started."""
        pids = [tmp_path / "pid", tmp_path / "child"]
        library(f'note("{pids[0]}", getpid()); note("{pids[1]}", forked()); for (;;) pause();')
        begin_s = time.monotonic()
        assert read_nvml(1.5) == NvmlReport(error="timeout after 1.5 s")
        assert 1.5 <= time.monotonic() - begin_s < 5
        for pid in pids:
            assert_gone(pid)

    def test_sigterm_ends_the_wait(self, library: Build, tmp_path: Path) -> None:
        """While NVML hangs in a call; the server's handler raises SystemExit."""
        pid = tmp_path / "pid"
        library(f'note("{pid}", getpid()); for (;;) pause();')
        script = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
from byoc_server.device.nvml import read_nvml
read_nvml(60.0)
"""
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            wait_for(lambda: pid.exists() and pid.read_text(), "NVML hangs")
            process.terminate()
            assert process.wait(20) == 128 + signal.SIGTERM
        assert_gone(pid)

    def test_it_ends_with_who_has_started_it(self, library: Build, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        library(f'note("{pid}", getpid()); for (;;) pause();')
        script = "from byoc_server.device.nvml import read_nvml; read_nvml(60.0)"
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            wait_for(lambda: pid.exists() and pid.read_text(), "NVML hangs")
            process.kill()
        assert_gone(pid)

    @pytest.mark.parametrize(
        ("init", "error"),
        [
            ("signal(SIGSEGV, SIG_DFL); *(volatile int *)8 = 1;", "killed by SIGSEGV"),
            ("abort();", "killed by SIGABRT"),
            ("_exit(3);", "ended with status 3"),
            ("_exit(0);", "ended without an answer"),
            (FLOOD, "said more than 65536 bytes"),
        ],
    )
    def test_bad_ends(
        self, library: Build, init: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # where a core dump would be written
        library(init)
        begin_s = time.monotonic()
        assert read_nvml() == NvmlReport(error=error)
        assert time.monotonic() - begin_s < 5
        assert os.listdir(tmp_path) == ["lib"]

    def test_the_child_keeps_its_output_to_itself(self, library: Build) -> None:
        """And leaves no core dump, and nothing of its output to programs that it starts."""
        library('printf("a banner\\n"); fflush(stdout);')
        script = """
import os, resource, sys
from byoc_server.device import nvml_child
nvml_child.main([])
print("not to be heard", flush=True)
os.system("echo neither is this")
print(resource.getrlimit(resource.RLIMIT_CORE), file=sys.stderr)
"""
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(result.stdout)["driver"] == "550.144.03"
        assert result.stderr == "(0, 0)\n"


def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they got there: a virtual environment, PYTHONPATH, a path file of an editable installation."""
    (tmp_path / "pynvml.py").write_text("def nvmlInit():\n    raise RuntimeError('of this folder')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_nvml() == NvmlReport(error="of this folder")


def test_the_child_finds_only_what_it_is_told() -> None:
    """By itself, the bare interpreter has only the standard library."""
    command = [sys.executable, "-I", "-S", str(Path(nvml_child.__file__))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert (result.returncode, result.stdout) == (1, "")
    assert "byoc_server" in result.stderr


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("a\0b")
    assert read_nvml() == NvmlReport(error="cannot start a process: embedded null byte")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [])
    assert read_nvml().error.startswith("cannot start a process: [Errno 2]")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], NvmlReport]:
    """The report after a child has said this."""

    def read(answer: str) -> NvmlReport:
        child = tmp_path / "child.py"
        child.write_text(f"import sys; sys.stdout.write({answer!r})")
        monkeypatch.setattr(nvml, "_CHILD", child)
        return read_nvml()

    return read


@pytest.mark.parametrize(
    "report",
    [
        NvmlReport(),
        NvmlReport(error="é ☃", error_code=999),
        NvmlReport("550.144.03", (Gpu("", 0), H100), "nvmlDeviceGetName: GPU is lost", 15),
        NvmlReport("550.144.03", (Gpu("x" * 96, 14, 2**62, (9, 0)),) * 128),  # all that NVML's buffers can hold
    ],
)
def test_a_report_arrives_whole(said: Callable[[str], NvmlReport], report: NvmlReport) -> None:
    assert said(json.dumps(asdict(report)) + "\n") == report


GOOD = {"driver": "550.144.03", "gpus": [asdict(T4)], "error": "", "error_code": 0}


def with_gpu(**changes: object) -> dict[str, object]:
    return GOOD | {"gpus": [asdict(T4) | changes]}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "text",
        {},
        GOOD | {"driver": None},
        GOOD | {"gpus": None},
        GOOD | {"gpus": {}},
        GOOD | {"gpus": [None]},
        GOOD | {"gpus": [[]]},
        GOOD | {"gpus": [{}]},
        GOOD | {"error": 5},
        GOOD | {"error_code": "5"},
        GOOD | {"error_code": True},
        GOOD | {"error_code": -1},
        GOOD | {"error_code": 0.0},
        GOOD | {"error_code": None},
        GOOD | {"more": 1},
        {name: value for name, value in GOOD.items() if name != "driver"},
        with_gpu(name=None),
        with_gpu(brand="14"),
        with_gpu(brand=True),
        with_gpu(memory_bytes=-1),
        with_gpu(memory_bytes=2**63),
        with_gpu(memory_bytes=float("nan")),
        with_gpu(compute_capability=7.5),
        with_gpu(compute_capability=[7]),
        with_gpu(compute_capability=[7, 5, 0]),
        with_gpu(compute_capability="75"),
        with_gpu(compute_capability=[7, None]),
        with_gpu(mig=0),
        with_gpu(mig=None),
        with_gpu(more=1),
    ],
)
def test_what_is_no_report(values: object) -> None:
    assert nvml._report(json.loads(json.dumps(GOOD))) == NvmlReport("550.144.03", (T4,))
    with pytest.raises((ValueError, TypeError)):
        nvml._report(json.loads(json.dumps(values)))


@pytest.mark.parametrize("answer", ["x\n", "null\n", json.dumps(GOOD), json.dumps(with_gpu(mig=0)) + "\n"])
def test_nonsense_is_an_error(said: Callable[[str], NvmlReport], answer: str) -> None:
    report = said(answer)
    assert report == NvmlReport(error=f"unexpected answer: {answer[:100].encode()!r}")


def test_a_type_error_of_the_answer_is_an_error(said: Callable[[str], NvmlReport]) -> None:
    assert said(json.dumps(with_gpu(compute_capability=7)) + "\n").error.startswith("unexpected answer: b'{")
