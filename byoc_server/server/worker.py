"""What the processes of a server are made of; the same whether one runs alone or many under gunicorn."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn

from byoc_server.batching.profile import LARGEST_RUNG
from byoc_server.config import MIB, Settings
from byoc_server.core.local import LocalClient
from byoc_server.device.cpu import usable_cores
from byoc_server.device.gpu import look_for_gpus, visible_gpus
from byoc_server.device.runtime import GPU_PACKAGE, installed_runtime
from byoc_server.engines.base import EngineOptions, GpuOptions
from byoc_server.errors import StartupError
from byoc_server.models.model import Model, load_model
from byoc_server.server.allocator import keep_freed_memory
from byoc_server.server.connection import Connection
from byoc_server.server.entrypoint import confirm
from byoc_server.server.fast_connection import TESTED_UVICORNS, FastConnection
from byoc_server.server.listener import BACKLOG
from byoc_server.server.workers import Workers, choose_workers

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0005


def workers_for(settings: Settings, environ: Mapping[str, str], root: Path = Path("/")) -> Workers:
    """The processes of a server here; looks for GPUs only where the settings leave it open or ask for one."""
    return choose_workers(settings, usable_cores(root), _gpus(settings, environ, root))


def engine_options(settings: Settings, threads: int) -> EngineOptions:
    """What the engine of one process may use; looks for a GPU only where the settings leave it open."""
    gpu_usable = settings.device == "auto" and look_for_gpus(Path("/"), os.environ).usable
    gpu = GpuOptions(
        execution_provider=settings.execution_provider,
        memory_limit_bytes=settings.gpu_memory_limit_mib * MIB or None,
        arena=settings.gpu_arena,
        cudnn_search=settings.cudnn_search,
        cuda_graphs=settings.cuda_graphs,
        tensorrt_cache_dir=settings.tensorrt_cache_dir,
        tensorrt_precision=settings.tensorrt_precision,
        largest_batch_rows=settings.max_batch_size or LARGEST_RUNG,
    )
    return EngineOptions(threads, settings.device, gpu_usable, gpu)


def load_as_set(settings: Settings, model_path: Path, threads: int) -> Model:
    """Load the model as the settings say. Raises what ``load_model`` does."""
    return load_model(
        model_path,
        engine_options(settings, threads),
        settings.max_batch_size,
        max_batch_tokens=settings.max_batch_tokens,
        pad_lengths=settings.pad_lengths,
        sessions=settings.sessions,
    )


def model_loader(settings: Settings, model_path: Path, threads: int) -> Callable[[], Model]:
    """What loads the model in the process that runs it."""

    def load() -> Model:
        try:
            return load_as_set(settings, model_path, threads)
        finally:
            confirm(os.environ)

    return load


def local_client(
    settings: Settings,
    load: Callable[[], Model],
    on_failure: Callable[[StartupError], None],
    on_ready: Callable[[], None],
) -> LocalClient:
    """A client that runs the model in this process; made on its event loop."""
    return LocalClient(
        load,
        settings.max_queue_rows,
        settings.max_queue_mib * MIB,
        on_failure,
        on_ready,
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
    )


def _gpus(settings: Settings, environ: Mapping[str, str], root: Path) -> tuple[str, ...]:
    if settings.device == "cpu":
        return ()
    gpus = visible_gpus(look_for_gpus(root, environ), environ)
    if settings.device == "auto" and gpus and installed_runtime().name != GPU_PACKAGE:
        return ()
    return gpus


def tune_process() -> None:
    """Fit the process to serving, once everything that lives as long as the server is there.

    Serving makes no reference cycles, so the default of a garbage collection every 700 new objects only costs time: a
    tenth of a small request, and tens of milliseconds at the worst percentile whenever all modules are walked through.

    A worker thread that comes back from the engine waits for the event loop to let go of the interpreter, by default
    up to 5 ms: as long as many a batch.

    Large bodies find the memory of those before them, see ``allocator``.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    keep_freed_memory()


def connection_class(settings: Settings, uvicorn_version: str) -> type[Connection]:
    """What serves a connection: with the fast lane, unless it is switched off or was not tested with this uvicorn."""
    if not settings.fast_lane:
        return Connection
    if uvicorn_version.rpartition(".")[0] not in TESTED_UVICORNS:
        logger.warning(
            "no fast lane: it was not tested with uvicorn %s, but with %s",
            uvicorn_version,
            ", ".join(sorted(TESTED_UVICORNS)),
            extra={"event": "no_fast_lane"},
        )
        return Connection
    return FastConnection


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    """Configure uvicorn: the fast loop and parser, none of the parts an inference server has no use for."""
    return uvicorn.Config(
        "",  # the application follows once there is a server to tell of its failure
        loop="uvloop",
        http=connection_class(settings, uvicorn.__version__),
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
