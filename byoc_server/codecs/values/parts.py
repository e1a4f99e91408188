"""Tensors of records that come some at a time, so that never all of them are there as objects. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.values.records import tensors_from_records
from byoc_server.codecs.values.walk import Label
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Array, Signature, Tensors, TensorSpec, tensor_bytes


def tensors_from_parts(
    parts: Iterable[Sequence[object]], signature: Signature, options: DecodeOptions, label: Label
) -> Tensors | None:
    """Turn records into tensors, as ``records.tensors_from_records`` does with all of them at once.

    Args:
        parts: the records in order; may raise ``InvalidPayload``. Bytes among them are not read.
        signature: of a model with a batch axis.
        options: limits.
        label: names a record in error messages.

    Returns:
        The tensors, or ``None`` where something is wrong: only all records together tell what is wrong first.

    Raises:
        TensorsTooLarge: as they are together.
    """
    columns: dict[str, list[Array]] = {spec.name: [] for spec in signature.inputs}
    done, left = 0, options.max_tensor_bytes
    try:
        for records in parts:
            label_here: Label = partial(_label_after, label, done)
            tensors = tensors_from_records(records, signature, replace(options, max_tensor_bytes=left), label_here)
            for name, array in tensors.items():
                columns[name].append(array)
            done += len(records)
            left -= tensor_bytes(tensors)
            # A thread that waits for the interpreter counts its 5 ms anew each time NumPy lets go of it for a moment;
            # without this it could wait to the end.
            time.sleep(0)
        return {spec.name: _joined(columns[spec.name], spec, options) for spec in signature.inputs}
    except TensorsTooLarge:
        raise
    except InvalidPayload:
        return None


def _label_after(label: Label, done: int, number: int) -> str:
    return label(done + number)


def _joined(arrays: Sequence[Array], spec: TensorSpec, options: DecodeOptions) -> Array:
    """All records of one input; shorter ones are filled up if its padding allows.

    Raises:
        InvalidPayload: they have not all the same shape, or are too large filled up.
    """
    lengths = [max(places) for places in zip(*(array.shape[1:] for array in arrays), strict=True)]
    if all(array.shape[1:] == tuple(lengths) for array in arrays):
        return np.concatenate(arrays)
    rows = sum([len(array) for array in arrays])
    if spec.padding_value is None or rows * math.prod(lengths) * spec.dtype.itemsize > options.max_tensor_bytes:
        raise InvalidPayload(f"input {spec.name!r}: records differ in length")
    padded = np.full((rows, *lengths), spec.padding_value, spec.dtype)
    done = 0
    for array in arrays:
        place: Any = (slice(done, done + len(array)), *map(slice, array.shape[1:]))
        padded[place] = cast(Any, array)
        done += len(array)
    return padded
