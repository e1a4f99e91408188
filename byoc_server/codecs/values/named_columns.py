"""Inputs made up of columns with names of their own, as ``TensorSpec.columns`` lists them. Pure.

A table, a record or a document has, for such an input, either all of its columns or the input itself by its name.
Where all inputs come by their columns, what else there is by other names, an id perhaps, is passed over: a misspelt
column would be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, cast

from byoc_server.codecs.values.conform import require_inputs
from byoc_server.codecs.values.walk import checked_leaf
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Signature, TensorSpec

Cell = tuple[TensorSpec, object, Callable[[], str]]
"""An input, one value for it, and what makes the name of the value's place."""


def is_by_column(spec: TensorSpec, names: Collection[str]) -> bool:
    """Whether what has these names has an input by its columns, and not by its own name."""
    columns = spec.columns
    if not columns or columns == (spec.name,):
        return False
    return spec.name not in names or all(column in names for column in columns)


def holds_all(names: Collection[str], signature: Signature) -> bool:
    """Whether all inputs are among the names, each by its columns or by its own name."""
    return all(name in names for name in _wanted(names, signature))


def require_fields(names: Sequence[str], signature: Signature, field: str) -> None:
    """Check that ``names`` are the inputs of the model, each by its columns or by its own name.

    Raises:
        InvalidPayload: listing what is missing, what is unknown, and the inputs and columns there are.
    """
    wanted = _wanted(names, signature)
    are_all_columns = wanted == [column for spec in signature.inputs for column in spec.columns]
    if not are_all_columns or not set(names).issuperset(wanted):
        require_inputs(names, signature, field, wanted)


def _wanted(names: Collection[str], signature: Signature) -> list[str]:
    wanted: list[str] = []
    for spec in signature.inputs:
        wanted.extend(spec.columns if is_by_column(spec, names) else (spec.name,))
    return wanted


def values_by_input(record: Mapping[str, object], signature: Signature, field: str) -> dict[str, object] | None:
    """The value of each input of one record.

    Args:
        record: maybe of another form.
        signature: of the model.
        field: how error messages call the record.

    Returns:
        By input name, the values of columns as nested lists of the record shape; ``None`` if not all are there.

    Raises:
        InvalidPayload: they are all there, and something else is.
    """
    wanted = _wanted(record, signature)
    if any(name not in record for name in wanted):
        return None
    if len(wanted) < len(record):
        require_fields(list(record), signature, field)
    values: dict[str, object] = {}
    for spec in signature.inputs:
        if is_by_column(spec, record):
            cells = [record[column] for column in spec.columns]
            values[spec.name] = nested(cells, signature.record_shapes[spec.name])
        else:
            values[spec.name] = record[spec.name]
    return values


def columns_of_records(records: Sequence[Any], signature: Signature) -> dict[str, list[object]] | None:
    """The values of each input of many records at once, as ``values_by_input`` gives them one by one.

    Returns:
        By input name, a value for each record; ``None`` if it takes a closer look at each record.
    """
    values: dict[str, list[object]] = {}
    for spec in signature.inputs:
        if len(spec.columns) < 2:  # one could also be the name of the input
            return None
        try:
            rows = list(map(list, map(itemgetter(*spec.columns), records)))
        except (KeyError, TypeError, IndexError):  # a record without the column, or that is no object
            return None
        shape = signature.record_shapes[spec.name]
        values[spec.name] = cast(list[object], rows) if len(shape) == 1 else [nested(row, shape) for row in rows]
    return values


def nested(cells: list[object], record_shape: tuple[int | None, ...]) -> object:
    """Nested lists of ``record_shape``, which takes as many values as there are ``cells``."""
    if not record_shape:
        return cells[0]
    if len(record_shape) == 1:
        return cells
    size = len(cells) // (record_shape[0] or 1)
    return [nested(cells[start : start + size], record_shape[1:]) for start in range(0, len(cells), size)]


def rows_of_columns(columns: Mapping[str, list[object]], root: str) -> list[list[object]]:
    """Turn columns of one length, name -> values, into rows.

    Args:
        columns: at least one.
        root: what error messages put before the name of a column.

    Raises:
        InvalidPayload: naming a column that is of another length than the first.
    """
    (first, values), *others = columns.items()
    for name, column in others:
        if len(column) != len(values):
            raise InvalidPayload(
                f"{root}{name}: expected {len(values)} values, as {root}{first} has, got {len(column)}",
                field=f"{root}{name}",
                expected=f"{len(values)} values",
                got=str(len(column)),
            )
    return list(map(list, zip(*columns.values(), strict=True)))


def cells_of_columns(
    spec: TensorSpec, columns: Mapping[str, list[object]], root: str, is_one_record: bool
) -> Iterable[Cell]:
    """All values of columns, in order; those of one record came without lists."""
    for name, column in columns.items():
        for number, value in enumerate(column):
            yield spec, value, partial(("{}{}" if is_one_record else "{}{}[{}]").format, root, name, number)


def cells_of_records(records: Sequence[Any], signature: Signature, label: Callable[[int], str]) -> Iterable[Cell]:
    """All values of records that come by columns, in order."""
    for number, record in enumerate(records):
        if isinstance(record, dict) and holds_all(record, signature):
            for spec in signature.inputs:
                for column in spec.columns if is_by_column(spec, record) else ():
                    yield spec, record[column], partial("{}.{}".format, label(number), column)


def fault_of_cell(cells: Iterable[Cell]) -> InvalidPayload | None:
    """The error of the first value that is none for its input, ``None`` if all are."""
    for spec, value, place in cells:
        if spec.dtype == STRING and isinstance(value, bytes):
            continue  # whether they are text has been looked at with the record
        try:
            checked_leaf(value, spec, "")
        except InvalidPayload:
            pass
        else:
            continue
        try:
            checked_leaf(value, spec, place())
        except InvalidPayload as error:
            return error.with_traceback(None)
    return None
