"""The decoders as fuzz targets: any bytes give tensors that fit the model, or an error that is the client's.

An input begins with one byte for the signature and two, least significant first, for the media type parameters. The
rest is the body.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from benchmarks.fuzz.findings import FindingError
from benchmarks.fuzz.signatures import SIGNATURES
from byoc_server.codecs.base import CodecEntry, DecodeOptions, Enveloped, request_codecs
from byoc_server.errors import ByocError
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec, tensor_bytes

PREFIX_BYTES = 3
MAX_TENSOR_BYTES = 4 * 1024 * 1024
_MAX_GROWTH_BYTES = 16 * MAX_TENSOR_BYTES
_MAX_MESSAGE_CHARACTERS = 1000
_KIB = 1024

_PARAMETERS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "text/csv": (
        {},
        {"header": "present"},
        {"label_size": "1"},
        {"header": "present", "label_size": "1"},
        {"charset": "latin-1"},
        {"charset": "utf-16"},
        {"header": "present", "charset": "utf-8-sig"},
        {"header": "maybe", "label_size": "-1", "charset": "no such"},
    ),
    "multipart/form-data": ({"boundary": "b"}, {}, {"boundary": "-" * 70}, {"boundary": ""}),
}
"""Media type -> parameters it may come with; the number in the input chooses."""
_NUMBERED: Mapping[str, str] = {"application/vnd.sagemaker-triton.binary+json": "json-header-size"}
"""Media type -> the parameter whose value is the number in the input itself."""
_MISSING = 2**16 - 1
"""The number that stands for no such parameter."""


def decoder_entries() -> dict[str, CodecEntry]:
    """The formats of requests by media type, one row for every module: some have several."""
    by_module = {entry.module: entry for entry in reversed(request_codecs())}
    return {entry.media_type: entry for entry in reversed(by_module.values())}


def parameters_for(media_type: str, number: int) -> Mapping[str, str]:
    """The media type parameters that a number stands for."""
    if media_type in _NUMBERED:
        return {} if number == _MISSING else {_NUMBERED[media_type]: str(number)}
    listed = _PARAMETERS.get(media_type, ({},))
    return listed[number % len(listed)]


def check_decoder(entry: CodecEntry, data: bytes) -> None:
    """Decode one input.

    Raises:
        FindingError: what comes out does not fit, or is no error of the client's, or took too much memory.
        Exception: whatever else the decoder lets out, which is a finding as well.
    """
    prefix, body = data[:PREFIX_BYTES].ljust(PREFIX_BYTES, b"\0"), data[PREFIX_BYTES:]
    signature = SIGNATURES[prefix[0] % len(SIGNATURES)]
    parameters = parameters_for(entry.media_type, int.from_bytes(prefix[1:], "little"))
    before_bytes = _peak_bytes()
    try:
        decoded = entry.load().decode(body, signature, DecodeOptions(parameters, MAX_TENSOR_BYTES))
    except ByocError as error:
        check_refusal(error)
    else:
        _check_tensors(decoded.tensors if isinstance(decoded, Enveloped) else decoded, signature)
    if _peak_bytes() - before_bytes > _MAX_GROWTH_BYTES:
        raise FindingError("the memory of the process grew too much")


def check_refusal(error: ByocError) -> None:
    """Hold an error against what clients may see.

    Raises:
        FindingError: it is not the client's, or not fit to be shown.
    """
    if not 400 <= error.status < 500:
        raise FindingError(f"{type(error).__name__} has status {error.status}") from error
    if not 0 < len(error.message) < _MAX_MESSAGE_CHARACTERS:
        raise FindingError("a message is empty or too long") from error
    try:
        details = orjson.dumps([error.message, error.details])
    except TypeError:
        raise FindingError("an error cannot be written as JSON") from error
    if len(details) > 4 * _MAX_MESSAGE_CHARACTERS:
        raise FindingError("the details of an error are too long") from error


def _check_tensors(tensors: Tensors, signature: Signature) -> None:
    if tensors.keys() != {spec.name for spec in signature.inputs}:
        raise FindingError("the tensors are not the inputs of the model")
    if tensor_bytes(tensors) > MAX_TENSOR_BYTES:
        raise FindingError("the tensors are larger than allowed")
    for spec in signature.inputs:
        array = tensors[spec.name]
        if not _fits(array, spec, signature):
            raise FindingError(f"{array.dtype} {array.shape} is no array for {spec.describe()}")
        if spec.dtype == STRING and not all(_is_text(item) for item in array.ravel().tolist()):
            raise FindingError(f"{spec.name} holds something that is no text")
    if signature.batched and len({len(array) for array in tensors.values()}) > 1:
        raise FindingError("the tensors have different numbers of records")


def _fits(array: Array, spec: TensorSpec, signature: Signature) -> bool:
    shape = array.shape[1:] if signature.batched else array.shape
    wanted = signature.record_shapes[spec.name]
    return (
        type(array) is np.ndarray
        and array.dtype == spec.dtype
        and array.flags.c_contiguous
        and array.flags.aligned
        and array.ndim == len(spec.shape)
        and all(want in (None, length) for want, length in zip(wanted, shape, strict=True))
        and (not signature.batched or len(array) > 0)
    )


def _is_text(item: object) -> bool:
    if type(item) is not str:
        return False
    try:
        item.encode()
    except UnicodeEncodeError:
        return False
    return True


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
