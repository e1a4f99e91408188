"""Records of flat values, as the protobuf formats carry them, gathered input by input and made into tensors.

A value is a run of numbers back to back, or some texts; its shape stands beside it, or follows from the input's. It
may be sparse: then keys say where in the flattened record its numbers go, and the rest is zero.

``Column`` takes the values of one input, record by record. It keeps their bytes joined, not an object per record, and
decodes and converts them all at once in the end. Nothing is built before ``tensors_from_columns`` has summed up how
large everything will be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.protobuf.wire import LENGTH, VARINT, Packed, count_varints, decode_varints, has_long_varint
from byoc_server.codecs.values.conform import convert, fits, shape_text
from byoc_server.codecs.values.walk import checked_leaf, shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_RUN_KEY_BYTES = 256 * 1024
"""A run of sparse records is closed when its keys have so many bytes, as each needs some 50 while they are placed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of a record are.

    Attributes:
        name: as the format calls it.
        dtype: of the values when decoded.
        wire_type: of one value.
    """

    name: str
    dtype: np.dtype[Any]
    wire_type: int


@dataclass(slots=True)
class FlatValue:
    """What one record has for one input.

    Attributes:
        kind: of the values.
        values: numbers back to back.
        texts: the values instead, if they are texts.
        keys: where the values go if the record is sparse: varints back to back.
        shape: of the record, empty if the sender does not tell.
    """

    kind: Kind
    values: Packed = field(default_factory=Packed)
    texts: Sequence[str] = ()
    keys: Packed | None = None
    shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        if self.kind.wire_type == LENGTH:
            return len(self.texts)
        if self.kind.wire_type == VARINT:
            return count_varints(self.values)
        return (self.values.end - self.values.start) // self.kind.dtype.itemsize


def record_label(number: int) -> str:
    """How messages call a record; ``number`` counts from 0."""
    return f"record {number + 1}"


class _Run:
    """Neighbouring records of one kind, all dense or all sparse, their values joined."""

    __slots__ = ("counts", "keys", "kind", "texts", "values")

    def __init__(self, value: FlatValue, count: int) -> None:
        self.kind = value.kind
        self.values = value.values
        self.texts = list(value.texts)
        self.keys = value.keys
        self.counts = [count]

    def append(self, value: FlatValue, count: int) -> bool:
        """Take in a record; whether it could."""
        if value.kind is not self.kind or (value.keys is None) != (self.keys is None):
            return False
        if self.keys is not None and value.keys is not None:
            if self.keys.end - self.keys.start > _RUN_KEY_BYTES:
                return False
            self.keys.append(value.keys)
        self.values.append(value.values)
        self.texts += value.texts
        self.counts.append(count)
        return True


class Column:
    """The values of one input, record by record."""

    def __init__(self, spec: TensorSpec, record_shape: tuple[int | None, ...]) -> None:
        """Start without records.

        Args:
            spec: the input.
            record_shape: of the input; an open axis gets the length that the first record gives it.
        """
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        self._spec = spec
        self._record_shape = record_shape
        self._runs: list[_Run] = []

    def add(self, value: FlatValue) -> None:
        """Take in the next record.

        Raises:
            InvalidPayload: its shape or its number of values do not fit.
        """
        count, where = len(value), record_label(self.rows)
        if (value.kind.dtype == STRING) != (self._spec.dtype == STRING):
            raise _misfit(where, self._spec, "strings" if self._spec.dtype == STRING else "numbers", value.kind.name)
        if value.keys is None and not count and value.shape and 0 not in value.shape:
            value.keys = Packed()  # a sparse record that is all zeros
        shape = self._shape_of(value, count, where)
        if not self._runs:
            self.shape = shape
        elif shape != self.shape:
            raise _misfit(where, self._spec, f"shape {shape_text(self.shape)} as in record 1", shape_text(shape))
        if not self._runs or not self._runs[-1].append(value, count):
            self._runs.append(_Run(value, count))
        self.rows += 1

    def repeat(self, value: FlatValue, values: bytes, rows: int) -> None:
        """Take in many dense records of the form of one, as the first.

        Args:
            value: the first of them.
            values: of all of them, back to back.
            rows: how many they are.

        Raises:
            InvalidPayload: as ``add``.
        """
        self.add(value)
        (run,) = self._runs
        run.values = Packed(values, 0, len(values))
        run.counts *= rows
        self.rows = rows

    def _shape_of(self, value: FlatValue, count: int, where: str) -> tuple[int, ...]:
        spec, wanted, shape = self._spec, self._record_shape, value.shape
        if value.keys is not None:
            keys = count_varints(value.keys)
            if keys != count:
                raise _misfit(where, spec, "as many keys as values", f"{keys} keys and {count} values")
        if shape:
            if wanted == () and shape == (1,):
                shape = ()
            if not fits(shape, wanted):
                raise _misfit(
                    where, spec, f"shape {shape_text(wanted)}", shape_text(shape) if len(shape) < 9 else "more axes"
                )
            size = math.prod(shape)
            if value.keys is None and size != count:
                raise _misfit(where, spec, f"{size} values for shape {shape_text(shape)}", str(count))
            return shape
        known = math.prod([length for length in wanted if length is not None])
        open_axes = wanted.count(None)
        if open_axes > 1 or (open_axes and (value.keys is not None or not known)):
            raise _misfit(where, spec, f"a shape that fits {shape_text(wanted)}", f"{count} values without a shape")
        if not open_axes:
            if value.keys is None and count != known:
                raise _misfit(where, spec, f"{known} value{'s' * (known != 1)}", str(count))
        elif count % known:
            raise _misfit(where, spec, f"a multiple of {known} values", str(count))
        return tuple(count // known if length is None else length for length in wanted)

    def array(self) -> Array:
        """Build the array, shape (N, *shape).

        Raises:
            InvalidPayload: a value that the input cannot have, or a key that does not fit.
        """
        shape = (self.rows, *self.shape)
        if len(self._runs) == 1 and self._runs[0].keys is None:
            return self._converted(self._runs[0], 0).reshape(shape)
        built = np.zeros(shape, self._spec.dtype).reshape(self.rows, math.prod(self.shape))
        first = 0
        for run in self._runs:
            rows, values = len(run.counts), self._converted(run, first)
            part = built[first : first + rows]
            if run.keys is None:
                part[:] = values.reshape(part.shape)
            else:
                part.reshape(-1)[self._places(run, run.keys, first)] = values
            first += rows
        return built.reshape(shape)

    def _converted(self, run: _Run, first: int) -> Array:
        """The values of a run, shape (M,), as the input has them."""
        kind, spec = run.kind, self._spec
        if kind.dtype == STRING:
            texts = np.empty(len(run.texts), STRING)
            texts[:] = run.texts
            return texts
        if run.values.end == run.values.start:
            return np.empty(0, spec.dtype)
        if kind.wire_type == VARINT:
            array: Array = decode_varints(run.values).view(np.int64)  # a negative number is sent as one of 64 bits
        else:
            array = np.frombuffer(memoryview(run.values.data)[run.values.start : run.values.end], kind.dtype)
            array = array if array.flags.aligned else array.copy()
        if array.dtype != kind.dtype:
            narrow = convert(array, kind.dtype)
            if narrow is None:
                index = _first_misfit(array, kind.dtype)
                where = _place(run, first, index)
                raise _misfit(where, spec, f"a number within the range of {kind.name}", str(array[index]))
            array = narrow
        converted = _convert(array, spec.dtype)
        if converted is None:
            index = _first_misfit(array, spec.dtype)
            where, value = _place(run, first, index), cast(Any, array)[index : index + 1].tolist()[0]
            checked_leaf(value, spec, where)
            raise _misfit(where, spec, f"a value of {spec.dtype_name}", f"{shown(value)} in {kind.name}")
        return converted

    def _places(self, run: _Run, packed: Packed, first: int) -> Array:
        """Where in the flattened records of a run its values go."""
        size = math.prod(self.shape)
        keys = decode_varints(packed) if packed.data else np.empty(0, np.uint64)
        if keys.size and int(keys.max()) >= size:
            index = int(np.argmax(keys >= size))
            where = _place(run, first, index)
            raise _misfit(where, self._spec, f"keys from 0 to {size - 1}", str(keys[index]))
        places = np.repeat(np.arange(len(run.counts)) * size, run.counts) + keys.view(np.int64)
        if not (places[1:] > places[:-1]).all():
            ordered = np.sort(places)
            double = ordered[1:][ordered[1:] == ordered[:-1]]
            if double.size:
                row, key = divmod(int(double[0]), size)
                raise _misfit(record_label(first + row), self._spec, "each key once", f"key {key} twice")
        return places


def _convert(array: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """As ``convert``; these formats have no booleans, so floats 0 and 1 are some, too."""
    if dtype.kind == "b" and array.dtype.kind == "f":
        return array != 0 if bool(((array == 0) | (array == 1)).all()) else None
    return convert(array, dtype)


def _first_misfit(array: Array, dtype: np.dtype[np.generic]) -> int:
    """Where the first value stands that does not convert, if one does not."""
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        if _convert(array[low:middle], dtype) is None:
            high = middle
        else:
            low = middle
    return low


def _place(run: _Run, first: int, index: int) -> str:
    """The record and the number within it, both from 1, of a value of a run that begins with record ``first``."""
    stops = np.cumsum(run.counts)
    row = int(np.searchsorted(stops, index, side="right"))
    return f"{record_label(first + row)}, value {index - int(stops[row]) + run.counts[row] + 1}"


def _misfit(where: str, spec: TensorSpec, expected: str, got: str) -> InvalidPayload:
    return InvalidPayload(
        f"{where}: expected {expected} for input {spec.name!r}, got {got}", field=where, expected=expected, got=got
    )


def columns_for(signature: Signature) -> dict[str, Column]:
    """An empty column for every input."""
    return {spec.name: Column(spec, signature.record_shapes[spec.name]) for spec in signature.inputs}


def columns_from_equal_records(
    body: bytes,
    rows: int,
    stride: int,
    first: Mapping[str, FlatValue],
    free: Sequence[tuple[int, int]],
    signature: Signature,
) -> dict[str, Column] | None:
    """Read records that differ in nothing but their numbers, without walking over each of them.

    Args:
        body: ``rows`` records of ``stride`` bytes each, framing included.
        rows: number of records.
        stride: bytes of each.
        first: what the first record has, input by input.
        free: ranges of the first record that mean nothing here, and may differ.
        signature: of the model.

    Returns:
        The columns; ``None`` if the records differ in more, or in a way that the walk has to look at.

    Raises:
        InvalidPayload: as ``Column.add``, on the first record.
    """
    for value in first.values():
        if value.values.data is not body or value.keys is not None:
            return None
    table = np.frombuffer(body, np.uint8).reshape(rows, stride)
    position = 0
    for start, end in sorted([*free, *((v.values.start, v.values.end) for v in first.values()), (stride, stride)]):
        if (table[:, position:start] != table[0, position:start]).any():
            return None
        position = end
    columns = columns_for(signature)
    for name, value in first.items():
        part = table[:, value.values.start : value.values.end]
        values = part.tobytes()
        if value.kind.wire_type == VARINT:
            last_bytes = part < 0x80
            counts = last_bytes.sum(axis=1)
            if not last_bytes[:, -1:].all() or (counts != counts[0]).any() or has_long_varint(values):
                return None
        columns[name].repeat(value, values, rows)
    return columns


def tensors_from_columns(columns: Mapping[str, Column], signature: Signature, options: DecodeOptions) -> Tensors:
    """Build the tensors. All columns have the same number of records, one or more.

    Raises:
        InvalidPayload: too large, or a value that does not fit.
    """
    size = 0
    for spec in signature.inputs:
        column = columns[spec.name]
        size += column.rows * math.prod(column.shape) * spec.dtype.itemsize
        if not signature.batched and column.rows != 1:
            raise InvalidPayload(
                f"the model takes one record per request, got {column.rows}",
                expected="1 record",
                got=f"{column.rows} records",
            )
    if size > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"the tensors of this request would take more than {options.max_tensor_bytes} bytes",
            expected=f"at most {options.max_tensor_bytes} bytes",
            got=f"{size} bytes" if size < 2**63 else "more than there can be",
        )
    arrays = {name: column.array() for name, column in columns.items()}
    return arrays if signature.batched else {name: a.reshape(a.shape[1:]) for name, a in arrays.items()}
