"""``application/octet-stream``: the bare elements of the one input or output, in C order, little-endian.

Nothing in the body says what it holds, so the graph has to: its shape is the input's, and one open axis follows from
the length of the body. That is the batch axis if records have a fixed shape. If a record has one open axis itself, the
body is one record: a stretch of audio or a line of tokens of any length.

A model that takes one string per record gets the whole body, UTF-8, as one record; several strings would need a rule
for where one ends.
"""

from __future__ import annotations

import math

import numpy as np

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.values.conform import shape_text
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Take the body as the elements of the one input, in place. See ``Codec.decode``."""
    spec = signature.sole_input
    if spec is None:
        raise InvalidPayload(
            "raw bytes carry one input, the model has " + ", ".join(spec.describe() for spec in signature.inputs),
            expected="a media type that names the inputs, such as application/x-npz",
            got="application/octet-stream",
        )
    if not body:
        raise InvalidPayload(f"body is empty; the model takes {spec.describe()}", field="byte 0", got="nothing")
    if spec.dtype == STRING:
        return {spec.name: _one_string(body, spec, signature)}
    shape = _shape(len(body), spec, signature)
    array = np.frombuffer(body, spec.dtype.newbyteorder("<")).reshape(shape)
    if spec.dtype.kind == "b":
        return {spec.name: np.asarray(array.view(np.uint8) != 0)}  # the bytes may be others than 0 and 1
    return {spec.name: array.astype(spec.dtype, copy=False)}


def _shape(body_bytes: int, spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
    """The shape of the tensor a body of so many bytes holds.

    Raises:
        InvalidPayload: there is none, or more than one.
    """
    shape = signature.record_shapes[spec.name]
    if signature.batched:
        shape = (1 if None in shape else None, *shape)
    open_axes = shape.count(None)
    if open_axes > 1:
        raise InvalidPayload(
            f"the shape of {spec.describe()} does not follow from the length of the body: it has {open_axes} open axes"
            + " in a record" * signature.batched,
            field="body",
            expected="a media type that carries the shape, such as application/x-npy",
            got=f"{body_bytes} bytes",
        )
    unit_bytes = math.prod([d for d in shape if d is not None]) * spec.dtype.itemsize
    length, rest = divmod(body_bytes, unit_bytes) if unit_bytes else (0, body_bytes)
    if rest or (not open_axes and length != 1):
        expected = f"a multiple of {unit_bytes} bytes" if open_axes else f"{unit_bytes} bytes"
        per_record = " (a record)" if signature.batched and shape[0] is None else ""
        raise InvalidPayload(
            f"{spec.describe()} takes {expected}{per_record}, got {body_bytes}",
            field="body",
            expected=expected,
            got=f"{body_bytes} bytes",
        )
    return tuple(length if d is None else d for d in shape)


def _one_string(body: bytes, spec: TensorSpec, signature: Signature) -> Array:
    record_shape = signature.record_shapes[spec.name]
    if any(d not in (None, 1) for d in record_shape) or len(record_shape) > 1:
        raise InvalidPayload(
            f"raw bytes carry one string, a record of {spec.describe()} has shape {shape_text(record_shape)}",
            field="body",
            expected="a media type that tells strings apart, such as application/json",
            got="application/octet-stream",
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload(
            f"byte {error.start} of the body is not UTF-8", field=f"byte {error.start}", expected="UTF-8"
        ) from None
    array = np.empty((1,) * (len(record_shape) + signature.batched), STRING)
    array[...] = text
    return array


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write the elements of the one output, or its one string. See ``Codec.encode``."""
    if len(signature.outputs) > 1:
        raise NotAcceptable(
            "application/octet-stream cannot carry several outputs", accepted=["application/json", "application/x-npz"]
        )
    (spec,) = signature.outputs
    array = tensors[spec.name]
    if array.dtype != STRING:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if array.size != 1:
        raise NotAcceptable(
            f"application/octet-stream carries one string, the answer has {array.size}", accepted=["application/json"]
        )
    return str(array.item()).encode()
