"""Which columns of a CSV body are which input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

from byoc_server.codecs.values.conform import conform_array, require_inputs
from byoc_server.codecs.values.named_columns import is_by_column, require_fields
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, Signature, TensorSpec


class Layout(NamedTuple):
    """The columns of a body, counted behind those of the label.

    Attributes:
        width: how many there are.
        columns: for every input the numbers of those that it takes, in its order.
    """

    width: int
    columns: list[tuple[TensorSpec, Sequence[int]]]


def flat_shape(spec: TensorSpec, signature: Signature) -> int | None:
    """Columns that one record of ``spec`` takes; -1 for any number, ``None`` if lines of cells cannot carry it."""
    shape = signature.record_shapes[spec.name]
    if shape == (None,):
        return -1
    return None if None in shape else math.prod(cast(tuple[int, ...], shape))


def layout_of(names: Sequence[str], width: int, signature: Signature) -> Layout:
    """Share the columns out among the inputs.

    Args:
        names: of the columns, from the header; empty without one.
        width: number of columns of the first record.
        signature: of the model.

    Raises:
        InvalidPayload: the names do not fit the inputs, or an input has no fixed number of columns.
    """
    stripped = [name.strip() for name in names]
    if names and signature.has_columns:
        return _layout_by_columns(stripped, signature)
    known = signature.input_by_name
    widths = [flat_shape(spec, signature) for spec in signature.inputs]
    if len(known) > 1 and all(taken in (1, -1) for taken in widths) and not known.keys().isdisjoint(stripped):
        require_inputs(stripped, signature, "header")
        _require_once(stripped, stripped)
        return Layout(len(known), [(spec, [stripped.index(spec.name)]) for spec in signature.inputs])
    if len(known) == 1 and (widths == [-1] or not signature.batched):
        widths = [width]
    columns: list[tuple[TensorSpec, Sequence[int]]] = []
    start = 0
    for spec, taken in zip(signature.inputs, widths, strict=True):
        if taken is None or taken < 0:
            raise InvalidPayload(
                f"text/csv cannot carry input {spec.describe()}: its number of columns is open; use application/json",
                field=spec.name,
                expected="inputs with a fixed number of columns",
            )
        columns.append((spec, range(start, start + taken)))
        start += taken
    return Layout(start, columns)


def _layout_by_columns(names: list[str], signature: Signature) -> Layout:
    """Give each input its columns by their names, or the one that is called like itself."""
    require_fields(names, signature, "header")
    columns: list[tuple[TensorSpec, Sequence[int]]] = []
    place = {name: number for number, name in enumerate(names)}
    for spec in signature.inputs:
        wanted = spec.columns if is_by_column(spec, place) else (spec.name,)
        if flat_shape(spec, signature) not in (-1, len(wanted)):
            raise InvalidPayload(
                f"header: input {spec.describe()} takes another number of columns than {len(wanted)}",
                field="header",
                expected="a name for each column of the input",
                got=f"{len(wanted)} names",
            )
        _require_once(wanted, names)
        columns.append((spec, [place[name] for name in wanted]))
    return Layout(len(names), columns)


def _require_once(needed: Sequence[str], names: Sequence[str]) -> None:
    if len(set(names)) < len(names) and any(names.count(name) > 1 for name in set(needed)):
        raise InvalidPayload("header: a column name stands there twice", field="header", expected="unique names")


def reshaped(array: Array, spec: TensorSpec, signature: Signature) -> Array:
    """Bring lines of cells, shape (N, columns), to the shape of the input.

    Raises:
        InvalidPayload: the model has no batch axis, and they are not of its shape.
    """
    if not signature.batched:
        if len(array) == 1 and array.shape[1] == flat_shape(spec, signature):
            return array.reshape(cast(tuple[int, ...], spec.shape))
        return conform_array(array[0] if len(array) == len(spec.shape) == 1 else array, spec, signature, "body")
    shape = signature.record_shapes[spec.name]
    return array if len(shape) == 1 else array.reshape(len(array), *cast(tuple[int, ...], shape))
