"""``application/json``: the request forms of SageMaker, TensorFlow Serving and plain lists.

Requests are the documents of ``documents``; bytes stand in them as in ``base64_values``.

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
from byoc_server.codecs.base64_values import may_hold_base64, with_bytes
from byoc_server.codecs.documents import FORMS, tensors_from_document
from byoc_server.codecs.walk import shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, Signature, Tensors

_NATIVE_KINDS = "fiub"
_MARKS_OF_ONE_KEY = 2


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read any of the request forms. See ``Codec.decode``."""
    document = parse(body, "body", FORMS)
    if may_hold_base64(body, signature):
        document = with_bytes(document, "" if isinstance(document, dict) else "body")
    # Two quotation marks make one key and no text. With a text somewhere the short way would be wrong: NumPy reads
    # numbers out of texts.
    tensors = _dense_instances(document, signature) if body.count(b'"') == _MARKS_OF_ONE_KEY else None
    return tensors if tensors is not None else tensors_from_document(document, signature, options)


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
