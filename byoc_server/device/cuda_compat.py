"""Whether the image's CUDA forward-compatibility package may be used: the decision, and nothing but the decision.

A compatibility package is a *newer* user-mode CUDA driver (``libcuda``) for an *older* kernel driver. The dynamic
linker takes whichever ``libcuda.so.1`` it finds first, so the package has to be found where it helps, and must not be
found where the kernel's driver is as new: CUDA then refuses to work (error 803).

Rules, with their sources: never with a driver newer than the package, no use with an equal one (SageMaker developer
guide, "Best practices to minimize interruptions during GPU driver upgrades"); only on driver branches the package
lists in its ELF note (NVIDIA Container Toolkit 1.20); only on data-center GPUs (NVIDIA guide "CUDA Compatibility"). A
probe that tries the library may turn a yes into a no, or settle an unknown, but never turns a no of the first rule into
a yes.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass, replace

from byoc_server.device.compat_package import CompatPackage, Defect
from byoc_server.device.driver import DriverReading
from byoc_server.device.gpu import GpuPresence
from byoc_server.device.inference_ami import OLDEST_DRIVERS, ami_advice
from byoc_server.device.linker import FoundLibrary, library_version
from byoc_server.device.nvml import Gpu, ineligible_gpu
from byoc_server.device.probe import NOT_READY, ProbeResult
from byoc_server.device.version import CudaLevel, DriverVersion

_UNLISTED_FROM_BRANCH = 575
_OLDEST_UNLISTED_DRIVER = 535
"""Packages of branch 575 and up that carry no list of branches still run on nothing older than 535 (NVIDIA guide)."""


class CompatMode(enum.Enum):
    """The setting ``cuda_compat``."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
    RULE = "rule"
    PROBE = "probe"


class Verdict(enum.Enum):
    """What to do about the package."""

    ENABLE = "ENABLE"
    ALREADY_ACTIVE = "ALREADY_ACTIVE"
    EVICT = "EVICT"
    SKIP_OFF = "SKIP_OFF"
    SKIP_NO_PACKAGE = "SKIP_NO_PACKAGE"
    SKIP_BROKEN_PACKAGE = "SKIP_BROKEN_PACKAGE"
    SKIP_AMBIGUOUS = "SKIP_AMBIGUOUS"
    SKIP_NO_GPU = "SKIP_NO_GPU"
    SKIP_PLATFORM = "SKIP_PLATFORM"
    SKIP_UNKNOWN_DRIVER = "SKIP_UNKNOWN_DRIVER"
    SKIP_DRIVER_NEWER = "SKIP_DRIVER_NEWER"
    SKIP_DRIVER_EQUAL = "SKIP_DRIVER_EQUAL"
    SKIP_HW_UNSUPPORTED = "SKIP_HW_UNSUPPORTED"
    SKIP_BRANCH_UNSUPPORTED = "SKIP_BRANCH_UNSUPPORTED"
    SKIP_PROBE_803 = "SKIP_PROBE_803"
    SKIP_PROBE_804 = "SKIP_PROBE_804"
    SKIP_PROBE_FAILED = "SKIP_PROBE_FAILED"


