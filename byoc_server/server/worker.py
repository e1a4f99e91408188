"""What one serving process is made of; the same whether it runs alone or under gunicorn."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from byoc_server.config import Settings
from byoc_server.device.cpu import usable_cores
from byoc_server.device.gpu import look_for_gpus
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import StartupError
from byoc_server.http.app import App
from byoc_server.models.model import Model, load_model
from byoc_server.server.connection import Connection
from byoc_server.server.entrypoint import confirm
from byoc_server.server.listener import BACKLOG

_SWITCH_INTERVAL_S = 0.0005


def inference_threads(settings: Settings) -> int:
    """Threads of one inference: as set, else the usable cores divided by the workers."""
    return settings.threads or max(1, usable_cores() // max(1, settings.workers))


def engine_options(settings: Settings) -> EngineOptions:
    """What the engine of one process may use; looks for a GPU only where the settings leave it open."""
    gpu_usable = settings.device == "auto" and look_for_gpus(Path("/"), os.environ).usable
    return EngineOptions(inference_threads(settings), settings.device, gpu_usable)


def build_app(
    settings: Settings,
    model_path: Path,
    on_failure: Callable[[StartupError], None],
    on_ready: Callable[[], None] = lambda: None,
    all_ready: Callable[[], bool] = lambda: True,
    *,
    ready_first: bool = False,
) -> App:
    """Build the application of one process. See ``App``."""

    def ready() -> None:
        tune_interpreter()
        on_ready()

    def load() -> Model:
        try:
            return load_model(model_path, engine_options(settings), settings.max_batch_size)
        finally:
            confirm(os.environ)

    return App(settings, load, on_failure, ready, all_ready, ready_first=ready_first)


def tune_interpreter() -> None:
    """Fit the interpreter to serving, once everything that lives as long as the server is there.

    Serving makes no reference cycles, so the default of a garbage collection every 700 new objects only costs time: a
    tenth of a small request, and tens of milliseconds at the worst percentile whenever all modules are walked through.

    A worker thread that comes back from the engine waits for the event loop to let go of the interpreter, by default
    up to 5 ms: as long as many a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    """Configure uvicorn: the fast loop and parser, none of the parts an inference server has no use for."""
    return uvicorn.Config(
        "",  # the application follows once there is a server to tell of its failure
        loop="uvloop",
        http=Connection,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
