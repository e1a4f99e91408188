"""Records of different length brought to one: filled up behind along the open axes of their input. Pure."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from byoc_server.codecs.values.walk import Label, require_list
from byoc_server.types import Array, TensorSpec

Shape = tuple[int | None, ...]
ToArray = Callable[[list[object], TensorSpec, Shape, Label], Array]
"""Values, their input, the shape of each and what each is called -> one array; as ``conform.records_to_array``."""
Take = Callable[[int, str], None]
"""Told the bytes of an array and a place before it is made; raises if they are too many."""


def pad_lists(
    values: list[object], spec: TensorSpec, record_shape: Shape, label: Label, to_array: ToArray, take: Take
) -> Array:
    """Stack records that are nested lists into one array.

    Lists within one record may differ in length, too.

    Args:
        values: one record or more.
        spec: the input, with a padding value.
        record_shape: of the input, with an open axis.
        label: names a record in error messages.
        to_array: makes an array of what stands in the lists of the last open axis.
        take: counts the bytes of the result.

    Returns:
        Array of ``spec.dtype``, shape (N, *lengths).

    Raises:
        InvalidPayload: wrong nesting, wrong length along an axis that is not open, or what ``to_array`` raises.
    """
    depth = 1 + max(axis for axis, length in enumerate(record_shape) if length is None)
    longest = [0] * depth
    lists = list(_innermost(values, spec, record_shape, label, longest))
    shape = [len(values), *longest[:-1]]
    length, inner = longest[-1], record_shape[depth:]
    tail = cast(tuple[int, ...], inner)
    take(math.prod(shape) * length * math.prod(tail) * spec.dtype.itemsize, label(0))
    numbers = range(len(values)) if depth == 1 else list(_numbers(values, longest[:-1]))
    counts = [len(items) for items in lists]
    starts = list(itertools.accumulate(counts, initial=0))
    padded = np.full((math.prod(shape), length, *tail), spec.padding_value, spec.dtype)

    def item_label(index: int) -> str:
        """Where the item that is number ``index`` of all stands."""
        row = bisect_right(starts, index) - 1
        record, *places = np.unravel_index(numbers[row], shape)
        return label(int(record)) + "".join(f"[{place}]" for place in (*places, index - starts[row]))

    items = list(itertools.chain.from_iterable(lists))
    if items:
        rows = np.repeat(np.array(numbers), counts)
        places = np.arange(len(items)) - np.repeat(np.array(starts[:-1]), counts)
        padded[rows, places] = cast(Any, to_array(items, spec, inner, item_label))
    return padded.reshape(*shape, length, *tail)


def pad_arrays(arrays: Sequence[Array], spec: TensorSpec, label: Label, take: Take) -> Array:
    """Stack records that are arrays of ``spec.dtype`` and of one rank into one array, shape (N, *lengths)."""
    lengths = [max(places) for places in zip(*(array.shape for array in arrays), strict=True)]
    take(len(arrays) * math.prod(lengths) * spec.dtype.itemsize, label(0))
    padded = np.full((len(arrays), *lengths), spec.padding_value, spec.dtype)
    for number, array in enumerate(arrays):
        place: Any = (number, *map(slice, array.shape))
        padded[place] = cast(Any, array)
    return padded


def _innermost(
    values: list[object], spec: TensorSpec, record_shape: Shape, label: Label, longest: list[int]
) -> Iterator[list[object]]:
    """The lists along the last open axis of all records, in order; ``longest`` learns the lengths of the axes."""

    def lists_in(value: object, axis: int, path: str) -> Iterator[list[object]]:
        items = require_list(value, axis, record_shape, spec, path)
        longest[axis] = max(longest[axis], len(items))
        if axis + 1 == len(longest):
            yield items
            return
        for index, item in enumerate(items):
            yield from lists_in(item, axis + 1, f"{path}[{index}]")

    for number, value in enumerate(values):
        yield from lists_in(value, 0, label(number))


def _numbers(values: list[object], lengths: Sequence[int], before: int = 0) -> Iterator[int]:
    """The numbers that the innermost lists have in the padded array, counted as if its outer axes were one."""
    for index, value in enumerate(values, before):
        if lengths:
            yield from _numbers(cast(list[object], value), lengths[1:], index * lengths[0])
        else:
            yield index
