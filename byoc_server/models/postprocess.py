"""What an answer may hold in the place of the model's own numbers: probabilities, the best k, labels. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from byoc_server.errors import InferenceFailed
from byoc_server.types import STRING, STRING_BYTES, Array, Tensors, TensorSpec

_SORTED_WHOLE = 64
"""Up to so many values are sorted all; of more the best are picked out first."""


class Labels:
    """Words for indices.

    An index without a word, beyond the last or in a gap, is its own label: ``"17"``. So an answer is never lost for
    what is a mistake in a file.

    Args:
        texts: the labels of 0, 1, 2 and so on, or by index.
    """

    def __init__(self, texts: Sequence[str] | Mapping[int, str]) -> None:
        by_index = texts if isinstance(texts, Mapping) else dict(enumerate(texts))
        self.count = max(by_index) + 1
        self._has_gaps = isinstance(texts, Mapping)
        self._table = np.array([by_index.get(index, str(index)) for index in range(self.count)], STRING)
        self.item_bytes = max(STRING_BYTES, 4 * max(map(len, by_index.values())))
        """What one takes in an answer at most: some formats give every string the room of the longest."""

    def fit(self, length: int) -> bool:
        """Whether they can be the labels of an axis: as many, or none beyond it if they are by index."""
        return self.count <= length if self._has_gaps else self.count == length

    def of(self, indices: Array) -> Array:
        """The labels of integers of any shape, as an array of that shape."""
        flat = cast(Any, indices.ravel())
        known = (flat >= 0) & (flat < self.count)
        if known.all():
            return cast(Array, self._table[flat]).reshape(indices.shape)
        labels = np.empty(flat.shape, STRING)
        labels[known] = self._table[flat[known]]
        labels[~known] = [str(index) for index in flat[~known].tolist()]
        return labels.reshape(indices.shape)


@dataclass(frozen=True, slots=True)
class Postprocessing:
    """What happens to one output, in this order.

    Attributes:
        softmax: see ``softmax``.
        top_k: see ``top_k``; ``None`` = all values, where they are.
        labels: for the indices that ``top_k`` gives, or for the values of the output themselves.
    """

    softmax: bool = False
    top_k: int | None = None
    labels: Labels | None = None

    def specs(self, spec: TensorSpec, name: str) -> tuple[TensorSpec, ...]:
        """What clients see of an output.

        Args:
            spec: of the model.
            name: that clients call it by.
        """
        if self.top_k is None:
            return (TensorSpec(name, spec.dtype if self.labels is None else STRING, spec.shape),)
        shape = spec.shape
        if shape:
            length = shape[-1]
            shape = (*shape[:-1], None if length is None else min(self.top_k, length))
        dtype = np.dtype(np.int64) if self.labels is None else STRING
        return TensorSpec(name, spec.dtype, shape), TensorSpec(self.second_name(name), dtype, shape)

    def second_name(self, name: str) -> str:
        """Name of the output that says which the top k are."""
        return f"{name}_indices" if self.labels is None else f"{name}_labels"

    def answer_bytes(self, array: Array) -> int:
        """What the client's outputs take at most, in any format, that ``apply`` makes of one of the model's."""
        size, index_bytes = array.size, 8 if self.labels is None else self.labels.item_bytes
        if self.top_k is None:
            return array.nbytes if self.labels is None else size * index_bytes
        length = array.shape[-1] if array.ndim else 1
        kept = size // max(length, 1) * min(self.top_k, length)
        return kept * (array.dtype.itemsize + index_bytes)

    def apply(self, array: Array, name: str, axes_before: int) -> Tensors:
        """Make the client's outputs from one of the model's.

        Args:
            array: of the model.
            name: that clients call it by.
            axes_before: axes that are not the last axis of a record: 1 for that of the batch, else 0.

        Raises:
            InferenceFailed: the model returned an array without an axis to work along, which its graph did not say.
        """
        if (self.softmax or self.top_k is not None) and array.ndim <= axes_before:
            raise InferenceFailed(f"output {name!r} has no axis for softmax or top_k to work along")
        if self.softmax:
            array = softmax(array)
        if self.top_k is None:
            return {name: array if self.labels is None else self.labels.of(array)}
        values, indices = top_k(array, self.top_k)
        return {name: values, self.second_name(name): indices if self.labels is None else self.labels.of(indices)}


def softmax(array: Array) -> Array:
    """``exp(x) / sum(exp(x))`` along the last axis, computed in float32 or wider.

    The greatest value of each row is subtracted first, so that nothing overflows. A row that holds NaN or a positive
    infinity is NaN, as is one of negative infinities alone.

    Args:
        array: of floats, with one axis or more.

    Returns:
        Array of the same shape and dtype.
    """
    if not array.size:
        return array
    wide = cast(Any, array).astype(np.result_type(array.dtype, np.float32))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        wide -= wide.max(axis=-1, keepdims=True)
    np.exp(wide, out=wide)
    wide /= wide.sum(axis=-1, keepdims=True)
    return cast(Array, wide.astype(array.dtype, copy=False))


def top_k(array: Array, k: int) -> tuple[Array, Array]:
    """The greatest values along the last axis, in descending order; of equal ones the first, NaN last of all.

    Args:
        array: of numbers or booleans, shape (..., C).
        k: how many; all of them if C is less.

    Returns:
        The values and their indices, int64, both of shape (..., min(k, C)).
    """
    # Ascending in what follows. The complement turns the order of integers round and, unlike the negative, has no
    # overflow; NaN sorts behind everything.
    numbers = cast(Any, array)
    keys = -numbers if array.dtype.kind == "f" else ~numbers
    length = keys.shape[-1]
    if length <= max(k, _SORTED_WHOLE) or not keys.size:
        indices = np.argsort(keys, axis=-1, kind="stable")[..., :k]
    else:
        indices = _first_of_many(keys.reshape(-1, length), k).reshape(*keys.shape[:-1], k)
    indices = indices.astype(np.int64, copy=False)
    return np.take_along_axis(array, indices, axis=-1), indices


def _first_of_many(keys: Any, k: int) -> Any:
    """Indices of the k least of each row, in order; of equal ones the first."""
    picked = np.sort(np.argpartition(keys, k - 1, axis=-1)[:, :k], axis=-1)
    picked_keys = np.take_along_axis(keys, picked, axis=-1)
    order = np.argsort(picked_keys, axis=-1, kind="stable")
    indices = np.take_along_axis(picked, order, axis=-1)
    # Where others equal the last one picked, picking was no choice of the first among them; nor is NaN ever counted.
    last = np.take_along_axis(keys, indices[:, -1:], axis=-1)
    unclear = np.flatnonzero((keys <= last).sum(axis=-1) != k)
    for row in unclear:
        indices[row] = np.argsort(keys[row], kind="stable")[:k]
    return indices
