"""From a root folder laid out like a host to the search path, with probes that say what the test wants."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from byoc_server.config import Settings
from byoc_server.device.cuda_compat import Verdict
from byoc_server.device.nvml import Gpu, NvmlReport
from byoc_server.device.probe import ProbeResult
from byoc_server.device.resolution import Resolution, plan, resolve
from byoc_server.device.runtime import RuntimePackage
from byoc_server.device.survey import Sources, survey
from tests.device.fake_root import BRANCHES_129, FakeRoot, closed_banner, elf_without_note, open_banner
from tests.device.test_linker import cache_of

PACKAGE = "/usr/local/cuda-12.9/compat"
HOST = "/usr/lib/x86_64-linux-gnu"

GPUS = NvmlReport("535.54.03", (Gpu("NVIDIA L4", 14), Gpu("NVIDIA L4", 14)))
SOURCES = Sources(lambda: GPUS, lambda: ("", 1), RuntimePackage)


class Probes:
    """Answers by folder and remembers what was asked."""

    def __init__(self, root: Path, codes: Mapping[str, int]) -> None:
        self.root, self.codes = root, codes
        self.asked: list[tuple[str, str, float]] = []

    def __call__(self, library: Path, path: str, timeout_s: float) -> ProbeResult:
        folder = f"/{library.parent.relative_to(self.root)}"
        self.asked.append((folder, path, timeout_s))
        return ProbeResult(str(library), self.codes[folder])


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    root = FakeRoot(tmp_path).nodes("nvidia0", "nvidiactl").host_library("535.54.03")
    return root.compat(PACKAGE[1:], note=BRANCHES_129).link("usr/local/cuda", "cuda-12.9")


def run(root: FakeRoot, codes: Mapping[str, int], mode: str = "auto", path: str = "") -> tuple[Resolution, Probes]:
    probes = Probes(root.path, codes)
    settings = Settings(cuda_compat=mode, cuda_compat_timeout_s=7)
    return resolve(settings, {"LD_LIBRARY_PATH": path}, root.path, SOURCES, probes), probes


def test_a_yes_is_confirmed(root: FakeRoot) -> None:
    root.banner(closed_banner("535.54.03"))
    resolution, probes = run(root, {PACKAGE: 0}, path="/opt/lib")
    assert resolution.decision.verdict is Verdict.ENABLE
    assert probes.asked == [(PACKAGE, f"{PACKAGE}:/opt/lib", 7)]
    change = plan(resolution, {"LD_LIBRARY_PATH": "/opt/lib"}, root.path)
    assert change.library_path == f"{PACKAGE}:/opt/lib"
    assert change.library is not None
    assert change.library.real == root.path / PACKAGE[1:] / "libcuda.so.575.57.08"


def test_the_log_line_has_everything_that_is_known(root: FakeRoot) -> None:
    root.banner(closed_banner("535.54.03"))
    fields = run(root, {PACKAGE: 0})[0].fields()
    assert fields.pop("elapsed_ms") is not None
    assert fields == {
        "decision": "ENABLE",
        "driver": "535.54.03",
        "driver_source": "proc",
        "compat": "575.57.08",
        "compat_dir": str(root.path / PACKAGE[1:]),
        "compat_cuda": "12.9",
        "note_branches": list(BRANCHES_129),
        "gpu": "2 x NVIDIA L4",
        "effective_libcuda": str(root.path / HOST[1:] / "libcuda.so.535.54.03"),
        "probe_compat": "cuInit returned 0",
    }


def test_a_yes_that_fails_changes_nothing(root: FakeRoot) -> None:
    root.banner(closed_banner("535.54.03"))
    resolution, _ = run(root, {PACKAGE: 803})
    assert resolution.decision.verdict is Verdict.SKIP_PROBE_803
    assert plan(resolution, {}, root.path).library_path is None


def test_mode_probe_tries_both_and_the_veto_stands(root: FakeRoot) -> None:
    root.banner(open_banner("580.95.05")).file(f"{HOST[1:]}/libcuda.so.580.95.05", b"\x7fELF\x02")
    resolution, probes = run(root, {HOST: 999, PACKAGE: 0}, "probe", path=PACKAGE)
    assert [folder for folder, _, _ in probes.asked] == [HOST, PACKAGE]
    assert probes.asked[0][1] == HOST  # without the package
    assert resolution.decision.verdict is Verdict.EVICT


def test_an_unknown_driver_asks_the_host_first(root: FakeRoot) -> None:
    (root.path / HOST[1:] / "libcuda.so.1").unlink()
    (root.path / HOST[1:] / "libcuda.so.535.54.03").rename(root.path / HOST[1:] / "libcuda.so.1")
    sources = replace(SOURCES, nvml=NvmlReport)
    probes = Probes(root.path, {HOST: 0})
    resolution = resolve(Settings(), {}, root.path, sources, probes)
    assert resolution.decision.verdict is Verdict.SKIP_UNKNOWN_DRIVER
    assert [folder for folder, _, _ in probes.asked] == [HOST]


def test_an_unknown_driver_without_a_host_library(root: FakeRoot) -> None:
    for path in (root.path / HOST[1:]).iterdir():
        path.unlink()
    probes = Probes(root.path, {PACKAGE: 0})
    resolution = resolve(Settings(), {}, root.path, replace(SOURCES, nvml=NvmlReport), probes)
    assert resolution.decision.verdict is Verdict.ENABLE
    assert [folder for folder, _, _ in probes.asked] == [PACKAGE]


@pytest.mark.parametrize("path", [PACKAGE, f"/usr/local/cuda/compat:{PACKAGE}", f"/opt/lib:{PACKAGE}"])
def test_evicting_from_the_search_path(root: FakeRoot, path: str) -> None:
    root.banner(open_banner("535.54.03"))
    environ = {"LD_LIBRARY_PATH": path}
    resolution = resolve(Settings(cuda_compat="off"), environ, root.path, SOURCES)
    assert resolution.decision.verdict is Verdict.EVICT
    change = plan(resolution, environ, root.path)
    assert change.library_path == ("/opt/lib" if "/opt/lib" in path else "")
    assert change.library is not None
    assert change.library.real.name == "libcuda.so.535.54.03"


@pytest.fixture
def mounted(tmp_path: Path) -> FakeRoot:
    """The host's folder, where a container toolkit has put the package's library beside the driver's."""
    root = FakeRoot(tmp_path).nodes("nvidia0").banner(open_banner("580.95.05")).compat(PACKAGE[1:], note=BRANCHES_129)
    root.file(f"{HOST[1:]}/libcuda.so.580.95.05", b"\x7fELF\x02").file(
        f"{HOST[1:]}/libcuda.so.575.57.08", b"\x7fELF\x02"
    )
    return root.link(f"{HOST[1:]}/libcuda.so.1", "libcuda.so.575.57.08").folder("tmp")


