"""The model in core processes: the client of a front process in the split topology."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from byoc_server.batching.batcher import Cancel
from byoc_server.core.client import Infer, ModelState, ModelStatus
from byoc_server.core.core_link import CoreLink
from byoc_server.core.handshake import Meeting
from byoc_server.errors import StartupError
from byoc_server.models.adapter import Adapter
from byoc_server.types import Signature

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0


class RemoteClient:
    """The model in the core processes of this server. See ``ManagedClient``.

    The server counts as ready once every core has been ready, and from then on while any of them is.

    Args:
        meeting: where the core processes are.
        memory_bytes: of large tensors on their way to each core process.
        build_adapter: what clients see of a model with this signature.
        on_failure: told on the event loop when the adapter cannot be built.
        on_ready: told on the event loop when all core processes are ready for the first time.
        ready_before: all core processes have been ready before this process was there.
    """

    def __init__(
        self,
        meeting: Meeting,
        memory_bytes: int,
        build_adapter: Callable[[Signature], Adapter],
        on_failure: Callable[[StartupError], None],
        on_ready: Callable[[], None],
        *,
        ready_before: bool = False,
    ) -> None:
        self._build_adapter = build_adapter
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._adapter: Adapter | None = None
        self._all_were_ready = ready_before
        self._told_ready = False
        self._settled = asyncio.Event()
        self._links = [CoreLink(address, meeting.secret, memory_bytes, self._changed) for address in meeting.addresses]
        self.infer: Infer = self._links[0].infer if len(self._links) == 1 else self._infer_on_idlest
        """Runs one request; see ``InferenceClient.infer``."""
        self._status = self._links[0].status
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def status(self) -> ModelStatus:
        """State of the model."""
        return self._status

    @property
    def adapter(self) -> Adapter:
        """What clients see of the model. Raises ``Unavailable``."""
        if self._adapter is None or self._status.state is not ModelState.READY:
            raise self._status.refusal()
        return self._adapter

    def start(self) -> None:
        """Look for the core processes, now and whenever one has ended."""
        self._tasks = [asyncio.create_task(link.run()) for link in self._links]

    async def settled(self) -> None:
        """Wait until all core processes have loaded the model, well or badly, but for a second at most.

        That is longer than those that are there need to say so. Of others clients had better hear now.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _PATIENCE_S)

    def close(self) -> bool:
        """End the connections; nothing runs in this process."""
        for task in self._tasks:
            task.cancel()
        for link in self._links:
            link.close()
        return True

    def _infer_on_idlest(self, *arguments: Any, **keywords: Any) -> Cancel:
        """Run one request on the core with the least to do."""
        links = [link for link in self._links if link.status.state is ModelState.READY] or self._links
        return min(links, key=lambda link: link.rows).infer(*arguments, **keywords)

    def _changed(self) -> None:
        """Some core process has changed its state."""
        states = [link.status for link in self._links]
        not_ready = [status for status in states if status.state is not ModelState.READY]
        if len(not_ready) < len(states) and self._adapter is None:
            self._adapt(next(link.signature for link in self._links if link.signature is not None))
        if all(status.state is not ModelState.LOADING for status in states):
            self._settled.set()
        self._all_were_ready |= not not_ready
        if not (self._all_were_ready and len(not_ready) < len(states)) or self._adapter is None:
            if not_ready:
                self._status = _worst(not_ready)
            return
        self._status = ModelStatus(ModelState.READY)
        if not self._told_ready:
            self._told_ready = True
            self._on_ready()

    def _adapt(self, signature: Signature) -> None:
        try:
            self._adapter = self._build_adapter(signature)
        except StartupError as error:
            self._on_failure(error)


def _worst(states: Sequence[ModelStatus]) -> ModelStatus:
    """What to say when no core process is ready: what is wrong for good before what will pass."""
    return next((status for status in states if status.state is ModelState.FAILED), states[0])
