"""A request larger than a batch: it runs in parts, and their outcomes are put together again."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import numpy as np

from byoc_server.batching.entry import Entry, LargeEntry, Reply
from byoc_server.errors import ByocError, InferenceFailed
from byoc_server.types import Tensors, tensor_bytes


class Join(LargeEntry):
    """A request that runs in parts, in order. It keeps its place in the queue while parts are cut off its front.

    A part is made when a batch has room for it, and its outputs are copied to their place in those of the whole. So
    what is held is the inputs and the outputs once, however many parts there are.

    Args:
        tensors: of the whole request; for this and all others see ``Entry``.
    """

    __slots__ = ("_begin", "_left", "_outputs", "_parts", "_total")

    def __init__(
        self,
        tensors: Tensors,
        rows: int,
        length: int,
        nbytes: int,
        key: Hashable,
        arrived_s: float,
        deadline_s: float,
        reply: Reply,
        urgent: bool = False,
    ) -> None:
        super().__init__(tensors, rows, length, nbytes, key, arrived_s, deadline_s, reply, urgent)
        self._total = self._left = rows
        self._begin = 0
        self._parts: dict[int, Entry] = {}
        self._outputs: Tensors = {}

    def cut(self, rows: int) -> Entry:
        """See ``LargeEntry.cut``."""
        begin, end = self._begin, self._begin + min(rows, self.rows)
        tensors = {name: array[begin:end] for name, array in self.tensors.items()}
        part = Entry(
            tensors,
            end - begin,
            self.length,
            tensor_bytes(tensors),
            self.key,
            self.arrived_s,
            self.deadline_s,
            partial(self._take, begin, end),
            self.urgent,
        )
        self._parts[begin] = part
        self._begin = end
        self.rows -= part.rows
        self.work -= part.work
        self.nbytes -= part.nbytes
        return part

    def end(self) -> None:
        """See ``Entry.end``. Lets go of the parts: they lead back here."""
        super().end()
        parts, self._parts = self._parts, {}
        for part in parts.values():
            part.end()
        self.tensors = {}
        self._outputs = {}

    def _take(self, begin: int, end: int, outcome: Tensors | ByocError) -> None:
        """Take the outcome of the part from row ``begin`` to ``end``; the first error ends the whole request."""
        del self._parts[begin]
        failure = outcome if isinstance(outcome, ByocError) else self._put_or_fail(begin, end, outcome)
        self._left -= end - begin
        if failure is None and self._left:
            return
        outputs, reply = self._outputs, self.reply
        self.cancel()
        reply(outputs if failure is None else failure)

    def _put_or_fail(self, begin: int, end: int, outputs: Tensors) -> InferenceFailed | None:
        """As ``_put``. Whatever goes wrong, somebody waits for an answer, and no other part may come to bring one."""
        try:
            return self._put(begin, end, outputs)
        except Exception as error:
            failed = InferenceFailed("the outputs of the parts of this request cannot be put together")
            failed.__cause__ = error
            return failed

    def _put(self, begin: int, end: int, outputs: Tensors) -> InferenceFailed | None:
        """Copy the outputs of a part to their place; returns why that is not possible, if so."""
        try:
            if not self._outputs:
                self._outputs = {
                    name: np.empty((self._total, *array.shape[1:]), array.dtype) for name, array in outputs.items()
                }
        except MemoryError:
            return InferenceFailed(f"there is no memory for the outputs of {self._total} records")
        for name, array in outputs.items():
            whole = self._outputs[name]
            if array.shape[1:] != whole.shape[1:]:  # of records that the model gives as long as it finds fit
                shapes = f"{list(whole.shape[1:])} and {list(array.shape[1:])}"
                return InferenceFailed(f"output {name!r} has records of shapes {shapes} in parts of one request")
            whole[begin:end] = array
        return None
