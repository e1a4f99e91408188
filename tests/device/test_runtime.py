"""Which ONNX Runtime is installed, from metadata alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from byoc_server.device.runtime import RuntimePackage, cuda_major_of, installed_runtime

CUDA_13 = ("flatbuffers", 'nvidia-cuda-nvrtc~=13.0; extra == "cuda"', 'nvidia-cuda-runtime~=13.0; extra == "cuda"')
CUDA_12 = ("numpy>=1.21.6", 'nvidia-cuda-runtime-cu12~=12.0; extra == "cuda"')


@pytest.mark.parametrize(
    ("requirements", "major"),
    [
        (CUDA_13, 13),
        (CUDA_12, 12),
        (("nvidia-cuda-runtime-cu13~=13.0",), 13),
        (("nvidia-cuda-runtime (>=13.0)",), 13),
        (("numpy", "nvidia-cuda-runtime"), None),
        ((), None),
    ],
)
def test_cuda_major(requirements: Sequence[str], major: int | None) -> None:
    assert cuda_major_of(requirements) == major


def look(packages: Mapping[str, tuple[str, Sequence[str]]]) -> RuntimePackage:
    return installed_runtime(packages.get)


def test_the_gpu_build_counts_before_the_cpu_build() -> None:
    packages = {"onnxruntime": ("1.31.0", ()), "onnxruntime-gpu": ("1.31.1", CUDA_13), "nvidia-cudnn-cu13": ("9.1", ())}
    assert look(packages) == RuntimePackage("onnxruntime-gpu", "1.31.1", 13, {"nvidia-cudnn-cu13": "9.1"})


def test_nothing_installed() -> None:
    assert look({}) == RuntimePackage()


def test_this_environment_without_importing_onnx_runtime() -> None:
    code = (
        "import sys; from byoc_server.device.runtime import installed_runtime as look; "
        "print(look().name, 'onnxruntime' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.split() == ["onnxruntime", "False"]
