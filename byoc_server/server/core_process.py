"""What a core process runs on its event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from byoc_server.config import MIB, Settings
from byoc_server.core.handshake import Meeting
from byoc_server.core.service import CoreService
from byoc_server.errors import StartupError
from byoc_server.server.uvicorn import exit_now
from byoc_server.server.worker import local_client, model_loader, tune_process
from byoc_server.server.workers import Workers

logger = logging.getLogger(__name__)

_HANG_MARGIN_S = 5.0
"""All requests of a batch have had their answer, that it took too long, for so long before the process is given up."""


async def run_core(
    settings: Settings,
    workers: Workers,
    model_path: Path,
    meeting: Meeting,
    index: int,
    stopped: asyncio.Event,
    on_failure: Callable[[StartupError], None],
) -> bool:
    """Serve the model to the front processes until stopped.

    Args:
        settings: of the server.
        workers: its processes.
        model_path: the model file.
        meeting: where front processes connect.
        index: of this core process.
        stopped: set when the server ends.
        on_failure: told when the model cannot be loaded.

    Returns:
        False if an inference or a load still runs: whoever ends the process must not wait for it.
    """
    if workers.gpus:  # before any library of CUDA is loaded
        os.environ["CUDA_VISIBLE_DEVICES"] = workers.gpus[index % len(workers.gpus)]
    load = model_loader(settings, model_path, workers.threads)
    client = local_client(settings, load, on_failure, tune_process)
    service = CoreService(
        client,
        meeting.listeners[index],
        meeting.secret,
        settings.max_queue_mib * MIB,
        longest_run_s(settings),
        give_up,
    )
    await service.serve(stopped)
    return client.close()


def longest_run_s(settings: Settings) -> float:
    """How long a batch may run, in seconds."""
    return settings.request_timeout_s + _HANG_MARGIN_S


def give_up(reason: str) -> None:
    """End at once: another process takes the place of this one, and can do what this one cannot any more."""
    logger.error("this process cannot run the model any more and ends: %s", reason, extra={"event": "core_lost"})
    exit_now(1)
