"""Records of different lengths in one batch: padded to the longest, and their outputs cut to their own length. Pure.

Only records of one *bucket* meet, so that what is computed for padding is bounded in two ways:

1. Buckets end at 16, 24, 32, 48, 64, 96, 128 and so on, two for every doubling: less than a third of a record is
   padding, but for those below the first end.
2. They also end at every multiple of a *step*, the positions that are computed in the time that a run takes by itself.
   More padding than that would cost more than it saves.

Measured on a CPU for an encoder of 6 layers, 384 wide, where a run by itself takes as long as 20 positions; lengths of
8 to 256, of which 64 wait, in batches of up to 512 positions. By the first rule alone 7 % of what is computed is
padding, and a record takes 2 % more CPU than in batches of equal lengths. By both it is 2 %, and 7 % less CPU; two
threads then run 22 % more records a second.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from byoc_server.batching import collate
from byoc_server.errors import InferenceFailed
from byoc_server.types import Array, Tensors

_SHORTEST_BUCKET = 16


@dataclass(frozen=True, slots=True)
class PaddedInput:
    """How one input is padded.

    Attributes:
        axis: the one that is as long as the record, counted with the N of the rows as 0.
        value: what stands behind the record.
    """

    axis: int
    value: float | str


@dataclass(frozen=True, slots=True)
class Padding:
    """How the records of a model are padded, and their outputs cut.

    Attributes:
        inputs: those that are as long as the record, at least one; all others have a fixed record shape.
        outputs: the axes, with the N of the rows as 0, that are as long as the record; none for outputs not named.
    """

    inputs: Mapping[str, PaddedInput]
    outputs: Mapping[str, Sequence[int]]


class PaddedCollation:
    """Batches of records that are padded. See ``Collation``.

    A request whose inputs do not all have one and the same length, or whose records are empty, shares a batch only with
    its like: what its padding would do has not been tried.

    Args:
        padding: of the model.
        step: buckets end at its multiples, too.
        to_bucket: pad batches to the end of the bucket and not to the longest record: more is computed, in fewer
            shapes. Then there are no steps.
    """

    def __init__(self, padding: Padding, step: int = 0, to_bucket: bool = False) -> None:
        self.padding = padding
        self.record_bytes = 0
        self._axes = [(name, padded.axis) for name, padded in padding.inputs.items()]
        self._step = 0 if to_bucket else step
        self._to_bucket = to_bucket

    @property
    def values(self) -> Mapping[str, float | str]:
        """What each input is padded with."""
        return {name: padded.value for name, padded in self.padding.inputs.items()}

    def key(self, tensors: Tensors) -> Hashable:
        """The bucket of the records; their lengths where they cannot be padded."""
        lengths = self._lengths(tensors)
        length = _shared(lengths)
        return bucket_end(length, self._step) if length else tuple(lengths)

    def length(self, tensors: Tensors) -> int:
        """Positions of one record."""
        return max(1, *self._lengths(tensors))

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        """Join along axis 0, padded to one length. All parts have the same key. One part is passed through."""
        lengths, target = self._plan(parts)
        if all(length == target for length in lengths):
            return collate.stack(parts)
        stacked: Tensors = {}
        for name in parts[0]:
            arrays = [part[name] for part in parts]
            padded = self.padding.inputs.get(name)
            stacked[name] = np.concatenate(arrays) if padded is None else _pad(arrays, lengths, target, padded)
        return stacked

    def split(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> list[Tensors]:
        """Cut along axis 0 into ``counts`` rows each, and each to the length of its part.

        Raises:
            InferenceFailed: an output does not have the rows that went in, or not the length.
        """
        rows = collate.split(outputs, counts)
        lengths, target = self._plan(parts)
        if all(length == target for length in lengths):
            return rows
        for name, axes in self.padding.outputs.items():
            shape = outputs[name].shape
            if any(axis >= len(shape) or shape[axis] != target for axis in axes):
                raise InferenceFailed(f"output {name!r} has shape {shape} for records padded to {target}")
        return [
            part if length == target else self._cut(part, length) for part, length in zip(rows, lengths, strict=True)
        ]

    def together(self, outputs: Tensors, parts: Sequence[Tensors], counts: Sequence[int]) -> bool:
        """See ``Collation.together``."""
        lengths, target = self._plan(parts)
        collate.check_rows(outputs, sum(counts))
        return all(length == target for length in lengths)

    def _plan(self, parts: Sequence[Tensors]) -> tuple[list[int], int]:
        """The length of each part, and what all are padded to: the same where nothing is padded."""
        lengths = [_shared(self._lengths(part)) for part in parts]
        longest = max(lengths)
        # One alone is never padded: where the end of the bucket is more than the model takes, it still gets its answer.
        whole = self._to_bucket and longest and len(parts) > 1
        return lengths, bucket_end(longest) if whole else longest

    def _lengths(self, tensors: Tensors) -> list[int]:
        return [tensors[name].shape[axis] for name, axis in self._axes]

    def _cut(self, outputs: Tensors, length: int) -> Tensors:
        cut = dict(outputs)
        for name, axes in self.padding.outputs.items():
            array = outputs[name]
            place = tuple(slice(length) if axis in axes else slice(None) for axis in range(array.ndim))
            cut[name] = np.ascontiguousarray(array[place])  # as engines return them
        return cut


def bucket_end(length: int, step: int = 0) -> int:
    """The longest record that shares a bucket with one of this length.

    Args:
        length: 1 or more.
        step: see ``PaddedCollation``; taken as at least 16, and as a multiple of 8. 0 = none.
    """
    double = max(1 << (length - 1).bit_length(), _SHORTEST_BUCKET)
    between = double * 3 // 4
    end = between if length <= between and between > _SHORTEST_BUCKET else double
    if not step:
        return end
    step = max(step // 8 * 8, _SHORTEST_BUCKET)
    return min(end, -(-length // step) * step)


def _shared(lengths: Sequence[int]) -> int:
    """The length that all inputs have; 0 where they do not."""
    return lengths[0] if lengths.count(lengths[0]) == len(lengths) else 0


def _pad(arrays: Sequence[Array], lengths: Sequence[int], target: int, padded: PaddedInput) -> Array:
    """One new array, into which each value is written once."""
    shape = list(arrays[0].shape)
    shape[0], shape[padded.axis] = sum([len(array) for array in arrays]), target
    joined = np.empty(shape, arrays[0].dtype)
    between = (slice(None),) * (padded.axis - 1)
    start = 0
    for array, length in zip(arrays, lengths, strict=True):
        end = start + len(array)
        joined[(slice(start, end), *between, slice(length))] = cast(Any, array)
        joined[(slice(start, end), *between, slice(length, None))] = cast(Any, padded.value)
        start = end
    return joined
