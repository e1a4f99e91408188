"""Where the model runs: the device, ONNX Runtime's execution providers for it, and why a GPU was not to be had. Pure.

ONNX Runtime takes the CUDA provider for a wish: where it cannot be had, the session runs on the CPU, and the reason is
a line on stderr. A GPU is paid for by the hour, so here it is a demand, and the reason has to reach the person who can
do something about it, in words that say what.
"""

from __future__ import annotations

import enum
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from byoc_server.errors import GpuUnavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

CUDA_OPTIONS: Mapping[str, str] = {
    # The first GPU that CUDA_VISIBLE_DEVICES leaves visible.
    "device_id": "0",
    # By default the arena doubles whenever it grows, and keeps from other workers on the same GPU what nobody uses.
    "arena_extend_strategy": "kSameAsRequested",
    # By default every new input shape, and so every new batch size, first tries all algorithms of each convolution.
    "cudnn_conv_algo_search": "HEURISTIC",
}
"""Options that differ from the defaults or say what is meant. Source: ONNX Runtime documentation, "CUDA Execution
Provider", section Configuration Options, version 1.31."""

_INSTALL_GPU = "install onnxruntime-gpu in place of onnxruntime (byoc-server[gpu])"
_INSTALL_CUDA = "install onnxruntime-gpu[cuda,cudnn] (byoc-server[gpu]), or take an image with CUDA and cuDNN"
_WITHOUT = "--device cpu does without a GPU"
_NEWER_DRIVER = (
    "the host's NVIDIA driver is too old for the CUDA libraries here; take a host with a newer one (on SageMaker: a "
    "newer InferenceAmiVersion), or put the cuda-compat package that fits these libraries into the image"
)
_WRONG_COMPAT = (
    "set --cuda-compat off and take a host whose own driver is new enough (on SageMaker: a newer InferenceAmiVersion), "
    "or install a version of the package that fits"
)

_OUT_OF_MEMORY = 2
_CUDA_ADVICE: Mapping[int, str] = {
    _OUT_OF_MEMORY: "the model does not fit into what is free of the GPU's memory; use fewer --workers or a larger GPU",
    34: "a stub of libcuda.so.1 was loaded, which is only for linking; take its folder out of LD_LIBRARY_PATH",
    35: _NEWER_DRIVER,
    36: _NEWER_DRIVER,
    100: "the driver library is here but no GPU; use an instance with an NVIDIA GPU, start the container with "
    "--gpus all, and see that CUDA_VISIBLE_DEVICES does not hide it",
    222: _NEWER_DRIVER,
    802: "the GPUs of this host are still being set up (its fabric manager is not ready); restart the container",
    803: "libcuda.so.1 comes from the image, mostly from its cuda-compat package, and does not fit the host's driver; "
    + _WRONG_COMPAT,
    804: f"the cuda-compat package does not support this kind of GPU; {_WRONG_COMPAT}",
}
"""CUDA error code -> what it means for a container and what to do. Source of the codes: CUDA Runtime API 13.0,
``cudaError_t``."""

_CODE = re.compile(r"\b(CU[A-Z_]*|NCCL) failure (-?\d+): ([^;\n]*)")
"""How ONNX Runtime reports an error of CUDA or one of its libraries; what follows the semicolon is about its source."""
_MISSING_LIBRARY = re.compile(r"([\w.+-]+): cannot open shared object file")
_MISSING_SYMBOL = re.compile(r"undefined symbol: (cu[A-Z]\w*)")
"""The linker's words (glibc 2.31 to 2.41). Functions of the driver library are in camel case, ``cublas...`` is not."""
_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s/]+/)*")
_LONGEST = 300


class Device(enum.Enum):
    """What a model runs on."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where to run, and what to tell the operator about it.

    Attributes:
        device: where.
        advice: a warning; empty if there is nothing to say.
    """

    device: Device
    advice: str = ""


def choose_device(setting: str, gpu_usable: bool, built_in_providers: Collection[str]) -> DeviceChoice:
    """Choose the device.

    Args:
        setting: ``auto``, ``cpu`` or ``gpu``.
        gpu_usable: a GPU is to be seen here; matters for ``auto`` alone.
        built_in_providers: what the installed ONNX Runtime was built with, which is not what works here.

    Raises:
        GpuUnavailable: ``gpu`` was demanded of an ONNX Runtime that is for the CPU only.
    """
    if setting == "cpu" or (setting == "auto" and not gpu_usable):
        return DeviceChoice(Device.CPU)
    if CUDA in built_in_providers:
        return DeviceChoice(Device.GPU)
    if setting == "auto":
        return DeviceChoice(
            Device.CPU,
            "there is a GPU, but the installed ONNX Runtime is for the CPU only, so the model runs on the CPU; "
            f"{_INSTALL_GPU}, or set --device cpu to say that this is meant",
        )
    raise GpuUnavailable(
        f"a GPU is demanded, but the installed ONNX Runtime is for the CPU only; {_INSTALL_GPU}; {_WITHOUT}"
    )


def provider_options(device: Device) -> Sequence[str | tuple[str, Mapping[str, str]]]:
    """Execution providers in order of preference, as ``InferenceSession`` takes them.

    The CPU comes second on a GPU too: for the few operators that have no CUDA kernel.
    """
    return [CPU] if device is Device.CPU else [(CUDA, CUDA_OPTIONS), CPU]


def is_gpu_failure(reported: str) -> bool:
    """Whether an error of ONNX Runtime is about the GPU or its libraries, and not about the model."""
    return any(pattern.search(reported) for pattern in (_CODE, _MISSING_LIBRARY, _MISSING_SYMBOL))


def is_out_of_memory(reported: str) -> bool:
    """Whether the GPU only had too little memory for this run; any other failure spoils its context."""
    code = _CODE.search(reported)
    return code is not None and (code[1], int(code[2])) == ("CUDA", _OUT_OF_MEMORY)


def explain_gpu_failure(reported: str) -> str:
    """Say in one line what is wrong and what to do.

    Args:
        reported: ONNX Runtime's or the dynamic linker's own words; empty if there are none.

    Returns:
        A line without the paths and the host name that ``reported`` may hold.
    """
    return f"the model cannot run on the GPU: {_explain(reported)}; {_WITHOUT}"


def _explain(reported: str) -> str:
    if code := _CODE.search(reported):
        library, number, words = code[1], int(code[2]), textwrap.shorten(code[3], _LONGEST)
        name = f"{library} failure {number} ({words})"
        return f"{name}: {_CUDA_ADVICE[number]}" if library == "CUDA" and number in _CUDA_ADVICE else name
    if missing := _MISSING_LIBRARY.search(reported):
        return f"{missing[1]} is not in this container; {_how_to_get(missing[1])}"
    if symbol := _MISSING_SYMBOL.search(reported):
        return f"the driver library has no {symbol[1]}: {_NEWER_DRIVER}"
    first_line = _FOLDERS.sub("", reported.strip().partition("\n")[0])
    return textwrap.shorten(first_line, _LONGEST) or (
        f"ONNX Runtime left it unused and does not say why; {_INSTALL_CUDA}, and see that the driver fits"
    )


def _how_to_get(library: str) -> str:
    if library.startswith("libcuda.so"):  # part of the driver, which the container toolkit brings in from the host
        return "use an instance with an NVIDIA GPU, and start the container with --gpus all"
    if library.startswith("libonnxruntime"):
        return _INSTALL_GPU
    return _INSTALL_CUDA
