"""``application/json``: the request forms of SageMaker, TensorFlow Serving and plain lists.

Requests, for a model with one input (VALUE as in ``records``)::

    {"instances": [RECORD, ...]}      {"inputs": VALUE or [VALUE, ...]}      {"features": VALUE or [VALUE, ...]}
    [VALUE, ...]                      VALUE                                  {"data": {"features": ...}}

and for any model, columns by input name, with or without the ``inputs`` around them::

    {"inputs": {NAME: [VALUE, ...], ...}}

A VALUE that has the rank of one record is one record; with one rank more it is a list of them. Other top-level keys
(``signature_name``, ``configuration``) are ignored, as the servers those clients were written for do.

Answers: ``{"predictions": [...]}``, one item per record in order: the value of the one output, or an object with one
key per output. NaN and infinities have no JSON form and leave as ``null``.

``json`` from the standard library is the second reader: it takes the bare words ``NaN`` and ``Infinity``, which
Python clients send for missing values.
"""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.conform import one_or_many, require_inputs, shown
from byoc_server.codecs.records import tensors_from_columns, tensors_from_records
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, Signature, Tensors

_FORMS = "an object with 'instances', 'inputs' or 'features', or a list of records"
_NATIVE_KINDS = "fiub"


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read any of the request forms. See ``Codec.decode``."""
    document = parse(body, "body")
    tensors = _dense_instances(document, signature)
    return tensors if tensors is not None else _tensors(document, signature, options)


def parse(text: bytes, field: str) -> object:
    """Parse one JSON text.

    Raises:
        InvalidPayload: with the parser's line and column.
    """
    try:
        return cast(object, orjson.loads(text))
    except orjson.JSONDecodeError as error:
        if b"NaN" in text or b"Infinity" in text:
            try:
                return cast(object, json.loads(text))
            except (ValueError, RecursionError):
                pass  # the first reader's message is as good
        if not text.strip():
            raise InvalidPayload(f"{field} is empty", field=field, expected=_FORMS, got="nothing") from None
        raise InvalidPayload(f"{field} is not valid JSON: {error}", field=field, expected=_FORMS) from None


def _dense_instances(document: object, signature: Signature) -> Tensors | None:
    """Take the commonest body in the fewest steps: ``instances`` as plain lists for one float input of fixed shape.

    Returns:
        The tensors, or ``None`` when it is anything else, right or wrong.
    """
    spec = signature.sole_input
    if spec is None or type(document) is not dict or spec.dtype.kind != "f" or not signature.batched:
        return None
    try:
        array = np.array(document["instances"])
        if array.dtype.kind not in "fi" or not len(array) or array.shape[1:] != signature.record_shapes[spec.name]:
            return None
        with np.errstate(over="raise"):
            return {spec.name: array.astype(spec.dtype, copy=False)}
    except (KeyError, ValueError, TypeError, OverflowError, FloatingPointError):
        return None


def _tensors(document: object, signature: Signature, options: DecodeOptions) -> Tensors:
    if isinstance(document, list):
        return _values_or_records(document, signature, options, "body")
    if not isinstance(document, dict):
        if signature.sole_input is not None:
            return _values_or_records(document, signature, options, "body")
        raise InvalidPayload(f"expected {_FORMS}, got {shown(document)}", expected=_FORMS, got=shown(document))
    names = [spec.name for spec in signature.inputs]
    if all(name in document for name in names):
        return _columns({name: document[name] for name in names}, signature, options, "")
    if "instances" in document:
        return _values_or_records(document["instances"], signature, options, "instances")
    if "inputs" in document:
        inputs = document["inputs"]
        if isinstance(inputs, dict) and not (signature.sole_input and "values" in inputs):
            require_inputs(list(inputs), signature, "inputs")
            return _columns(inputs, signature, options, "inputs.")
        return _values_or_records(inputs, signature, options, "inputs")
    if "features" in document and signature.sole_input is not None:
        return _values_or_records(document["features"], signature, options, "features")
    if "data" in document:
        return tensors_from_records([document], signature, options, lambda i: "body")
    keys = ", ".join(shown(key) for key in list(document)[:5]) or "no keys"
    inputs_text = ", ".join(spec.describe() for spec in signature.inputs)
    raise InvalidPayload(
        f"expected {_FORMS}, got an object with {keys}; the model's inputs are {inputs_text}",
        expected=_FORMS,
        got=f"an object with {keys}",
    )


def _values_or_records(value: object, signature: Signature, options: DecodeOptions, root: str) -> Tensors:
    """Read a value, a list of values, or a list of record objects."""
    sole = signature.sole_input
    if isinstance(value, list) and (sole is None or (value and isinstance(value[0], dict))):
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
        column = columns[spec.name]
        if signature.batched and not (isinstance(column, list) and column and isinstance(column[0], dict)):
            values[spec.name], labels[spec.name] = one_or_many(column, signature.record_shapes[spec.name], root)
        elif signature.batched:
            values[spec.name], labels[spec.name] = column, (lambda i, root=root: f"{root}[{i}]")
        else:
            values[spec.name], labels[spec.name] = [column], (lambda i, root=root: root)
    return tensors_from_columns(values, signature, options, labels)


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write ``{"predictions": [...]}``. See ``Codec.encode``."""
    if len(signature.outputs) == 1:
        predictions = serializable(tensors[signature.outputs[0].name])
    elif signature.batched:
        predictions = records(tensors, signature)
    else:
        predictions = {spec.name: serializable(tensors[spec.name]) for spec in signature.outputs}
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def serializable(array: Array) -> object:
    """What the JSON writer takes for ``array``: itself where it can be written as it lies, else lists."""
    if array.dtype.kind in _NATIVE_KINDS and array.ndim and array.flags.c_contiguous and array.dtype.isnative:
        return array
    return array.tolist()


def records(tensors: Tensors, signature: Signature) -> list[dict[str, object]]:
    """One object per record, keys in the order of the outputs."""
    names = [spec.name for spec in signature.outputs]
    columns = [_items(tensors[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _items(array: Array) -> list[object]:
    """Split along axis 0. Scalars of a float32 array stay NumPy scalars: as Python floats they would grow digits."""
    if array.dtype.kind in _NATIVE_KINDS:
        return list(np.ascontiguousarray(array))
    return cast(list[object], array.tolist())
