"""The one request path: head and body in, reply out. Knows no ASGI and awaits nothing.

::

    submit(head, body, reply) -> negotiate -> decode -> InferenceClient.infer -> encode -> reply(Response)

Whoever owns the connection (the ASGI endpoint in ``invocations``, or the ``fast_lane``) calls ``submit`` and gets
``reply`` called exactly once on the event loop, unless it cancels before. Bodies too large to decode between two pings,
and answers too large to encode so, are worked on by a small thread pool; content codings are undone, and applied to
answers, in the same visit to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

from byoc_server.batching.batcher import Cancel
from byoc_server.codecs.base import (
    Answer,
    BrokenLibraryError,
    DecodeOptions,
    EncodeOptions,
    Envelope,
    Enveloped,
    all_codecs,
)
from byoc_server.config import MIB, Settings
from byoc_server.core.client import InferenceClient
from byoc_server.errors import ByocError, InferenceFailed, NotAcceptable, PayloadTooLarge, TensorsTooLarge
from byoc_server.http.body import BodyLease
from byoc_server.http.content_coding import (
    ACCEPT_ENCODING,
    CONTENT_ENCODING,
    choose_answer_coding,
    decode,
    decode_small,
    encode_answer,
    parse_content_encoding,
)
from byoc_server.http.dialect import CUSTOM_ATTRIBUTES, INVOCATIONS, Dialect, Head, text_of
from byoc_server.http.negotiation import choose_decoder, choose_encoder
from byoc_server.http.priority import is_urgent
from byoc_server.http.responses import Header, Response
from byoc_server.models.adapter import DEFAULT_MEDIA_TYPE, Adapt, Adapter, default_formats
from byoc_server.telemetry.request_log import RequestLog
from byoc_server.types import Signature, Tensors, tensor_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

Decode = Callable[[bytes, Signature, DecodeOptions], Tensors | Enveloped]
Encode = Callable[[Tensors, Signature, EncodeOptions], bytes | Answer]

_VISIBLE_ASCII = re.compile(rb"[\x20-\x7e]{0,1024}\Z")
"""What the API allows in Custom-Attributes (InvokeEndpoint, API of 2017-05-13); nothing else is echoed."""
_INFERENCE_ID_LENGTH = 64
_LONGEST_MARGIN_S, _MARGIN = 1.0, 1 / 50
_INLINE_TENSOR_BYTES = MIB
"""Larger tensors are not built on the event loop, however small the body that declares them."""
_NOT_CODED: Sequence[Header] = ()
_NEGOTIATED_HEADS = 256
"""How many pairs of Content-Type and Accept are remembered; clients use a handful, an attacker gets no more."""


@dataclass(frozen=True, slots=True)
class _Negotiated:
    """What the headers of a request come to."""

    decode: Decode
    decode_options: DecodeOptions
    decode_inline_options: DecodeOptions
    decode_inline_bytes: int
    encode: Encode
    encode_options: EncodeOptions
    encode_inline_bytes: int
    encode_enveloped: Encode
    encode_enveloped_inline_bytes: int
    entity_headers: tuple[Header, ...]


class _Request:
    """One request under way."""

    __slots__ = ("adapter", "body_bytes", "cancel", "cancelled", "envelope", "formats", "head", "id", "reply", "rows")

    def __init__(self, head: Head, body_bytes: int, request_id: str, reply: Callable[[Response], None]) -> None:
        self.head = head
        self.body_bytes = body_bytes
        self.id = request_id
        self.reply = reply
        self.rows = 0
        self.formats: _Negotiated | None = None
        self.adapter: Adapter | None = None
        self.envelope: Envelope | None = None
        self.cancel: Callable[[], object] | None = None
        self.cancelled = False


class InferencePath:
    """The request path of one worker.

    Args:
        client: runs the model.
        settings: of the server.
        executor: threads for heavy decoding and encoding.
        request_log: takes a record a request.
        dialect: of the route.
    """

    def __init__(
        self,
        client: InferenceClient,
        settings: Settings,
        executor: Executor,
        request_log: RequestLog,
        dialect: Dialect = INVOCATIONS,
    ) -> None:
        self._client = client
        self._settings = settings
        self._executor = executor
        self._log = request_log
        self._dialect = dialect
        self._key = dialect.key
        self._time_to_infer_s = settings.request_timeout_s - answer_margin_s(settings.request_timeout_s)
        self._echo = settings.echo_custom_attributes
        self._max_tensor_bytes = settings.max_queue_mib * MIB
        self._negotiated: dict[tuple[bytes | None, bytes | None], _Negotiated] = {}
        self._ids = _IdSource()
        self._loop = asyncio.get_running_loop()
        for entry in all_codecs():  # now, or the first request in each format pays for the import
            if not entry.library:
                entry.load()

    def submit(
        self, head: Head, body: bytes, reply: Callable[[Response], None], coded: BodyLease | None = None
    ) -> Cancel:
        """Serve one request.

        Args:
            head: its head.
            body: its whole body.
            reply: called once, on the event loop, maybe before this returns.
            coded: grows with what comes out of a body that is in content codings; ``None`` for a plain body.

        Returns:
            Gives the request up; ``reply`` is not called after that.
        """
        request = _Request(head, len(body), self._ids.of(head), reply)
        try:
            adapter = request.adapter = self._client.adapter
            formats = request.formats = self._negotiate(head, adapter)
            signature = adapter.signature
            if coded is not None:
                self._decode_coded(request, signature, formats, body, coded)
            elif len(body) > formats.decode_inline_bytes:
                work = partial(formats.decode, body, signature, formats.decode_options)
                self._offload(request, work, self._infer)
            else:
                self._decode_inline(request, signature, formats, body)
        except Exception as error:
            self._fail(request, error)
        return partial(self._cancel, request)

    def refuse(self, head: Head, error: ByocError, reply: Callable[[Response], None]) -> None:
        """Answer a request that never got to the model, e.g. because its body was too large."""
        self._fail(_Request(head, 0, self._ids.of(head), reply), error)

    def _decode_inline(self, request: _Request, signature: Signature, formats: _Negotiated, body: bytes) -> None:
        """Decode a small body on the event loop, unless it stands for large tensors."""
        try:
            tensors = formats.decode(body, signature, formats.decode_inline_options)
        except TensorsTooLarge:
            self._offload(request, partial(formats.decode, body, signature, formats.decode_options), self._infer)
            return
        self._infer(request, tensors)

    def _decode_coded(
        self, request: _Request, signature: Signature, formats: _Negotiated, body: bytes, lease: BodyLease
    ) -> None:
        """Undo the content codings, decode what comes out, and go on: all at once if it is little, else on a thread."""
        codings = parse_content_encoding(request.head.fields[CONTENT_ENCODING].decode("latin-1"))
        limit_bytes = lease.budget.decoded_limit_bytes
        small = decode_small(body, codings, limit_bytes)
        if small is not None and len(small) <= formats.decode_inline_bytes:
            self._decode_inline(request, signature, formats, small)
            return

        def work() -> Tensors | Enveloped:
            plain = decode(body, codings, limit_bytes, lease.grow_decoded_to) if small is None else small
            return formats.decode(plain, signature, formats.decode_options)

        self._offload(request, work, self._infer)

    def _infer(self, request: _Request, decoded: Tensors | Enveloped) -> None:
        if type(decoded) is Enveloped:
            tensors, request.envelope = decoded
        else:
            tensors = cast(Tensors, decoded)
        assert request.adapter is not None
        signature = request.adapter.model_signature
        rows = request.rows = signature.row_count(tensors)
        if rows * signature.answer_record_bytes > self._max_tensor_bytes:
            raise self._too_large_an_answer(rows, signature)
        head = request.head
        deadline_s = head.arrived_s + self._time_to_infer_s
        urgent = head.custom_attributes is not None and is_urgent(head.custom_attributes)
        reply = partial(self._on_outcome, request)
        request.cancel = self._client.infer(tensors, rows, reply, deadline_s, urgent=urgent)

    def _too_large_an_answer(self, rows: int, signature: Signature) -> PayloadTooLarge:
        """The refusal of what the model would answer with more than may be held; few bytes can declare many records."""
        answer_bytes = rows * signature.answer_record_bytes
        return PayloadTooLarge(
            f"the answer to {rows} records would take {answer_bytes} bytes or more; send fewer at a time",
            limit_bytes=self._max_tensor_bytes,
        )

    def _on_outcome(self, request: _Request, outcome: Tensors | ByocError) -> None:
        if isinstance(outcome, ByocError):
            self._fail(request, outcome)
            return
        try:
            formats, adapter = request.formats, request.adapter
            assert formats is not None
            assert adapter is not None
            write, inline_bytes = formats.encode, formats.encode_inline_bytes
            signature, options = adapter.signature, formats.encode_options
            envelope = request.envelope
            if envelope is not None:
                write, inline_bytes = formats.encode_enveloped, formats.encode_enveloped_inline_bytes
                options = replace(options, envelope=envelope)
                signature = _with_outputs(signature, envelope.outputs)
            answer_bytes = tensor_bytes(outcome)
            if adapter.answer_bytes is not None:
                answer_bytes = max(answer_bytes, self._held_bytes(adapter.answer_bytes(outcome)))
            if answer_bytes > inline_bytes:
                encode = partial(write, outcome, signature, options)
                coding = choose_answer_coding(text_of(request.head.fields.get(ACCEPT_ENCODING)))
                self._offload(request, lambda: _encoded_answer(encode(), coding), self._succeed)
            else:
                self._succeed(request, (write(outcome, signature, options), _NOT_CODED))
        except Exception as error:
            self._fail(request, error)

    def _held_bytes(self, answer_bytes: int) -> int:
        """What an answer takes, in bytes. Raises ``PayloadTooLarge`` if it is more than may be held."""
        if answer_bytes > self._max_tensor_bytes:  # labels can make much of little
            raise PayloadTooLarge(
                f"the answer could take {answer_bytes} bytes; send fewer records at a time",
                limit_bytes=self._max_tensor_bytes,
            )
        return answer_bytes

    def _succeed(self, request: _Request, answer: tuple[bytes | Answer, Sequence[Header]]) -> None:
        assert request.formats is not None
        body, coded = answer
        entity_headers = request.formats.entity_headers
        if type(body) is Answer:
            entity_headers = self._dialect.entity_headers(body.media_type)
            body = body.body
        headers = (*entity_headers, *coded) if coded else entity_headers
        self._finish(request, Response(200, headers, cast(bytes, body)), None)

    def _fail(self, request: _Request, error: Exception) -> None:
        if isinstance(error, UnicodeEncodeError):
            error = NotAcceptable("the answer holds text that is not Unicode, which this format cannot carry")
        if not isinstance(error, ByocError):
            failed = InferenceFailed("the request could not be served")
            failed.__cause__ = error
            error = failed
        if error.status == 500:
            logger.error("request %s failed", request.id, exc_info=error, extra={"event": "error", "id": request.id})
            response = self._dialect.error_response(error, request_id=request.id)
        else:
            response = self._dialect.error_response(error)
        self._finish(request, response, error)

    def _finish(self, request: _Request, response: Response, error: ByocError | None) -> None:
        attributes = request.head.custom_attributes
        if attributes is not None and self._echo and _VISIBLE_ASCII.match(attributes):
            response.headers += ((CUSTOM_ATTRIBUTES, attributes),)
        request.cancel = None  # the entry it belongs to leads back here: a cycle only the garbage collector could end
        if request.cancelled:
            return
        request.reply(response)
        duration_s = time.monotonic() - request.head.arrived_s
        record = (request.id, response.status, duration_s, request.rows, request.body_bytes, len(response.body), error)
        self._log.add(record)

    def _cancel(self, request: _Request) -> None:
        request.cancelled = True
        cancel, request.cancel = request.cancel, None
        if cancel is not None:
            cancel()

    def _offload(self, request: _Request, work: Callable[[], T], then: Callable[[_Request, T], None]) -> None:
        """Do ``work`` on a thread, and ``then`` go on with its result on the event loop."""

        def resume(future: Future[T]) -> None:
            if request.cancelled:
                return
            try:
                then(request, future.result())
            except ByocError as error:
                # Its traceback leads to all that the thread worked on, and to this frame, which holds the error.
                self._fail(request, error if error.status == 500 else error.with_traceback(None))
            except Exception as error:
                self._fail(request, error)

        future = self._executor.submit(work)
        request.cancel = future.cancel
        future.add_done_callback(lambda done: self._call_on_loop(resume, done))

    def _call_on_loop(self, resume: Callable[[Future[T]], None], future: Future[T]) -> None:
        if not future.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone, and so is the client
                self._loop.call_soon_threadsafe(resume, future)

    def _negotiate(self, head: Head, adapter: Adapter) -> _Negotiated:
        key = self._key(head)
        formats = self._negotiated.get(key)
        if formats is None:
            formats = self._negotiate_anew(key, adapter)
            if key[0] is None or b"boundary" not in key[0]:  # every form has one of its own
                if len(self._negotiated) >= _NEGOTIATED_HEADS:
                    self._negotiated.clear()
                self._negotiated[key] = formats
        return formats

    def _negotiate_anew(self, key: tuple[bytes | None, bytes | None], adapter: Adapter) -> _Negotiated:
        settings, outputs = self._settings, len(adapter.signature.outputs)
        content_type, accept = self._dialect.media_types(*key)
        default_content_type, default_accept = default_formats(settings, adapter)
        source, parameters = choose_decoder(content_type, default_content_type)
        target, name = choose_encoder(accept, default_accept, source, outputs)
        # Who says in the request what the answer shall be like gets it so, unless Accept names another format.
        enveloped_target, _ = choose_encoder(accept, DEFAULT_MEDIA_TYPE, source, outputs)
        try:
            decode = _prepared(source.load().decode, adapter.prepare)
            encode = _presented(target.load().encode, adapter.present)
            encode_enveloped = _presented(enveloped_target.load().encode, adapter.present)
        except BrokenLibraryError as error:  # it is out of the table now
            logger.error(str(error), exc_info=error.__cause__, extra={"event": "codec_broken"})
            return self._negotiate_anew(key, adapter)
        return _Negotiated(
            decode,
            DecodeOptions(parameters, self._max_tensor_bytes),
            DecodeOptions(parameters, min(self._max_tensor_bytes, _INLINE_TENSOR_BYTES)),
            source.inline_bytes,
            encode,
            EncodeOptions(settings.final_newline, None, adapter.model_name),
            target.inline_bytes,
            encode_enveloped,
            enveloped_target.inline_bytes,
            self._dialect.entity_headers(name),
        )


def answer_margin_s(timeout_s: float) -> float:
    """What is left of a request's time for its answer, in seconds.

    The platform counts from when it sent the request and to when it has the answer (60 s for real-time endpoints by
    the contract: "Use Your Own Inference Code with Hosting Services", August 2026), the model's deadline from when the
    head was here and to when the outputs are. An answer that misses the platform's time is an error to the client that
    says nothing of the reason.
    """
    return min(_LONGEST_MARGIN_S, _MARGIN * timeout_s)


class _IdSource:
    """Request ids: the client's own, else one that nothing else of this server gives out."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self._prefix = f"{os.getpid():x}-{int(time.time()):x}-"

    def of(self, head: Head) -> str:
        """The id of a request; the client's is cut at the length the API allows."""
        if head.inference_id:
            return head.inference_id[:_INFERENCE_ID_LENGTH].decode("latin-1")
        return f"{self._prefix}{next(self._numbers):x}"


