"""Fifty test vectors, one row each, through the survey of a root folder laid out for them and the rules alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from byoc_server.device.cuda_compat import CompatMode, decide
from byoc_server.device.nvml import Gpu, NvmlReport
from byoc_server.device.runtime import RuntimePackage
from byoc_server.device.survey import Sources, survey
from tests.device.fake_root import (
    BRANCHES_128,
    BRANCHES_129,
    BRANCHES_131,
    FakeRoot,
    closed_banner,
    open_banner,
)
from tests.device.test_linker import cache_of

NVIDIA, GEFORCE = 14, 5
Lay = Callable[[FakeRoot], object]


@dataclass(frozen=True)
class Vector:
    """One row: what the sources say, what the folder holds, what GPU there is, what must come of it."""

    number: int
    verdict: str
    proc: str | None = None
    versions: tuple[str, ...] = ("575.57.08",)
    note: tuple[int, ...] | bytes | None = BRANCHES_129
    gpu: str | None = "NVIDIA L4"
    brand: int = NVIDIA
    sysfs: str | None = None
    nvml: str = ""
    nvml_error: int = 0
    smi: tuple[str, int] = ("nvidia-smi: not found", 127)
    link: bool | str = True
    package: bool = True
    environ: Mapping[str, str] = field(default_factory=dict)
    lay: Lay = lambda root: None
    says: str = ""


SMI_FAILED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161"
ARM = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.173.02  Release Build  "
    "(dvs-builder@U22)  Mon Sep  1 10:00:00 UTC 2026\n"
)
ORIN = "NVRM version: NVIDIA UNIX Kernel Module for aarch64  34.1.1  Release Build  (buildbrain@mobile)\n"
GCC = "GCC version:  gcc version 9.4.0 (Ubuntu 9.4.0-1ubuntu1~20.04.1)\n"


def in_cuda_129(root: FakeRoot) -> None:
    """The package lies in the versioned folder, ``/usr/local/cuda`` is a link to it."""
    root.compat("usr/local/cuda-12.9/compat", note=BRANCHES_129).link("usr/local/cuda", "cuda-12.9")
    root.host_library("580.95.05")


def registered(root: FakeRoot) -> None:
    """As 44, and in the linker's cache, before the host's library."""
    in_cuda_129(root)
    libraries = ["/usr/local/cuda-12.9/compat/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"]
    root.file("etc/ld.so.cache", cache_of(*(("libcuda.so.1", path) for path in libraries)))


def mounted(root: FakeRoot) -> None:
    """An older container toolkit has mounted the package's library beside the driver's own."""
    folder = "usr/lib/x86_64-linux-gnu"
    root.host_library("515.105.01").file(f"{folder}/libcuda.so.570.124.06", b"")
    (root.path / folder / "libcuda.so.1").unlink()
    root.link(f"{folder}/libcuda.so.1", "libcuda.so.570.124.06")


def linked_absolutely(root: FakeRoot) -> None:
    """A link with an absolute target, to a library whose note is no JSON."""
    note = b'{"format": 1, "CUDA version": "12.9", "driver": [535,],}'
    target = "/usr/local/cuda-12.9/compat/libcuda.so.575.57.08"
    root.compat("usr/local/cuda-12.9/compat", link=target, note=note).link("usr/local/cuda", "cuda-12.9")


C, O = closed_banner, open_banner  # noqa: E741  # the names the table uses

VECTORS = [
    Vector(1, "ENABLE", C("470.57.02"), ("570.172.08",), BRANCHES_128, "Tesla T4"),
    Vector(2, "SKIP_BRANCH_UNSUPPORTED", C("470.57.02"), gpu="NVIDIA A10G"),
    Vector(3, "SKIP_BRANCH_UNSUPPORTED", C("470.57.02"), ("580.95.05",), None, "NVIDIA A10G"),
    Vector(4, "ENABLE", C("535.54.03")),
    Vector(5, "ENABLE", C("535.54.03"), ("580.95.05",), (535, 550, 565, 570, 575, 580), "NVIDIA H100"),
    Vector(6, "ENABLE", C("550.144.01"), gpu="NVIDIA H200"),
    Vector(7, "SKIP_DRIVER_NEWER", O("580.95.05")),
    Vector(8, "SKIP_DRIVER_NEWER", O("580.142"), ("580.95.05",), None, "NVIDIA A100"),
    Vector(9, "ENABLE", O("580.95.05"), ("580.142",), None, "NVIDIA A100", says="same branch"),
    Vector(10, "SKIP_DRIVER_EQUAL", C("535.54.03"), ("535.54.03",), None, "Tesla T4"),
    Vector(11, "ENABLE", C("535.54"), ("535.54.03",), None, "Tesla T4"),
    Vector(12, "SKIP_DRIVER_NEWER", C("535.54.03"), ("535.54",), None, "Tesla T4"),
    Vector(13, "SKIP_DRIVER_EQUAL", C("575.64"), ("575.64.00",), None),
    Vector(14, "SKIP_DRIVER_NEWER", O("590.44.01"), gpu="NVIDIA B200"),
    Vector(15, "ENABLE", O("570.195.03"), ("590.44.01",), BRANCHES_131, "NVIDIA H100"),
    Vector(16, "SKIP_BRANCH_UNSUPPORTED", O("560.35.03"), ("590.44.01",), BRANCHES_131, "NVIDIA H100"),
    Vector(17, "ENABLE", O("565.57.01"), gpu="NVIDIA L40S"),
    Vector(18, "ENABLE", ARM, ("595.45.04",), None, "NVIDIA GH200"),
    Vector(19, "SKIP_BRANCH_UNSUPPORTED", ORIN, note=None, gpu="Orin"),
    Vector(20, "SKIP_UNKNOWN_DRIVER", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 malformed\n"),
    Vector(21, "SKIP_UNKNOWN_DRIVER", GCC),
    Vector(22, "SKIP_UNKNOWN_DRIVER", ""),
    Vector(
        23,
        "SKIP_BRANCH_UNSUPPORTED",
        "\r\nNVRM version: NVIDIA UNIX x86_64 Kernel Module  418.40.04  Fri Mar 15\r\n",
        gpu="Tesla V100",
    ),
    Vector(24, "ENABLE", sysfs="535.183.01\n", gpu="NVIDIA A10G"),
    Vector(25, "ENABLE", nvml="550.144.03"),
    Vector(26, "ENABLE", smi=("535.54.03\n" * 4, 0), gpu="NVIDIA A10G"),
    Vector(27, "SKIP_UNKNOWN_DRIVER", smi=("535.54.03\n550.54.15\n", 0), gpu="NVIDIA A10G"),
    Vector(28, "SKIP_UNKNOWN_DRIVER", smi=("[N/A]\n", 0)),
    Vector(29, "SKIP_UNKNOWN_DRIVER", smi=(SMI_FAILED, 9)),
    Vector(30, "SKIP_UNKNOWN_DRIVER", smi=(MISMATCH, 0)),
    Vector(31, "SKIP_NO_GPU", smi=("No devices were found\n", 6), gpu=None),
    Vector(32, "SKIP_UNKNOWN_DRIVER", smi=("535\n", 0)),
    Vector(33, "SKIP_UNKNOWN_DRIVER", smi=("535.54.03.01\n", 0)),
    Vector(34, "SKIP_NO_GPU", gpu=None),
    Vector(35, "SKIP_NO_PACKAGE", C("535.54.03"), gpu="Tesla T4", package=False),
    Vector(36, "SKIP_BROKEN_PACKAGE", C("535.54.03"), (), gpu="Tesla T4"),
    Vector(
        37,
        "SKIP_BROKEN_PACKAGE",
        C("535.54.03"),
        ("615.31",),
        gpu="Tesla T4",
        link=False,
        lay=lambda root: root.file("usr/local/cuda/compat/libnvidia-ptxjitcompiler.so.615.31"),
    ),
    Vector(38, "SKIP_AMBIGUOUS", C("535.54.03"), ("550.54.15", "575.57.08"), gpu="Tesla T4"),
    Vector(39, "SKIP_BROKEN_PACKAGE", C("535.54.03"), ("1.1",), gpu="Tesla T4"),
    Vector(
        40,
        "SKIP_HW_UNSUPPORTED",
        C("535.171.04"),
        ("570.124.06",),
        (535, 550, 560, 565, 570),
        "NVIDIA GeForce RTX 4090",
        GEFORCE,
    ),
    Vector(41, "ENABLE", C("535.54.03"), note=None, gpu="NVIDIA H100 MIG 1g.10gb"),
    Vector(42, "ENABLE", O("99.55.66"), ("222.88.99",), None, "NVIDIA A100"),
    Vector(
        43,
        "ALREADY_ACTIVE",
        C("535.54.03"),
        environ={"LD_LIBRARY_PATH": "/usr/local/cuda/compat:/usr/local/nvidia/lib64"},
        lay=lambda root: root.host_library("535.54.03", "usr/local/nvidia/lib64"),
    ),
    Vector(
        44,
        "EVICT",
        O("580.95.05"),
        package=False,
        environ={"LD_LIBRARY_PATH": "/usr/local/cuda-12.9/compat"},
        lay=in_cuda_129,
    ),
    Vector(45, "EVICT", O("580.95.05"), package=False, lay=registered),
    Vector(
        46,
        "ALREADY_ACTIVE",
        C("515.105.01"),
        ("570.124.06",),
        (470, 515, 535, 550, 560, 565),
        "NVIDIA A100",
        lay=mounted,
    ),
    Vector(47, "ENABLE", C("535.54.03"), environ={"LD_LIBRARY_PATH": ""}),
    Vector(
        48,
        "ENABLE",
        C("535.54.03"),
        package=False,
        lay=linked_absolutely,
        says="note cannot be read",
    ),
    Vector(49, "ENABLE", C("535.54.03"), nvml_error=18, says="NVML is of another version"),
    Vector(
        50,
        "SKIP_DRIVER_EQUAL",
        C("535.183.01"),
        ("535.183.01",),
        None,
        "Tesla T4",
        nvml="535.161.07",
        says="nvml says driver 535.161.07",
    ),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector.number))
def test_vector(vector: Vector, tmp_path: Path) -> None:
    root = FakeRoot(tmp_path)
    if vector.proc is not None:
        root.banner(vector.proc)
    if vector.sysfs is not None:
        root.sysfs(vector.sysfs)
    if vector.gpu is not None:
        root.nodes("nvidia0", "nvidiactl")
    if vector.package:
        root.compat(versions=vector.versions, link=vector.link, note=vector.note)
    vector.lay(root)
    gpus = (Gpu(vector.gpu, vector.brand),) if vector.gpu and not vector.nvml_error else ()
    report = NvmlReport(vector.nvml, gpus, "error" if vector.nvml_error else "", vector.nvml_error)
    sources = Sources(lambda: report, lambda: vector.smi, RuntimePackage)
    decision = decide(CompatMode.RULE, survey(vector.environ, root=tmp_path, sources=sources).facts)
    assert decision.verdict.value == vector.verdict, decision.message
    lines = [decision.message, *(remark.message for remark in decision.remarks)]
    assert any(vector.says in line for line in lines), lines


def test_vectors_are_complete() -> None:
    assert [vector.number for vector in VECTORS] == list(range(1, 51))
