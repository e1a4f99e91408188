"""``application/jsonlines``: one JSON record a line, in the record forms of ``values.records``; one answer a line.

A body of N lines gets N answer lines in order. The last line may end with a newline or not, lines may end with CR LF;
an empty line is an error, because skipping it would shift every answer behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.json import parse, records, serializable
from byoc_server.codecs.text import json_records
from byoc_server.codecs.text.json_arrays import LARGE_BYTES
from byoc_server.codecs.text.lines import body_lines, join_lines, join_lines_each
from byoc_server.codecs.text.number_arrays import read_lines
from byoc_server.codecs.text.number_text import NotPlainError
from byoc_server.codecs.values.base64_values import may_hold_base64, with_bytes
from byoc_server.codecs.values.conform import fits
from byoc_server.codecs.values.parts import tensors_from_parts
from byoc_server.codecs.values.records import tensors_from_records
from byoc_server.types import Signature, Tensors


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record a line. See ``Codec.decode``."""
    if len(body) > LARGE_BYTES:
        tensors = _plain_lines(body, signature, options)
        if tensors is None and len(body) > json_records.LARGE_BYTES:
            tensors = _many_lines(body, signature, options)
            if tensors is None:
                json_records.require_parsed_bytes(body, options)
        if tensors is not None:
            return tensors
    values = _values(body)
    if may_hold_base64(body, signature):
        values = [with_bytes(value, f"line {number}") for number, value in enumerate(values, 1)]
    return tensors_from_records(values, signature, options, _label)


def _values(body: bytes) -> list[object]:
    return [parse(line, f"line {number}", "a JSON value") for number, line in enumerate(body_lines(body), 1)]


def _label(number: int) -> str:
    return f"line {number + 1}"


def _many_lines(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | None:
    """Read many lines, some at a time; ``None`` if something is wrong.

    Raises:
        TensorsTooLarge: the records are.
    """
    if not signature.batched or may_hold_base64(body, signature):
        return None
    return tensors_from_parts(map(_values, json_records.line_pieces(body)), signature, options, _label)


def _plain_lines(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | None:
    """Read many lines of numbers for one input; ``None`` if they are anything else, right or wrong."""
    spec = signature.sole_input
    if spec is None or spec.dtype.kind not in "fiu" or not signature.batched:
        return None
    record_shape = signature.record_shapes[spec.name]
    try:
        shape = _shape(orjson.loads(body[: body.find(b"\n") + 1] or body))
        is_scalar = shape == () and record_shape == (1,)
        if 0 in shape or not (is_scalar or fits(shape, record_shape)):
            return None
        array = read_lines(body, shape, spec.dtype)
    except (NotPlainError, orjson.JSONDecodeError):
        return None
    if array.nbytes > options.max_tensor_bytes:
        return None
    return {spec.name: array.reshape(-1, 1) if is_scalar else array}


def _shape(value: object) -> tuple[int, ...]:
    """Lengths of nested lists, as the first ones have them."""
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return tuple(lengths)


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one line a record: the value of the one output, or an object with all outputs. See ``Codec.encode``."""
    return join_lines(_lines(tensors, signature), options)


def encode_each(tensors: Tensors, signature: Signature, options: EncodeOptions, counts: Sequence[int]) -> list[bytes]:
    """Write several answers in one pass. See ``EncodeEach``."""
    return join_lines_each(_lines(tensors, signature), options, counts)


def _lines(tensors: Tensors, signature: Signature) -> list[bytes]:
    items: Sequence[object]
    if len(signature.outputs) > 1 and signature.batched:
        items = records(tensors, signature)
    elif len(signature.outputs) > 1:
        items = [{spec.name: serializable(tensors[spec.name]) for spec in signature.outputs}]
    else:
        value = serializable(tensors[signature.outputs[0].name])
        if signature.batched and isinstance(value, np.ndarray) and value.ndim == 2 and value.size:
            rows = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).split(b"]")[:-2]
            return [row[1:] + b"]" for row in rows]  # ``[[1,2],[3,4]]``
        items = cast(Sequence[object], value) if signature.batched else [value]
    return [orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY) for item in items]
