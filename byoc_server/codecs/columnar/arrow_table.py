"""Columns of an Arrow table <-> tensors; what the Arrow and Parquet codecs share.

A model with one input takes one column for it, or as many columns side by side as a record has values, in order. A
model with several inputs takes one column for each, by name. An input with columns of its own takes those, by name and
in any order, or one column of its own name. A cell is a number, a boolean or a string, or a list of
them: lists of one length are the axes of a record. Without a batch axis a table has one row, whose cells are the
tensors, or its rows are axis 0.

A missing value is NaN in a float input, and an error elsewhere. The values of a fixed-size numeric column without
missing ones are used where they lie; everything else is converted column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from byoc_server.codecs.values.conform import conform_array, convert, first_misfit, require_equal_rows, shape_text
from byoc_server.codecs.values.named_columns import is_by_column, require_fields
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, NotAcceptable, TensorsTooLarge
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_NUMPY_DTYPES: dict[int, np.dtype[Any]] = {
    pa.int8().id: np.dtype(np.int8),
    pa.int16().id: np.dtype(np.int16),
    pa.int32().id: np.dtype(np.int32),
    pa.int64().id: np.dtype(np.int64),
    pa.uint8().id: np.dtype(np.uint8),
    pa.uint16().id: np.dtype(np.uint16),
    pa.uint32().id: np.dtype(np.uint32),
    pa.uint64().id: np.dtype(np.uint64),
    pa.float16().id: np.dtype(np.float16),
    pa.float32().id: np.dtype(np.float32),
    pa.float64().id: np.dtype(np.float64),
}
_BOOL, _NULL, _FIXED_BYTES = pa.bool_().id, pa.null().id, pa.binary(1).id
_DICTIONARY = pa.dictionary(pa.int8(), pa.int8()).id
_FIXED_LIST, _LIST, _LARGE_LIST = pa.list_(pa.int8(), 1).id, pa.list_(pa.int8()).id, pa.large_list(pa.int8()).id
_LISTS = {_FIXED_LIST, _LIST, _LARGE_LIST}
_STRINGS = {pa.string().id, pa.large_string().id, pa.string_view().id}
_BINARIES = {pa.binary().id, pa.large_binary().id, pa.binary_view().id, _FIXED_BYTES}
_TEXTS = _STRINGS | _BINARIES
_VIEWS = {pa.string_view().id, pa.binary_view().id}
_LEAVES = {*_NUMPY_DTYPES, _BOOL, _NULL, _DICTIONARY, *_TEXTS}
_STRING_BYTES = 56
"""What a short ``str`` takes; its place in the array, 8 bytes, is counted with the array."""
_MAX_FREE_VALUES = 100_000
"""Nulls and binaries of length zero: the sender declares any number of them for nothing."""
_READABLE = "numbers, booleans, strings, or lists of them"
_MAX_RANK = 32
"""More than any operator takes; NumPy stops at 64."""


def require_layout(names: Sequence[str], signature: Signature) -> None:
    """Check the names of the columns, or their number where names do not matter, before any data is read.

    Raises:
        InvalidPayload: listing what is missing, unknown, or there twice.
    """
    if not names:
        raise InvalidPayload("the table has no columns", field="columns", expected="a column per input", got="none")
    if signature.sole_input is not None and not signature.has_columns:
        wanted = _columns_of(signature.sole_input, signature)
        if len(names) > 1 and wanted is not None and len(names) != wanted:
            expected = "one column" if wanted == 1 else f"{wanted} columns or one of lists"
            raise InvalidPayload(
                f"expected {expected} for input {signature.sole_input.describe()}, got {len(names)} columns",
                field="columns",
                expected=expected,
                got=f"{len(names)} columns",
            )
        return
    require_fields(names, signature, "columns")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidPayload(
            f"column {shown(twice)} is there twice", field=twice, expected="unique names", got="the same name twice"
        )


def require_readable(schema: Any) -> None:
    """Check the types of a ``pyarrow.Schema``.

    Raises:
        InvalidPayload: naming the column whose type is not read.
    """
    for name, kind in zip(schema.names, schema.types, strict=True):
        where = f"column {shown(name)}"
        while kind.id not in _LEAVES:
            if isinstance(kind, pa.FixedShapeTensorType):
                kind = kind.storage_type
            if kind.id not in _LISTS:
                raise _unreadable(kind, where)
            kind = kind.value_type


def _columns_of(spec: TensorSpec, signature: Signature) -> int | None:
    """Columns of single values that one record of ``spec`` takes; ``None`` for any number."""
    shape = signature.record_shapes[spec.name]
    if shape == (None,) or (not signature.batched and len(shape) > 1):
        return None
    return 1 if None in shape else math.prod(cast(tuple[int, ...], shape))


def one_batch(table: Any) -> Any:
    """Join the chunks of a ``pyarrow.Table`` of at least one row.

    Raises:
        InvalidPayload: a column is too large to be one array.
    """
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:  # pragma: no cover  # it takes 2 GiB of strings in one column
        raise InvalidPayload("a column of strings is too large", expected="less than 2 GiB in a column")
    return batches[0]


def require_rows(rows: int) -> None:
    """Raise ``InvalidPayload`` if there are none."""
    if not rows:
        raise InvalidPayload("the table has no rows", field="rows", expected="at least one record", got="none")


def tensors_from_batch(table: Any, signature: Signature, max_tensor_bytes: int) -> Tensors:
    """Turn the columns of a table into tensors.

    Args:
        table: a ``pyarrow.RecordBatch`` that ``validate(full=True)`` and ``require_layout`` have passed.
        signature: of the model.
        max_tensor_bytes: what the tensors may take together.

    Raises:
        InvalidPayload: naming the column, and the row where it is one row's fault. Rows count from 0.
        TensorsTooLarge: they would take more.
    """
    names = table.schema.names
    sole = signature.sole_input
    budget = _Budget(max_tensor_bytes)
    if sole is None or signature.has_columns:
        return require_equal_rows(
            {spec.name: _named_columns(table, names, spec, signature, budget) for spec in signature.inputs}, signature
        )
    if len(names) == 1:
        return {sole.name: _one_column(table.column(0), names[0], sole, signature, budget)}
    return {sole.name: _side_by_side(table, sole, signature, budget)}


class _Budget:
    """Counts the bytes of the tensors, as few bytes of a table can declare many."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes

    def take(self, shape: Sequence[int], item_bytes: int, where: str) -> None:
        """Count values of ``shape``, before they are built."""
        self._left -= math.prod(shape) * item_bytes
        if self._left < 0:
            raise TensorsTooLarge(
                f"{where}: the tensors of this request take more than {self._limit} bytes",
                field=where,
                expected=f"at most {self._limit} bytes",
                got=f"shape {shape_text(tuple(shape))}",
            )


