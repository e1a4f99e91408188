"""What the settings say about the GPU reaches the engine."""

from __future__ import annotations

import dataclasses

import pytest

from byoc_server.batching.profile import LARGEST_RUNG
from byoc_server.config import Settings, load_settings
from byoc_server.engines.base import EngineOptions, GpuOptions
from byoc_server.server.worker import engine_options


def test_defaults_are_those_of_the_engine() -> None:
    expected = GpuOptions(largest_batch_rows=LARGEST_RUNG)
    assert engine_options(Settings(device="gpu"), 3) == EngineOptions(3, "gpu", False, expected)
    assert expected == GpuOptions()


@pytest.mark.parametrize(
    ("setting", "value", "field", "expected"),
    [
        ("execution_provider", "tensorrt", "execution_provider", "tensorrt"),
        ("gpu_memory_limit_mib", "3", "memory_limit_bytes", 3 * 2**20),
        ("gpu_arena", "next_power_of_two", "arena", "next_power_of_two"),
        ("cudnn_search", "exhaustive", "cudnn_search", "exhaustive"),
        ("cuda_graphs", "true", "cuda_graphs", True),
        ("tensorrt_cache_dir", "/cache", "tensorrt_cache_dir", "/cache"),
        ("tensorrt_precision", "fp16", "tensorrt_precision", "fp16"),
        ("max_batch_size", "64", "largest_batch_rows", 64),
    ],
)
def test_every_setting_has_its_place(setting: str, value: str, field: str, expected: object) -> None:
    options = engine_options(load_settings({setting: value, "device": "cpu"}, {}), 1)
    changed = {
        f.name: getattr(options.gpu, f.name)
        for f in dataclasses.fields(GpuOptions)
        if getattr(options.gpu, f.name) != getattr(GpuOptions(), f.name)
    }
    assert changed == {field: expected}
