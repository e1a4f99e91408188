"""What the head of a request comes to: how its body is read, and how its answer is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from byoc_server.codecs.base import (
    Answer,
    BrokenLibraryError,
    Codec,
    DecodeOptions,
    Decoder,
    EncodeEach,
    EncodeOptions,
    Envelope,
    Enveloped,
    MakeDecoder,
)
from byoc_server.config import MIB, Settings
from byoc_server.http.dialect import Dialect, Key
from byoc_server.http.negotiation import choose_decoder, choose_encoder
from byoc_server.http.responses import Header
from byoc_server.models.adapter import DEFAULT_MEDIA_TYPE, Adapt, Adapter, default_formats
from byoc_server.types import Signature, Tensors

logger = logging.getLogger(__name__)

Encode = Callable[[Tensors, Signature, EncodeOptions], bytes | Answer]

_INLINE_TENSOR_BYTES = MIB
"""Larger tensors are not built on the event loop, however small the body that declares them."""
_MOST_KNOWN = 256
"""How many pairs of headers are remembered; clients use a handful, an attacker gets no more."""


@dataclass(frozen=True, slots=True)
class Formats:
    """How requests with some headers are read and answered.

    Attributes:
        adapter: what clients see of the model.
        decode: reads a body. Raises what ``Codec.decode`` does.
        decode_inline: the same on the event loop; raises ``TensorsTooLarge`` where that would take too long.
        decode_inline_bytes: larger bodies are not read on the event loop.
        encode: writes an answer. Raises what ``Codec.encode`` does.
        encode_inline_bytes: answers from larger tensors are not written on the event loop.
        encode_each: writes answers to several requests in one pass; ``None`` where the format cannot, or what clients
            see has still to be made of the outputs. See ``codecs.base.EncodeEach``.
        counted: name of an input whose first axis counts the records; empty for a model without a batch axis.
        most_rows: of a request; the answer to more would take more than may be held.
        headers: of an answer.
        enveloped: writes the answer to a request that says how, with the bytes as above.
    """

    adapter: Adapter
    decode: Decoder
    decode_inline: Decoder
    decode_inline_bytes: int
    encode: Callable[[Tensors], bytes | Answer]
    encode_inline_bytes: int
    encode_each: Callable[[Tensors, Sequence[int]], list[bytes] | None] | None
    counted: str
    most_rows: int
    headers: tuple[Header, ...]
    enveloped: Callable[[Envelope, Tensors], bytes | Answer]
    enveloped_inline_bytes: int


class FormatTable:
    """Finds the formats of requests, and remembers them.

    Args:
        settings: of the server.
        dialect: of the route.
        max_tensor_bytes: of the tensors of one request.
    """

    def __init__(self, settings: Settings, dialect: Dialect, max_tensor_bytes: int) -> None:
        self._settings = settings
        self._dialect = dialect
        self._max_tensor_bytes = max_tensor_bytes
        self._known: dict[Key, Formats] = {}
        self.known = self._known.get
        """What ``find`` gives, if it is remembered."""

    def find(self, key: Key, adapter: Adapter) -> Formats:
        """The formats of requests with these headers.

        Raises:
            UnsupportedMediaType, NotAcceptable: there are none.
        """
        formats = self._find(key, adapter)
        if key[0] is None or b"boundary" not in key[0]:  # every form has one of its own
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = formats
        return formats

    def _find(self, key: Key, adapter: Adapter) -> Formats:
        settings, signature = self._settings, adapter.signature
        content_type, accept = self._dialect.media_types(*key)
        default_content_type, default_accept = default_formats(settings, adapter)
        source, parameters = choose_decoder(content_type, default_content_type)
        outputs = len(signature.outputs)
        target, name = choose_encoder(accept, default_accept, source, outputs)
        # Who says in the request what the answer shall be like gets it so, unless Accept names another format.
        enveloped_target, _ = choose_encoder(accept, DEFAULT_MEDIA_TYPE, source, outputs)
        try:
            source_codec = source.load()
            target_codec = target.load()
            encode = _presented(target_codec.encode, adapter.present)
            encode_enveloped = _presented(enveloped_target.load().encode, adapter.present)
        except BrokenLibraryError as error:  # it is out of the table now
            logger.error(str(error), exc_info=error.__cause__, extra={"event": "codec_broken"})
            return self._find(key, adapter)
        most = DecodeOptions(parameters, self._max_tensor_bytes)
        inline = DecodeOptions(parameters, min(self._max_tensor_bytes, _INLINE_TENSOR_BYTES))
        options = EncodeOptions(settings.final_newline, None, adapter.model_name)

        make_decoder: MakeDecoder = getattr(source_codec, "decoder", None) or _make_decoder(source_codec)
        each: EncodeEach | None = getattr(target_codec, "encode_each", None)
        if adapter.present is not None or adapter.answer_bytes is not None or not signature.batched:
            each = None

        def enveloped(envelope: Envelope, tensors: Tensors) -> bytes | Answer:
            wanted = _with_outputs(signature, envelope.outputs)
            return encode_enveloped(tensors, wanted, replace(options, envelope=envelope))

        return Formats(
            adapter,
            _prepared(make_decoder(signature, most), adapter.prepare),
            _prepared(make_decoder(signature, inline), adapter.prepare),
            source.inline_bytes,
            lambda tensors: encode(tensors, signature, options),
            target.inline_bytes,
            None if each is None else lambda tensors, counts: each(tensors, signature, options, counts),
            adapter.model_signature.inputs[0].name if adapter.model_signature.batched else "",
            self._max_tensor_bytes // max(1, adapter.model_signature.answer_record_bytes),
            self._dialect.entity_headers(name),
            enveloped,
            enveloped_target.inline_bytes,
        )


def _make_decoder(codec: Codec) -> MakeDecoder:
    """For a codec that has nothing to look at ahead of the bodies."""
    return lambda signature, options: lambda body: codec.decode(body, signature, options)


def _prepared(decode: Decoder, prepare: Adapt | None) -> Decoder:
    """A decoder with what the adapter does behind it."""
    if prepare is None:
        return decode

    def decode_and_prepare(body: bytes) -> Tensors | Enveloped:
        decoded = decode(body)
        if type(decoded) is Enveloped:
            return Enveloped(prepare(decoded.tensors), decoded.envelope)
        return prepare(cast(Tensors, decoded))

    return decode_and_prepare


def _presented(encode: Encode, present: Adapt | None) -> Encode:
    """An encoder with what the adapter does before it."""
    if present is None:
        return encode
    return lambda tensors, signature, options: encode(present(tensors), signature, options)


def _with_outputs(signature: Signature, names: tuple[str, ...]) -> Signature:
    """A signature with only the outputs called so, in that order; with all of them if there are no names."""
    if not names:
        return signature
    by_name = {spec.name: spec for spec in signature.outputs}
    return replace(signature, outputs=tuple([by_name[name] for name in names]))
