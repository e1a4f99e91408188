"""``application/vnd.sagemaker-triton.binary+json;json-header-size=N``: an inference request with raw data behind it.

The first N bytes are the JSON of ``open_inference``, the rest is raw data. Without the parameter all of the body is
JSON. With N = 0 all of it is the raw data of the one input, and all outputs are answered as raw data (Triton Inference
Server, "Raw Binary Request").

As the format of an answer to a request that says nothing about it, all outputs are raw data.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from byoc_server.codecs import octet_stream
from byoc_server.codecs.base import Answer, DecodeOptions, EncodeOptions, Envelope, Enveloped
from byoc_server.codecs.json import parse as parse_json
from byoc_server.codecs.open_inference.answer import encode_answer
from byoc_server.codecs.open_inference.request import REQUEST, Request, parse_request, read_request
from byoc_server.codecs.text.json_arrays import LARGE_BYTES, document_with_arrays
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import Signature, Tensors

_PARAMETER = "json-header-size"
_MAX_DIGITS = 18
_SMALL_BYTES = 1024
_PARSED_BYTES = 16
"""What a byte of JSON takes at the most once it is parsed: ``1,`` becomes a number and the reference to it."""


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Enveloped:
    """Read an inference request. See ``Codec.decode``."""
    size = _json_bytes(body, options)
    if size == 0:
        binary = dict.fromkeys([spec.name for spec in signature.outputs], True)
        return Enveloped(octet_stream.decode(body, signature, options), Envelope(binary=binary))
    if size * _PARSED_BYTES > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"{size} bytes of JSON take up to {size * _PARSED_BYTES} bytes once parsed, more than "
            f"{options.max_tensor_bytes}; send the data of large tensors behind the JSON",
            expected=f"at most {options.max_tensor_bytes // _PARSED_BYTES} bytes of JSON",
            got=f"{size} bytes",
        )
    head, sized = body[:size], _PARAMETER in options.parameters
    document = document_with_arrays(head, signature) if size > LARGE_BYTES else None
    if document is not None:
        with suppress(InvalidPayload):  # of lists the message says more
            return read_request(parse_request(document, signature), signature, options, body, size)
    parse = _parse_small if size <= _SMALL_BYTES else _parse
    return read_request(parse(head, sized, signature), signature, options, body, size)


def _parse(head: bytes, sized: bool, signature: Signature) -> Request:
    expected = REQUEST if sized else f"{REQUEST}; with data behind it, {_PARAMETER}"
    return parse_request(parse_json(head, "JSON", expected), signature)


_parse_small = lru_cache(maxsize=256)(_parse)
"""As ``_parse``, once for all requests that differ in their raw data only: it takes three times the rest of them."""


def _json_bytes(body: bytes, options: DecodeOptions) -> int:
    """How many bytes of the body are JSON."""
    text = options.parameters.get(_PARAMETER)
    if text is None:
        return max(len(body), 1)  # an empty body is no raw data
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise UnsupportedMediaType(f"{_PARAMETER}: expected a number of bytes, got {shown(text)}")
    size = int(text)
    if size > len(body):
        raise InvalidPayload(
            f"{_PARAMETER}: the JSON has {size} bytes, the body has {len(body)}",
            field=_PARAMETER,
            expected=f"at most {len(body)}",
            got=text,
        )
    return size


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> Answer:
    """Write an answer. See ``Codec.encode``."""
    return encode_answer(tensors, signature, options, binary_unless_told=True)
