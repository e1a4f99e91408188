"""Stack the tensors of several requests along axis 0, run, and split the outputs again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from byoc_server.errors import InferenceFailed
from byoc_server.types import Tensors

Infer = Callable[[Tensors], Tensors]


def stack(parts: Sequence[Tensors]) -> Tensors:
    """Concatenate along axis 0. All parts have the same names, dtypes and record shapes. One part is passed through."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(tensors: Tensors, counts: Sequence[int]) -> list[Tensors]:
    """Cut along axis 0 into views of ``counts`` rows each.

    Raises:
        InferenceFailed: an array does not have the rows that went in, so nobody can tell whose they are.
    """
    total = sum(counts)
    for name, array in tensors.items():
        if array.ndim == 0 or len(array) != total:
            raise InferenceFailed(f"output {name!r} has {array.shape[:1] or 'no'} rows for {total} records")
    if len(counts) == 1:
        return [tensors]
    parts, start = [], 0
    for count in counts:
        end = start + count
        parts.append({name: array[start:end] for name, array in tensors.items()})
        start = end
    return parts


def slice_rows(tensors: Tensors, size: int) -> list[Tensors]:
    """Cut into parts of ``size`` rows, the last one shorter."""
    rows = len(next(iter(tensors.values())))
    return [{name: array[i : i + size] for name, array in tensors.items()} for i in range(0, rows, size)]


def infer_in_fixed_batches(infer: Infer, tensors: Tensors, size: int) -> Tensors:
    """Run a model whose batch axis has one fixed length.

    Records run ``size`` at a time; the last chunk is filled up with copies of its first record (always a valid input,
    which zeros need not be), whose outputs are dropped.

    Raises:
        InferenceFailed: an output does not have ``size`` rows.
    """
    outputs = []
    for chunk in slice_rows(tensors, size):
        rows = len(next(iter(chunk.values())))
        if rows < size:
            chunk = {name: np.concatenate([a, np.repeat(a[:1], size - rows, axis=0)]) for name, a in chunk.items()}
        outputs.append(split(infer(chunk), [rows, size - rows] if rows < size else [size])[0])
    return stack(outputs)
