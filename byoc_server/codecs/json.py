"""``application/json``: the request forms of SageMaker, TensorFlow Serving and plain lists.

Requests are the documents of ``values.documents``; bytes stand in them as in ``values.base64_values``. Requests of the
Open Inference Protocol (``open_inference``) are told by their form, and answered in it.

Answers: ``{"predictions": [...]}``, one item per record in order: the value of the one output, or an object with one
key per output. NaN and infinities have no JSON form and leave as ``null``.

``json`` from the standard library is the second reader: it takes the bare words ``NaN`` and ``Infinity``, which
Python clients send for missing values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
import orjson

from byoc_server.codecs.base import Answer, DecodeOptions, Decoder, EncodeOptions, Enveloped
from byoc_server.codecs.open_inference.answer import encode_answer
from byoc_server.codecs.open_inference.request import decode_request, is_request
from byoc_server.codecs.text import json_records
from byoc_server.codecs.text.json_arrays import LARGE_BYTES, document_with_arrays
from byoc_server.codecs.values.base64_values import may_hold_base64, with_bytes
from byoc_server.codecs.values.documents import FORMS, root_of_records, tensors_from_document
from byoc_server.codecs.values.parts import tensors_from_parts
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, Signature, Tensors

_NATIVE_KINDS = "fiub"
_MARKS_OF_ONE_KEY = 2
_AROUND_RECORDS = {1: (b"[", b",", b"]"), 2: (b"[[", b"],[", b"]]")}
"""Axes of an array of numbers -> what stands before, between and behind its records."""
_NO_ROWS_OF_NUMBERS = (KeyError, TypeError, ValueError, OverflowError, struct.error)


_STRUCT_LETTERS = {
    np.dtype(name): letter
    for name, letter in {
        "float16": "e",
        "float32": "f",
        "float64": "d",
        "int8": "b",
        "int16": "h",
        "int32": "i",
        "int64": "q",
        "uint8": "B",
        "uint16": "H",
        "uint32": "I",
        "uint64": "Q",
    }.items()
}
"""Letters of the ``struct`` module, which refuses what is no number or beyond the range of one."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | Enveloped:
    """Read any of the request forms. See ``Codec.decode``."""
    return decoder(signature, options)(body)


def decoder(signature: Signature, options: DecodeOptions) -> Decoder:
    """Read any of the request forms, again and again. See ``MakeDecoder``.

    The commonest body in the fewest steps: ``instances``, and no other key, as rows of numbers of a fixed width.
    """
    spec = signature.sole_input
    shape = () if spec is None or not signature.batched else signature.record_shapes[spec.name]
    width = shape[0] if len(shape) == 1 else None
    if spec is None or width is None or width > LARGE_BYTES or spec.dtype not in _STRUCT_LETTERS:
        return partial(_decode_any_form, None, signature, options)
    name, dtype = spec.name, spec.dtype
    row_format = struct.Struct(f"={width}{_STRUCT_LETTERS[dtype]}")
    pack: Callable[..., bytes] = row_format.pack
    row_dtype = np.dtype((dtype, (width,)))
    loads, frombuffer = orjson.loads, np.frombuffer

    def decode_rows(body: bytes) -> Tensors | Enveloped:
        document: Any = None  # whatever it is, other shapes of it raise an error
        if len(body) <= LARGE_BYTES:
            try:
                document = loads(body)
                if len(document) == 1:
                    rows = document["instances"]
                    count = len(rows)
                    if count == 1:
                        return {name: frombuffer(pack(*rows[0]), row_dtype, 1)}
                    if count:
                        return {name: frombuffer(b"".join([pack(*row) for row in rows]), row_dtype, count)}
            except _NO_ROWS_OF_NUMBERS:
                pass
        return _decode_any_form(document, signature, options, body)

    return decode_rows


