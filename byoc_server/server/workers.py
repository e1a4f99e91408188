"""Which processes a server is made of. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from byoc_server.config import Settings
from byoc_server.errors import SettingsError

_FRONTS_PER_GPU = 4
_CPU_CORES_PER_FRONT = 4


class Topology(enum.Enum):
    """How the processes share the work."""

    INLINE = "inline"
    """Every process serves HTTP and runs the model."""
    SPLIT = "split"
    """Front processes serve HTTP, core processes run the model for all of them."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of one server.

    Attributes:
        topology: see ``Topology``.
        fronts: processes that serve HTTP.
        cores: processes that only run the model; 0 in the inline topology.
        threads: of one inference.
        gpus: what the core processes are to see as ``CUDA_VISIBLE_DEVICES``, one each and then from the begin again;
            empty = they see what is there.
        reason: why it is so, in a few words.
    """

    topology: Topology
    fronts: int
    cores: int
    threads: int
    gpus: tuple[str, ...]
    reason: str

    @property
    def supervised(self) -> bool:
        """Whether there is more than one process, and so a parent that replaces those that die."""
        return self.fronts + self.cores > 1

    @property
    def text(self) -> str:
        """One line for people."""
        if self.topology is Topology.INLINE:
            processes = "one process" if self.fronts == 1 else f"{self.fronts} processes with a copy of the model each"
        else:
            fronts, cores = _count(self.fronts, "front"), _count(self.cores, "core")
            processes = f"{fronts} for HTTP, {cores} for the model"
        return f"{self.topology.value}, {processes}, {_count(self.threads, 'thread')} an inference: {self.reason}"


def choose_workers(settings: Settings, usable_cores: int, gpus: Sequence[str]) -> Workers:
    """Choose the topology and how many processes there are of each kind.

    On a GPU the model belongs in a process of its own: then batches form across all front processes, and its weights
    are in memory once. On a CPU another process takes from the model what it gives to HTTP.

    Args:
        settings: of the server.
        usable_cores: CPU cores this container may use.
        gpus: the GPUs a model is to run on, as ``CUDA_VISIBLE_DEVICES`` names them.

    Raises:
        SettingsError: settings that do not go together.
    """
    topology, reason = _choose_topology(settings, gpus)
    if topology is Topology.INLINE and settings.core_processes:
        raise SettingsError("core_processes is for the split topology; leave it out, or set topology=split")
    if topology is Topology.INLINE:
        fronts, cores, gpus = settings.workers or 1, 0, ()
        sharing = fronts
    else:
        cores = sharing = settings.core_processes or len(gpus) or 1
        if gpus:
            fronts = settings.workers or max(1, min(_FRONTS_PER_GPU * min(cores, len(gpus)), usable_cores - cores))
            sharing = fronts + cores
        else:
            fronts = settings.workers or max(1, usable_cores // _CPU_CORES_PER_FRONT)
    threads = settings.threads or max(1, usable_cores // (sharing * settings.sessions))
    return Workers(topology, fronts, cores, threads, tuple(gpus), reason)


def _choose_topology(settings: Settings, gpus: Sequence[str]) -> tuple[Topology, str]:
    if settings.topology != "auto":
        return Topology(settings.topology), "as set"
    if settings.core_processes:
        return Topology.SPLIT, "core processes are asked for"
    if gpus:
        return Topology.SPLIT, f"the model runs on {_count(len(gpus), 'GPU')}"
    return Topology.INLINE, "no GPU is visible" if settings.device == "gpu" else "the model runs on the CPU"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
