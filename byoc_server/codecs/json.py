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
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.conform import one_or_many, require_inputs
from byoc_server.codecs.records import (
    holds_common_features,
    is_value_object,
    tensors_from_columns,
    tensors_from_records,
)
from byoc_server.codecs.walk import Label, shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, Signature, Tensors, TensorSpec

_FORMS = "an object with 'instances', 'inputs' or 'features', or a list of records"
_NATIVE_KINDS = "fiub"
_MARKS_OF_ONE_KEY = 2


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read any of the request forms. See ``Codec.decode``."""
    document = parse(body, "body", _FORMS)
    # Two quotation marks make one key and no text. With a text somewhere the short way would be wrong: NumPy reads
    # numbers out of texts.
    tensors = _dense_instances(document, signature) if body.count(b'"') == _MARKS_OF_ONE_KEY else None
    return tensors if tensors is not None else _tensors(document, signature, options)


def parse(text: bytes, field: str, expected: str) -> object:
    """Parse one JSON text.

    Args:
        text: in UTF-8.
        field: how error messages call it.
        expected: what should stand there, in words.

    Raises:
        InvalidPayload: with the parser's line and column.
    """
    try:
        return cast(object, orjson.loads(text))
    except orjson.JSONDecodeError as error:
        if not text.strip():
            raise InvalidPayload(f"{field} is empty", field=field, expected=expected, got="nothing") from None
        reason = str(error)  # the text alone: the error leads to this frame, and the frame to the body
    if b"NaN" in text or b"Infinity" in text:
        try:
            return _parse_with_bare_words(text)
        except RecursionError:
            pass
        except ValueError as error:  # the first reader may have stumbled over NaN, which is none
            reason = str(error)
    raise InvalidPayload(f"{field} is not valid JSON: {reason}", field=field, expected=expected)


def _parse_with_bare_words(text: bytes) -> object:
    document = json.loads(text, parse_float=_finite)
    if b"\\ud" in text.lower():  # only the first reader refuses half of a surrogate pair
        json.dumps(document, ensure_ascii=False).encode()
    return cast(object, document)


def _finite(digits: str) -> float:
    number = float(digits)
    if np.isinf(number):
        raise ValueError(f"number {shown(digits)} is beyond the range of a double")
    return number


def _dense_instances(document: object, signature: Signature) -> Tensors | None:
    """Take the commonest body in the fewest steps: ``instances`` as plain lists for one float input of fixed shape.

    Returns:
        The tensors, or ``None`` when it is anything else, right or wrong.
    """
    spec = signature.sole_input
    if spec is None or type(document) is not dict or spec.dtype.kind != "f" or not signature.batched:
        return None
    try:
        with np.errstate(over="raise"):
            array = np.array(document["instances"], spec.dtype)
    except (KeyError, ValueError, TypeError, OverflowError, FloatingPointError):
        return None
    fits = array.ndim and len(array) and array.shape[1:] == signature.record_shapes[spec.name]
    return {spec.name: array} if fits else None


def _tensors(document: object, signature: Signature, options: DecodeOptions) -> Tensors:
    if isinstance(document, list):
        return _values_or_records(document, signature, options, "body")
    if not isinstance(document, dict):
        if signature.sole_input is not None:
            return _values_or_records(document, signature, options, "body")
        raise InvalidPayload(f"expected {_FORMS}, got {shown(document)}", expected=_FORMS, got=shown(document))
    names = [spec.name for spec in signature.inputs]
    if signature.sole_input and holds_common_features(document):
        return tensors_from_records([document], signature, options, lambda i: "body")
    if "instances" in document and (signature.sole_input or "instances" not in names):
        return _values_or_records(document["instances"], signature, options, "instances")
    if all(name in document for name in names):
        return _columns({name: document[name] for name in names}, signature, options, "")
    if "inputs" in document:
        inputs = document["inputs"]
        if isinstance(inputs, dict) and ("values" not in inputs or "values" in names or not signature.sole_input):
            require_inputs(list(inputs), signature, "inputs")
            return _columns(inputs, signature, options, "inputs.")
        return _values_or_records(inputs, signature, options, "inputs")
    if "features" in document and signature.sole_input is not None:
        return _values_or_records(document["features"], signature, options, "features")
    if "data" in document or (signature.sole_input and is_value_object(document)):
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


def _column(column: object, spec: TensorSpec, signature: Signature, root: str) -> tuple[Sequence[object], Label]:
    """The record values of one input, and how they are called."""
    if not signature.batched:
        return [column], lambda i: root
    if isinstance(column, list) and dict in map(type, column):
        return column, lambda i: f"{root}[{i}]"
    return one_or_many(column, signature.record_shapes[spec.name], root)


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
    """What the JSON writer takes for ``array``; strings as lists, a number of rank 0 as a NumPy scalar.

    Floats stay NumPy's: as Python floats those of 16 and 32 bits would grow digits.
    """
    if array.dtype.kind in _NATIVE_KINDS:
        return np.ascontiguousarray(array) if array.ndim else array[()]
    return array.tolist()


def records(tensors: Tensors, signature: Signature) -> list[dict[str, object]]:
    """One object per record, keys in the order of the outputs."""
    names = [spec.name for spec in signature.outputs]
    columns = [_items(tensors[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _items(array: Array) -> list[object]:
    return list(cast(Any, serializable(array)))
