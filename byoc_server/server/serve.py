"""From settings to a running server."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from byoc_server import __version__
from byoc_server.codecs.base import answer_codecs, media_types, request_codecs
from byoc_server.config import Settings
from byoc_server.errors import SettingsError, UnsupportedMediaType
from byoc_server.http.negotiation import choose_decoder
from byoc_server.models.repository import ModelSource, find_model
from byoc_server.server.listener import listen
from byoc_server.server.worker import workers_for
from byoc_server.server.workers import Workers

logger = logging.getLogger(__name__)

_SUPERVISORS = {False: "byoc_server.server.uvicorn", True: "byoc_server.server.gunicorn"}
"""Whether there are several processes -> module with ``run``; gunicorn is not imported for one process."""


def serve(settings: Settings, environ: Mapping[str, str]) -> int:
    """Serve until told to stop.

    Returns:
        The exit code.

    Raises:
        StartupError: the server cannot start; the message says what to do.
    """
    if environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true":
        raise SettingsError("SAGEMAKER_MULTI_MODEL=true: multi-model endpoints are not supported; use Mode=SingleModel")
    _require_known_formats(settings)
    source = find_model(settings.model, environ)
    listener = listen(settings.host, settings.port)
    workers = workers_for(settings, environ)
    _log_start(settings, workers, source, listener.getsockname()[1])
    supervisor = importlib.import_module(_SUPERVISORS[workers.supervised])
    code: int = supervisor.run(settings, workers, source.path, listener)
    return code


def _require_known_formats(settings: Settings) -> None:
    formats = (("default_content_type", request_codecs()), ("default_accept", answer_codecs()))
    for name, entries in formats:
        media_type: str = getattr(settings, name)
        if not media_type:  # what byoc.toml says is checked when the model is loaded
            continue
        with contextlib.suppress(UnsupportedMediaType):
            if choose_decoder(None, media_type)[0] in entries:
                continue
        known = ", ".join(media_types(entries))
        raise SettingsError(f"{name}={media_type}: this server has no such format; use one of {known}")


def _log_start(settings: Settings, workers: Workers, source: ModelSource, port: int) -> None:
    """The start summary: what was read, before anything slow happens."""
    if source.demo:
        logger.warning(
            "no model was given and /opt/ml/model holds none: serving the demo model (iris); name yours with --model",
            extra={"event": "demo_model"},
        )
    logger.info(
        "starting on port %d: %s",
        port,
        workers.text,
        extra={
            "event": "start",
            "version": __version__,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "model": str(Path(source.path)),
            **(asdict(settings) | {"port": port, "model": str(source.path), "topology": workers.topology.value}),
            "fronts": workers.fronts,
            "cores": workers.cores,
            "threads": workers.threads,
        },
    )
