"""The advice at the end of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from byoc_server.device.compat_package import CompatNote, CompatPackage, Defect
from byoc_server.device.inference_ami import ami_advice, runs_on
from byoc_server.device.version import CudaLevel, DriverVersion


def version(text: str) -> DriverVersion:
    parsed = DriverVersion.parse(text)
    assert parsed is not None
    return parsed


def package(of: str, cuda: CudaLevel | None, *branches: int) -> CompatPackage:
    note = CompatNote(cuda, frozenset(branches)) if branches else None
    return CompatPackage(Path("/compat"), version(of), cuda=cuda, note=note)


COMPAT_13 = package("580.95.05", (13, 0), 535, 550, 565, 570, 575, 580)
COMPAT_12_8 = package("570.172.08", (12, 8), 470, 535, 550)


@pytest.mark.parametrize(
    ("cuda_major", "driver", "packages", "advice"),
    [
        (13, "470.57.02", [], "set InferenceAmiVersion to al2023-ami-sagemaker-inference-gpu-4-1 (driver 580)"),
        (
            13,
            "470.57.02",
            [COMPAT_13],
            "gpu-2-1 (driver 535) or al2-ami-sagemaker-inference-gpu-3-1 (driver 550)",
        ),
        (13, "535.54.03", [], "or add the package cuda-compat-13-0 to the image"),
        (12, "470.57.02", [], "set InferenceAmiVersion to al2-ami-sagemaker-inference-gpu-2-1 (driver 535)"),
        (14, "580.95.05", [], "use a host with a newer driver, or add the package cuda-compat-14-0 to the image"),
        (None, "470.57.02", [COMPAT_13], "al2-ami-sagemaker-inference-gpu-2-1 (driver 535)"),
        (None, None, [], "use a host with a newer driver"),
    ],
)
def test_advice(cuda_major: int | None, driver: str | None, packages: list[CompatPackage], advice: str) -> None:
    assert advice in ami_advice(cuda_major, version(driver) if driver else None, packages)


def test_a_package_of_too_old_a_level_or_with_a_defect_helps_nobody() -> None:
    broken = CompatPackage(Path("/compat"), None, Defect.EMPTY)
    for useless in (COMPAT_12_8, broken):
        assert ami_advice(13, version("535.54.03"), [useless]) == ami_advice(13, version("535.54.03"), [])


@pytest.mark.parametrize(
    ("of", "branch", "expected"),
    [
        (COMPAT_13, 535, True),
        (COMPAT_13, 470, False),
        (COMPAT_13, 580, False),
        (COMPAT_12_8, 470, True),
        (package("580.95.05", (13, 0)), 535, True),
        (package("580.95.05", (13, 0)), 525, False),
        (CompatPackage(Path("/compat"), None, Defect.EMPTY), 535, False),
    ],
)
def test_what_a_package_runs_on(of: CompatPackage, branch: int, expected: bool) -> None:
    assert runs_on(of, branch) is expected
