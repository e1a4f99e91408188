"""The record forms that JSON, JSON Lines and MessagePack share.

A record of a model with one input is the value itself, or an object around it; of a model with several inputs an
object with one key per input. The object forms are those of SageMaker's common data formats for inference
(Developer Guide, "Common data formats for inference", 2023):

* ``{"features": VALUE}``
* ``{"data": {"features": {"values": VALUE}}}``
* sparse, wherever a VALUE may stand: ``{"keys": [...], "shape": [...], "values": [...]}``
* by input name: ``{NAME: VALUE, ...}``

``bytes`` are the UTF-8 of a string, or the whole VALUE of a uint8 input. An array is a whole VALUE, or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.conform import (
    conform_array,
    convert,
    fits,
    records_to_array,
    require_equal_rows,
    require_inputs,
    shape_text,
)
from byoc_server.codecs.walk import Label, shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

Column = Sequence[object] | Array
"""All values of one input: one per record, or an array of them."""


def tensors_from_records(
    records: Sequence[object], signature: Signature, options: DecodeOptions, label: Label
) -> Tensors:
    """Turn a list of records, in any mixture of the forms, into tensors.

    Raises:
        InvalidPayload: naming the record by ``label``.
    """
    columns: dict[str, list[object]] = {spec.name: [] for spec in signature.inputs}
    for number, record in enumerate(records):
        for name, value in _values_by_input(record, signature, label(number)).items():
            columns[name].append(value)
    return tensors_from_columns(columns, signature, options, dict.fromkeys(columns, label))


def tensors_from_columns(
    columns: Mapping[str, Column], signature: Signature, options: DecodeOptions, labels: Mapping[str, Label]
) -> Tensors:
    """Turn record values by input name into tensors.

    Args:
        columns: for every input of the model the list of its record values, or an array of one record or more.
        signature: of the model. Without a batch axis each list has one value, of the whole graph shape.
        options: limits.
        labels: input name -> how its records are called.
    """
    budget = _DenseBudget(options.max_tensor_bytes)
    tensors: Tensors = {}
    for spec in signature.inputs:
        label, shape, column = labels[spec.name], signature.record_shapes[spec.name], columns[spec.name]
        if isinstance(column, np.ndarray):
            tensors[spec.name] = conform_array(column, spec, signature, label(0))
            continue
        values = [_plain_value(v, spec, shape, label, i, budget) for i, v in enumerate(column)]
        array = _stacked(values, spec, shape) if np.ndarray in map(type, values) else None
        if array is None:
            array = _array_of_texts(values, spec, shape, label) if spec.dtype == STRING else None
        if array is None:
            array = records_to_array(values, spec, shape, label)
        if not signature.batched and len(array) != 1:
            raise InvalidPayload(
                f"the model takes one record per request, got {len(array)}", expected="1 record", got=str(len(array))
            )
        tensors[spec.name] = array if signature.batched else array.reshape(array.shape[1:])
    return require_equal_rows(tensors, signature)


def _values_by_input(record: object, signature: Signature, where: str) -> Mapping[str, object]:
    sole = signature.sole_input
    if isinstance(record, dict):
        if sole is not None and holds_common_features(record):
            return {sole.name: record["data"]["features"]}
        names = signature.input_by_name
        if len(record) == len(names) and all(name in record for name in names):
            return record
        if sole is not None and sole.name not in record:
            if is_value_object(record):
                return {sole.name: record}
            features = _features(record, where)
            if features is not None:
                return {sole.name: features}
        require_inputs(list(record), signature, where)
    if sole is None:
        expected = "an object with the keys " + ", ".join(repr(spec.name) for spec in signature.inputs)
        raise InvalidPayload(
            f"{where}: the model has several inputs: expected {expected}, got {shown(record)}",
            field=where,
            expected=expected,
            got=shown(record),
        )
    return {sole.name: record}


def holds_common_features(record: Mapping[str, Any]) -> bool:
    """Whether it is ``{"data": {"features": ...}}``; an input may be called ``data``, too."""
    data = record.get("data")
    return isinstance(data, dict) and "features" in data


def _features(record: Mapping[str, object], where: str) -> object | None:
    """The VALUE of ``{"features": ...}``, or ``None`` if it is not of that form."""
    if "features" in record:
        return record["features"]
    data = record.get("data")
    if isinstance(data, dict):
        raise InvalidPayload(
            f"{where}.data: expected the key 'features'", field=f"{where}.data", expected="features", got=shown(data)
        )
    return None


def is_value_object(value: Mapping[str, object]) -> bool:
    """Whether it is ``{"values": ...}``, dense or with ``keys`` and ``shape``."""
    return "values" in value and set(value) <= {"values", "keys", "shape"}


class _DenseBudget:
    """Counts the bytes that sparse records grow to, so that a few bytes cannot ask for gigabytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.left = limit_bytes

    def take(self, size: int, where: str) -> None:
        self.left -= size
        if self.left < 0:
            raise InvalidPayload(f"{where}: the sparse records of this request are too large when dense", field=where)


