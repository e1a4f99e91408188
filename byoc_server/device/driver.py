"""The version of the kernel's NVIDIA driver, from whichever source tells it.

There is one kernel driver, so all sources should say the same. If they do not, one is a stale copy or a broken
installation, and the order of trust decides: ``/proc``, ``/sys``, NVML, ``nvidia-smi``, the name of the host's
``libcuda``. Only ``/proc`` and ``/sys`` come from the kernel itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from byoc_server.device.nvml import NvmlReport
from byoc_server.device.version import DriverVersion

_SMI_TIMEOUT_S = 5.0
_MAX_FILE_BYTES = 4096
_MAX_OUTPUT_BYTES = 16 * 1024  # as much as a list of GPUs needs
_MAX_REPORTED_CHARACTERS = 200
_NVML_MISMATCH = 18
"""``NVML_ERROR_LIB_RM_VERSION_MISMATCH``."""

_MODULE = re.compile(r"Kernel Module\s+(?:for\s+\S+\s+)?(\S+)")


@dataclass(frozen=True, slots=True)
class DriverReading:
    """What the sources said.

    Attributes:
        version: the driver's; ``None`` when no source told it.
        source: where it is from: ``proc``, ``sysfs``, ``nvml``, ``nvidia-smi`` or ``libcuda``; empty without one.
        ignored: (source, what it said) of sources that answered something that is no version, or failed.
        differing: (source, version) of weaker sources that disagree.
        nvml_mismatch: NVML reports that its library is not the kernel driver's (error 18).
    """

    version: DriverVersion | None
    source: str = ""
    ignored: tuple[tuple[str, str], ...] = ()
    differing: tuple[tuple[str, DriverVersion], ...] = ()
    nvml_mismatch: bool = False


def read_driver(
    root: Path, nvml: NvmlReport, run_smi: Callable[[], tuple[str, int]], libcuda: DriverVersion | None
) -> DriverReading:
    """Ask the sources.

    Args:
        root: where ``proc`` and ``sys`` lie.
        nvml: what NVML reported.
        run_smi: gives the output and return code of ``nvidia-smi``; called only when nothing better told the version,
            because it takes seconds on a machine whose driver is not yet warm.
        libcuda: version in the name of the host's ``libcuda``.
    """
    told: list[tuple[str, DriverVersion]] = []
    ignored: list[tuple[str, str]] = []

    def note(source: str, version: DriverVersion | None, text: str) -> None:
        if version is not None:
            told.append((source, version))
        else:
            ignored.append((source, " ".join(text.split())[:_MAX_REPORTED_CHARACTERS]))

    banner = _text(root / "proc/driver/nvidia/version")
    if banner is not None:
        note("proc", parse_banner(banner), banner)
    module = _text(root / "sys/module/nvidia/version")
    if module is not None:
        note("sysfs", DriverVersion.parse(module), module)
    if nvml.driver or nvml.error:
        note("nvml", DriverVersion.parse(nvml.driver), nvml.driver or nvml.error)
    if not told:
        output, return_code = run_smi()
        note("nvidia-smi", parse_smi(output, return_code), output)
    if libcuda is not None and not told:  # else it proves nothing: a toolkit may have mounted a package's in its place
        told.append(("libcuda", libcuda))

    source, version = told[0] if told else ("", None)
    return DriverReading(
        version,
        source,
        ignored=tuple(ignored),
        differing=tuple((weaker, other) for weaker, other in told[1:] if other != version),
        nvml_mismatch=nvml.error_code == _NVML_MISMATCH,
    )


def parse_banner(text: str) -> DriverVersion | None:
    """Read ``/proc/driver/nvidia/version``.

    The version follows the words "Kernel Module", with the open kernel module also "for x86_64" or another
    architecture in between. Only the line of the module itself is looked at: the other names a compiler, whose version
    has the same shape. Source: NVIDIA's open kernel modules 595.45.04, ``kernel-open/nvidia/nv-procfs.c``.
    """
    line = next((line for line in text.splitlines() if line.startswith("NVRM version:")), "")
    match = _MODULE.search(line)
    candidates = ([match[1]] if match else []) + line.split()
    return next((version for word in candidates if (version := DriverVersion.parse(word))), None)


def parse_smi(output: str, return_code: int) -> DriverVersion | None:
    """Read what ``nvidia-smi --query-gpu=driver_version --format=csv,noheader`` prints, one line for each GPU.

    Error messages come on the same stream and may hold another version, that of the NVML library; hence the return code
    has to be zero, and every line has to be the same version and nothing else.
    """
    lines = {line.strip() for line in output.splitlines() if line.strip()}
    return DriverVersion.parse(lines.pop()) if return_code == 0 and len(lines) == 1 else None


def run_nvidia_smi(timeout_s: float = _SMI_TIMEOUT_S) -> tuple[str, int]:
    """Run ``nvidia-smi`` for the version of the driver.

    Args:
        timeout_s: seconds after which it is killed.

    Returns:
        What it printed, or a few words on why it printed nothing, and its return code: negative after a signal, 124
        after the time is up, 127 if it cannot be run (the codes ``timeout`` and ``env`` of GNU coreutils use).
    """
    from byoc_server.device import child_process  # noqa: PLC0415  # slow to import, and seldom needed

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        child = child_process.run_child(command, timeout_s, _MAX_OUTPUT_BYTES)
    except child_process.ChildTimeoutError:
        return f"nvidia-smi did not end within {timeout_s:g} s", 124
    except OSError as error:
        return f"nvidia-smi cannot be run: {error.strerror}", 127
    output = child.output.decode(errors="replace")
    return output or f"nvidia-smi printed nothing and ended with code {child.status}", child.status


def _text(path: Path) -> str | None:
    """Contents of a small file; ``None`` if there is none to read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return None
