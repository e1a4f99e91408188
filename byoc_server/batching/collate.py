"""Several requests into the tensors of one batch, and its outputs back into theirs. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from byoc_server.batching.adjacent import WORTHWHILE_BYTES, joined
from byoc_server.errors import InferenceFailed
from byoc_server.types import STRING, Array, Signature, Tensors

Infer = Callable[[Tensors], Tensors]


class Collation(Protocol):
    """Which requests may share a batch of one model, and how they become one and come apart again.

    Attributes:
        record_bytes: of every record, where all have the same shapes and so any two requests share a batch, and each
            record is one long; 0 where it has to be looked.
    """

    record_bytes: int

    def key(self, tensors: Tensors) -> Hashable:
        """Requests with equal keys may share a batch."""
        ...

    def length(self, tensors: Tensors) -> int:
        """Positions of one record, at least 1: 1 for fixed shapes. In a batch the longest counts for all records."""
        ...

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        """The tensors of one batch; all parts have the same key."""
        ...

    def split(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> list[Tensors]:
        """Give every part its own rows of the outputs.

        Args:
            outputs: of the model, for ``stack(parts)``.
            parts: as they were stacked.
            counts: rows of each part.

        Raises:
            InferenceFailed: an output does not have the rows that went in.
        """
        ...

    def together(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> bool:
        """Whether the parts own these outputs as they are, ``counts`` rows each; for the arguments see ``split``.

        Raises:
            InferenceFailed: an output does not have the rows that went in.
        """
        ...


class RowCollation:
    """Records of one shape share a batch. See ``Collation``.

    The length of a record is the product of its open axes, of the input where that is most: what a record costs grows
    about so.
    """

    def __init__(self, signature: Signature) -> None:
        self._batched = signature.batched
        self._fixed = signature.record_shape_is_fixed
        self.record_bytes = _record_bytes(signature) if signature.batched and self._fixed else 0
        before_record = 1 if signature.batched else 0
        self._open_axes = {
            name: [before_record + axis for axis, length in enumerate(shape) if length is None]
            for name, shape in signature.record_shapes.items()
        }

    def key(self, tensors: Tensors) -> Hashable:
        """The shapes of a record."""
        return None if self._fixed else tuple([array.shape[1:] for array in tensors.values()])

    def length(self, tensors: Tensors) -> int:
        """See ``Collation.length``."""
        if self._fixed:
            return 1
        most = 1
        for name, axes in self._open_axes.items():
            shape = tensors[name].shape
            most = max(most, math.prod([shape[axis] for axis in axes]))
        return most

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        """Concatenate along axis 0."""
        return stack(parts)

    def split(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> list[Tensors]:
        """Cut along axis 0; a model without a batch axis runs one request at a time."""
        return split(outputs, counts) if self._batched else [outputs]

    def together(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> bool:
        """See ``Collation.together``."""
        if self._batched:
            check_rows(outputs, sum(counts))
        return self._batched


def _record_bytes(signature: Signature) -> int:
    """Bytes of a record of fixed shapes; 0 where it has texts."""
    if any(spec.dtype == STRING for spec in signature.inputs):
        return 0
    shapes = signature.record_shapes
    return sum(spec.dtype.itemsize * math.prod([d or 0 for d in shapes[spec.name]]) for spec in signature.inputs)


def stack(parts: Sequence[Tensors]) -> Tensors:
    """Concatenate along axis 0. All parts have the same names, dtypes and record shapes.

    What is one array already is not copied.
    """
    if len(parts) == 1:
        return parts[0]
    return {name: _stacked([part[name] for part in parts]) for name in parts[0]}


def _stacked(arrays: Sequence[Array]) -> Array:
    if arrays[0].nbytes >= WORTHWHILE_BYTES:
        whole = joined(arrays)
        if whole is not None:
            return whole
    return np.concatenate(arrays)


def split(tensors: Tensors, counts: Sequence[int]) -> list[Tensors]:
    """Cut along axis 0 into views of ``counts`` rows each.

    Raises:
        InferenceFailed: an array does not have the rows that went in, so nobody can tell whose they are.
    """
    check_rows(tensors, sum(counts))
    if len(counts) == 1:
        return [tensors]
    bounds = list(pairwise(accumulate(counts, initial=0)))
    if len(tensors) == 1:  # the commonest model, at half the cost
        ((name, array),) = tensors.items()
        return [{name: array[start:end]} for start, end in bounds]
    return [{name: array[start:end] for name, array in tensors.items()} for start, end in bounds]


def check_rows(outputs: Tensors, rows: int) -> None:
    """Make sure that every output has one row for each record.

    Raises:
        InferenceFailed: one has not, so nobody can tell whose its rows are.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise InferenceFailed(f"output {name!r} has {array.shape[:1] or 'no'} rows for {rows} records")


def slice_rows(tensors: Tensors, size: int) -> list[Tensors]:
    """Cut into parts of ``size`` rows, the last one shorter."""
    rows = len(next(iter(tensors.values())))
    return [{name: array[i : i + size] for name, array in tensors.items()} for i in range(0, rows, size)]


def infer_in_rungs(infer: Infer, tensors: Tensors, rungs: Sequence[int]) -> Tensors:
    """Run a model that takes, or wants, few different batch sizes.

    Records run in chunks of the largest rung, the rest at the smallest rung that holds it. What is missing there is
    filled up with copies of the first record of the chunk (always a valid input, which zeros need not be), whose
    outputs are dropped.

    Args:
        infer: the engine's.
        tensors: N rows each, N at least 1.
        rungs: batch sizes, ascending.

    Raises:
        InferenceFailed: an output does not have the rows that went in.
    """
    outputs = []
    for chunk in slice_rows(tensors, rungs[-1]):
        rows = len(next(iter(chunk.values())))
        missing = rungs[bisect_left(rungs, rows)] - rows
        if missing:
            chunk = {name: np.concatenate([a, np.repeat(a[:1], missing, axis=0)]) for name, a in chunk.items()}
        outputs.append(split(infer(chunk), [rows, missing] if missing else [rows])[0])
    return stack(outputs)
