"""``multipart/form-data``: one part per input, called like it, each of a media type of its own; for requests only.

As browsers and ``curl -F`` send forms (RFC 7578, July 2015). A part is read by the decoder of its media type as the
body of a model that has only that input. What a form says less about is taken so:

* ``text/plain``, or no media type: what a person typed. The text itself for an input of strings, else one JSON value:
  a number, a list, ``true``.
* ``application/octet-stream``, or a file without a media type: the text for an input of strings, what ``numpy.save`` or
  ``numpy.savez`` wrote if it begins so, an image file for an input that takes images, else the bare elements.

Several parts of one name are records of one input, in order; padded where the input has a padding value and they differ
in length. A part called ``_charset_`` may say that texts are UTF-8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from byoc_server.codecs.base import (
    BrokenLibraryError,
    Codec,
    DecodeOptions,
    Enveloped,
    codecs_by_media_type,
    media_types,
    request_codecs,
)
from byoc_server.codecs.media_type import MediaType, parse_media_type
from byoc_server.codecs.multipart_walk import Part, find_parts
from byoc_server.codecs.values.conform import require_equal_rows, require_inputs, shape_text
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, RequestError, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]\Z")
_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))
_CHARSET_PART = "_charset_"
_TYPED = MediaType("text", "plain", {})
_FILE = MediaType("application", "octet-stream", {})
_NUMPY_FILES = {
    b"\x93NUMPY": MediaType("application", "x-npy", {}),
    b"PK\3\4": MediaType("application", "x-npz", {}),
}
"""How they begin -> what they are."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read each part by the codec of its media type. See ``Codec.decode``."""
    parts = [part for part in find_parts(body, _boundary(options)) if not _is_charset(part, body, signature)]
    require_inputs([*dict.fromkeys(part.name for part in parts)], signature, "body")
    arrays: dict[str, list[Array]] = {spec.name: [] for spec in signature.inputs}
    left = options.max_tensor_bytes
    for part in parts:
        label = f"part {shown(part.name)}"
        earlier = arrays[part.name]
        if earlier and not signature.batched:
            raise InvalidPayload(
                f"{label} is there twice; the model takes one record per request", field=label, expected="one part"
            )
        array = _read(body, part, label, signature, left)
        left -= array.nbytes
        if left < 0:
            raise _too_large(label, options.max_tensor_bytes)
        same_shape = not earlier or array.shape[1:] == earlier[0].shape[1:]
        if not same_shape and signature.input_by_name[part.name].padding_value is None:
            expected, got = shape_text(earlier[0].shape[1:]), shape_text(array.shape[1:])
            raise InvalidPayload(
                f"{label}, number {len(earlier) + 1}: expected records of shape {expected} as in the first, got {got}",
                field=label,
                expected=expected,
                got=got,
            )
        earlier.append(array)
    tensors: Tensors = {}
    for spec in signature.inputs:
        pieces = arrays.pop(spec.name)
        left += sum([piece.nbytes for piece in pieces])
        tensors[spec.name] = _stacked(pieces, spec, left)
        left -= tensors[spec.name].nbytes
    return require_equal_rows(tensors, signature)


def _stacked(arrays: list[Array], spec: TensorSpec, left: int) -> Array:
    """All records of one input; those that are shorter than others are filled up."""
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    shape = [sum(map(len, arrays)), *(max(lengths) for lengths in zip(*(a.shape[1:] for a in arrays), strict=True))]
    size = math.prod(shape) * spec.dtype.itemsize
    if size > left:
        raise _too_large(f"part {shown(spec.name)}", left)
    padded = np.full(shape, spec.padding_value, spec.dtype)
    first = 0
    for array in arrays:
        place: Any = (slice(first, first + len(array)), *map(slice, array.shape[1:]))
        padded[place] = cast(Any, array)
        first += len(array)
    return padded


def _too_large(label: str, limit_bytes: int) -> TensorsTooLarge:
    return TensorsTooLarge(
        f"{label}: the tensors of this request are too large",
        field=label,
        expected=f"at most {limit_bytes} bytes",
    )


def _boundary(options: DecodeOptions) -> str:
    boundary = options.parameters.get("boundary")
    if boundary is None or not _BOUNDARY.match(boundary):
        got = "none" if boundary is None else shown(boundary)
        raise UnsupportedMediaType(
            f"multipart/form-data needs the parameter boundary, 1 to 70 characters as in RFC 2046, got {got}",
            accepted=["multipart/form-data; boundary=..."],
        )
    return boundary


