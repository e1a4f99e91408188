"""Which ONNX Runtime is installed and which CUDA it was built for, without importing it.

Importing a GPU build loads libraries, which must not happen before it is settled which ``libcuda`` they will find. The
metadata of the installed packages tells as much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

GPU_PACKAGE = "onnxruntime-gpu"
CPU_PACKAGE = "onnxruntime"
LIBRARY_PACKAGES = (
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
"""Packages that bring the CUDA runtime and cuDNN."""

_SUFFIXED = re.compile(r"nvidia-cuda-runtime-cu(\d+)\b")
_VERSIONED = re.compile(r"nvidia-cuda-runtime\s*\(?[~=><]=?\s*(\d+)\.")

Installed = Callable[[str], tuple[str, Sequence[str]] | None]
"""Name of a package -> its version and requirements; ``None`` if it is not installed."""


@dataclass(frozen=True, slots=True)
class RuntimePackage:
    """The installed ONNX Runtime.

    Attributes:
        name: of the package; empty if none is installed.
        version: of the package.
        cuda_major: CUDA major it needs; ``None`` for a build without CUDA, or one that does not say.
        libraries: installed packages of the CUDA runtime and cuDNN -> version.
    """

    name: str = ""
    version: str = ""
    cuda_major: int | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)


def cuda_major_of(requirements: Sequence[str]) -> int | None:
    """CUDA major from a package's requirements: ``nvidia-cuda-runtime-cu12~=12.0`` or ``nvidia-cuda-runtime~=13.0``."""
    for requirement in requirements:
        match = _SUFFIXED.match(requirement) or _VERSIONED.match(requirement)
        if match:
            return int(match[1])
    return None


def installed_runtime(installed: Installed | None = None) -> RuntimePackage:
    """Look at the installed packages, this environment's if ``installed`` is ``None``."""
    find = installed or _installed
    libraries = {name: found[0] for name in LIBRARY_PACKAGES if (found := find(name)) is not None}
    for name in (GPU_PACKAGE, CPU_PACKAGE):
        if (found := find(name)) is not None:
            return RuntimePackage(name, found[0], cuda_major_of(found[1]), libraries)
    return RuntimePackage(libraries=libraries)


def _installed(name: str) -> tuple[str, Sequence[str]] | None:
    from importlib import metadata  # noqa: PLC0415  # takes 10 ms, and only machines with a GPU need it

    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return distribution.version, distribution.requires or ()
