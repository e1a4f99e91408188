"""Many processes: gunicorn supervises fronts and cores, replaces one that dies, and ends when they keep dying.

A front is a uvicorn worker. A core (``core_process``) is a worker as well, with another role: it serves no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gunicorn.workers.base
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.workers.workertmp import WorkerTmp
from uvicorn_worker import UvicornWorker

from byoc_server.config import MIB, Settings
from byoc_server.core.client import ManagedClient
from byoc_server.core.handshake import open_meeting
from byoc_server.core.remote import RemoteClient
from byoc_server.errors import StartupError
from byoc_server.http.app import App
from byoc_server.models.adapter import adapter_for
from byoc_server.server.core_process import give_up, longest_run_s, run_core
from byoc_server.server.draining import DrainingServer
from byoc_server.server.heartbeat import BEAT_S, Heartbeat, MissedBeats
from byoc_server.server.listener import BACKLOG
from byoc_server.server.readiness import ReadinessBoard
from byoc_server.server.roster import Kind, Role, Roster
from byoc_server.server.uvicorn import exit_now
from byoc_server.server.worker import local_client, model_loader, tune_process, uvicorn_config
from byoc_server.server.workers import Workers

logger = logging.getLogger(__name__)

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
    """One process of the server, in the role it is given before it is forked."""

    role: Role

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = uvicorn_config(self.app.settings)

    async def _serve(self) -> None:
        logger.info(
            "%s %d is process %d",
            self.role.kind.value,
            self.role.index,
            os.getpid(),
            extra={"event": "process", "role": self.role.kind.value, "index": self.role.index, "pid": os.getpid()},
        )
        await (self._serve_model() if self.role.kind is Kind.CORE else self._serve_http())

    async def _serve_http(self) -> None:
        application: Application = self.app
        settings, board = application.settings, application.board
        server = DrainingServer(self.config)

        def fail(error: StartupError) -> None:
            board.failure = error.message
            server.fail(error)

        def ready() -> None:
            tune_process()
            board.set_ready(self.age)

        def open_client() -> ManagedClient:
            if application.meeting is None:
                load = model_loader(settings, application.model_path, application.workers.threads)
                return local_client(settings, load, fail, ready)
            adapt = partial(adapter_for, application.model_path)
            return RemoteClient(
                application.meeting, settings.max_queue_mib * MIB, adapt, fail, ready, ready_before=board.all_were_ready
            )

        app = self.config.app = App(settings, open_client, lambda: board.all_were_ready, ready_first=board.any_ready)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)  # SIGINT, from the parent

        def end() -> None:
            server.should_exit = True
            if not server.started and server.failure is None:
                exit_now(0)  # a replacement that still loads; uvicorn would finish its start first

        beat = loop.create_task(self._beat(self.notify, end, lambda: server.should_exit))
        await server.serve(sockets=self.sockets)
        beat.cancel()
        if server.failure is not None:
            sys.exit(1)  # not WORKER_BOOT_ERROR, at which the parent stumbles when a second worker has it too
        if not app.clean:
            exit_now(0)

    async def _serve_model(self) -> None:
        application: Application = self.app
        for listener in self.sockets:  # what connects is for the fronts, also when they end before this process does
            listener.close()
        stopped = asyncio.Event()

        def fail(error: StartupError) -> None:
            application.board.failure = error.message
            exit_now(1)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stopped.set)
        heartbeat = Heartbeat(self.notify, longest_run_s(application.settings), give_up)
        beat = loop.create_task(self._beat(heartbeat.turn, stopped.set, stopped.is_set))
        assert application.meeting is not None  # or there would be no such role
        clean = await run_core(
            application.settings,
            application.workers,
            application.model_path,
            application.meeting,
            self.role.index,
            stopped,
            fail,
        )
        beat.cancel()
        heartbeat.close()
        if not clean:
            exit_now(0)

    async def _beat(self, turn: Callable[[], None], end: Callable[[], None], is_ending: Callable[[], bool]) -> None:
        """Show that the event loop turns, also while the model loads, and end when the parent is gone."""
        while True:
            turn()
            if is_ending() or os.getppid() != self.ppid:
                end()
            await asyncio.sleep(1)


class Supervisor(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's parent process, without what is not for a container: another configuration or number of workers."""

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        self._looked_s = 0.0
        self._missed_beats = MissedBeats()

    def murder_workers(self) -> None:
        """End workers that stand still: core processes soon, as every front waits for them."""
        super().murder_workers()
        now_s = time.monotonic()
        if now_s - self._looked_s < BEAT_S:  # signals wake this process more often
            return
        self._looked_s = now_s
        cores = [(pid, worker) for pid, worker in self.WORKERS.items() if worker.role.kind is Kind.CORE]
        beats = {pid: worker.tmp.last_update() for pid, worker in cores}
        beats = {pid: beat_s for pid, beat_s in beats.items() if beat_s <= now_s}  # before the first: the time of day
        for pid in self._missed_beats.look(beats):
            logger.error("core process %d stands still and is killed", pid, extra={"event": "core_silent"})
            self.kill_worker(pid, signal.SIGKILL)

    def handle_hup(self) -> None:
        """Do not reload: a container is replaced by another one."""
        logger.warning("SIGHUP is ignored: settings and model are read at the start alone")

    def handle_ttin(self) -> None:
        """Do not add a worker: each has a role."""
        logger.warning("SIGTTIN and SIGTTOU are ignored: set --workers")

    def handle_ttou(self) -> None:
        """Do not remove a worker."""
        self.handle_ttin()

    def handle_usr2(self) -> None:
        """Do not start another parent beside this one."""
        logger.warning("SIGUSR2 is ignored: start another container")


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn, configured from ``Settings`` alone: no configuration file, no variables of its own.

    Args:
        settings: of the server.
        workers: its processes.
        model_path: the model file.
        listener: the listening socket.
    """

    def __init__(self, settings: Settings, workers: Workers, model_path: Path, listener: socket.socket) -> None:
        self.settings = settings
        self.workers = workers
        self.model_path = model_path
        self.board = ReadinessBoard(workers.fronts)
        self.meeting = open_meeting(workers.cores) if workers.cores else None
        self._roster = Roster(workers)
        self._listener_fd = listener.detach()
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        super().__init__()

    def load_config(self) -> None:
        """Hand the settings over to gunicorn."""
        options = {
            "bind": f"fd://{self._listener_fd}",
            "backlog": BACKLOG,
            "workers": self.workers.fronts + self.workers.cores,
            "worker_class": Worker,
            "timeout": _HEARTBEAT_TIMEOUT_S,
            "graceful_timeout": int(self.settings.drain_timeout_s) + _STOP_MARGIN_S,
            "keepalive": self.settings.keep_alive_s,
            "control_socket_disable": True,
            "logger_class": ServerLogger,
            "pre_fork": self._on_worker_start,
            "child_exit": self._on_worker_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        """Nothing here: a worker builds its application once its event loop runs."""

    def _on_worker_start(self, _: Arbiter, worker: Worker) -> None:
        worker.role = self._roster.take(worker.age)

    def _on_worker_exit(self, arbiter: Arbiter, worker: Worker) -> None:
        self._roster.give_back(worker.age)
        self.board.set_gone(worker.age)
        if not arbiter.LISTENERS:  # the server is ending, and so are its workers
            return
        if self.board.failure:
            raise HaltServer(self.board.failure, 1)
        now_s = time.monotonic()
        self._deaths.append(now_s)
        if len(self._deaths) == _DEATHS and now_s - self._deaths[0] < _DEATHS_WINDOW_S:
            self.board.failure = (
                f"processes died {_DEATHS} times within {_DEATHS_WINDOW_S:.0f} s; see the log lines above, "
                "and if they were killed, give the container more memory or fewer --workers"
            )
            raise HaltServer(self.board.failure, 1)


def run(settings: Settings, workers: Workers, model_path: Path, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code, 0 after an orderly end.

    Raises:
        StartupError: the model could not be loaded, or workers died again and again.
    """
    parent = os.getpid()
    application = Application(settings, workers, model_path, listener)
    logging.getLogger("gunicorn.error").addFilter(lambda record: not application.board.failure)
    try:
        Supervisor(application).run()
    except SystemExit as stop:
        if os.getpid() != parent:  # a worker ends the same way
            raise
        if application.board.failure:
            raise StartupError(application.board.failure) from None
        return stop.code if isinstance(stop.code, int) else 1
    return 0