def _named_columns(table: Any, names: Sequence[str], spec: TensorSpec, signature: Signature, budget: _Budget) -> Array:
    columns = spec.columns if is_by_column(spec, names) else (spec.name,)
    if len(columns) == 1:
        return _one_column(table.column(columns[0]), columns[0], spec, signature, budget)
    return _side_by_side(table.select(list(columns)), spec, signature, budget)


def _one_column(column: Any, name: str, spec: TensorSpec, signature: Signature, budget: _Budget) -> Array:
    where = f"column {shown(name)}"
    array = _read_column(column, spec, where, budget)
    if not signature.batched:
        array = _without_rows(array, signature.record_shapes[spec.name])
    elif array.ndim < len(spec.shape):  # or it would pass for one record without its batch axis
        array = array.reshape(array.shape + (1,) * (len(spec.shape) - array.ndim))
    return conform_array(array, spec, signature, where)


def _without_rows(array: Array, shape: tuple[int | None, ...]) -> Array:
    """Drop axis 0 of a table whose one row holds the tensor."""
    return array[0, ...] if len(array) == 1 and array.ndim == len(shape) + 1 else array


def _side_by_side(table: Any, spec: TensorSpec, signature: Signature, budget: _Budget) -> Array:
    """Read columns of single values, shape (rows, columns), and bring them to the shape of the input."""
    shape, rows, names = signature.record_shapes[spec.name], table.num_rows, table.schema.names
    budget.take((rows, len(names)), spec.dtype.itemsize, "columns")
    array = _uniform(table, spec)
    if array is None:
        array = np.empty((rows, len(names)), spec.dtype)
        for number, (name, column) in enumerate(zip(names, table.columns, strict=True)):
            where = f"column {shown(name)}"
            if column.type.id not in _LEAVES:
                raise InvalidPayload(
                    f"{where}: expected single values, as there are {len(names)} columns, got lists",
                    field=where,
                    expected="single values",
                    got="lists",
                )
            array[:, number] = _read_leaf(column, spec, (rows,), where, budget)
    if not signature.batched:
        if rows == 1 and math.prod(d or 1 for d in shape) == len(names) and None not in shape:
            return array.reshape(cast(tuple[int, ...], shape))
        return conform_array(_without_rows(array, shape), spec, signature, "columns")
    if len(shape) > 1:  # of as many values as there are columns: see require_layout
        array = array.reshape(rows, *cast(tuple[int, ...], shape))
    return conform_array(array, spec, signature, "columns")


