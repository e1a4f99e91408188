"""Many processes: gunicorn supervises uvicorn workers, replaces one that dies, and ends when they keep dying."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import gunicorn.workers.base
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.workers.workertmp import WorkerTmp
from uvicorn_worker import UvicornWorker

from byoc_server.config import Settings
from byoc_server.errors import StartupError
from byoc_server.server.draining import DrainingServer
from byoc_server.server.listener import BACKLOG
from byoc_server.server.readiness import ReadinessBoard
from byoc_server.server.uvicorn import exit_now
from byoc_server.server.worker import build_app, uvicorn_config

_HEARTBEAT_TIMEOUT_S = 60
"""A worker whose event loop stands still for so long is replaced. Inference never blocks the loop for long."""
_STOP_MARGIN_S = 2
"""The parent waits so much longer than its workers drain before it kills them."""
_DEATHS, _DEATHS_WINDOW_S = 5, 60.0
"""So many deaths within so many seconds end the server: the platform replaces an instance that is gone, and cannot
see one that is half alive."""


class MemoryHeartbeat(WorkerTmp):  # type: ignore[misc]  # gunicorn ships no types
    """A worker's heartbeat file, in memory: it works with a read-only root and without any temporary folder."""

    def __init__(self, cfg: Any) -> None:
        self._tmp = os.fdopen(os.memfd_create("heartbeat"), "w+b", 0)


# gunicorn has a setting for the folder of the heartbeat files, but none for having no file; the class is looked up in
# this module when a worker is made.
gunicorn.workers.base.WorkerTmp = MemoryHeartbeat


class ServerLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Leaves gunicorn's loggers as ``telemetry.logging`` configured them."""

    def setup(self, cfg: Any) -> None:
        """Set up nothing."""


class Worker(UvicornWorker):  # type: ignore[misc]  # gunicorn ships no types
    """One serving process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = uvicorn_config(self.app.settings)

    async def _serve(self) -> None:
        application: Application = self.app
        board = application.board
        server = DrainingServer(self.config)

        def fail(error: StartupError) -> None:
            board.failure = error.message
            server.fail(error)

        app = build_app(
            application.settings,
            application.model_path,
            fail,
            lambda: board.set_ready(self.age),
            lambda: board.all_ready,
            ready_first=board.any_ready,
        )
        self.config.app = app
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)  # SIGINT, from the parent
        beat = loop.create_task(self._beat(server))
        await server.serve(sockets=self.sockets)
        beat.cancel()
        if server.failure is not None:
            sys.exit(1)  # not WORKER_BOOT_ERROR, at which the parent stumbles when a second worker has it too
        if not app.clean:
            exit_now(0)

    async def _beat(self, server: DrainingServer) -> None:
        """Show the parent that the event loop turns, also while the model loads, and end when it is gone."""
        while True:
            self.notify()
            if os.getppid() != self.ppid:
                server.should_exit = True
            if server.should_exit and not server.started and server.failure is None:
                exit_now(0)  # a replacement that still loads; uvicorn would finish its start first
            await asyncio.sleep(1)


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn, configured from ``Settings`` alone: no configuration file, no variables of its own.

    Args:
        settings: of the server.
        model_path: the model file every worker loads.
        listener: the listening socket.
    """

    def __init__(self, settings: Settings, model_path: Path, listener: socket.socket) -> None:
        self.settings = settings
        self.model_path = model_path
        self.board = ReadinessBoard(settings.workers)
        self._listener_fd = listener.detach()
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        super().__init__()

    def load_config(self) -> None:
        """Hand the settings over to gunicorn."""
        options = {
            "bind": f"fd://{self._listener_fd}",
            "backlog": BACKLOG,
            "workers": self.settings.workers,
            "worker_class": Worker,
            "timeout": _HEARTBEAT_TIMEOUT_S,
            "graceful_timeout": int(self.settings.drain_timeout_s) + _STOP_MARGIN_S,
            "keepalive": self.settings.keep_alive_s,
            "control_socket_disable": True,
            "logger_class": ServerLogger,
            "child_exit": self._on_worker_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        """Nothing here: a worker builds its application once its event loop runs."""

    def _on_worker_exit(self, arbiter: Arbiter, worker: Worker) -> None:
        self.board.set_gone(worker.age)
        if not arbiter.LISTENERS:  # the server is ending, and so are its workers
            return
        if self.board.failure:
            raise HaltServer(self.board.failure, 1)
        now_s = time.monotonic()
        self._deaths.append(now_s)
        if len(self._deaths) == _DEATHS and now_s - self._deaths[0] < _DEATHS_WINDOW_S:
            self.board.failure = (
                f"workers died {_DEATHS} times within {_DEATHS_WINDOW_S:.0f} s; see the log lines above, "
                "and if they were killed, give the container more memory or fewer --workers"
            )
            raise HaltServer(self.board.failure, 1)


def run(settings: Settings, model_path: Path, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code, 0 after an orderly end.

    Raises:
        StartupError: the model could not be loaded, or workers died again and again.
    """
    parent = os.getpid()
    application = Application(settings, model_path, listener)
    logging.getLogger("gunicorn.error").addFilter(lambda record: not application.board.failure)
    try:
        Arbiter(application).run()
    except SystemExit as stop:
        if os.getpid() != parent:  # a worker ends the same way
            raise
        if application.board.failure:
            raise StartupError(application.board.failure) from None
        return stop.code if isinstance(stop.code, int) else 1
    return 0