class CudaError(enum.IntEnum):
    """Results of ``cuInit`` that mean something here. Source: CUDA Driver API reference, type CUresult."""

    SUCCESS = 0
    NO_DEVICE = 100
    SYSTEM_NOT_READY = NOT_READY
    SYSTEM_DRIVER_MISMATCH = 803
    COMPAT_NOT_SUPPORTED_ON_DEVICE = 804


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the decision depends on.

    Attributes:
        packages: compatibility packages found, the best candidate first.
        presence: of GPUs.
        driver: version of the kernel's driver.
        gpus: as NVML lists them; empty where it does not.
        effective: what ``libcuda.so.1`` resolves to as things are; ``None`` if to nothing.
        runtime_cuda: CUDA major the installed ONNX Runtime needs; ``None`` if it needs none.
    """

    packages: tuple[CompatPackage, ...]
    presence: GpuPresence
    driver: DriverReading
    gpus: tuple[Gpu, ...] = ()
    effective: FoundLibrary | None = None
    runtime_cuda: int | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """A line for the log beside the decision; ``level`` is one of ``logging``'s."""

    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why.

    Attributes:
        verdict: what to do.
        level: of the log line.
        message: why, in one line.
        package: the package the decision is about; ``None`` if there is none.
        remarks: what else the operator should know.
    """

    verdict: Verdict
    level: int
    message: str
    package: CompatPackage | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def uses_package(self) -> bool:
        """Whether CUDA comes from the package in the end."""
        return self.verdict in (Verdict.ENABLE, Verdict.ALREADY_ACTIVE)


def decide(mode: CompatMode, facts: Facts) -> Decision:
    """Decide by rule. Pure."""
    decision = _off(facts) if mode is CompatMode.OFF else _by_rule(mode, facts)
    if decision.package is None and facts.packages:
        decision = replace(decision, package=facts.packages[0])
    return replace(decision, remarks=(*_remarks(facts, decision), *decision.remarks))


def probes_wanted(mode: CompatMode, decision: Decision) -> bool:
    """Whether a probe of the package's library could change the decision, or was asked for."""
    if mode is CompatMode.AUTO:
        return decision.uses_package or decision.verdict is Verdict.SKIP_UNKNOWN_DRIVER
    asked = mode is CompatMode.PROBE and decision.package is not None and decision.package.defect is None
    return asked and decision.verdict not in (Verdict.SKIP_NO_GPU, Verdict.SKIP_PLATFORM)


def native_probe_wanted(mode: CompatMode, decision: Decision) -> bool:
    """Whether the host's own library should be probed too, before the package's."""
    return mode is CompatMode.PROBE or decision.verdict is Verdict.SKIP_UNKNOWN_DRIVER


def settle(decision: Decision, facts: Facts, native: ProbeResult | None, compat: ProbeResult | None) -> Decision:
    """Weigh the evidence: it takes back a yes or settles an unknown driver, and else only adds remarks."""
    remarks = list(decision.remarks)
    if native is not None and native.init_code == CudaError.SYSTEM_DRIVER_MISMATCH:
        text = "the host's own libcuda does not fit the kernel's driver (803); does the image bundle driver libraries?"
        remarks.append(Remark(logging.ERROR, text))
    for probe in (native, compat):
        if probe is not None and probe.init_code == CudaError.SYSTEM_NOT_READY:
            text = f"the CUDA system is not ready (802) after {probe.attempts} attempts; keeping to the rule"
            remarks.append(Remark(logging.WARNING, text))
    decision = replace(decision, remarks=tuple(remarks))
    if decision.verdict is Verdict.SKIP_UNKNOWN_DRIVER:
        return _settle_unknown(decision, facts, native, compat)
    if decision.uses_package and compat is not None:
        return _settle_yes(decision, facts, compat)
    if compat is not None and _works(compat) and native is not None and not _works(native):
        text = f"the package's libcuda would work where the host's does not ({outcome(native)}), but a rule forbids it"
        return replace(decision, remarks=(*decision.remarks, Remark(logging.ERROR, text)))
    return decision


def misfit(decision: Decision, facts: Facts) -> Remark | None:
    """Whether ONNX Runtime's CUDA is newer than the CUDA it will find, and what to do then; ``None`` without a GPU."""
    needed, driver = facts.runtime_cuda, facts.driver.version
    if needed is None or driver is None or not facts.presence.usable:
        return None
    provided = provided_cuda(decision, facts)
    if provided is not None:
        fits, found = needed <= provided[0], f"CUDA {provided[0]}.{provided[1]}"
    else:
        fits, found = driver.branch >= OLDEST_DRIVERS.get(needed, 0), f"less than CUDA {needed}"
    if fits:
        return None
    origin = "the compatibility package" if decision.uses_package else f"driver {driver}"
    advice = ami_advice(needed, driver, facts.packages)
    text = f"ONNX Runtime needs CUDA {needed}, {origin} provides {found}: the GPU will not work; {advice}"
    return Remark(logging.ERROR, text)