def _is_charset(part: Part, body: bytes, signature: Signature) -> bool:
    """Whether it is the part that tells the charset of the others (RFC 7578, section 4.6); it is checked then."""
    if part.name != _CHARSET_PART or _CHARSET_PART in signature.input_by_name:
        return False
    _require_utf8(body[part.start : min(part.end, part.start + 100)].decode("latin-1"), f"part '{_CHARSET_PART}'")
    return True


def _require_utf8(charset: str, label: str) -> None:
    if charset.strip().lower() not in _CHARSETS:
        raise UnsupportedMediaType(f"{label}: charset {shown(charset)} is not supported", accepted=["utf-8"])


def _read(body: bytes, part: Part, label: str, signature: Signature, max_tensor_bytes: int) -> Array:
    """The tensor of one part, which has the record axis if there is one."""
    spec = signature.input_by_name[part.name]
    data = body[part.start : part.end]
    media_type = _media_type(part, label)
    if media_type.essence in (_TYPED.essence, _FILE.essence):
        _require_utf8(media_type.parameters.get("charset", "utf-8"), label)
        if _is_one_string(spec, signature):
            return _text(data, label, spec, signature)
        media_type = _guess(media_type, data, spec)
    codec = _codec(media_type, label)
    try:
        decoded = codec.decode(
            data, replace(signature, inputs=(spec,)), DecodeOptions(media_type.parameters, max_tensor_bytes)
        )
    except RequestError as error:
        kind, message, details = type(error), error.message, error.details
    else:
        return (decoded.tensors if isinstance(decoded, Enveloped) else decoded)[spec.name]
    # Out here, as otherwise the first error would hang on the second, and all that was worked on would on the first.
    raise kind(f"{label}: {message}", **_placed(details, label))


def _placed(details: Mapping[str, object], label: str) -> dict[str, object]:
    """Details of an error with the part in front of the place."""
    return {**details, "field": f"{label}, {details['field']}" if "field" in details else label}


def _media_type(part: Part, label: str) -> MediaType:
    if part.content_type is None:
        return _FILE if part.is_file else _TYPED
    media_type = parse_media_type(part.content_type)
    if media_type is None:
        raise _unsupported(label, part.content_type)
    return media_type


def _is_one_string(spec: TensorSpec, signature: Signature) -> bool:
    """Whether one string can be a record of the input."""
    shape = signature.record_shapes[spec.name]
    return spec.dtype == STRING and len(shape) < 2 and all(length in (None, 1) for length in shape)


def _text(data: bytes, label: str, spec: TensorSpec, signature: Signature) -> Array:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        where = f"{label}, byte {error.start}"
        got = f"0x{data[error.start]:02x}"
        raise InvalidPayload(f"{where}: expected UTF-8, got {got}", field=where, expected="UTF-8", got=got) from None
    array = np.empty((1,) * (len(signature.record_shapes[spec.name]) + signature.batched), STRING)
    array[...] = text
    return array


def _guess(media_type: MediaType, data: bytes, spec: TensorSpec) -> MediaType:
    """The media type of a part whose sender did not know better than text or bytes."""
    if media_type.essence == _TYPED.essence:
        return MediaType("application", "json", {})
    for magic, numpy_file in _NUMPY_FILES.items():
        if data.startswith(magic):
            return numpy_file
    return _FILE if spec.image is None else MediaType("application", "x-image", {})


def _codec(media_type: MediaType, label: str) -> Codec:
    """Find the codec of a part.

    Raises:
        UnsupportedMediaType: there is none, or its library is missing or broken; or it is a form again.
    """
    entry = codecs_by_media_type().get(media_type.essence)
    if entry is None or entry.media_type == "multipart/form-data":
        raise _unsupported(label, media_type.essence)
    if entry.installed:
        try:
            return entry.load()
        except BrokenLibraryError:
            pass
    raise _unsupported(label, media_type.essence, f" here (it needs {entry.requirement})")


def _unsupported(label: str, text: str, missing: str = "") -> UnsupportedMediaType:
    accepted = ["text/plain", *(name for name in media_types(request_codecs()) if name != "multipart/form-data")]
    return UnsupportedMediaType(
        f"{label}: Content-Type {shown(text)} is not supported{missing}; use {', '.join(accepted)}", accepted=accepted
    )
