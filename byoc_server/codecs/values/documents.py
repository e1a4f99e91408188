"""The request forms that JSON and MessagePack share: documents of objects, lists and values.

For a model with one input (VALUE as in ``records``)::

    {"instances": [RECORD, ...]}      {"inputs": VALUE or [VALUE, ...]}      {"features": VALUE or [VALUE, ...]}
    [VALUE, ...]                      VALUE                                  {"data": {"features": ...}}

and for any model, columns by input name, with or without the ``inputs`` around them::

    {"inputs": {NAME: [VALUE, ...], ...}}

An input with columns of its own has those in the place of its name, ``{COLUMN: [ELEMENT, ...], ...}``, or one record
``{COLUMN: ELEMENT, ...}``.

A VALUE that has the rank of one record is one record; with one rank more it is a list of them. Other top-level keys
(``signature_name``, ``configuration``) are ignored, as the servers those clients were written for do.

Values are what the parser made of them, and two kinds that JSON has no word for: ``bytes``, and whole arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.values.conform import one_or_many
from byoc_server.codecs.values.named_columns import (
    Cell,
    cells_of_columns,
    holds_all,
    is_by_column,
    nested,
    require_fields,
    rows_of_columns,
)
from byoc_server.codecs.values.records import (
    Column,
    holds_common_features,
    is_value_object,
    tensors_from_columns,
    tensors_from_named_columns,
    tensors_from_records,
)
from byoc_server.codecs.values.walk import Label, shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import Signature, Tensors, TensorSpec

FORMS = "an object with 'instances', 'inputs' or 'features', or a list of records"


def tensors_from_document(document: object, signature: Signature, options: DecodeOptions) -> Tensors:
    """Turn a document of any of the forms into tensors.

    Raises:
        InvalidPayload: it is of none of the forms, or does not fit the model; the message names the place.
    """
    if isinstance(document, list):
        return _values_or_records(document, signature, options, "body")
    if not isinstance(document, dict):
        if signature.sole_input is not None:
            return _values_or_records(document, signature, options, "body")
        raise InvalidPayload(f"expected {FORMS}, got {shown(document)}", expected=FORMS, got=shown(document))
    names = [spec.name for spec in signature.inputs]
    if signature.sole_input and holds_common_features(document):
        return tensors_from_records([document], signature, options, lambda i: "body")
    if "instances" in document and (signature.sole_input or "instances" not in names):
        return _values_or_records(document["instances"], signature, options, "instances")
    if signature.has_columns and holds_all(document, signature):
        return _named_columns(document, signature, options, "")
    if all(name in document for name in names):
        return _columns({name: document[name] for name in names}, signature, options, "")
    if "inputs" in document:
        inputs = document["inputs"]
        if isinstance(inputs, dict) and (
            "values" not in inputs or not signature.sole_input or holds_all(inputs, signature)
        ):
            require_fields(list(inputs), signature, "inputs")
            if signature.has_columns:
                return _named_columns(inputs, signature, options, "inputs.")
            return _columns(inputs, signature, options, "inputs.")
        return _values_or_records(inputs, signature, options, "inputs")
    if "features" in document and signature.sole_input is not None:
        return _values_or_records(document["features"], signature, options, "features")
    if "data" in document or (signature.sole_input and is_value_object(document)):
        return tensors_from_records([document], signature, options, lambda i: "body")
    keys = ", ".join(shown(key) for key in list(document)[:5]) or "no keys"
    inputs_text = ", ".join(spec.describe() for spec in signature.inputs)
    raise InvalidPayload(
        f"expected {FORMS}, got an object with {keys}; the model's inputs are {inputs_text}",
        expected=FORMS,
        got=f"an object with {keys}",
    )


def root_of_records(document: object, records: object, signature: Signature) -> str | None:
    """Tell whether all that counts in a document is its list of record objects.

    Args:
        document: with something else in the place of the list.
        records: what stands in that place.
        signature: of the model.

    Returns:
        How error messages call the list, or ``None`` if it is not known to be that.
    """
    if document == records:
        return "body"
    if not isinstance(document, dict) or document.get("instances") != records:
        return None
    if signature.sole_input is None:
        return None if "instances" in signature.input_by_name else "instances"
    return None if holds_common_features(document) else "instances"


def _values_or_records(value: object, signature: Signature, options: DecodeOptions, root: str) -> Tensors:
    """Read a value, a list of values, or a list of record objects."""
    sole = signature.sole_input
    if isinstance(value, list) and (sole is None or dict in map(type, value)):
        return tensors_from_records(value, signature, options, lambda i: f"{root}[{i}]")
    if sole is None or isinstance(value, dict):
        return tensors_from_records([value], signature, options, lambda i: root)
    return _columns({sole.name: value}, signature, options, "", {sole.name: root})


def _columns(
    columns: dict[str, Any],
    signature: Signature,
    options: DecodeOptions,
    prefix: str,
    roots: dict[str, str] | None = None,
) -> Tensors:
    values, labels = {}, {}
    for spec in signature.inputs:
        root = roots[spec.name] if roots else f"{prefix}{spec.name}"
        values[spec.name], labels[spec.name] = _column(columns[spec.name], spec, signature, root)
    return tensors_from_columns(values, signature, options, labels)


def _named_columns(document: Mapping[str, Any], signature: Signature, options: DecodeOptions, prefix: str) -> Tensors:
    """Read an object that has every input, by its columns or by its name."""
    values: dict[str, Column] = {}
    labels: dict[str, Label] = {}
    cells: list[Iterable[Cell]] = []
    for spec in signature.inputs:
        if not is_by_column(spec, document):
            root = f"{prefix}{spec.name}"
            values[spec.name], labels[spec.name] = _column(document[spec.name], spec, signature, root)
            continue
        columns, is_one_record = _lists({name: document[name] for name in spec.columns}, prefix)
        shape, root = signature.record_shapes[spec.name], prefix.removesuffix(".") or "body"
        values[spec.name] = [nested(row, shape) for row in rows_of_columns(columns, prefix)]
        labels[spec.name] = partial("{}, record {}".format, root)
        cells.append(cells_of_columns(spec, columns, prefix, is_one_record))
    return tensors_from_named_columns(values, signature, options, labels, chain.from_iterable(cells))


def _lists(columns: Mapping[str, Any], prefix: str) -> tuple[dict[str, list[object]], bool]:
    """Columns as lists, and whether they came as one record: without lists."""
    lists: dict[str, Any] = {
        name: column.tolist() if isinstance(column, np.ndarray) else column for name, column in columns.items()
    }
    if list not in map(type, lists.values()):
        return {name: [value] for name, value in lists.items()}, True
    for name, column in lists.items():
        if not isinstance(column, list):
            raise InvalidPayload(
                f"{prefix}{name}: expected a list, as other columns are, got {shown(column)}",
                field=f"{prefix}{name}",
                expected="a list",
                got=shown(column),
            )
    return lists, False


def _column(column: object, spec: TensorSpec, signature: Signature, root: str) -> tuple[Column, Label]:
    """The record values of one input, and how they are called."""
    if isinstance(column, np.ndarray):
        return column, lambda i: root
    if not signature.batched:
        return [column], lambda i: root
    if isinstance(column, list) and not _whole_records(spec).isdisjoint(map(type, column)):
        return column, lambda i: f"{root}[{i}]"
    records: tuple[Sequence[object], Label] = one_or_many(column, signature.record_shapes[spec.name], root)
    return records


_WHOLE_RECORDS = frozenset({dict, np.ndarray})
_WHOLE_RECORDS_OF_BYTES = _WHOLE_RECORDS | {bytes}


def _whole_records(spec: TensorSpec) -> frozenset[type]:
    """Types that in a list each stand for one record, whatever its rank."""
    return _WHOLE_RECORDS_OF_BYTES if spec.dtype == np.uint8 or spec.image is not None else _WHOLE_RECORDS
