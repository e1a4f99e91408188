"""The record forms that JSON, JSON Lines and MessagePack share.

A record of a model with one input is the value itself, or an object around it; of a model with several inputs an
object with one key per input. The object forms are those of SageMaker's common data formats for inference
(Developer Guide, "Common data formats for inference", 2023):

* ``{"features": VALUE}``
* ``{"data": {"features": {"values": VALUE}}}``
* sparse, wherever a VALUE may stand: ``{"keys": [...], "shape": [...], "values": [...]}``
* by input name: ``{NAME: VALUE, ...}``, or by the columns of an input that has some: ``{COLUMN: ELEMENT, ...}``

``bytes`` are the UTF-8 of a string, or a whole VALUE: an image file for an input that takes images, else the elements
of a uint8 input. An array is a whole VALUE, or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import BrokenLibraryError, DecodeOptions, codecs_by_media_type
from byoc_server.codecs.images.header import read_header
from byoc_server.codecs.images.pixels import record_shape_of
from byoc_server.codecs.values.conform import (
    conform_array,
    convert,
    fits,
    records_to_array,
    require_equal_rows,
    shape_text,
)
from byoc_server.codecs.values.named_columns import (
    Cell,
    cells_of_records,
    columns_of_records,
    fault_of_cell,
    require_fields,
    values_by_input,
)
from byoc_server.codecs.values.padding import pad_arrays, pad_lists
from byoc_server.codecs.values.walk import Label, checked_leaf, shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import STRING, Array, ImageSpec, Signature, Tensors, TensorSpec

_PART = 4096
"""So many items of an array are looked at one by one where the array as a whole does not convert."""
_BYTES_PER_IMAGE = 32 * 1024
_BYTES_PER_PIXEL = 2
"""What images among the values of a request count for, beside their records, against the limit for its tensors."""

Column = Sequence[object] | Array
"""All values of one input: one per record, or an array of them."""


def tensors_from_records(
    records: Sequence[object], signature: Signature, options: DecodeOptions, label: Label
) -> Tensors:
    """Turn a list of records, in any mixture of the forms, into tensors.

    Raises:
        InvalidPayload: naming the record by ``label``.
    """
    columns = columns_of_records(records, signature) if signature.has_columns else None
    if columns is None:
        columns = {spec.name: [] for spec in signature.inputs}
        for number, record in enumerate(records):
            for name, value in _values_by_input(record, signature, label(number)).items():
                columns[name].append(value)
    labels = dict.fromkeys(columns, label)
    if signature.has_columns:
        cells = cells_of_records(records, signature, label)
        return tensors_from_named_columns(columns, signature, options, labels, cells)
    return tensors_from_columns(columns, signature, options, labels)


def tensors_from_named_columns(
    columns: Mapping[str, Column],
    signature: Signature,
    options: DecodeOptions,
    labels: Mapping[str, Label],
    cells: Iterable[Cell],
) -> Tensors:
    """As ``tensors_from_columns``, where a value that does not fit is to be found among ``cells`` by its column."""
    try:
        return tensors_from_columns(columns, signature, options, labels)
    except TensorsTooLarge:
        raise
    except InvalidPayload as error:
        refusal = error.with_traceback(None)
    raise fault_of_cell(cells) or refusal


def tensors_from_columns(
    columns: Mapping[str, Column], signature: Signature, options: DecodeOptions, labels: Mapping[str, Label]
) -> Tensors:
    """Turn record values by input name into tensors.

    Args:
        columns: for every input of the model the list of its record values, or an array of one record or more.
        signature: of the model. Without a batch axis each list has one value, of the whole graph shape.
        options: limits.
        labels: input name -> how its records are called.

    Raises:
        InvalidPayload: naming the first value that does not fit.
        TensorsTooLarge: the records of all inputs together are over the limit when dense.
    """
    budget = _DenseBudget(options.max_tensor_bytes)
    tensors: Tensors = {}
    for spec in signature.inputs:
        label, shape, column = labels[spec.name], signature.record_shapes[spec.name], columns[spec.name]
        if isinstance(column, np.ndarray):
            budget.take(column.size * spec.dtype.itemsize, label(0))
            tensors[spec.name] = conform_array(column, spec, signature, label(0))
            continue
        values = [_plain_value(v, spec, shape, label, i, budget) for i, v in enumerate(column)]
        if spec.padding_value is not None and values:
            array = _padded(values, spec, shape, label, budget)
        else:
            lists = len(values) - list(map(type, values)).count(np.ndarray)
            array = (_array_of_lists if lists == len(values) else _stacked)(values, spec, shape, label)
            budget.take(array.nbytes // len(array) * lists, label(0))  # they take more than that already
        if not signature.batched and len(array) != 1:
            raise InvalidPayload(
                f"the model takes one record per request, got {len(array)}", expected="1 record", got=str(len(array))
            )
        tensors[spec.name] = array if signature.batched else array.reshape(array.shape[1:])
    return require_equal_rows(tensors, signature)


def _values_by_input(record: object, signature: Signature, where: str) -> Mapping[str, object]:
    sole = signature.sole_input
    if isinstance(record, dict):
        values = values_by_input(record, signature, where) if signature.has_columns else None
        if values is not None:
            return values
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
        require_fields(list(record), signature, where)
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
    """Counts the bytes of tensors. Of sparse and padded records and images, a few bytes could ask for gigabytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.left = limit_bytes

    def take(self, size: int, where: str) -> None:
        self.left -= size
        if self.left < 0:
            raise TensorsTooLarge(f"{where}: the records of this request are too large when dense", field=where)