def provided_cuda(decision: Decision, facts: Facts) -> CudaLevel | None:
    """CUDA level that a program finds under this decision; ``None`` if unknown."""
    if decision.uses_package and decision.package is not None:
        return decision.package.cuda
    return facts.driver.version.cuda if facts.driver.version is not None else None


def outcome(probe: ProbeResult) -> str:
    """What came of a probe, in a few words."""
    return probe.failure or f"cuInit returned {probe.init_code}"


def foreign(facts: Facts) -> bool:
    """Whether ``libcuda.so.1`` resolves to something that is not the host driver's own library.

    The version in the name of the file tells, where both versions are known: container toolkits before 1.17.4 mount the
    package's library into the system's folder. Else the folder does.
    """
    if facts.effective is None:
        return False
    version, driver = library_version(facts.effective.real), facts.driver.version
    if version is not None and driver is not None:
        return version != driver
    return any(_is_in(facts.effective, package) for package in facts.packages)


def provides(package: CompatPackage, library: FoundLibrary | None) -> bool:
    """Whether the library is the package's, in place or mounted elsewhere."""
    if library is None:
        return False
    return _is_in(library, package) or (
        package.version is not None and library_version(library.real) == package.version
    )


def _by_rule(mode: CompatMode, facts: Facts) -> Decision:
    presence, forced = facts.presence, mode is CompatMode.ON
    if not presence.driver_present and not presence.platform:
        return Decision(Verdict.SKIP_NO_GPU, logging.INFO, "no GPU is visible")
    if presence.platform and not forced:
        return _no(
            Verdict.SKIP_PLATFORM, logging.INFO, f"compatibility packages are not for {presence.platform}", facts
        )
    if presence.hidden:
        return Decision(Verdict.SKIP_NO_GPU, logging.INFO, "the environment hides every GPU from CUDA")
    if not facts.packages:
        return Decision(Verdict.SKIP_NO_PACKAGE, logging.INFO, "the image has no compatibility package")
    # What is in use and may be used stays in use; else the first that may be.
    active = [] if forced else [package for package in facts.packages if provides(package, facts.effective)]
    candidates = [*active, *(package for package in facts.packages if package not in active)]
    rulings = [replace(_judge(package, facts, forced), package=package) for package in candidates]
    ruling = next((ruling for ruling in rulings if ruling.uses_package), rulings[0])
    if ruling.uses_package or ruling.verdict is Verdict.SKIP_UNKNOWN_DRIVER:
        return ruling
    return replace(_no(ruling.verdict, ruling.level, ruling.message, facts), package=ruling.package)


def _judge(package: CompatPackage, facts: Facts, forced: bool) -> Decision:
    """What the rules say of one package."""
    if package.defect is not None:
        return _defective(package, package.defect)
    if forced:
        return _forced(facts, package)
    driver, version = facts.driver.version, package.version
    if driver is None or version is None:
        reasons = "".join(f"; {source}: {said or 'nothing'}" for source, said in facts.driver.ignored)
        text = f"the driver's version is unknown{reasons}{_active(facts)}"
        return Decision(Verdict.SKIP_UNKNOWN_DRIVER, logging.WARNING, text)
    if driver > version:
        text = f"driver {driver} is newer than the package's {version}"
        return Decision(Verdict.SKIP_DRIVER_NEWER, logging.INFO, text)
    if driver == version:
        return Decision(Verdict.SKIP_DRIVER_EQUAL, logging.INFO, f"driver and package are the same, {driver}")
    return _forbidden(facts, package, driver) or _yes(facts, package, driver)


