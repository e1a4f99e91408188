"""Gathering what the compatibility decision depends on, from this machine or from a folder laid out like one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from byoc_server.device.compat_package import CompatPackage, find_packages, inspect_library
from byoc_server.device.cuda_compat import Facts, foreign, provides
from byoc_server.device.driver import DriverReading, read_driver, run_nvidia_smi
from byoc_server.device.gpu import look_for_gpus
from byoc_server.device.linker import find_host_library, find_libcuda, library_version
from byoc_server.device.nvml import NvmlReport, read_nvml
from byoc_server.device.runtime import RuntimePackage, installed_runtime


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts come from beside files; tests put their own here.

    Attributes:
        nvml: asks the driver's management library.
        nvidia_smi: runs ``nvidia-smi``; gives its output and return code.
        runtime: looks at the installed ONNX Runtime.
    """

    nvml: Callable[[], NvmlReport] = read_nvml
    nvidia_smi: Callable[[], tuple[str, int]] = run_nvidia_smi
    runtime: Callable[[], RuntimePackage] = installed_runtime


THIS_MACHINE = Sources()


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        facts: for the decision.
        nvml: the GPUs; empty without one.
        runtime: the installed ONNX Runtime; empty without a GPU.
        host_library: the driver's own ``libcuda``; ``None`` if there is none or no GPU.
    """

    facts: Facts
    nvml: NvmlReport = field(default_factory=NvmlReport)
    runtime: RuntimePackage = field(default_factory=RuntimePackage)
    host_library: Path | None = None

    @property
    def package_folders(self) -> tuple[Path, ...]:
        """Folders of all packages that were found."""
        return tuple(package.folder for package in self.facts.packages)


def survey(
    environ: Mapping[str, str],
    package_folder: str = "",
    root: Path = Path("/"),
    sources: Sources = THIS_MACHINE,
) -> Survey:
    """Gather the facts. Without a GPU it looks at a few file names and takes far less than a millisecond.

    Args:
        environ: the environment.
        package_folder: the setting ``cuda_compat_dir``.
        root: where ``proc``, ``dev`` and ``usr`` lie.
        sources: of facts that are not files.
    """
    presence = look_for_gpus(root, environ)
    if not presence.driver_present and not presence.platform:
        packages = find_packages(root, package_folder, environ.get("CONDA_PREFIX", ""), None)
        return Survey(Facts(packages, presence, DriverReading(None)))
    runtime, nvml = sources.runtime(), sources.nvml()
    packages = find_packages(root, package_folder, environ.get("CONDA_PREFIX", ""), runtime.cuda_major)
    folders = [package.folder for package in packages]
    named = find_host_library(root, None, folders, environ)
    driver = read_driver(root, nvml, sources.nvidia_smi, library_version(named) if named else None)
    facts = Facts(
        packages=packages,
        presence=presence,
        driver=driver,
        gpus=nvml.gpus,
        effective=find_libcuda(root, environ.get("LD_LIBRARY_PATH", "")),
        runtime_cuda=runtime.cuda_major,
    )
    facts = replace(facts, packages=(*packages, *_stray_package(facts, root)))
    return Survey(facts, nvml, runtime, find_host_library(root, driver.version, folders, environ))


def _stray_package(facts: Facts, root: Path) -> tuple[CompatPackage, ...]:
    """The library in use, when it is not the driver's and lies where nobody would look for a package."""
    if facts.effective is None or not foreign(facts):
        return ()
    if any(provides(package, facts.effective) for package in facts.packages):
        return ()
    return (inspect_library(facts.effective.real, root),)