def _plain_value(
    value: object, spec: TensorSpec, shape: tuple[int | None, ...], label: Label, number: int, budget: _DenseBudget
) -> object:
    """Resolve ``{"values": ...}``, the sparse form and bytes to a plain nested value or an array."""
    if isinstance(value, dict):
        value = _value_of_object(value, spec, shape, label(number), budget)
    if isinstance(value, bytes) and spec.image is not None:
        return _image_record(value, spec, spec.image, shape, label(number), budget)
    if isinstance(value, bytes) and spec.dtype == np.uint8:
        array = np.frombuffer(value, np.uint8)
        lengths = [length for length in shape if length is not None]
        is_this_shape = len(lengths) == len(shape) and array.size == math.prod(lengths)
        return array.reshape(lengths) if is_this_shape else array
    return value


def _image_record(
    data: bytes, spec: TensorSpec, image: ImageSpec, shape: tuple[int | None, ...], where: str, budget: _DenseBudget
) -> Array:
    """One record from the bytes of an image file.

    Each counts as more than its record, so that a small body of many images is not decoded on the event loop.
    """
    header = read_header(data, where)
    record_bytes = math.prod(record_shape_of(image)) * spec.dtype.itemsize
    budget.take(record_bytes + header.width * header.height * _BYTES_PER_PIXEL + _BYTES_PER_IMAGE, where)
    entry = codecs_by_media_type()["image/jpeg"]
    try:
        if entry.installed:
            return cast(Array, cast(Any, entry.load()).record_from_header(header, spec, shape, where, budget.left))
    except BrokenLibraryError:
        pass
    raise UnsupportedMediaType(f"{where}: images are not read here (they need {entry.requirement})", field=where)