def _uniform(table: Any, spec: TensorSpec) -> Array | None:
    """Read numeric columns of one type at once; ``None`` if they are of several, or if one needs a closer look."""
    kinds = {kind.id for kind in table.schema.types}
    dtype = _NUMPY_DTYPES.get(kinds.pop()) if len(kinds) == 1 else None
    if dtype is None:
        return None
    try:
        array = table.to_tensor(null_to_nan=dtype.kind == "f", row_major=True).to_numpy()
    except pa.ArrowException:  # an integer is missing
        return None
    return convert(array, spec.dtype)


def _read_column(values: Any, spec: TensorSpec, where: str, budget: _Budget) -> Array:
    """Read one column into an array of ``spec.dtype``, shape (rows, *lengths of the lists)."""
    shape = [len(values)]
    while values.type.id not in _LEAVES:
        values, lengths = _unwrap(values, shape, where)
        shape.extend(lengths)
        if len(shape) > _MAX_RANK:
            raise InvalidPayload(f"{where}: lists are nested too deep", field=where)
    if 0 in shape:
        raise InvalidPayload(f"{where}: the lists are empty", field=where, expected="at least one value", got="none")
    budget.take(shape, spec.dtype.itemsize, where)
    array = _read_leaf(values, spec, shape, where, budget)
    return array.reshape(shape) if len(shape) > 1 else array


def _read_leaf(values: Any, spec: TensorSpec, shape: Sequence[int], where: str, budget: _Budget) -> Array:
    """Read an array without lists, whose places ``budget`` has counted, into a flat array of ``spec.dtype``."""
    items = values.dictionary if values.type.id == _DICTIONARY else values
    kind = items.type
    if kind.id not in _LEAVES or (kind.id == _DICTIONARY and items is not values):
        raise _unreadable(values.type, where)
    if (kind.id in _TEXTS) != (spec.dtype == STRING) and kind.id != _NULL:  # seen before millions of strings are made
        raise _misfit_of_kind(values, kind, spec, shape, where)
    if spec.dtype == STRING:
        budget.take((len(items),), _STRING_BYTES, where)
    array, missing = _leaf_values(values, where)
    if missing is not None:
        array = _with_nan(array, missing, spec, shape, where)
    converted = array if array.dtype == spec.dtype == STRING else convert(array, spec.dtype)
    if converted is None:
        raise _misfit(array, spec, shape, where)
    return converted if converted.flags.aligned else converted.copy()


def _unwrap(values: Any, shape: Sequence[int], where: str) -> tuple[Any, Sequence[int]]:
    """Take one level of lists off.

    Returns:
        The items of all lists in a row, and the lengths of the axes that go with the level.
    """
    kind = values.type
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation not in (None, list(range(len(kind.shape)))):
            raise InvalidPayload(
                f"{where}: tensors with permuted axes are not read; write them in row-major order",
                field=where,
                expected="row-major order",
                got="permuted axes",
            )
        items, _ = _unwrap(values.storage, shape, where)
        return items, kind.shape
    missing = _missing_in(values)
    if missing is not None:
        raise _missing(int(np.argmax(missing)), shape, where, "a list")
    if kind.id == _FIXED_LIST:
        size = kind.list_size
        return values.values.slice(values.offset * size, len(values) * size), (size,)
    if len(values) == 0:
        return values.values.slice(0, 0), (0,)
    offsets = values.offsets.to_numpy()
    lengths = offsets[1:] - offsets[:-1]
    size = int(lengths[0])
    if (lengths != size).any():
        index = int(np.argmax(lengths != size))
        place = f"{where}, {_place(index, shape)}"
        raise InvalidPayload(
            f"{place}: expected a list of {size}, as the first one, got {lengths[index]}",
            field=place,
            expected=f"a list of {size}",
            got=str(lengths[index]),
        )
    return values.values.slice(int(offsets[0]), len(values) * size), (size,)


