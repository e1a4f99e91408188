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
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import TypeVar, cast

from byoc_server.batching.batcher import Cancel
from byoc_server.batching.collate import split
from byoc_server.batching.entry import Reply, Together
from byoc_server.codecs.base import Answer, Envelope, Enveloped, all_codecs
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
from byoc_server.http.dialect import CUSTOM_ATTRIBUTES, INVOCATIONS, Dialect, Head, head_of, text_of
from byoc_server.http.formats import Formats, FormatTable
from byoc_server.http.priority import is_urgent
from byoc_server.http.responses import Header, Response
from byoc_server.telemetry.request_ids import RequestId
from byoc_server.telemetry.request_log import Record, RequestLog
from byoc_server.types import Signature, Tensors, tensor_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

_VISIBLE_ASCII = re.compile(rb"[\x20-\x7e]{0,1024}\Z")
"""What the API allows in Custom-Attributes (InvokeEndpoint, API of 2017-05-13); nothing else is echoed."""
_INFERENCE_ID_LENGTH = 64
_LONGEST_MARGIN_S, _MARGIN = 1.0, 1 / 50
_NOT_CODED: Sequence[Header] = ()
_REPLY_FAILED = "a reply failed"
"""Of one request; it must never keep its neighbours from theirs."""


class _Request:
    """One request under way. Called with its outcome by what runs the model: it is its own ``Reply``."""

    __slots__ = (
        "arrived_s",
        "body_bytes",
        "cancelled",
        "envelope",
        "formats",
        "give_up",
        "head",
        "id",
        "path",
        "reply",
        "rows",
    )

    def __init__(
        self,
        path: InferencePath,
        head: Head,
        arrived_s: float,
        body_bytes: int,
        request_id: RequestId,
        reply: Callable[[Response], None],
    ) -> None:
        self.path = path
        self.head = head
        self.arrived_s = arrived_s
        self.body_bytes = body_bytes
        self.id = request_id
        self.reply = reply
        self.rows = 0
        self.formats: Formats | None = None
        self.envelope: Envelope | None = None
        self.give_up: Callable[[], object] | None = None
        self.cancelled = False

    def __call__(self, outcome: Tensors | ByocError) -> None:
        """Take the outcome."""
        self.path.answer(self, outcome)

    def cancel(self) -> None:
        """Give it up."""
        self.cancelled = True
        give_up, self.give_up = self.give_up, None
        if give_up is not None:
            give_up()


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
        self._executor = executor
        self._log = request_log
        self._dialect = dialect
        self._together: Together = self._answer_together
        self._formats = FormatTable(settings, dialect, settings.max_queue_mib * MIB)
        self._known_formats = self._formats.known
        self._time_to_infer_s = settings.request_timeout_s - answer_margin_s(settings.request_timeout_s)
        self._echo = settings.echo_custom_attributes
        self._max_tensor_bytes = settings.max_queue_mib * MIB
        self._ids = request_log.ids
        self._next_id = request_log.ids.next
        self._loop = asyncio.get_running_loop()
        for entry in all_codecs():  # now, or the first request in each format pays for the import
            if not entry.library:
                entry.load()

    def head_of(self, fields: Mapping[bytes, bytes]) -> Head:
        """What there is to know of a request's head. See ``dialect.head_of``."""
        return head_of(fields, self._dialect)

    def submit(
        self,
        head: Head,
        arrived_s: float,
        body: bytes,
        reply: Callable[[Response], None],
        coded: BodyLease | None = None,
    ) -> Cancel:
        """Serve one request.

        Args:
            head: its head.
            arrived_s: when that was here, monotonic clock.
            body: its whole body.
            reply: called once, on the event loop, maybe before this returns.
            coded: grows with what comes out of a body that is in content codings; ``None`` for a plain body.

        Returns:
            Gives the request up; ``reply`` is not called after that.
        """
        # An attribute that is called at once, and is no method, costs twice as much as one that is called by a name.
        next_id, known_formats = self._next_id, self._known_formats
        request_id = _shortened(head.inference_id) if head.inference_id else next_id()
        request = _Request(self, head, arrived_s, len(body), request_id, reply)
        try:
            formats = known_formats(head.key) or self._formats.find(head.key, self._client.adapter)
            request.formats = formats
            if coded is not None:
                self._decode_coded(request, formats, body, coded)
            elif len(body) <= formats.decode_inline_bytes:
                decode_inline = formats.decode_inline
                try:
                    decoded = decode_inline(body)
                except TensorsTooLarge:  # the body is small, but stands for large tensors
                    self._offload(request, partial(formats.decode, body), self._infer)
                else:
                    self._infer(request, decoded)
            else:
                self._offload(request, partial(formats.decode, body), self._infer)
        except Exception as error:
            self._fail(request, error)
        return request.cancel

    def refuse(self, head: Head, arrived_s: float, error: ByocError, reply: Callable[[Response], None]) -> None:
        """Answer a request that never got to the model, e.g. because its body was too large."""
        request_id = _shortened(head.inference_id) if head.inference_id else self._ids.next()
        self._fail(_Request(self, head, arrived_s, 0, request_id, reply), error)

    def _decode_coded(self, request: _Request, formats: Formats, body: bytes, lease: BodyLease) -> None:
        """Undo the content codings, decode what comes out, and go on: all at once if it is little, else on a thread."""
        codings = parse_content_encoding(request.head.fields[CONTENT_ENCODING].decode("latin-1"))
        limit_bytes = lease.budget.decoded_limit_bytes
        small = decode_small(body, codings, limit_bytes)
        if small is not None and len(small) <= formats.decode_inline_bytes:
            with contextlib.suppress(TensorsTooLarge):
                self._infer(request, formats.decode_inline(small))
                return

        def work() -> Tensors | Enveloped:
            plain = decode(body, codings, limit_bytes, lease.grow_decoded_to) if small is None else small
            return formats.decode(plain)

        self._offload(request, work, self._infer)

    def _infer(self, request: _Request, decoded: Tensors | Enveloped) -> None:
        if isinstance(decoded, Enveloped):
            tensors, request.envelope = decoded
        else:
            tensors = decoded
        formats = request.formats
        assert formats is not None
        infer, counted = self._client.infer, formats.counted
        rows = request.rows = len(tensors[counted]) if counted else 1
        if rows > formats.most_rows:
            raise self._too_large_an_answer(rows, formats.adapter.model_signature)
        attributes = request.head.custom_attributes
        urgent = attributes is not None and is_urgent(attributes)
        deadline_s = request.arrived_s + self._time_to_infer_s
        request.give_up = infer(tensors, rows, request, deadline_s, urgent, self._together)

    def _too_large_an_answer(self, rows: int, signature: Signature) -> PayloadTooLarge:
        """The refusal of what the model would answer with more than may be held; few bytes can declare many records."""
        answer_bytes = rows * signature.answer_record_bytes
        return PayloadTooLarge(
            f"the answer to {rows} records would take {answer_bytes} bytes or more; send fewer at a time",
            limit_bytes=self._max_tensor_bytes,
        )

    def answer(self, request: _Request, outcome: Tensors | ByocError) -> None:
        """Answer one request."""
        if isinstance(outcome, ByocError):
            self._fail(request, outcome)
            return
        try:
            formats, envelope = request.formats, request.envelope
            assert formats is not None
            write, inline_bytes = formats.encode, formats.encode_inline_bytes
            if envelope is not None:
                write, inline_bytes = partial(formats.enveloped, envelope), formats.enveloped_inline_bytes
            answer_bytes = tensor_bytes(outcome)
            if formats.adapter.answer_bytes is not None:
                answer_bytes = max(answer_bytes, self._held_bytes(formats.adapter.answer_bytes(outcome)))
            if answer_bytes > inline_bytes:
                coding = choose_answer_coding(text_of(request.head.fields.get(ACCEPT_ENCODING)))
                self._offload(request, lambda: _encoded_answer(write(outcome), coding), self._succeed)
            else:
                self._succeed(request, (write(outcome), _NOT_CODED))
        except Exception as error:
            self._fail(request, error)

    def _answer_together(self, replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        """Answer several requests, in one pass if their answers have one format. See ``Together``."""
        requests = cast(Sequence[_Request], replies)
        formats = requests[0].formats
        assert formats is not None
        bodies = None
        if not [request for request in requests if request.formats is not formats or request.envelope is not None]:
            bodies = _encoded_each(formats, outputs, counts)
        if bodies is None:
            for request, own in zip(requests, split(outputs, counts), strict=True):
                self.answer(request, own)
            return
        headers, now_s = formats.headers, time.monotonic()
        records: list[Record] = []
        for request, body in zip(requests, bodies, strict=True):
            if request.head.custom_attributes is not None or request.cancelled:
                self._finish(request, Response(200, headers, body), None)
                continue
            request.give_up = None
            reply = request.reply
            try:
                reply(Response(200, headers, body))
            except Exception:
                logger.exception(_REPLY_FAILED)
            duration_s = now_s - request.arrived_s
            records.append((request.id, 200, duration_s, request.rows, request.body_bytes, len(body), None))
        self._log.extend(records)

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
        headers = request.formats.headers
        if type(body) is Answer:
            headers = self._dialect.entity_headers(body.media_type)
            body = body.body
        if coded:
            headers += tuple(coded)
        self._finish(request, Response(200, headers, cast(bytes, body)), None)

    def _fail(self, request: _Request, error: Exception) -> None:
        if isinstance(error, UnicodeEncodeError):
            error = NotAcceptable("the answer holds text that is not Unicode, which this format cannot carry")
        if not isinstance(error, ByocError):
            failed = InferenceFailed("the request could not be served")
            failed.__cause__ = error
            error = failed
        if error.status == 500:
            request_id = self._ids.text(request.id)
            logger.error("request %s failed", request_id, exc_info=error, extra={"event": "error", "id": request_id})
            response = self._dialect.error_response(error, request_id=request_id)
        else:
            response = self._dialect.error_response(error)
        self._finish(request, response, error)

    def _finish(self, request: _Request, response: Response, error: ByocError | None) -> None:
        attributes = request.head.custom_attributes
        if attributes is not None and self._echo and _VISIBLE_ASCII.match(attributes):
            response.headers += ((CUSTOM_ATTRIBUTES, attributes),)
        request.give_up = None  # the entry it belongs to leads back here: a cycle only the garbage collector could end
        if request.cancelled:
            return
        try:
            request.reply(response)
        except Exception:
            logger.exception(_REPLY_FAILED)
        duration_s = time.monotonic() - request.arrived_s
        reason = None if error is None else (error.code, error.message)
        record = (request.id, response.status, duration_s, request.rows, request.body_bytes, len(response.body), reason)
        self._log.add(record)

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
        request.give_up = future.cancel
        future.add_done_callback(lambda done: self._call_on_loop(resume, done))

    def _call_on_loop(self, resume: Callable[[Future[T]], None], future: Future[T]) -> None:
        if not future.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone, and so is the client
                self._loop.call_soon_threadsafe(resume, future)


def answer_margin_s(timeout_s: float) -> float:
    """What is left of a request's time for its answer, in seconds.

    The platform counts from when it sent the request and to when it has the answer (60 s for real-time endpoints by
    the contract: "Use Your Own Inference Code with Hosting Services", August 2026), the model's deadline from when the
    head was here and to when the outputs are. An answer that misses the platform's time is an error to the client that
    says nothing of the reason.
    """
    return min(_LONGEST_MARGIN_S, _MARGIN * timeout_s)


def _shortened(inference_id: bytes) -> str:
    """A client's id of a request, cut at the length the API allows."""
    return inference_id[:_INFERENCE_ID_LENGTH].decode("latin-1")


def _encoded_each(formats: Formats, outputs: Tensors, counts: Sequence[int]) -> list[bytes] | None:
    """Write the answers to several requests in one pass; ``None`` where they have to be written one by one."""
    if formats.encode_each is None or tensor_bytes(outputs) > formats.encode_inline_bytes:
        return None
    try:
        bodies = formats.encode_each(outputs, counts)
    except Exception:  # one by one, only those that cannot be written get an error
        return None
    return bodies if bodies is not None and len(bodies) == len(counts) else None  # codecs come from other packages, too


def _encoded_answer(answer: bytes | Answer, coding: str | None) -> tuple[bytes | Answer, Sequence[Header]]:
    """Apply a content coding to an answer."""
    if type(answer) is Answer:
        body, headers = encode_answer(answer.body, coding)
        return Answer(body, answer.media_type), headers
    return encode_answer(cast(bytes, answer), coding)
