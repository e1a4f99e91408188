"""The decision as a pure function: every row of the table that the vectors do not reach, and the evidence of probes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from byoc_server.device.compat_package import CompatNote, CompatPackage, Defect
from byoc_server.device.cuda_compat import (
    CompatMode,
    Decision,
    Facts,
    Verdict,
    decide,
    foreign,
    misfit,
    native_probe_wanted,
    probes_wanted,
    provided_cuda,
    settle,
)
from byoc_server.device.driver import DriverReading
from byoc_server.device.gpu import GpuPresence
from byoc_server.device.linker import FoundLibrary
from byoc_server.device.nvml import Gpu
from byoc_server.device.probe import ProbeResult
from byoc_server.device.version import DriverVersion

FOLDER = Path("/usr/local/cuda-12.9/compat")
HOST = Path("/usr/lib/x86_64-linux-gnu")
GPU = GpuPresence(("/dev/nvidia0", "/dev/nvidiactl"), proc=True)


def version(text: str) -> DriverVersion:
    parsed = DriverVersion.parse(text)
    assert parsed is not None
    return parsed


def library(folder: Path, of: str, how: str = "ld.so.cache") -> FoundLibrary:
    return FoundLibrary(folder / "libcuda.so.1", folder / f"libcuda.so.{of}", how)


NOTE = CompatNote((12, 9), frozenset({535, 550, 560, 565, 570, 575}))
PACKAGE = CompatPackage(FOLDER, version("575.57.08"), cuda=(12, 9), note=NOTE)


def facts(
    driver: str | None = "535.54.03",
    package: CompatPackage | None = PACKAGE,
    effective: FoundLibrary | None = None,
    presence: GpuPresence = GPU,
    gpus: tuple[Gpu, ...] = (),
    runtime_cuda: int | None = None,
) -> Facts:
    reading = DriverReading(version(driver), "proc") if driver else DriverReading(None)
    return Facts((package,) if package else (), presence, reading, gpus, effective, runtime_cuda)


def result(code: int | None, failure: str = "", attempts: int = 1) -> ProbeResult:
    return ProbeResult("/x/libcuda.so.1", code, failure=failure, attempts=attempts)


ACTIVE = library(FOLDER, "575.57.08")
OWN = library(HOST, "535.54.03")


def test_off_leaves_the_hosts_library() -> None:
    decision = decide(CompatMode.OFF, facts(effective=OWN))
    assert (decision.verdict, decision.level) == (Verdict.SKIP_OFF, logging.INFO)


def test_off_evicts_what_is_active() -> None:
    decision = decide(CompatMode.OFF, facts(effective=ACTIVE))
    assert (decision.verdict, decision.level) == (Verdict.EVICT, logging.WARNING)
    assert "ld.so.cache" in decision.message


def test_off_without_a_gpu_has_nothing_to_evict() -> None:
    assert decide(CompatMode.OFF, facts(None, presence=GpuPresence((), proc=False))).verdict is Verdict.SKIP_OFF


@pytest.mark.parametrize(
    ("driver", "verdict", "level"),
    [
        ("535.54.03", Verdict.ENABLE, logging.WARNING),
        ("470.57.02", Verdict.ENABLE, logging.WARNING),
        (None, Verdict.ENABLE, logging.WARNING),
        ("580.95.05", Verdict.ENABLE, logging.ERROR),
    ],
)
def test_on_is_the_operators_will(driver: str | None, verdict: Verdict, level: int) -> None:
    decision = decide(CompatMode.ON, facts(driver))
    assert (decision.verdict, decision.level) == (verdict, level)
    assert ("803" in decision.message) == (level == logging.ERROR)


def test_on_knows_what_is_active_already() -> None:
    assert decide(CompatMode.ON, facts(effective=ACTIVE)).verdict is Verdict.ALREADY_ACTIVE


def test_on_cannot_use_what_is_broken() -> None:
    broken = replace(PACKAGE, version=None, defect=Defect.EMPTY)
    assert decide(CompatMode.ON, facts(package=broken)).verdict is Verdict.SKIP_BROKEN_PACKAGE


@pytest.mark.parametrize("platform", ["WSL", "Tegra"])
def test_other_platforms_are_left_alone_unless_forced(platform: str) -> None:
    elsewhere = GpuPresence(("/dev/nvidia0",), proc=False, platform=platform)
    assert decide(CompatMode.AUTO, facts(presence=elsewhere)).verdict is Verdict.SKIP_PLATFORM
    assert decide(CompatMode.ON, facts(presence=elsewhere)).verdict is Verdict.ENABLE


def test_a_hidden_gpu_is_none() -> None:
    decision = decide(CompatMode.AUTO, facts(presence=replace(GPU, hidden=True)))
    assert decision.verdict is Verdict.SKIP_NO_GPU
    assert not probes_wanted(CompatMode.AUTO, decision)


@pytest.mark.parametrize(
    ("defect", "verdict", "level"),
    [
        (Defect.EMPTY, Verdict.SKIP_BROKEN_PACKAGE, logging.ERROR),
        (Defect.NO_LINK, Verdict.SKIP_BROKEN_PACKAGE, logging.WARNING),
        (Defect.MALFORMED, Verdict.SKIP_BROKEN_PACKAGE, logging.WARNING),
        (Defect.AMBIGUOUS, Verdict.SKIP_AMBIGUOUS, logging.ERROR),
    ],
)
def test_defects(defect: Defect, verdict: Verdict, level: int) -> None:
    broken = replace(PACKAGE, version=None, defect=defect, detail="libcuda.so.1.1")
    decision = decide(CompatMode.AUTO, facts(package=broken))
    assert (decision.verdict, decision.level) == (verdict, level)
    assert "libcuda.so.1.1" in decision.message


@pytest.mark.parametrize(
    ("driver", "gpus"),
    [("580.95.05", ()), ("470.57.02", ()), ("535.54.03", (Gpu("NVIDIA GeForce RTX 4090", 5),))],
)
def test_every_no_undoes_what_is_active(driver: str, gpus: tuple[Gpu, ...]) -> None:
    decision = decide(CompatMode.AUTO, facts(driver, effective=ACTIVE, gpus=gpus))
    assert decision.verdict is Verdict.EVICT
    assert decision.level >= logging.WARNING
    assert str(ACTIVE.real) in decision.message


def test_an_unknown_driver_leaves_what_is_active_but_says_so() -> None:
    decision = decide(CompatMode.RULE, facts(None, effective=ACTIVE))
    assert decision.verdict is Verdict.SKIP_UNKNOWN_DRIVER
    assert str(ACTIVE.real) in decision.message


def test_enabling_before_another_folder_names_it() -> None:
    shadow = library(Path("/opt/driver"), "535.54.03", "LD_LIBRARY_PATH")
    decision = decide(CompatMode.RULE, facts(effective=shadow))
    assert decision.verdict is Verdict.ENABLE
    assert "/opt/driver" in decision.message


def test_foreign() -> None:
    assert not foreign(facts(effective=None))
    assert not foreign(facts(effective=OWN))
    assert foreign(facts(effective=ACTIVE))
    assert foreign(facts(None, effective=ACTIVE))
    assert foreign(facts(package=None, effective=library(HOST, "575.57.08")))
    assert not foreign(facts(package=None, effective=FoundLibrary(HOST / "libcuda.so.1", HOST / "libcuda.so.1", "x")))


def test_several_packages_are_named() -> None:
    other = replace(PACKAGE, folder=Path("/usr/local/cuda-12.8/compat"))
    decision = decide(CompatMode.RULE, replace(facts(), packages=(PACKAGE, other)))
    assert any("/usr/local/cuda-12.8/compat" in remark.message for remark in decision.remarks)


def test_what_was_ignored_is_a_debug_line() -> None:
    reading = DriverReading(version("535.54.03"), "nvml", ignored=(("proc", "nonsense"),))
    decision = decide(CompatMode.RULE, replace(facts(), driver=reading))
    assert [(remark.level, "nonsense" in remark.message) for remark in decision.remarks] == [(logging.DEBUG, True)]


@pytest.mark.parametrize(
    ("mode", "driver", "package", "native"),
    [
        (CompatMode.AUTO, "535.54.03", True, False),
        (CompatMode.AUTO, None, True, True),
        (CompatMode.AUTO, "580.95.05", False, False),
        (CompatMode.PROBE, "580.95.05", True, True),
        (CompatMode.PROBE, "535.54.03", True, True),
        (CompatMode.RULE, "535.54.03", False, False),
        (CompatMode.RULE, None, False, True),
        (CompatMode.ON, "535.54.03", False, False),
        (CompatMode.OFF, "535.54.03", False, False),
    ],
)
def test_what_is_probed(mode: CompatMode, driver: str | None, package: bool, native: bool) -> None:
    decision = decide(mode, facts(driver))
    assert probes_wanted(mode, decision) is package
    if package:
        assert native_probe_wanted(mode, decision) is native


@pytest.mark.parametrize("defect", list(Defect))
def test_a_broken_package_is_never_probed(defect: Defect) -> None:
    decision = decide(CompatMode.PROBE, facts(package=replace(PACKAGE, version=None, defect=defect)))
    assert not probes_wanted(CompatMode.PROBE, decision)


YES = decide(CompatMode.AUTO, facts())
NO = decide(CompatMode.PROBE, facts("580.95.05"))
UNKNOWN = decide(CompatMode.AUTO, facts(None))


@pytest.mark.parametrize(
    ("probed", "verdict", "says"),
    [
        (result(0), Verdict.ENABLE, "older than"),
        (result(803), Verdict.SKIP_PROBE_803, "803"),
        (result(804), Verdict.SKIP_PROBE_804, "804"),
        (result(100), Verdict.SKIP_NO_GPU, "100"),
        (result(802, attempts=4), Verdict.ENABLE, "older than"),
        (result(34), Verdict.SKIP_PROBE_FAILED, "34"),
        (result(None, "timeout after 20 s"), Verdict.SKIP_PROBE_FAILED, "timeout after 20 s"),
        (result(None, "killed by SIGSEGV"), Verdict.SKIP_PROBE_FAILED, "SIGSEGV"),
    ],
)
def test_evidence_takes_back_a_yes(probed: ProbeResult, verdict: Verdict, says: str) -> None:
    decision = settle(YES, facts(), None, probed)
    assert decision.verdict is verdict
    assert says in decision.message


def test_a_system_that_is_not_ready_is_told() -> None:
    decision = settle(YES, facts(), None, result(802, attempts=4))
    assert any("4 attempts" in remark.message for remark in decision.remarks)


@pytest.mark.parametrize("code", [803, 804, 34])
def test_evidence_against_what_is_active_evicts_it(code: int) -> None:
    active = facts(effective=ACTIVE)
    decision = settle(decide(CompatMode.AUTO, active), active, None, result(code))
    assert decision.verdict is Verdict.EVICT


@pytest.mark.parametrize("native", [result(0), result(803), result(None, "cannot load"), None])
def test_no_evidence_turns_the_veto(native: ProbeResult | None) -> None:
    decision = settle(NO, facts("580.95.05"), native, result(0))
    assert decision.verdict is Verdict.SKIP_DRIVER_NEWER
    told = [remark.message for remark in decision.remarks]
    assert any("a rule forbids it" in line for line in told) == (native is not None and native.init_code != 0)
    assert any("bundle driver libraries" in line for line in told) == (native is not None and native.init_code == 803)


@pytest.mark.parametrize(
    ("native", "compat", "verdict"),
    [
        (result(0), None, Verdict.SKIP_UNKNOWN_DRIVER),
        (result(999), result(0), Verdict.ENABLE),
        (None, result(0), Verdict.ENABLE),
        (result(999), result(803), Verdict.SKIP_UNKNOWN_DRIVER),
        (result(999), None, Verdict.SKIP_UNKNOWN_DRIVER),
        (result(100), result(100), Verdict.SKIP_NO_GPU),
    ],
)
def test_an_unknown_driver_is_settled_by_evidence(
    native: ProbeResult | None, compat: ProbeResult | None, verdict: Verdict
) -> None:
    assert settle(UNKNOWN, facts(None), native, compat).verdict is verdict


def test_an_active_package_goes_when_the_hosts_library_works() -> None:
    active = facts(None, effective=ACTIVE)
    assert settle(decide(CompatMode.AUTO, active), active, result(0), None).verdict is Verdict.EVICT


@pytest.mark.parametrize(
    ("driver", "runtime_cuda", "package", "says"),
    [
        ("470.57.02", 13, PACKAGE, "al2023-ami-sagemaker-inference-gpu-4-1 (driver 580)"),
        ("535.54.03", 13, None, "cuda-compat-13-0"),
        ("535.54.03", 13, PACKAGE, "the compatibility package provides CUDA 12.9"),
        ("470.57.02", 12, PACKAGE, "al2-ami-sagemaker-inference-gpu-2-1 (driver 535)"),
    ],
)
def test_a_misfit_says_what_to_change(driver: str, runtime_cuda: int, package: CompatPackage | None, says: str) -> None:
    found = facts(driver, package, runtime_cuda=runtime_cuda)
    remark = misfit(decide(CompatMode.RULE, found), found)
    assert remark is not None
    assert remark.level == logging.ERROR
    assert says in remark.message


@pytest.mark.parametrize(
    ("driver", "runtime_cuda"),
    [("580.95.05", 13), ("535.54.03", 12), ("470.57.02", None), (None, 13), ("999.1", 13), ("460.32.03", 99)],
)
def test_what_fits_or_cannot_be_known_is_no_misfit(driver: str | None, runtime_cuda: int | None) -> None:
    found = facts(driver, package=None, runtime_cuda=runtime_cuda)
    assert misfit(decide(CompatMode.RULE, found), found) is None


@pytest.mark.parametrize("driver", ["418.40.04", "460.32.03", "579.10"])
def test_a_driver_of_an_unlisted_branch_is_too_old_by_the_floor(driver: str) -> None:
    found = facts(driver, package=None, runtime_cuda=13)
    remark = misfit(decide(CompatMode.RULE, found), found)
    assert remark is not None
    assert "less than CUDA 13" in remark.message


@pytest.mark.parametrize(
    "presence", [replace(GPU, hidden=True), GpuPresence((), proc=True), GpuPresence((), proc=False)], ids=str
)
def test_what_runs_on_the_cpu_is_no_misfit(presence: GpuPresence) -> None:
    found = facts("470.57.02", package=None, presence=presence, runtime_cuda=13)
    assert misfit(decide(CompatMode.RULE, found), found) is None


def at(folder: str, of: str, cuda: tuple[int, int], *branches: int) -> CompatPackage:
    return CompatPackage(Path(folder), version(of), cuda=cuda, note=CompatNote(cuda, frozenset(branches)))


FOR_470 = at("/usr/local/cuda-12.8/compat", "570.172.08", (12, 8), 470, 535, 550)
OLD = at("/usr/local/cuda-12.4/compat", "550.54.15", (12, 4), 470, 535)


def among(driver: str, *packages: CompatPackage, active: CompatPackage | None = None) -> Decision:
    effective = library(active.folder, str(active.version), "LD_LIBRARY_PATH") if active else None
    return decide(CompatMode.RULE, replace(facts(driver, effective=effective), packages=packages))


def test_the_first_package_that_may_be_used_is() -> None:
    decision = among("470.57.02", PACKAGE, FOR_470)
    assert (decision.verdict, decision.package) == (Verdict.ENABLE, FOR_470)
    decision = among("550.144.01", OLD, PACKAGE)
    assert (decision.verdict, decision.package) == (Verdict.ENABLE, PACKAGE)


def test_what_is_in_use_and_may_be_used_stays() -> None:
    decision = among("470.57.02", PACKAGE, FOR_470, active=FOR_470)
    assert (decision.verdict, decision.package) == (Verdict.ALREADY_ACTIVE, FOR_470)
    decision = among("535.54.03", PACKAGE, FOR_470, active=FOR_470)
    assert (decision.verdict, decision.package) == (Verdict.ALREADY_ACTIVE, FOR_470)


def test_a_package_as_old_as_the_driver_does_not_hide_an_older_one_in_use() -> None:
    same = at("/usr/local/cuda-13.0/compat", "580.95.05", (13, 0), 535)
    decision = among("580.95.05", same, PACKAGE, active=PACKAGE)
    assert (decision.verdict, decision.package) == (Verdict.EVICT, PACKAGE)
    assert among("580.95.05", same, PACKAGE, active=same).verdict is Verdict.SKIP_DRIVER_EQUAL


@pytest.mark.parametrize("defect", list(Defect))
def test_a_defect_elsewhere_does_not_hide_what_is_in_use(defect: Defect) -> None:
    broken = CompatPackage(Path("/opt/compat"), None, defect)
    decision = among("580.95.05", broken, PACKAGE, active=PACKAGE)
    assert (decision.verdict, decision.package) == (Verdict.EVICT, PACKAGE)
    assert any("/opt/compat" in remark.message for remark in decision.remarks)


def test_other_platforms_get_their_own_library_back() -> None:
    elsewhere = GpuPresence((), proc=False, platform="WSL")
    assert decide(CompatMode.AUTO, facts("546.33", presence=elsewhere, effective=ACTIVE)).verdict is Verdict.EVICT
    own = FoundLibrary(Path("/usr/lib/wsl/lib/libcuda.so.1"), Path("/usr/lib/wsl/lib/libcuda.so.1.1"), "ld.so.cache")
    assert decide(CompatMode.AUTO, facts("546.33", presence=elsewhere, effective=own)).verdict is Verdict.SKIP_PLATFORM


def test_an_unknown_driver_says_why() -> None:
    reading = DriverReading(None, ignored=(("nvml", "driver not loaded"), ("nvidia-smi", "")))
    decision = decide(CompatMode.RULE, replace(facts(), driver=reading))
    assert "nvml: driver not loaded; nvidia-smi: nothing" in decision.message


def test_the_package_provides_its_own_level() -> None:
    assert provided_cuda(YES, facts()) == (12, 9)
    assert provided_cuda(Decision(Verdict.SKIP_OFF, logging.INFO, ""), facts()) == (12, 2)
