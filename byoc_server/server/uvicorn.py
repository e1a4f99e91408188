"""One process: a uvicorn server around the application."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path

from byoc_server.config import Settings
from byoc_server.http.app import App
from byoc_server.server.draining import DrainingServer
from byoc_server.server.worker import local_client, model_loader, tune_process, uvicorn_config
from byoc_server.server.workers import Workers

_PID_1 = 1


def run(settings: Settings, workers: Workers, model_path: Path, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code, 0 after an orderly end. If an inference cannot be waited for, the process ends here instead.

    Raises:
        StartupError: the model could not be loaded.
    """
    if os.getpid() == _PID_1:
        # Orphans of the container (of an exec, say) become children of this process, and it has none of its own. With
        # the signal ignored the kernel buries them (wait(2)).
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    config = uvicorn_config(settings)
    server = DrainingServer(config)
    load = model_loader(settings, model_path, workers.threads)
    app = config.app = App(settings, lambda: local_client(settings, load, server.fail, tune_process))
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
