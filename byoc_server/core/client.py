"""What stands between HTTP and the device: one small interface, so that HTTP does not know where the model runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from byoc_server.batching.batcher import Cancel
from byoc_server.batching.entry import Reply, Together
from byoc_server.errors import GpuUnavailable, NotReady, Unavailable
from byoc_server.models.adapter import Adapter
from byoc_server.types import Tensors


class ModelState(enum.Enum):
    """Where a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """State of the model, and why it is not ready.

    Attributes:
        state: where it is in its life.
        reason: why it is not ready, in words for the client.
        error: class of the error a client gets while it is not ready.
    """

    state: ModelState
    reason: str = ""
    error: type[NotReady | GpuUnavailable] = NotReady

    def refusal(self) -> Unavailable:
        """A new error for one request: an exception keeps hold of the frames it is raised through."""
        return self.error(self.reason)


class Infer(Protocol):
    """Runs one request."""

    def __call__(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Together | None = None,
    ) -> Cancel:
        """Begin it.

        Args:
            tensors: inputs that fit the model's own signature.
            rows: records in them: the length N of axis 0, or 1 for a model without a batch axis.
            reply: called once on the event loop with the model's own outputs or the error, unless cancelled before.
            deadline_s: in seconds of the monotonic clock.
            urgent: it goes before those that are not.
            together: may be called in place of ``reply``, and of those of others with the same.

        Raises:
            Unavailable: the model is not loaded, or the request is refused at once.
        """
        ...


class InferenceClient(Protocol):
    """Runs inferences. All methods are called on the event loop thread and return at once."""

    @property
    def status(self) -> ModelStatus:
        """State of the model."""
        ...

    @property
    def adapter(self) -> Adapter:
        """What clients see of the model, and the way from there to its own inputs and outputs.

        Raises:
            Unavailable: it is not loaded.
        """
        ...

    @property
    def infer(self) -> Infer:
        """Runs one request."""
        ...


class ManagedClient(InferenceClient, Protocol):
    """A client whose life is in the hands of the application that uses it."""

    def start(self) -> None:
        """Begin to load the model, or to look for the process that does."""
        ...

    async def settled(self) -> None:
        """Wait until loading has ended, well or badly."""
        ...

    def close(self) -> bool:
        """Let go of the model.

        Returns:
            False if an inference or a load still runs in this process; it cannot be stopped, and whoever ends the
            process must not wait for it.
        """
        ...
