"""The model in this very process: the one client of the inline topology, and what a core process serves its fronts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from byoc_server.batching.batcher import Batcher, Cancel
from byoc_server.batching.collate import Infer as ModelInfer
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import DeviceScheduler
from byoc_server.batching.policy import QueueLimits
from byoc_server.batching.worker_thread import WorkerThread
from byoc_server.core.client import Infer, ModelState, ModelStatus
from byoc_server.errors import GpuUnavailable, ModelLoadError, StartupError
from byoc_server.models.adapter import Adapter
from byoc_server.models.model import Model
from byoc_server.types import Tensors

logger = logging.getLogger(__name__)


class LocalClient:
    """The model in this very process. See ``InferenceClient``.

    Args:
        load: loads the model; called on a thread of its own.
        max_queue_rows: rows that may wait.
        max_queue_bytes: bytes of tensors that may wait.
        on_failure: told on the event loop when loading fails, except for want of a GPU: that is said in the log and in
            every answer.
        on_ready: told on the event loop when the model is ready.
        max_queue_delay_s: how long a request may wait for others although the model is idle.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        max_queue_rows: int,
        max_queue_bytes: int,
        on_failure: Callable[[StartupError], None],
        on_ready: Callable[[], None] = lambda: None,
        *,
        max_queue_delay_s: float = 0.0,
    ) -> None:
        self._load = load
        self._limits = QueueLimits(max_queue_rows, max_queue_bytes)
        self._max_queue_delay_s = max_queue_delay_s
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._status = ModelStatus(ModelState.LOADING, "the model is loading")
        self._model: Model | None = None
        self._batcher: Batcher | None = None
        self._workers: list[WorkerThread] = []
        self._settled = asyncio.Event()
        self.infer: Infer = self._refuse
        """Runs one request; see ``InferenceClient.infer``. The batcher's own as soon as there is one: it is hot."""

    @property
    def status(self) -> ModelStatus:
        """State of the model."""
        return self._status

    @property
    def adapter(self) -> Adapter:
        """What clients see of the model. Raises ``Unavailable``."""
        if self._model is None:
            raise self._status.refusal()
        return self._model.adapter

    @property
    def load_s(self) -> float:
        """Seconds it took to load the model. Raises ``Unavailable``."""
        if self._model is None:
            raise self._status.refusal()
        return self._model.load_s

    @property
    def running_s(self) -> float:
        """How long the oldest batch has been running, in seconds; 0 when none runs."""
        return 0.0 if self._batcher is None else self._batcher.running_s

    def start(self) -> None:
        """Begin to load, on a daemon thread: a load that hangs must not keep the process from ending."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load_and_tell, args=(loop,), name="load", daemon=True).start()

    async def settled(self) -> None:
        """Wait until loading has ended, well or badly."""
        await self._settled.wait()

    def close(self) -> bool:
        """End the worker threads and free the model.

        Returns:
            False if an inference or a load still runs; it cannot be stopped, and whoever ends the process must not
            wait for it.
        """
        idle = self._settled.is_set() and (self._batcher is None or self._batcher.idle)
        for worker in self._workers:
            worker.close(wait=idle)
        if idle and self._model is not None:
            self._model.close()
        return idle

    def _refuse(self, *_: object, **__: object) -> Cancel:
        """See ``infer``; there is no model."""
        raise self._status.refusal()

    def _load_and_tell(self, loop: asyncio.AbstractEventLoop) -> None:
        outcome: Model | StartupError
        try:
            outcome = self._load()
        except StartupError as error:
            outcome = error
        except Exception as error:  # the engine's or a library's own: still one clear line for the operator
            logger.debug("loading failed", exc_info=True)
            first_line = str(error).partition("\n")[0]
            outcome = ModelLoadError(f"the model cannot be loaded: {type(error).__name__}: {first_line}")
        try:
            loop.call_soon_threadsafe(self._loaded, outcome)
        except RuntimeError:
            logger.debug("the server ended while the model was loading")

    def _loaded(self, outcome: Model | StartupError) -> None:
        self._settled.set()
        if isinstance(outcome, GpuUnavailable):
            self._lose_gpu(outcome.message)
            return
        if isinstance(outcome, StartupError):
            self._status = ModelStatus(ModelState.FAILED, "the model could not be loaded")
            self._on_failure(outcome)
            return
        self._model = outcome
        self._workers = [WorkerThread(f"inference_{number}") for number in range(len(outcome.infers))]
        self._batcher = Batcher(
            [self._watched(infer) for infer in outcome.infers],
            outcome.collation,
            self._limits,
            outcome.bounds,
            CostModel(outcome.profile.work_rungs(outcome.record_length)),
            DeviceScheduler(self._workers),
            self._max_queue_delay_s,
        )
        self.infer = self._batcher.submit
        self._status = ModelStatus(ModelState.READY)
        logger.info("ready", extra={"event": "ready", **outcome.facts})
        self._on_ready()

    def _watched(self, infer: ModelInfer) -> ModelInfer:
        """The model's ``infer``; when it loses its GPU for good, the model is no longer ready."""
        loop = asyncio.get_running_loop()

        def run(tensors: Tensors) -> Tensors:
            try:
                return infer(tensors)
            except GpuUnavailable as error:
                if error.lasting:
                    loop.call_soon_threadsafe(self._lose_gpu, error.message)
                raise

        return run

    def _lose_gpu(self, reason: str) -> None:
        if self._status.state is not ModelState.FAILED:
            self._status = ModelStatus(ModelState.FAILED, reason, GpuUnavailable)
            logger.error(reason, extra={"event": GpuUnavailable.code})
