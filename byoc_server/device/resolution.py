"""From facts to a search path: decide by rule, try the libraries where that may change the decision, and plan."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from byoc_server.config import Settings
from byoc_server.device.cuda_compat import (
    CompatMode,
    CudaError,
    Decision,
    Remark,
    Verdict,
    decide,
    foreign,
    misfit,
    native_probe_wanted,
    outcome,
    probes_wanted,
    provides,
    settle,
)
from byoc_server.device.linker import SONAME, FoundLibrary, find_libcuda, make_host_folder, prepended, removed, seen
from byoc_server.device.probe import ProbeResult, probe
from byoc_server.device.survey import THIS_MACHINE, Sources, Survey, survey

Probe = Callable[[Path, str, float], ProbeResult]
"""Tries a library under a library path within some seconds."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Everything that was found, tried and decided.

    Attributes:
        survey: the facts.
        decision: final, evidence included.
        native: what trying the host's ``libcuda`` gave; ``None`` if it was not tried.
        compat: the same of the package's.
        elapsed_s: seconds it took.
    """

    survey: Survey
    decision: Decision
    native: ProbeResult | None = None
    compat: ProbeResult | None = None
    elapsed_s: float = field(default=0.0, compare=False)

    def fields(self) -> dict[str, object]:
        """What the log line carries: all that is known."""
        facts, package = self.survey.facts, self.decision.package
        gpus = collections.Counter(gpu.name for gpu in facts.gpus)
        values: dict[str, object] = {
            "decision": self.decision.verdict.value,
            "driver": str(facts.driver.version or ""),
            "driver_source": facts.driver.source,
            "compat": str(package.version or "") if package else "",
            "compat_dir": str(package.folder) if package else "",
            "compat_cuda": ".".join(map(str, package.cuda)) if package and package.cuda else "",
            "note_branches": sorted(package.note.branches) if package and package.note else [],
            "gpu": ", ".join(f"{count} x {name}" for name, count in gpus.items()),
            "effective_libcuda": str(facts.effective.real) if facts.effective else "",
            "probe_native": outcome(self.native) if self.native else "",
            "probe_compat": outcome(self.compat) if self.compat else "",
            "elapsed_ms": round(self.elapsed_s * 1000, 2),
        }
        return {name: value for name, value in values.items() if value not in ("", [])}


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change.

    Attributes:
        library_path: the new ``LD_LIBRARY_PATH``; ``None`` if nothing has to change.
        library: the ``libcuda.so.1`` that will be found; ``None`` if none.
        remarks: what could not be done.
    """

    library_path: str | None
    library: FoundLibrary | None
    remarks: tuple[Remark, ...] = ()


def resolve(
    settings: Settings,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    sources: Sources = THIS_MACHINE,
    probe: Probe = probe,
) -> Resolution:
    """Find the facts, decide, and try what is worth trying.

    Args:
        settings: of the server; ``cuda_compat``, its folder and the seconds a probe may take.
        environ: the environment.
        root: where ``proc``, ``dev`` and ``usr`` lie.
        sources: of facts that are not files.
        probe: tries a library; never raises.
    """
    start_s = time.perf_counter()
    found = survey(environ, settings.cuda_compat_dir, root, sources)
    mode = CompatMode(settings.cuda_compat)
    decision = decide(mode, found.facts)
    native = compat = None
    if probes_wanted(mode, decision) and decision.package is not None:
        path, limit_s = environ.get("LD_LIBRARY_PATH", ""), settings.cuda_compat_timeout_s
        if native_probe_wanted(mode, decision) and found.host_library is not None:
            without = removed(path, found.package_folders, root)
            native = probe(found.host_library, prepended(without, seen(found.host_library.parent, root)), limit_s)
        if mode is CompatMode.PROBE or native is None or native.init_code != CudaError.SUCCESS:
            folder = decision.package.folder
            compat = probe(folder / SONAME, prepended(path, seen(folder, root)), limit_s)
        decision = settle(decision, found.facts, native, compat)
    remark = misfit(decision, found.facts)
    if remark is not None:
        decision = replace(decision, remarks=(*decision.remarks, remark))
    return Resolution(found, decision, native, compat, time.perf_counter() - start_s)


def plan(resolution: Resolution, environ: Mapping[str, str], root: Path = Path("/")) -> Plan:
    """What the environment must become for the decision to come true.

    Going back to the host's driver may need a folder with links to its libraries; it is made in a temporary place.
    """
    found, decision = resolution.survey, resolution.decision
    facts, before = found.facts, environ.get("LD_LIBRARY_PATH", "")
    if decision.verdict is Verdict.ENABLE and decision.package is not None:
        after = prepended(before, seen(decision.package.folder, root))
        library = find_libcuda(root, after)
        if provides(decision.package, library):
            return Plan(after, library)
        text = f"the linker passes over the package's libcuda: can this user read {decision.package.folder}?"
        return Plan(None, facts.effective, (Remark(logging.ERROR, text),))
    if decision.verdict is Verdict.EVICT:
        return _without_package(found, before, root)
    return Plan(None, facts.effective)


def _without_package(found: Survey, before: str, root: Path) -> Plan:
    """Take the package's folders off the path and, where that is not enough, put the host driver's library first."""
    facts = found.facts
    after = removed(before, found.package_folders, root)
    library = find_libcuda(root, after)
    remarks: tuple[Remark, ...] = ()
    if (library is None or foreign(replace(facts, effective=library))) and found.host_library is not None:
        try:
            folder = make_host_folder(found.host_library, facts.driver.version)
        except OSError as error:  # nothing is writable; the folder itself does, though it may hold other libraries
            folder = found.host_library.parent
            remarks = (Remark(logging.WARNING, f"{error}; putting {folder} first instead"),)
        after = prepended(after, seen(folder, root))
        library = find_libcuda(root, after)
    if library is None or foreign(replace(facts, effective=library)):
        text = "the host driver's libcuda cannot be brought back: the package's stays active"
        return Plan(None, facts.effective, (*remarks, Remark(logging.ERROR, text)))
    return Plan(after, library, remarks)