def _plain_value(
    value: object, spec: TensorSpec, shape: tuple[int | None, ...], label: Label, number: int, budget: _DenseBudget
) -> object:
    """Resolve ``{"values": ...}``, the sparse form and bytes to a plain nested value or an array."""
    if isinstance(value, dict):
        value = _value_of_object(value, spec, shape, label(number), budget)
    if isinstance(value, bytes) and spec.dtype == np.uint8:
        array = np.frombuffer(value, np.uint8)
        lengths = [length for length in shape if length is not None]
        is_this_shape = len(lengths) == len(shape) and array.size == math.prod(lengths)
        return array.reshape(lengths) if is_this_shape else array
    return value


def _array_of_texts(
    values: list[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label
) -> Array | None:
    """Strings as an array; ``None`` if there is something else among them, and then ``values`` holds no bytes."""
    with suppress(InvalidPayload):  # bytes are rare: it is not worth looking for them before anything is wrong
        return records_to_array(values, spec, record_shape, label)
    values[:] = [_with_texts(value, len(record_shape), label, i) for i, value in enumerate(values)]
    return None


def _with_texts(value: object, rank: int, label: Label, number: int) -> object:
    """Nested lists of ``rank`` axes, with strings in the place of bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            where, got = label(number), f"byte {error.start} is 0x{value[error.start]:02x}"
            raise InvalidPayload(
                f"{where}: the bytes of a string are not UTF-8: {got}", field=where, expected="UTF-8", got=got
            ) from None
    if rank and isinstance(value, list) and not {bytes, list}.isdisjoint(map(type, value)):
        return [_with_texts(item, rank - 1, label, number) for item in value]
    return value


def _stacked(values: list[object], spec: TensorSpec, record_shape: tuple[int | None, ...]) -> Array | None:
    """Values of which some are arrays, as one array.

    Returns:
        The array, or ``None`` if they are not alike or do not fit; then ``values`` holds lists in the place of arrays.
    """
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    alike = len(arrays) == len(values) and len({(a.dtype, a.shape) for a in arrays}) == 1
    if alike and fits(arrays[0].shape, record_shape):
        array = convert(np.stack(arrays), spec.dtype)
        if array is not None:
            return array
    values[:] = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return None


def _value_of_object(
    value: Mapping[str, Any], spec: TensorSpec, shape: tuple[int | None, ...], where: str, budget: _DenseBudget
) -> object:
    if not is_value_object(value):
        raise InvalidPayload(
            f"{where}: expected a value for input {spec.name!r}, got an object with the keys "
            + ", ".join(shown(key) for key in list(value)[:5]),
            field=where,
            expected="a list, a number, or an object with 'values' (sparse: also 'keys' and 'shape')",
            got="an object",
        )
    if "keys" not in value and "shape" not in value:
        return value["values"]
    return _dense(value, spec, shape, where, budget)


def _dense(
    value: Mapping[str, Any], spec: TensorSpec, record_shape: tuple[int | None, ...], where: str, budget: _DenseBudget
) -> list[object]:
    keys, values, shape = value.get("keys"), value["values"], value.get("shape")
    if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
        raise InvalidPayload(
            f"{where}: a sparse record needs 'keys' and 'values' of the same length",
            field=where,
            expected="as many keys as values",
            got=f"{shown(keys)} and {shown(values)}",
        )
    if shape is None and None not in record_shape:
        shape = list(record_shape)
    if not isinstance(shape, list) or not all(type(d) is int and d >= 0 for d in shape):
        raise InvalidPayload(
            f"{where}.shape: expected a list of lengths, got {shown(shape)}",
            field=f"{where}.shape",
            expected="a list",
            got=shown(shape),
        )
    if not fits(tuple(shape), record_shape):
        raise InvalidPayload(
            f"{where}.shape: expected {shape_text(record_shape)} for input {spec.name!r}, "
            f"got {shape_text(tuple(shape))}",
            field=f"{where}.shape",
            expected=shape_text(record_shape),
            got=shape_text(tuple(shape)),
        )
    size = math.prod(shape)
    # The dense record passes through a Python list: a pointer an element, before it becomes an array.
    budget.take(size * max(8, spec.dtype.itemsize), where)
    flat: list[object] = ["" if spec.dtype.kind == "O" else 0] * size
    for key, item in zip(keys, values, strict=True):
        if type(key) is not int or not 0 <= key < size:
            raise InvalidPayload(
                f"{where}.keys: expected whole numbers from 0 to {size - 1}, got {shown(key)}",
                field=f"{where}.keys",
                expected=f"0 to {size - 1}",
                got=shown(key),
            )
        flat[key] = item
    if len(shape) == 1:
        return flat
    nested = np.empty(size, dtype=object)
    nested[:] = flat
    return cast(list[object], nested.reshape(shape).tolist())
