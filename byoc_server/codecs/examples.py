"""Requests as a client would write them, in every format: for ``byoc info MODEL`` and for tests.

Where a format has the same form both ways, its own encoder writes the request; the others have a writer here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import numpy as np
import orjson

from byoc_server.codecs.base import CodecEntry, DecodeOptions, EncodeOptions, codecs_by_media_type
from byoc_server.codecs.json import records, serializable
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.codecs.open_inference.data import DATATYPE_NAMES
from byoc_server.codecs.protobuf.wire import encode_varints, field
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import STRING, Array, ImageSpec, Signature, Tensors


class Example(NamedTuple):
    """A request.

    Attributes:
        content_type: with what parameters it takes.
        body: of the request.
    """

    content_type: str
    body: bytes


def example_request(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    """Write a request.

    Args:
        entry: the format.
        tensors: every input, of one record.
        signature: of the model, as clients see it.

    Raises:
        ByocError: requests for this model cannot come in this format; the message says why.
    """
    if not entry.installed:
        raise InvalidPayload(needs(entry))
    write = _WRITERS.get(entry.media_type, _as_answer)
    example = write(entry, tensors, signature)
    media_type = parse_media_type(example.content_type)
    assert media_type is not None
    options = DecodeOptions(media_type.parameters)
    entry.load().decode(example.body, signature, options)  # raises where the format cannot carry them
    return example


def _as_answer(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    """Formats whose requests look like their answers."""
    if entry.sole_output and signature.sole_input is None:
        raise InvalidPayload(f"{entry.media_type} carries one input, the model has {len(signature.inputs)}")
    same = Signature(signature.inputs, signature.inputs, signature.batch_axis, signature.batch_size)
    try:
        body = entry.load().encode(tensors, same, EncodeOptions(final_newline=False))
    except NotAcceptable as error:  # it speaks of an answer
        inputs = ", ".join(spec.describe() for spec in signature.inputs)
        raise InvalidPayload(f"{entry.media_type} does not carry {inputs}") from error
    return Example(entry.media_type, cast(bytes, body))


def _document(tensors: Tensors, signature: Signature) -> dict[str, object]:
    if not signature.batched:
        return {"inputs": {name: serializable(array) for name, array in tensors.items()}}
    if signature.sole_input is not None:
        return {"instances": serializable(tensors[signature.sole_input.name])}
    return {"instances": records(tensors, Signature(signature.inputs, signature.inputs, signature.batch_axis))}


def _json(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    body = orjson.dumps(_document(tensors, signature), option=orjson.OPT_SERIALIZE_NUMPY)
    return Example(entry.media_type, body)


def _msgpack(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    import msgpack  # noqa: PLC0415  # an optional package

    document = orjson.loads(_json(entry, tensors, signature).body)
    return Example(entry.media_type, cast(bytes, msgpack.packb(document, use_single_float=True)))


def _libsvm(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    for spec in signature.inputs:
        if spec.dtype == STRING:
            raise InvalidPayload(f"{entry.media_type} carries no strings, as {spec.describe()} takes")
    # side by side; booleans become integers
    numbers = [number + 0 for array in tensors.values() for number in array.ravel().tolist()]
    return Example(entry.media_type, " ".join(["0", *(f"{i}:{n}" for i, n in enumerate(numbers))]).encode())


def _recordio(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    name_of = {signature.sole_input.name: "values"} if signature.sole_input else {}
    record = b""
    for name, array in tensors.items():
        values = np.asarray(array[0], array.dtype) if signature.batched else array
        number, content = _record_tensor(values)
        if values.ndim > 1 and number != _RECORD_BYTES:
            content += field(3, encode_varints(np.array(values.shape, np.uint64))[0])
        entry_name = name_of.get(name, name).encode()
        record += field(1, field(1, entry_name) + field(2, field(number, content)))
    return Example(entry.media_type, struct.pack("<II", 0xCED7230A, len(record)) + record + bytes(-len(record) % 4))


_RECORD_BYTES = 9


def _record_tensor(values: Array) -> tuple[int, bytes]:
    """Number and content of a tensor in the ``Value`` of a SageMaker ``Record``."""
    if values.dtype == STRING:
        return _RECORD_BYTES, b"".join(field(1, str(text).encode()) for text in values.ravel())
    if values.dtype == np.float64:
        return 3, field(1, np.ascontiguousarray(values, "<f8").tobytes())
    if values.dtype.kind == "f":
        return 2, field(1, np.ascontiguousarray(values, "<f4").tobytes())
    return 7, field(1, _varints(values))


def _tfexample(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    features = b""
    for name, array in tensors.items():
        values = np.asarray(array[0], array.dtype) if signature.batched else array
        if values.dtype == STRING:
            feature = field(1, b"".join(field(1, str(text).encode()) for text in values.ravel()))
        elif values.dtype.kind == "f":
            feature = field(2, field(1, np.ascontiguousarray(values, "<f4").tobytes()))
        else:
            feature = field(3, field(1, _varints(values)))
        features += field(1, field(1, name.encode()) + field(2, feature))
    return Example(entry.media_type, field(1, features))


def _varints(values: Array) -> bytes:
    return encode_varints(values.astype(np.int64).view(np.uint64).ravel())[0]


def _open_inference(entry: CodecEntry, tensors: Tensors, signature: Signature) -> Example:
    """The binary form of the Open Inference Protocol: a JSON header, then the data of all inputs."""
    inputs, data = [], b""
    for name, array in tensors.items():
        if array.dtype == STRING:
            texts = [str(text).encode() for text in array.ravel()]
            content = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        inputs.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPE_NAMES[array.dtype],
                "parameters": {"binary_data_size": len(content)},
            }
        )
        data += content
    header = orjson.dumps({"inputs": inputs})
    return Example(f"{entry.media_type};json-header-size={len(header)}", header + data)


def open_inference_document(tensors: Tensors) -> bytes:
    """The JSON form of the Open Inference Protocol, as the routes below ``/v2`` take it."""
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPE_NAMES[array.dtype],
            "data": serializable(array.ravel()),
        }
        for name, array in tensors.items()
    ]
    return orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _image(entry: CodecEntry, _: Tensors, signature: Signature) -> Example:
    spec = signature.sole_input
    if spec is None or spec.image is None:
        raise InvalidPayload("there is no sole input that byoc.toml declares to be an image")
    return Example(entry.media_type, image_file(spec.image, entry.media_type))


def image_file(image: ImageSpec, media_type: str) -> bytes:
    """A grey image of just the size that an input takes; PNG unless the media type says otherwise.

    Raises:
        InvalidPayload: images are not read here.
    """
    entry = codecs_by_media_type()[media_type]
    if not entry.installed:
        raise InvalidPayload(needs(entry))
    from PIL import Image  # noqa: PLC0415  # an optional package

    file = io.BytesIO()
    kind = {"image/jpeg": "JPEG", "image/webp": "WEBP"}.get(media_type, "PNG")
    Image.new("RGB", (image.width, image.height), (127, 127, 127)).save(file, kind)
    return file.getvalue()


def needs(entry: CodecEntry) -> str:
    """What is missing for a format that is not installed."""
    return f"needs {entry.requirement}"


_Writer = Callable[[CodecEntry, Tensors, Signature], Example]

_WRITERS: Mapping[str, _Writer] = {
    "application/json": _json,
    "application/msgpack": _msgpack,
    "text/libsvm": _libsvm,
    "application/x-recordio-protobuf": _recordio,
    "application/x-tfexample": _tfexample,
    "application/vnd.sagemaker-triton.binary+json": _open_inference,
    "image/jpeg": _image,
    "image/png": _image,
    "image/webp": _image,
    "application/x-image": _image,
}
