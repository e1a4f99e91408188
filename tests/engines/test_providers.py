"""Choosing the device, its execution providers and their options."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from byoc_server.engines.base import GpuOptions
from byoc_server.engines.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Device,
    EngineBuild,
    Provider,
    check_gpu_options,
    choose_device,
    cuda_options,
    gpu_providers,
    tensorrt_options,
)
from byoc_server.errors import GpuUnavailable, SettingsError

WITH_CUDA = ["TensorrtExecutionProvider", CUDA, CPU]
CPU_ONLY = ["AzureExecutionProvider", CPU]


@pytest.mark.parametrize(
    ("setting", "gpu_usable", "built_in", "device"),
    [
        ("cpu", True, WITH_CUDA, Device.CPU),
        ("cpu", False, CPU_ONLY, Device.CPU),
        ("auto", False, WITH_CUDA, Device.CPU),
        ("auto", False, CPU_ONLY, Device.CPU),
        ("auto", True, WITH_CUDA, Device.GPU),
        ("gpu", True, WITH_CUDA, Device.GPU),
        ("gpu", False, WITH_CUDA, Device.GPU),  # what is to be seen may be wrong; CUDA itself will tell
    ],
)
def test_the_device_is_chosen_without_a_word(
    setting: str, gpu_usable: bool, built_in: list[str], device: Device
) -> None:
    choice = choose_device(setting, gpu_usable, built_in)
    assert (choice.device, choice.advice) == (device, "")


def test_a_gpu_that_the_installed_onnx_runtime_cannot_use_is_pointed_out() -> None:
    choice = choose_device("auto", True, CPU_ONLY)
    assert choice.device is Device.CPU
    for words in ("onnxruntime-gpu", "--device cpu"):
        assert words in choice.advice


@pytest.mark.parametrize("gpu_usable", [True, False])
def test_a_gpu_demanded_of_onnx_runtime_for_the_cpu_is_an_error(gpu_usable: bool) -> None:
    with pytest.raises(GpuUnavailable, match="install onnxruntime-gpu in place of onnxruntime"):
        choose_device("gpu", gpu_usable, CPU_ONLY)


def test_tensorrt_demanded_of_onnx_runtime_without_it_is_an_error() -> None:
    assert choose_device("gpu", True, WITH_CUDA, "tensorrt").device is Device.GPU
    with pytest.raises(GpuUnavailable, match=r"built without it; .*--execution-provider cuda does without"):
        choose_device("gpu", True, [CUDA, CPU], "tensorrt")
    assert choose_device("cpu", True, [CUDA, CPU], "tensorrt").device is Device.CPU


def names_of(providers: list[Provider]) -> list[str]:
    return [provider if isinstance(provider, str) else provider[0] for provider in providers]


@pytest.mark.parametrize(("execution_provider", "names"), [("cuda", [CUDA, CPU]), ("tensorrt", [TENSORRT, CUDA, CPU])])
def test_what_was_asked_for_comes_first_and_the_cpu_last(execution_provider: str, names: list[str]) -> None:
    providers = gpu_providers(GpuOptions(execution_provider))
    assert names_of(providers) == names
    for provider in providers:
        assert isinstance(provider, str) or all(isinstance(value, str) for value in provider[1].values())


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (GpuOptions(), {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}),
        (GpuOptions(arena="next_power_of_two"), {"arena_extend_strategy": "kNextPowerOfTwo"}),
        (GpuOptions(cudnn_search="exhaustive"), {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        (GpuOptions(cudnn_search="default"), {"cudnn_conv_algo_search": "DEFAULT"}),
        (GpuOptions(memory_limit_bytes=3 * 2**30), {"gpu_mem_limit": "3221225472"}),
        (GpuOptions(cuda_graphs=True), {"enable_cuda_graph": "1"}),
    ],
)
def test_settings_become_options_of_cuda(gpu: GpuOptions, expected: Mapping[str, str]) -> None:
    options = cuda_options(gpu)
    assert options["device_id"] == "0"
    assert options.items() >= expected.items()


def test_what_is_not_set_is_left_to_the_provider() -> None:
    assert set(cuda_options(GpuOptions())) == {"device_id", "arena_extend_strategy", "cudnn_conv_algo_search"}
    assert tensorrt_options(GpuOptions("tensorrt"), EngineBuild()) == {"device_id": "0"}


@pytest.mark.parametrize(
    ("gpu", "build", "expected"),
    [
        (GpuOptions(tensorrt_precision="fp16"), EngineBuild(), {"trt_fp16_enable": "1"}),
        (GpuOptions(tensorrt_precision="int8"), EngineBuild(), {"trt_int8_enable": "1"}),
        (GpuOptions(memory_limit_bytes=2**30), EngineBuild(), {"trt_max_workspace_size": "1073741824"}),
        (
            GpuOptions(),
            EngineBuild("/cache/x"),
            {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": "/cache/x",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": "/cache/x",
            },
        ),
        (
            GpuOptions(),
            EngineBuild(largest_batch={"image": (64, 3, 8, 8), "id": (64,)}),
            {
                "trt_profile_min_shapes": "image:1x3x8x8,id:1",
                "trt_profile_opt_shapes": "image:64x3x8x8,id:64",
                "trt_profile_max_shapes": "image:64x3x8x8,id:64",
            },
        ),
    ],
)
def test_settings_become_options_of_tensorrt(gpu: GpuOptions, build: EngineBuild, expected: Mapping[str, str]) -> None:
    assert tensorrt_options(gpu, build) == {"device_id": "0", **expected}


def test_graphs_are_refused_where_they_would_answer_wrongly() -> None:
    check_gpu_options(GpuOptions("cuda", cuda_graphs=True))
    check_gpu_options(GpuOptions("tensorrt"))
    with pytest.raises(SettingsError, match="cuda_graphs needs execution_provider=cuda"):
        check_gpu_options(GpuOptions("tensorrt", cuda_graphs=True))
