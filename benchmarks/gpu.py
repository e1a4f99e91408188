"""What the benchmarks on a GPU share: whether there is one, which, and how much of its memory is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pynvml  # type: ignore[import-untyped]  # it has no type information

from benchmarks.report import BenchmarkError
from byoc_server.device.gpu import look_for_gpus
from byoc_server.device.nvml import NvmlReport, read_nvml
from byoc_server.engines.onnx import built_in_providers
from byoc_server.engines.onnx_runtime import ort
from byoc_server.engines.providers import CUDA

_MIB = 1024 * 1024


def require_gpu() -> dict[str, object]:
    """Name, memory and driver of the GPU and version of ONNX Runtime, for the result file.

    Raises:
        BenchmarkError: there is none, or ONNX Runtime cannot use it.
    """
    if not look_for_gpus(Path("/"), os.environ).usable:
        raise BenchmarkError("this benchmark needs an NVIDIA GPU, and there is none here")
    if CUDA not in built_in_providers():
        raise BenchmarkError("this benchmark needs onnxruntime-gpu in place of onnxruntime (byoc-server[gpu])")
    return {**facts(read_nvml()), "onnxruntime_gpu": ort.__version__}


def facts(nvml: NvmlReport) -> dict[str, object]:
    """What identifies the first GPU, and no more.

    Raises:
        BenchmarkError: the driver does not tell.
    """
    if not nvml.gpus:
        raise BenchmarkError(f"the driver lists no GPU: {nvml.error or 'NVML finds none'}")
    gpu = nvml.gpus[0]
    return {"gpu": gpu.name, "gpu_memory_mib": gpu.memory_bytes // _MIB, "driver": nvml.driver}


def used_bytes() -> int:
    """Memory in use on the first GPU, by all processes."""
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()