def _decode_any_form(document: Any, signature: Signature, options: DecodeOptions, body: bytes) -> Tensors | Enveloped:
    """Read any of the request forms; ``document`` is what was parsed already, or ``None``."""
    if len(body) > LARGE_BYTES:
        decoded = _large_arrays(body, signature, options)
        if decoded is None and len(body) > json_records.LARGE_BYTES:
            decoded = _many_records(body, signature, options)
            if decoded is None:
                json_records.require_parsed_bytes(body, options)
        if decoded is not None:
            return decoded
    if document is None:
        document = parse(body, "body", FORMS)
    if is_request(document, signature):
        return decode_request(document, signature, options)
    if may_hold_base64(body, signature):
        document = with_bytes(document, "" if isinstance(document, dict) else "body")
    # Two quotation marks make one key and no text. With a text somewhere the short way would be wrong: NumPy reads
    # numbers out of texts.
    tensors = _dense_instances(document, signature, options) if body.count(b'"') == _MARKS_OF_ONE_KEY else None
    return tensors_from_document(document, signature, options) if tensors is None else tensors


def _large_arrays(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | Enveloped | None:
    """Read large arrays of plain numbers; ``None`` if it is anything else, right or wrong."""
    document = document_with_arrays(body, signature)
    if document is not None:
        with suppress(InvalidPayload):  # of lists the message says more
            if is_request(document, signature):
                return decode_request(document, signature, options)
            return tensors_from_document(document, signature, options)
    return None


def _many_records(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | None:
    """Read many record objects, some at a time; ``None`` if it is anything else, right or wrong.

    Raises:
        TensorsTooLarge: they are.
    """
    found = json_records.find_records(body) if signature.batched and not may_hold_base64(body, signature) else None
    root = None if found is None else root_of_records(found.document, json_records.PLACEHOLDER, signature)
    if found is None or root is None:
        return None
    pieces = json_records.record_pieces(body, found.start, found.end)
    parts = (cast(list[object], parse(piece, "body", FORMS)) for piece in pieces)
    return tensors_from_parts(parts, signature, options, lambda i: f"{root}[{i}]")


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


def _dense_instances(document: object, signature: Signature, options: DecodeOptions) -> Tensors | None:
    """Take ``instances`` as plain lists for one float input of fixed shape in few steps.

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
    return {spec.name: array} if fits and array.nbytes <= options.max_tensor_bytes else None


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes | Answer:
    """Write ``{"predictions": [...]}``, or what the request asks for. See ``Codec.encode``."""
    if options.envelope is not None:
        return encode_answer(tensors, signature, options)
    if len(signature.outputs) == 1:
        predictions = serializable(tensors[signature.outputs[0].name])
    elif signature.batched:
        predictions = records(tensors, signature)
    else:
        predictions = {spec.name: serializable(tensors[spec.name]) for spec in signature.outputs}
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_each(
    tensors: Tensors, signature: Signature, options: EncodeOptions, counts: Sequence[int]
) -> list[bytes] | None:
    """Write several answers in one pass. See ``EncodeEach``."""
    if len(signature.outputs) > 1 or options.envelope is not None:
        return None
    array = tensors[signature.outputs[0].name]
    begin, between, end = _AROUND_RECORDS.get(array.ndim, (b"", b"", b""))
    if not begin or array.dtype.kind not in _NATIVE_KINDS:
        return None
    text = orjson.dumps(serializable(array), option=orjson.OPT_SERIALIZE_NUMPY)
    records = text[len(begin) : -len(end)].split(between)
    begin, end = b'{"predictions":' + begin, end + b"}"
    if len(records) == len(counts):
        return [begin + record + end for record in records]
    bounds = pairwise(accumulate(counts, initial=0))
    return [begin + between.join(records[first:last]) + end for first, last in bounds]


def serializable(array: Array) -> object:
    """What the JSON writer takes for ``array``; strings as lists, a number of rank 0 as a NumPy scalar.

    Floats stay NumPy's: as Python floats those of 16 and 32 bits would grow digits.
    """
    if array.dtype.kind in _NATIVE_KINDS:
        if array.flags.c_contiguous and array.ndim:
            return array
        return np.ascontiguousarray(array) if array.ndim else array[()]
    return array.tolist()


def records(tensors: Tensors, signature: Signature) -> list[dict[str, object]]:
    """One object per record, keys in the order of the outputs."""
    names = [spec.name for spec in signature.outputs]
    columns = [_items(tensors[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _items(array: Array) -> list[object]:
    return list(cast(Any, serializable(array)))
