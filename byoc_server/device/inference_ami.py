"""Which SageMaker host image brings a driver that fits: the advice at the end of a line that says what does not.

Source: ``InferenceAmiVersion`` of ``ProductionVariant`` in the SageMaker API (November 2026). Without one, some
instance families still come with driver 470.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from byoc_server.device.compat_package import CompatPackage
from byoc_server.device.version import DriverVersion

AMI_DRIVER_BRANCHES: Mapping[str, int] = {
    "al2-ami-sagemaker-inference-gpu-2-1": 535,
    "al2-ami-sagemaker-inference-gpu-3-1": 550,
    "al2023-ami-sagemaker-inference-gpu-4-1": 580,
}
"""``InferenceAmiVersion`` -> driver branch, oldest first."""

OLDEST_DRIVERS: Mapping[int, int] = {11: 450, 12: 525, 13: 580}
"""CUDA major -> oldest driver branch that runs it without a package (NVIDIA guide, "minor version compatibility")."""

_OLDEST_WITH_PACKAGE = 535


def ami_advice(cuda_major: int | None, driver: DriverVersion | None, packages: Sequence[CompatPackage]) -> str:
    """What to change so that the GPU works.

    Args:
        cuda_major: CUDA major that ONNX Runtime needs; ``None`` if unknown: then only the packages count.
        driver: of the host as it is.
        packages: in the image.
    """
    sound = [package for package in packages if package.defect is None and _new_enough(package, cuda_major)]
    fitting = [
        f"{name} (driver {branch})"
        for name, branch in AMI_DRIVER_BRANCHES.items()
        if _native(cuda_major, branch) or any(runs_on(package, branch) for package in sound)
    ]
    advice = [f"set InferenceAmiVersion to {' or '.join(fitting)}"] if fitting else ["use a host with a newer driver"]
    if cuda_major is not None and not sound and driver is not None and driver.branch >= _OLDEST_WITH_PACKAGE:
        advice.append(f"or add the package cuda-compat-{cuda_major}-0 to the image")
    return ", ".join(advice)


def runs_on(package: CompatPackage, branch: int) -> bool:
    """Whether a package says that it runs on a driver branch older than itself."""
    if package.version is None or package.version.branch <= branch:
        return False
    listed = package.note.branches if package.note is not None else frozenset()
    return branch in listed if listed else branch >= _OLDEST_WITH_PACKAGE


def _native(cuda_major: int | None, branch: int) -> bool:
    oldest = OLDEST_DRIVERS.get(cuda_major) if cuda_major is not None else None
    return oldest is not None and branch >= oldest


def _new_enough(package: CompatPackage, cuda_major: int | None) -> bool:
    return cuda_major is None or (package.cuda is not None and package.cuda[0] >= cuda_major)