def _missing_in(values: Any) -> Array | None:
    """Which values of an array are missing; ``None`` if none is."""
    return ~_bits(values.buffers()[0], values) if values.null_count else None


def _bits(buffer: Any, values: Any) -> Any:
    first = values.offset // 8
    data = np.frombuffer(buffer, np.uint8)[first : (values.offset + len(values) + 7) // 8]
    skip = values.offset - 8 * first
    return np.unpackbits(data, bitorder="little")[skip : skip + len(values)].view(np.bool_)


def _leaf_values(values: Any, where: str) -> tuple[Array, Array | None]:
    """Read an array without lists.

    Returns:
        Its values, anything where one is missing, and which are missing; ``None`` if none is.
    """
    kind = values.type.id
    if kind in (_NULL, _FIXED_BYTES) and len(values) > _MAX_FREE_VALUES and values.nbytes < len(values):
        raise InvalidPayload(
            f"{where}: more than {_MAX_FREE_VALUES} values that take no bytes",
            field=where,
            expected=f"at most {_MAX_FREE_VALUES} such values",
            got=str(len(values)),
        )
    if kind == _NULL:
        return np.zeros(len(values), np.int8), np.ones(len(values), np.bool_)
    missing = _missing_in(values)
    dtype = _NUMPY_DTYPES.get(kind)
    if dtype is not None:
        data = np.frombuffer(values.buffers()[1], dtype, len(values), values.offset * dtype.itemsize)
        # what lies where a value is missing may not even convert
        return data if missing is None else np.where(missing, dtype.type(0), data), missing
    if kind == _BOOL:
        return _bits(values.buffers()[1], values), missing
    if kind == _DICTIONARY:
        return _dictionary_values(values, missing, where)
    return _texts(values, where), missing


def _dictionary_values(values: Any, missing: Array | None, where: str) -> tuple[Array, Array | None]:
    indices, _ = _leaf_values(values.indices, where)
    items, missing_items = _leaf_values(values.dictionary, where)
    if len(items) == 0:  # then all are missing
        return np.zeros(len(values)), missing
    if missing_items is not None:
        through = cast(Any, missing_items[indices])
        missing = through if missing is None else through | missing
    return items[indices], missing if missing is not None and missing.any() else None


def _texts(values: Any, where: str) -> Array:
    """Strings as ``str``; binary ones are taken for UTF-8."""
    array = cast(Array, values.to_numpy(zero_copy_only=False))
    if values.type.id in _STRINGS:
        return array
    decoded = np.empty(len(array), STRING)
    for number, item in enumerate(array.tolist()):
        try:
            decoded[number] = None if item is None else item.decode()
        except UnicodeDecodeError:
            place = f"{where}, value {number}"
            raise InvalidPayload(
                f"{place}: the bytes are not UTF-8", field=place, expected="UTF-8", got=shown(item)
            ) from None
    return decoded


def _with_nan(array: Array, missing: Array, spec: TensorSpec, shape: Sequence[int], where: str) -> Array:
    """Put NaN where a value is missing."""
    if spec.dtype.kind != "f":
        raise _missing(int(np.argmax(cast(Any, missing))), shape, where, spec.dtype_name)
    converted = convert(array, spec.dtype)
    if converted is None:
        raise _misfit(array, spec, shape, where)
    return cast(Array, np.where(missing, spec.dtype.type(np.nan), converted))


def _place(index: int, shape: Sequence[int]) -> str:
    """``row 3``, or ``row 3[0]`` in a list: the place of the value that is number ``index`` of an array of shape."""
    row, *inner = np.unravel_index(index, shape)
    return f"row {row}" + "".join(f"[{i}]" for i in inner)


def _missing(index: int, shape: Sequence[int], where: str, expected: str) -> InvalidPayload:
    place = f"{where}, {_place(index, shape)}"
    return InvalidPayload(f"{place}: expected {expected}, got null", field=place, expected=expected, got="null")


def _misfit(array: Array, spec: TensorSpec, shape: Sequence[int], where: str) -> InvalidPayload:
    """Name the first value that does not convert."""
    low = first_misfit(array, spec.dtype)
    return _inconvertible(array[low : low + 1].tolist()[0], array.dtype, spec, f"{where}, {_place(low, shape)}")


def _misfit_of_kind(values: Any, kind: Any, spec: TensorSpec, shape: Sequence[int], where: str) -> InvalidPayload:
    """Name the first value of a column of strings that are to be numbers, or of numbers that are to be strings."""
    missing = _missing_in(values)
    index = 0 if missing is None else int(np.argmin(missing))
    dtype = STRING if kind.id in _TEXTS else np.dtype(kind.to_pandas_dtype())
    return _inconvertible(values[index].as_py(), dtype, spec, f"{where}, {_place(index, shape)}")


def _inconvertible(value: object, dtype: np.dtype[Any], spec: TensorSpec, place: str) -> InvalidPayload:
    came = "string" if dtype == STRING else dtype.name
    return InvalidPayload(
        f"{place}: {shown(value)} ({came}) does not convert to {spec.dtype_name} without changing values",
        field=place,
        expected=spec.dtype_name,
        got=shown(value),
    )


def _unreadable(kind: object, where: str) -> InvalidPayload:
    return InvalidPayload(
        f"{where}: type {shown(str(kind))} is not read; cast it to {_READABLE}",
        field=where,
        expected=_READABLE,
        got=shown(str(kind)),
    )


def may_hold_views(kinds: Sequence[Any]) -> list[int]:
    """Which columns of these types ``require_honest_views`` has to look at."""
    return [number for number, kind in enumerate(kinds) if kind.id not in _NUMPY_DTYPES]


def require_honest_views(values: Any, name: str) -> None:
    """Check string views before anything reads what they show: many may show the same bytes.

    Args:
        values: a ``pyarrow.Array`` fresh from the sender.
        name: of its column.

    Raises:
        InvalidPayload: they show far more bytes than there are.
    """
    _require_honest_views(values, f"column {shown(name)}")


def _require_honest_views(values: Any, where: str) -> None:
    kind = values.type.id
    if isinstance(values, pa.ExtensionArray):
        _require_honest_views(values.storage, where)
    elif kind == _DICTIONARY:
        _require_honest_views(values.dictionary, where)
    elif kind in _LISTS:
        _require_honest_views(values.values, where)
    elif kind in _VIEWS:
        buffers = [buffer for buffer in values.buffers()[1:] if buffer is not None]
        words = np.frombuffer(buffers[0], np.int32, buffers[0].size // 4) if buffers else np.empty(0, np.int32)
        shown_bytes = int(np.maximum(words[::4], 0).sum(dtype=np.int64))  # a view begins with its length
        if shown_bytes > 2 * sum(buffer.size for buffer in buffers):
            raise InvalidPayload(f"{where}: string views show the same bytes too often", field=where)


def batch_from_tensors(tensors: Tensors, signature: Signature, media_type: str) -> Any:
    """Lay out the outputs of a model as a ``pyarrow.RecordBatch`` with a column each.

    A record of one value is a plain cell, other records are fixed-size lists, nested where they have several axes.
    Without a batch axis there is one row.

    Raises:
        NotAcceptable: outputs with different numbers of records, or strings that are not Unicode.
    """
    columns, fields = [], []
    for spec in signature.outputs:
        array = tensors[spec.name]
        column = _column(array if signature.batched else array[np.newaxis], media_type)
        columns.append(column)
        fields.append(pa.field(spec.name, column.type, nullable=False))
    if len({len(column) for column in columns}) > 1:
        raise NotAcceptable(
            f"{media_type} cannot carry outputs with different numbers of records", accepted=["application/json"]
        )
    return pa.record_batch(columns, schema=pa.schema(fields))


def _column(array: Array, media_type: str) -> Any:
    axes = 0 if array.shape[1:] == (1,) else array.ndim - 1
    flat = np.ascontiguousarray(array).reshape(-1)
    try:
        column = pa.array(flat, pa.string() if array.dtype == STRING else None)
    except UnicodeEncodeError:
        raise NotAcceptable(
            f"{media_type} cannot carry strings that are not Unicode", accepted=["application/json"]
        ) from None
    for axis in range(axes, 0, -1):
        kind = pa.list_(pa.field("item", column.type, nullable=False), array.shape[axis])
        column = pa.Array.from_buffers(kind, math.prod(array.shape[:axis]), [None], 0, 0, [column])
    return column
