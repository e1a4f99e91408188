"""Which processes a server is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byoc_server.config import Settings
from byoc_server.device.runtime import RuntimePackage
from byoc_server.errors import SettingsError
from byoc_server.server import worker
from byoc_server.server.workers import Topology, choose_workers

INLINE, SPLIT = Topology.INLINE, Topology.SPLIT
TWO = ("0", "1")


@pytest.mark.parametrize(
    ("settings", "usable_cores", "gpus", "expected"),
    [
        # topology, fronts, cores, threads
        ({}, 8, (), (INLINE, 1, 0, 8)),
        ({"workers": 3}, 8, (), (INLINE, 3, 0, 2)),
        ({"workers": 9}, 8, (), (INLINE, 9, 0, 1)),
        ({"threads": 5}, 8, (), (INLINE, 1, 0, 5)),
        ({"sessions": 2}, 8, (), (INLINE, 1, 0, 4)),
        ({"sessions": 4, "topology": "split"}, 8, (), (SPLIT, 2, 1, 2)),
        ({"topology": "split"}, 1, (), (SPLIT, 1, 1, 1)),
        ({"topology": "split"}, 2, (), (SPLIT, 1, 1, 2)),
        ({"topology": "split"}, 16, (), (SPLIT, 4, 1, 16)),
        ({"topology": "split", "core_processes": 2}, 16, (), (SPLIT, 4, 2, 8)),
        ({"topology": "split", "workers": 2, "threads": 3}, 16, (), (SPLIT, 2, 1, 3)),
        ({"core_processes": 2}, 4, (), (SPLIT, 1, 2, 2)),
        ({}, 4, ("0",), (SPLIT, 3, 1, 1)),
        ({}, 16, ("0",), (SPLIT, 4, 1, 3)),
        ({}, 1, ("0",), (SPLIT, 1, 1, 1)),
        ({}, 96, tuple("01234567"), (SPLIT, 32, 8, 2)),
        ({"core_processes": 4}, 8, TWO, (SPLIT, 4, 4, 1)),
        ({"core_processes": 1}, 96, tuple("01234567"), (SPLIT, 4, 1, 19)),  # the others are left alone
        ({"topology": "inline"}, 8, TWO, (INLINE, 1, 0, 8)),
    ],
)
def test_choice(
    settings: dict[str, Any], usable_cores: int, gpus: tuple[str, ...], expected: tuple[Topology, int, int, int]
) -> None:
    workers = choose_workers(replace(Settings(), **settings), usable_cores, gpus)
    assert (workers.topology, workers.fronts, workers.cores, workers.threads) == expected
    assert workers.supervised == (expected[1] + expected[2] > 1)
    assert workers.gpus == (gpus if workers.topology is SPLIT else ())


def test_core_processes_have_no_place_in_one_process() -> None:
    with pytest.raises(SettingsError, match="core_processes"):
        choose_workers(Settings(topology="inline", core_processes=2), 8, ())


@pytest.mark.parametrize(
    ("settings", "gpus", "text"),
    [
        ({}, (), "inline, one process, 2 threads an inference: the model runs on the CPU"),
        (
            {"workers": 2},
            (),
            "inline, 2 processes with a copy of the model each, 1 thread an inference: the model runs",
        ),
        ({"device": "gpu"}, (), "inline, one process, 2 threads an inference: no GPU is visible"),
        ({"topology": "split"}, (), "split, 1 front for HTTP, 1 core for the model, 2 threads an inference: as set"),
        ({"core_processes": 2}, (), "split, 1 front for HTTP, 2 cores for the model, 1 thread an inference: core proc"),
        ({}, ("0",), "split, 1 front for HTTP, 1 core for the model, 1 thread an inference: the model runs on 1 GPU"),
        ({}, TWO, "split, 1 front for HTTP, 2 cores for the model, 1 thread an inference: the model runs on 2 GPUs"),
    ],
)
def test_words(settings: dict[str, Any], gpus: tuple[str, ...], text: str) -> None:
    assert choose_workers(replace(Settings(), **settings), 2, gpus).text.startswith(text)


@pytest.mark.parametrize(
    ("device", "nodes", "package", "environ", "gpus"),
    [
        ("auto", 2, "onnxruntime-gpu", {}, ("0", "1")),
        ("auto", 2, "onnxruntime", {}, ()),  # it cannot use them
        ("gpu", 2, "onnxruntime", {}, ("0", "1")),  # and the core processes will say so
        ("cpu", 2, "onnxruntime-gpu", {}, ()),
        ("auto", 0, "onnxruntime-gpu", {}, ()),
        ("gpu", 0, "onnxruntime-gpu", {}, ()),
        ("auto", 4, "onnxruntime-gpu", {"CUDA_VISIBLE_DEVICES": "2, GPU-7f, MIG-8"}, ("2", "GPU-7f", "MIG-8")),
        ("auto", 4, "onnxruntime-gpu", {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ("1",)),  # as CUDA reads it
        ("auto", 4, "onnxruntime-gpu", {"CUDA_VISIBLE_DEVICES": ""}, ()),
    ],
)
def test_gpus_that_core_processes_are_for(
    device: str,
    nodes: int,
    package: str,
    environ: dict[str, str],
    gpus: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *[f"nvidia{number}" for number in range(nodes)]):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(worker, "installed_runtime", lambda: RuntimePackage(package))
    workers = worker.workers_for(Settings(device=device), environ, tmp_path)
    assert workers.gpus == gpus
    assert workers.cores == len(gpus)