def _prepared(decode: Decode, prepare: Adapt | None) -> Decode:
    """A decoder with what the adapter does behind it."""
    if prepare is None:
        return decode

    def decode_and_prepare(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | Enveloped:
        decoded = decode(body, signature, options)
        if type(decoded) is Enveloped:
            return Enveloped(prepare(decoded.tensors), decoded.envelope)
        return prepare(cast(Tensors, decoded))

    return decode_and_prepare


def _presented(encode: Encode, present: Adapt | None) -> Encode:
    """An encoder with what the adapter does before it."""
    if present is None:
        return encode
    return lambda tensors, signature, options: encode(present(tensors), signature, options)


def _with_outputs(signature: Signature, names: Sequence[str]) -> Signature:
    """A signature with only the outputs called so, in that order; with all of them if there are no names."""
    if not names:
        return signature
    by_name = {spec.name: spec for spec in signature.outputs}
    return replace(signature, outputs=tuple([by_name[name] for name in names]))


def _encoded_answer(answer: bytes | Answer, coding: str | None) -> tuple[bytes | Answer, Sequence[Header]]:
    """Apply a content coding to an answer."""
    if type(answer) is Answer:
        body, headers = encode_answer(answer.body, coding)
        return Answer(body, answer.media_type), headers
    return encode_answer(cast(bytes, answer), coding)
