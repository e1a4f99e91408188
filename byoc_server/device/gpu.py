"""Whether this machine or container has an NVIDIA GPU, by looking at files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

_NUMBERED = re.compile(r"nvidia(\d+)", re.ASCII)
_DEVICE = re.compile(r"\+?\d+|(GPU|MIG)-.+", re.ASCII | re.IGNORECASE)
"""An item of ``CUDA_VISIBLE_DEVICES`` that names a device: an index or the begin of a UUID."""


@dataclass(frozen=True, slots=True)
class GpuPresence:
    """What the file system tells of GPUs.

    Attributes:
        nodes: device nodes such as ``/dev/nvidia0`` and ``/dev/nvidiactl``.
        proc: the kernel driver's folder ``/proc/driver/nvidia`` is there.
        platform: ``WSL`` or ``Tegra`` where the GPU is reached in another way; else empty.
        hidden: ``CUDA_VISIBLE_DEVICES`` hides every GPU from CUDA.
    """

    nodes: tuple[str, ...]
    proc: bool
    platform: str = ""
    hidden: bool = False

    @property
    def driver_present(self) -> bool:
        """Whether a kernel driver shows itself in any way."""
        return bool(self.nodes) or self.proc

    @property
    def usable(self) -> bool:
        """Whether CUDA may find a GPU: a container without one often still sees the host's ``/proc``."""
        numbered = any(_NUMBERED.fullmatch(Path(node).name) for node in self.nodes)
        return (numbered or self.platform == "WSL") and not self.hidden


def look_for_gpus(root: Path, environ: Mapping[str, str]) -> GpuPresence:
    """Look for GPUs without opening or loading anything.

    ``/dev/nvidia-uvm`` and its like prove nothing: they stay behind when the driver is unloaded.

    Args:
        root: where ``dev`` and ``proc`` lie.
        environ: the environment.
    """
    names = _names(root / "dev")
    proc = "nvidia" in _names(root / "proc/driver")
    return GpuPresence(device_nodes(names), proc, platform(names), hides_gpus(environ))


def device_nodes(names: Iterable[str]) -> tuple[str, ...]:
    """The paths of GPU nodes among the names in ``/dev``, in order of their number, the control node last."""
    names = set(names)
    numbers = sorted(int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name)))
    nodes = [f"/dev/nvidia{number}" for number in numbers]
    return (*nodes, *(["/dev/nvidiactl"] if "nvidiactl" in names else []))


def platform(names: Iterable[str]) -> str:
    """``WSL`` or ``Tegra`` by the names in ``/dev``; empty for anything else. Both have no compatibility packages."""
    names = set(names)
    if "dxg" in names:
        return "WSL"
    return "Tegra" if any(name == "nvgpu" or name.startswith("nvhost") for name in names) else ""


def hides_gpus(environ: Mapping[str, str]) -> bool:
    """Whether the environment hides every GPU from CUDA.

    CUDA reads ``CUDA_VISIBLE_DEVICES`` up to the first item that is no device (CUDA C++ Programming Guide, "CUDA
    Environment Variables"). ``NVIDIA_VISIBLE_DEVICES`` is a request to the container toolkit. Of its two ways to ask
    for no GPU only ``none`` counts here: ``void`` tells the toolkit to keep off, and is also what the environment says
    in a container whose GPUs came by the Container Device Interface.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not _DEVICE.fullmatch(visible.split(",")[0].strip()):
        return True
    return environ.get("NVIDIA_VISIBLE_DEVICES", "").strip() == "none"


def visible_gpus(presence: GpuPresence, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that CUDA may find, as items of ``CUDA_VISIBLE_DEVICES``: what that names, or the numbers of the nodes.

    An instance of a MIG GPU has no node of its own: without ``CUDA_VISIBLE_DEVICES`` a GPU counts once, as CUDA itself
    uses one instance at a time (Multi-Instance GPU User Guide, "CUDA Device Enumeration").
    """
    if not presence.usable:
        return ()
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(takewhile(_DEVICE.fullmatch, [item.strip() for item in named.split(",")]))
    nodes = [node for node in presence.nodes if _NUMBERED.fullmatch(Path(node).name)]
    return tuple([str(index) for index in range(max(1, len(nodes)))])


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