def _off(facts: Facts) -> Decision:
    return _no(Verdict.SKIP_OFF, logging.INFO, "switched off by cuda_compat=off", facts)


def _forced(facts: Facts, package: CompatPackage) -> Decision:
    driver = facts.driver.version
    if driver is not None and package.version is not None and driver > package.version:
        text = f"forced by cuda_compat=on although driver {driver} is newer than the package's {package.version}: "
        return Decision(_enable(facts, package), logging.ERROR, text + "expect CUDA error 803")
    text = f"forced by cuda_compat=on: package {package.version} for driver {driver or 'of unknown version'}"
    return Decision(_enable(facts, package), logging.WARNING, text)


def _forbidden(facts: Facts, package: CompatPackage, driver: DriverVersion) -> Decision | None:
    """The rules that forbid a package newer than the driver."""
    gpu = ineligible_gpu(facts.gpus)
    if gpu is not None:
        text = f"{gpu.name} is no data-center GPU, and forward compatibility is for those only (CUDA error 804)"
        return Decision(Verdict.SKIP_HW_UNSUPPORTED, logging.WARNING, text)
    listed = package.note.branches if package.note is not None else frozenset()
    if listed:
        unsupported = driver.branch not in listed
        needs = f"one of {', '.join(map(str, sorted(listed)))}"
    else:
        newer = package.version is not None and package.version.branch >= _UNLISTED_FROM_BRANCH
        unsupported = newer and driver.branch < _OLDEST_UNLISTED_DRIVER
        needs = f"{_OLDEST_UNLISTED_DRIVER} or newer (the package has no list of its own)"
    if not unsupported:
        return None
    cuda = f" (CUDA {package.cuda[0]}.{package.cuda[1]})" if package.cuda else ""
    advice = ami_advice(facts.runtime_cuda, driver, facts.packages)
    text = f"package {package.version}{cuda} does not run on driver branch {driver.branch}, it needs {needs}; {advice}"
    return Decision(Verdict.SKIP_BRANCH_UNSUPPORTED, logging.ERROR, text)


def _yes(facts: Facts, package: CompatPackage, driver: DriverVersion) -> Decision:
    verdict = _enable(facts, package)
    cuda = f" (CUDA {package.cuda[0]}.{package.cuda[1]})" if package.cuda else ""
    text = f"driver {driver} ({facts.driver.source}) is older than the package's {package.version}{cuda}"
    if package.version is not None and package.version.branch == driver.branch:
        text += ", of the same branch: no newer CUDA"
    if verdict is Verdict.ALREADY_ACTIVE and facts.effective is not None:
        text += f"; active already through {facts.effective.how}"
    elif facts.effective is not None and facts.effective.how == "LD_LIBRARY_PATH":
        text += f"; goes before {facts.effective.path.parent} on LD_LIBRARY_PATH"
    return Decision(verdict, logging.INFO, text)


def _enable(facts: Facts, package: CompatPackage) -> Verdict:
    return Verdict.ALREADY_ACTIVE if provides(package, facts.effective) else Verdict.ENABLE


def _no(verdict: Verdict, level: int, why: str, facts: Facts) -> Decision:
    """A no; where another library than the host's would be found as things are, that has to be undone."""
    if not foreign(facts) or facts.effective is None:
        return Decision(verdict, level, why)
    text = f"{why}, but {facts.effective.real} is active through {facts.effective.how}; going back to the host's driver"
    return Decision(Verdict.EVICT, max(level, logging.WARNING), text)


def _defective(package: CompatPackage, defect: Defect) -> Decision:
    detail = f" ({package.detail})" if package.detail else ""
    text = f"{package.folder}: {defect.value}{detail}; "
    if defect is Defect.AMBIGUOUS:
        return Decision(Verdict.SKIP_AMBIGUOUS, logging.ERROR, text + "leave one, or name a folder in cuda_compat_dir")
    level = logging.ERROR if defect is Defect.EMPTY else logging.WARNING
    return Decision(Verdict.SKIP_BROKEN_PACKAGE, level, text + "install the package cuda-compat-X-Y again")


