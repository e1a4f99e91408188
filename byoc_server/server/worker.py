"""What one serving process is made of; the same whether it runs alone or under gunicorn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from byoc_server.config import Settings
from byoc_server.device.cpu import usable_cores
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import StartupError
from byoc_server.http.app import App
from byoc_server.models.model import load_model
from byoc_server.server.draining import DrainingProtocol
from byoc_server.server.listener import BACKLOG


def inference_threads(settings: Settings) -> int:
    """Threads of one inference: as set, else the usable cores divided by the workers."""
    return settings.threads or max(1, usable_cores() // settings.workers)


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
    load = partial(load_model, model_path, EngineOptions(inference_threads(settings)), settings.max_batch_size)
    return App(settings, load, on_failure, on_ready, all_ready, ready_first=ready_first)


def uvicorn_config(settings: Settings, app: App | None = None) -> uvicorn.Config:
    """Configure uvicorn: the fast loop and parser, none of the parts an inference server has no use for."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # gunicorn's worker fills it in after the fork
        loop="uvloop",
        http=DrainingProtocol,
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