def test_evicting_what_was_mounted(mounted: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(mounted.path / "tmp"))
    resolution = resolve(Settings(cuda_compat="rule"), {}, mounted.path, SOURCES)
    assert resolution.decision.verdict is Verdict.EVICT
    change = plan(resolution, {}, mounted.path)
    assert change.library_path is not None
    assert change.library_path.startswith("/tmp/byoc-driver-")
    assert change.library is not None
    assert change.library.real.name == "libcuda.so.580.95.05"


def refuse(*_: object) -> Path:
    raise OSError("no place")


def test_evicting_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was registered with the linker is passed over by the driver's own folder, if that holds nothing else."""
    monkeypatch.setattr("byoc_server.device.resolution.make_host_folder", refuse)
    root = FakeRoot(tmp_path).nodes("nvidia0").banner(open_banner("580.95.05")).host_library("580.95.05")
    root.compat(PACKAGE[1:], note=BRANCHES_129)
    root.file("etc/ld.so.cache", cache_of(("libcuda.so.1", f"{PACKAGE}/libcuda.so.1")))
    change = plan(resolve(Settings(cuda_compat="rule"), {}, tmp_path, SOURCES), {}, tmp_path)
    assert change.library_path == HOST
    assert [remark.level for remark in change.remarks] == [logging.WARNING]
    assert "no place" in change.remarks[0].message