def _array_of_lists(
    values: list[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label
) -> Array:
    """Values without arrays among them as one array; bytes of strings are read."""
    if spec.dtype == STRING:
        with suppress(InvalidPayload):  # bytes are rare: it is not worth looking for them before anything is wrong
            return records_to_array(values, spec, record_shape, label)
        values = [_with_texts(value, len(record_shape), label, i) for i, value in enumerate(values)]
    return records_to_array(values, spec, record_shape, label)


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


def _padded(
    values: list[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label, budget: _DenseBudget
) -> Array:
    """Values of different length, arrays or not, as one array."""
    if np.ndarray not in map(type, values):
        return pad_lists(values, spec, record_shape, label, _array_of_lists, budget.take)
    arrays = []
    for number, value in enumerate(values):
        label_of_one: Label = partial(_label_at, label, number)
        if isinstance(value, np.ndarray):
            arrays.append(_stacked([value], spec, record_shape, label_of_one)[0])
        else:
            arrays.append(pad_lists([value], spec, record_shape, label_of_one, _array_of_lists, budget.take)[0])
    return pad_arrays(cast(list[Array], arrays), spec, label, budget.take)


def _label_at(label: Label, number: int, _: int) -> str:
    return label(number)


def _stacked(values: list[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label) -> Array:
    """Values of which some are arrays, as one array.

    Arrays never become lists on the way: they may be large where the body is small.
    """
    others = [i for i, value in enumerate(values) if not isinstance(value, np.ndarray)]
    arrays = cast(list[Array], values)
    if not others and len({(a.dtype, a.shape) for a in arrays}) == 1 and fits(arrays[0].shape, record_shape):
        is_usable = len(arrays) == 1 and arrays[0].flags.aligned
        array = _converted(arrays[0][np.newaxis] if is_usable else np.stack(arrays), spec)
        if array is not None:
            return array
    shape, rows = record_shape, None
    if others[:1] != [0]:  # the first record gives the lengths of open axes
        shape = _require_shape(arrays[0], spec, shape, label(0))
    if others:
        rows = _array_of_lists([values[i] for i in others], spec, shape, lambda i: label(others[i]))
        shape = rows.shape[1:]
    numbered = [(i, value) for i, value in enumerate(values) if isinstance(value, np.ndarray)]
    for i, value in numbered:  # all of them before memory is taken: a small one would get the room of a large one
        _require_shape(value, spec, shape, label(i))
    array = np.empty((len(values), *cast(tuple[int, ...], shape)), spec.dtype)
    if rows is not None:
        array[others] = rows
    for i, value in numbered:
        array[i] = _item_by_item(value, spec, label(i))
    return array


def _require_shape(array: Array, spec: TensorSpec, shape: tuple[int | None, ...], where: str) -> tuple[int, ...]:
    if not fits(array.shape, shape):
        expected, got = shape_text(shape), shape_text(array.shape)
        raise InvalidPayload(
            f"{where}: expected shape {expected} for input {spec.name!r}, got {got}",
            field=where,
            expected=expected,
            got=got,
        )
    return array.shape


def _converted(array: Array, spec: TensorSpec) -> Array | None:
    """As ``convert``, without a look at the values where there is nothing to convert.

    Bytes of booleans come from outside and may hold other values than 0 and 1; arrays of objects are made here and
    hold strings.
    """
    return array if array.dtype == spec.dtype and array.dtype.kind != "b" else convert(array, spec.dtype)


def _item_by_item(value: Array, spec: TensorSpec, where: str) -> Array:
    """Convert an array; where it does not as a whole, find the culprit or take its items as those of a list."""
    array = _converted(value, spec)
    if array is not None:
        return array
    items, array = value.ravel(), np.empty(value.size, spec.dtype)
    for start in range(0, items.size, _PART):
        part = _converted(items[start : start + _PART], spec)
        if part is None:
            numbered = enumerate(items[start : start + _PART].tolist(), start)
            leaves = [checked_leaf(item, spec, where + _index(number, value.shape)) for number, item in numbered]
            array[start : start + _PART] = cast(Any, leaves)
        else:
            array[start : start + _PART] = part
    return array.reshape(value.shape)


def _index(number: int, shape: tuple[int, ...]) -> str:
    text = ""
    for length in reversed(shape):
        number, place = divmod(number, length)
        text = f"[{place}]{text}"
    return text


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
) -> Array:
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
    # NumPy makes no array, also none without elements, whose other lengths are beyond what there can be.
    budget.take(math.prod(length or 1 for length in shape) * spec.dtype.itemsize, where)
    if not (set(map(type, keys)) <= {int} and (not keys or (min(keys) >= 0 and max(keys) < size))):
        key = next(key for key in keys if type(key) is not int or not 0 <= key < size)
        raise InvalidPayload(
            f"{where}.keys: expected whole numbers from 0 to {size - 1}, got {shown(key)}",
            field=f"{where}.keys",
            expected=f"0 to {size - 1}",
            got=shown(key),
        )
    flat: Array = np.full(size, "", STRING) if spec.dtype == STRING else np.zeros(size, spec.dtype)
    if keys:
        flat[keys] = _array_of_lists(values, spec, (), lambda i: f"{where}.values[{i}]")
    return flat.reshape(shape)
