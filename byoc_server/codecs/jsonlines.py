"""``application/jsonlines``: one JSON record a line, in the record forms of ``records``; one answer a line.

A body of N lines gets N answer lines in order. The last line may end with a newline or not, lines may end with CR LF;
an empty line is an error, because skipping it would shift every answer behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import orjson

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.base64_values import may_hold_base64, with_bytes
from byoc_server.codecs.json import parse, records, serializable
from byoc_server.codecs.lines import body_lines, join_lines
from byoc_server.codecs.records import tensors_from_records
from byoc_server.types import Signature, Tensors


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read one record a line. See ``Codec.decode``."""
    values = [parse(line, f"line {number}", "a JSON value") for number, line in enumerate(body_lines(body), 1)]
    if may_hold_base64(body, signature):
        values = [with_bytes(value, f"line {number}") for number, value in enumerate(values, 1)]
    return tensors_from_records(values, signature, options, lambda i: f"line {i + 1}")


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one line a record: the value of the one output, or an object with all outputs. See ``Codec.encode``."""
    items: Sequence[object]
    if len(signature.outputs) > 1 and signature.batched:
        items = records(tensors, signature)
    elif len(signature.outputs) > 1:
        items = [{spec.name: serializable(tensors[spec.name]) for spec in signature.outputs}]
    else:
        value = serializable(tensors[signature.outputs[0].name])
        items = cast(Sequence[object], value) if signature.batched else [value]
    return join_lines([orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY) for item in items], options)
