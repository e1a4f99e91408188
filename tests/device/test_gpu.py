"""Seeing a GPU, or none, in a root folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from byoc_server.device.gpu import GpuPresence, device_nodes, look_for_gpus, visible_gpus
from tests.device.fake_root import FakeRoot, closed_banner


def test_nothing_at_all(tmp_path: Path) -> None:
    presence = look_for_gpus(tmp_path, {})
    assert presence == GpuPresence(nodes=(), proc=False)
    assert not presence.driver_present
    assert not presence.usable


def test_a_cpu_machine(tmp_path: Path) -> None:
    """Names that only look like it are no evidence, nor is the node of the memory manager."""
    names = ["null", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidiax", "nvme0", "nvidia-caps"]
    root = FakeRoot(tmp_path).nodes(*names).file("proc/driver/rtc").folder("proc/driver/nvram")
    assert not look_for_gpus(root.path, {}).driver_present


def test_a_gpu_machine(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).nodes("nvidiactl", "nvidia10", "nvidia2", "nvidia0").banner(closed_banner("535.54.03"))
    presence = look_for_gpus(root.path, {"CUDA_VISIBLE_DEVICES": "0,1", "NVIDIA_VISIBLE_DEVICES": "all"})
    assert presence.nodes == ("/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10", "/dev/nvidiactl")
    assert presence.proc
    assert presence.platform == ""
    assert presence.driver_present
    assert presence.usable


def test_a_driver_without_a_gpu(tmp_path: Path) -> None:
    """A container without a GPU on a host with one: the driver shows, but there is nothing to use."""
    presence = look_for_gpus(FakeRoot(tmp_path).banner(closed_banner("535.54.03")).path, {})
    assert presence.driver_present
    assert not presence.usable
    control = look_for_gpus(FakeRoot(tmp_path).nodes("nvidiactl").path, {})
    assert control.nodes == ("/dev/nvidiactl",)
    assert not control.usable


@pytest.mark.parametrize(
    ("names", "platform", "usable"),
    [
        (["dxg"], "WSL", True),
        (["nvgpu"], "Tegra", False),
        (["nvhost-ctrl", "nvmap"], "Tegra", False),
        (["nvgpu", "nvidia0"], "Tegra", True),
        (["nvidia0"], "", True),
    ],
)
def test_platforms(tmp_path: Path, names: list[str], platform: str, usable: bool) -> None:
    presence = look_for_gpus(FakeRoot(tmp_path).nodes(*names).path, {})
    assert presence.platform == platform
    assert presence.usable is usable


@pytest.mark.parametrize(
    ("environ", "hidden"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"CUDA_VISIBLE_DEVICES": " "}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1,0"}, True),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True),
        ({"CUDA_VISIBLE_DEVICES": "none"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
        ({"CUDA_VISIBLE_DEVICES": "1,-1"}, False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-83d7ced8"}, False),
        ({"CUDA_VISIBLE_DEVICES": "MIG-83d7ced8"}, False),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, True),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, False),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, False),
    ],
)
def test_hidden(tmp_path: Path, environ: dict[str, str], hidden: bool) -> None:
    presence = look_for_gpus(FakeRoot(tmp_path).nodes("nvidia0", "nvidiactl").path, environ)
    assert presence.hidden is hidden
    assert presence.usable is not hidden
    assert presence.driver_present


def test_void_hides_nothing(tmp_path: Path) -> None:
    """Containers that get their GPUs by the Container Device Interface are told ``void``, and have GPUs."""
    presence = look_for_gpus(FakeRoot(tmp_path).nodes("nvidia0").path, {"NVIDIA_VISIBLE_DEVICES": "void"})
    assert presence.usable
    assert not look_for_gpus(tmp_path / "other", {"NVIDIA_VISIBLE_DEVICES": "void"}).usable


def test_a_damaged_root(tmp_path: Path) -> None:
    """Files where folders should be."""
    assert look_for_gpus(FakeRoot(tmp_path).file("dev").file("proc").path, {}) == GpuPresence((), False)


def test_nodes_once_each() -> None:
    assert device_nodes(["nvidia1", "nvidiactl", "nvidia1"]) == ("/dev/nvidia1", "/dev/nvidiactl")


def test_this_machine() -> None:
    presence = look_for_gpus(Path("/"), {})
    assert presence.proc is Path("/proc/driver/nvidia").is_dir()


@pytest.mark.parametrize(
    ("nodes", "environ", "gpus"),
    [
        ((), {}, ()),
        (("nvidiactl",), {}, ()),
        (("nvidia3", "nvidia7", "nvidiactl"), {}, ("0", "1")),  # CUDA counts what is there
        (("dxg",), {}, ("0",)),  # WSL has no node for each
        (("nvidia0", "nvidia1"), {"CUDA_VISIBLE_DEVICES": "1"}, ("1",)),
        (("nvidia0",), {"CUDA_VISIBLE_DEVICES": " MIG-1 ,MIG-2, nonsense, MIG-3"}, ("MIG-1", "MIG-2")),
        (("nvidia0",), {"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        (("nvidia0",), {"NVIDIA_VISIBLE_DEVICES": "none"}, ()),
    ],
)
def test_which_gpus(tmp_path: Path, nodes: tuple[str, ...], environ: dict[str, str], gpus: tuple[str, ...]) -> None:
    presence = look_for_gpus(FakeRoot(tmp_path).nodes(*nodes).path, environ)
    assert visible_gpus(presence, environ) == gpus