def _settle_yes(decision: Decision, facts: Facts, compat: ProbeResult) -> Decision:
    if _works(compat) or compat.init_code == CudaError.SYSTEM_NOT_READY:
        return decision
    if compat.init_code == CudaError.NO_DEVICE:
        text = "CUDA sees no device (100)"
        return replace(decision, verdict=Verdict.SKIP_NO_GPU, level=logging.WARNING, message=text)
    if compat.init_code == CudaError.SYSTEM_DRIVER_MISMATCH:
        verdict, why = Verdict.SKIP_PROBE_803, "CUDA refuses this driver with this package (803)"
    elif compat.init_code == CudaError.COMPAT_NOT_SUPPORTED_ON_DEVICE:
        verdict, why = Verdict.SKIP_PROBE_804, "the GPU refuses forward compatibility (804)"
    else:
        verdict, why = Verdict.SKIP_PROBE_FAILED, f"the probe of the package failed: {outcome(compat)}"
    no = _no(verdict, logging.ERROR, f"{why}; {decision.message}", facts)
    return replace(decision, verdict=no.verdict, level=no.level, message=no.message)


def _settle_unknown(
    decision: Decision, facts: Facts, native: ProbeResult | None, compat: ProbeResult | None
) -> Decision:
    if native is not None and _works(native):
        no = _no(decision.verdict, decision.level, f"{decision.message}; the host's own libcuda works", facts)
        return replace(decision, verdict=no.verdict, level=no.level, message=no.message)
    if native is not None and native.init_code == CudaError.NO_DEVICE:
        text = f"{decision.message}; CUDA sees no device (100)"
        return replace(decision, verdict=Verdict.SKIP_NO_GPU, message=text)
    if compat is None or not _works(compat) or decision.package is None:
        return decision
    host = "there is no libcuda of the host" if native is None else f"the host's libcuda fails ({outcome(native)})"
    text = f"{decision.message}; {host} and the package's works"
    return replace(decision, verdict=_enable(facts, decision.package), message=text)


def _works(probe: ProbeResult) -> bool:
    return probe.init_code == CudaError.SUCCESS


def _is_in(library: FoundLibrary, package: CompatPackage) -> bool:
    return package.folder in (library.path.parent, library.real.parent)


def _active(facts: Facts) -> str:
    return f"; {facts.effective.real} is active" if facts.effective is not None and foreign(facts) else ""


def _remarks(facts: Facts, decision: Decision) -> tuple[Remark, ...]:
    """What was odd about the facts."""
    package = decision.package
    remarks: list[Remark] = []
    if package is not None and len(facts.packages) > 1:
        folders = ", ".join(str(package.folder) for package in facts.packages)
        remarks.append(Remark(logging.INFO, f"found {folders}; this is about {package.folder}"))
    remarks += [
        Remark(logging.WARNING, _defective(other, other.defect).message)
        for other in facts.packages
        if other.defect is not None and other is not package
    ]
    for source, value in facts.driver.ignored:
        remarks.append(Remark(logging.DEBUG, f"ignored the driver version of {source}: {value!r}"))
    for source, version in facts.driver.differing:
        text = f"{source} says driver {version}, {facts.driver.source} says {facts.driver.version}; the latter counts"
        remarks.append(Remark(logging.WARNING, text))
    if facts.driver.nvml_mismatch:
        text = "NVML is of another version than the kernel's driver; does the image bundle driver libraries?"
        remarks.append(Remark(logging.WARNING, text))
    if package is not None and package.note_error:
        remarks.append(Remark(logging.WARNING, f"the package's ELF note cannot be read: {package.note_error}"))
    return tuple(remarks)
