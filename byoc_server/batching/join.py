"""The parts of a request larger than a batch, put together again."""

from __future__ import annotations

from collections.abc import Callable

from byoc_server.batching.collate import stack
from byoc_server.batching.policy import Entry, Reply
from byoc_server.errors import ByocError
from byoc_server.types import Tensors


class Join:
    """Puts the outcomes of the parts of one large request back together, in order.

    Args:
        count: number of parts.
        reply: of the request as a whole.
        cancel: gives an entry up.

    Attributes:
        entries: of the parts; whoever makes them appends them.
    """

    def __init__(self, count: int, reply: Reply, cancel: Callable[[Entry], None]) -> None:
        self.entries: list[Entry] = []
        self._outputs: list[Tensors] = [{}] * count
        self._left = count
        self._reply = reply
        self._cancel = cancel

    def take(self, number: int, outcome: Tensors | ByocError) -> None:
        """Take the outcome of part ``number``; the first error ends the whole request."""
        if isinstance(outcome, ByocError):
            self.cancel()
            self._reply(outcome)
            return
        self._outputs[number] = outcome
        self._left -= 1
        if self._left == 0:
            outputs = stack(self._outputs)
            self.cancel()
            self._reply(outputs)

    def cancel(self) -> None:
        """Give up all parts that have not been answered, and let go of all: they lead back here."""
        entries, self.entries, self._outputs = self.entries, [], []
        for entry in entries:
            self._cancel(entry)