def test_a_mount_cannot_be_passed_over_without_a_place_for_links(
    mounted: FakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoc_server.device.resolution.make_host_folder", refuse)
    change = plan(resolve(Settings(cuda_compat="rule"), {}, mounted.path, SOURCES), {}, mounted.path)
    assert change.library_path is None
    assert [remark.level for remark in change.remarks] == [logging.WARNING, logging.ERROR]


def test_a_package_that_the_linker_passes_over_is_not_said_to_be_used(root: FakeRoot) -> None:
    """Such as one for 32-bit processes, or one this user may not read."""
    root.banner(closed_banner("535.54.03")).file(f"{PACKAGE[1:]}/libcuda.so.575.57.08", b"\x7fELF\x01" + bytes(99))
    resolution, _ = run(root, {}, "rule")
    assert resolution.decision.verdict is Verdict.ENABLE
    change = plan(resolution, {}, root.path)
    assert change.library_path is None
    assert [remark.level for remark in change.remarks] == [logging.ERROR]


def test_an_unknown_driver_whose_own_library_works_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = FakeRoot(tmp_path).nodes("nvidia0").compat(PACKAGE[1:], note=BRANCHES_129).folder("tmp")
    root.file("usr/local/nvidia/lib64/libcuda.so.1", elf_without_note())
    root.link(f"{HOST[1:]}/libcuda.so.1", f"{PACKAGE}/libcuda.so.1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    probes = Probes(tmp_path, {"/usr/local/nvidia/lib64": 0})
    resolution = resolve(Settings(), {}, tmp_path, replace(SOURCES, nvml=NvmlReport), probes)
    assert resolution.decision.verdict is Verdict.EVICT
    change = plan(resolution, {}, tmp_path)
    assert change.library is not None
    assert change.library.real == tmp_path / "usr/local/nvidia/lib64/libcuda.so.1"


def test_nothing_to_go_back_to(mounted: FakeRoot) -> None:
    (mounted.path / HOST[1:] / "libcuda.so.580.95.05").unlink()
    change = plan(resolve(Settings(cuda_compat="rule"), {}, mounted.path, SOURCES), {}, mounted.path)
    assert change.library_path is None
    assert [remark.level for remark in change.remarks] == [logging.ERROR]


def test_a_package_in_an_unusual_place_is_judged_too(tmp_path: Path) -> None:
    """It is on the search path of a base image, and older than the driver."""
    root = FakeRoot(tmp_path).nodes("nvidia0").banner(open_banner("580.95.05")).host_library("580.95.05")
    root.compat("opt/vendor", note=BRANCHES_129)
    environ = {"LD_LIBRARY_PATH": "/opt/vendor"}
    found = survey(environ, root=tmp_path, sources=SOURCES)
    assert found.package_folders == (tmp_path / "opt/vendor",)
    resolution = resolve(Settings(cuda_compat="rule"), environ, tmp_path, SOURCES)
    assert resolution.decision.verdict is Verdict.EVICT
    change = plan(resolution, environ, tmp_path)
    assert change.library is not None
    assert change.library.real.name == "libcuda.so.580.95.05"


def test_a_misfit_is_said_beside_the_decision(root: FakeRoot) -> None:
    root.banner(closed_banner("535.54.03"))
    sources = replace(SOURCES, runtime=lambda: RuntimePackage("onnxruntime-gpu", "1.31.1", 13))
    resolution = resolve(Settings(cuda_compat="rule"), {}, root.path, sources)
    assert any("ONNX Runtime needs CUDA 13" in remark.message for remark in resolution.decision.remarks)
