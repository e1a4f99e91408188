"""Where the model runs: the device, and ONNX Runtime's execution providers for it with their options. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from byoc_server.engines.base import GpuOptions
from byoc_server.engines.gpu_failure import INSTALL_GPU, WITHOUT_GPU, WITHOUT_TENSORRT
from byoc_server.errors import GpuUnavailable, SettingsError

CUDA, CPU, TENSORRT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider as ``InferenceSession`` takes it: its name, or with its options."""

_FIRST_GPU = "0"
"""Of those that CUDA_VISIBLE_DEVICES leaves visible; each process sees the one it is to use."""
_ARENAS = {"same_as_requested": "kSameAsRequested", "next_power_of_two": "kNextPowerOfTwo"}


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


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """What TensorRT is told about the engines it builds for one model.

    Attributes:
        cache_folder: where they are kept; empty = nowhere.
        largest_batch: input -> shape of the largest batch; empty where some other axis is open too, or a name cannot
            be written in an option.
    """

    cache_folder: str = ""
    largest_batch: Mapping[str, Sequence[int]] = field(default_factory=dict)


def choose_device(
    setting: str, gpu_usable: bool, built_in_providers: Collection[str], execution_provider: str = "cuda"
) -> DeviceChoice:
    """Choose the device.

    Args:
        setting: ``auto``, ``cpu`` or ``gpu``.
        gpu_usable: a GPU is to be seen here; matters for ``auto`` alone.
        built_in_providers: what the installed ONNX Runtime was built with, which is not what works here.
        execution_provider: ``cuda`` or ``tensorrt``.

    Raises:
        GpuUnavailable: ``gpu`` was demanded of an ONNX Runtime that is for the CPU only, or TensorRT of one that was
            built without.
    """
    if setting == "cpu" or (setting == "auto" and not gpu_usable):
        return DeviceChoice(Device.CPU)
    if CUDA in built_in_providers:
        if execution_provider == "tensorrt" and TENSORRT not in built_in_providers:
            raise GpuUnavailable(
                "TensorRT is demanded, but the installed ONNX Runtime was built without it; install onnxruntime-gpu as "
                f"published; {WITHOUT_TENSORRT}"
            )
        return DeviceChoice(Device.GPU)
    if setting == "auto":
        return DeviceChoice(
            Device.CPU,
            "there is a GPU, but the installed ONNX Runtime is for the CPU only, so the model runs on the CPU; "
            f"{INSTALL_GPU}, or set --device cpu to say that this is meant",
        )
    raise GpuUnavailable(
        f"a GPU is demanded, but the installed ONNX Runtime is for the CPU only; {INSTALL_GPU}; {WITHOUT_GPU}"
    )


def check_gpu_options(gpu: GpuOptions) -> None:
    """Refuse what does not go together.

    TensorRT's provider captures CUDA graphs on its own account, one for all shapes, and replays it for shapes that it
    does not fit: ``gpu_graph_id``, which tells shapes apart, is for the CUDA provider alone (ONNX Runtime 1.31).

    Raises:
        SettingsError: CUDA graphs with TensorRT.
    """
    if gpu.cuda_graphs and gpu.execution_provider == "tensorrt":
        raise SettingsError(
            "cuda_graphs needs execution_provider=cuda; TensorRT cannot tell batches of two shapes apart"
        )


def gpu_providers(gpu: GpuOptions, build: EngineBuild | None = None) -> list[Provider]:
    """Execution providers on a GPU in order of preference, as ``InferenceSession`` takes them.

    The CPU comes last: for the few operators that have no CUDA kernel. So does CUDA behind TensorRT.

    Args:
        gpu: the settings.
        build: for TensorRT.
    """
    behind: list[Provider] = [(CUDA, cuda_options(gpu)), CPU]
    if gpu.execution_provider == "cuda":
        return behind
    return [(TENSORRT, tensorrt_options(gpu, build or EngineBuild())), *behind]


def cuda_options(gpu: GpuOptions) -> Mapping[str, str]:
    """Options of the CUDA provider that differ from its defaults or say what is meant.

    Source: ONNX Runtime documentation, "CUDA Execution Provider", section Configuration Options, version 1.31. Its
    compute stream is left to ONNX Runtime: each session has its own, so that copies of one session overlap with the
    computation of another.
    """
    options = {
        "device_id": _FIRST_GPU,
        # By default the arena doubles whenever it grows, and keeps from other workers on the same GPU what nobody uses.
        "arena_extend_strategy": _ARENAS[gpu.arena],
        # By default every new input shape, and so every new batch size, first tries all algorithms of each convolution.
        "cudnn_conv_algo_search": gpu.cudnn_search.upper(),
    }
    if gpu.memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(gpu.memory_limit_bytes)
    if gpu.cuda_graphs:
        options["enable_cuda_graph"] = "1"
    return options


def tensorrt_options(gpu: GpuOptions, build: EngineBuild) -> Mapping[str, str]:
    """Options of the TensorRT provider.

    Source: ONNX Runtime documentation, "TensorRT Execution Provider", sections Configurations and Explicit shape range
    for dynamic shape input, version 1.31.
    """
    options = {"device_id": _FIRST_GPU}
    if gpu.tensorrt_precision != "model":
        options[f"trt_{gpu.tensorrt_precision}_enable"] = "1"
    if gpu.memory_limit_bytes is not None:
        options["trt_max_workspace_size"] = str(gpu.memory_limit_bytes)  # by default all of the GPU's memory
    if build.cache_folder:
        # By default an engine, which takes seconds to minutes to build, is forgotten when the process ends. The timing
        # cache is of use also where an engine does not fit any more.
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": build.cache_folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": build.cache_folder}
    if build.largest_batch:
        # By default an engine fits the shapes seen so far, and is built anew for each that does not: for every rung.
        largest = {name: tuple(shape) for name, shape in build.largest_batch.items()}
        smallest = {name: (1, *shape[1:]) for name, shape in largest.items()}
        options["trt_profile_min_shapes"] = _profile(smallest)
        options["trt_profile_opt_shapes"] = options["trt_profile_max_shapes"] = _profile(largest)
    return options


def _profile(shapes: Mapping[str, Sequence[int]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
