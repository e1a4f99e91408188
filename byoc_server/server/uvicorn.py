"""One process: a uvicorn server around the application."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from byoc_server.config import Settings
from byoc_server.errors import StartupError
from byoc_server.server.draining import DrainingServer
from byoc_server.server.worker import build_app, uvicorn_config


def run(settings: Settings, model_path: Path, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code, 0 after an orderly end. If an inference cannot be waited for, the process ends here instead.

    Raises:
        StartupError: the model could not be loaded.
    """
    server: DrainingServer

    def fail(error: StartupError) -> None:
        server.fail(error)

    app = build_app(settings, model_path, fail)
    config = uvicorn_config(settings, app)
    server = DrainingServer(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))
    if server.failure is not None:
        raise server.failure
    if not app.clean:
        exit_now(0)
    return 0


def exit_now(code: int) -> None:
    """End the process without waiting for threads: an inference or a load that still runs cannot be interrupted."""
    logging.shutdown()
    os._exit(code)
