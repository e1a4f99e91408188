"""How the clients of a route say what they send and want: the head of a request, and the dialect it is read in.

``/invocations`` speaks HTTP's own; the routes of the Open Inference Protocol have another (``open_inference``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from byoc_server.http.content_coding import ACCEPT_ENCODING, CONTENT_ENCODING
from byoc_server.http.responses import Header, Response, error_response

CUSTOM_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
INFERENCE_ID = b"x-amzn-sagemaker-inference-id"
_LISTS = frozenset([b"accept", ACCEPT_ENCODING, CONTENT_ENCODING])


@dataclass(slots=True)
class Head:
    """What the request path needs of a request's head.

    Attributes:
        content_type: the header as sent, ``None`` when missing.
        accept: all ``Accept`` headers joined by commas, ``None`` when missing.
        custom_attributes: ``X-Amzn-SageMaker-Custom-Attributes``, ``None`` when missing.
        inference_id: ``X-Amzn-SageMaker-Inference-Id``, ``None`` when missing.
        arrived_s: when the head had arrived, monotonic clock.
        fields: all headers by name, in lower case; of repeated ones the last, or all joined where they are lists.
    """

    content_type: bytes | None
    accept: bytes | None
    custom_attributes: bytes | None
    inference_id: bytes | None
    arrived_s: float
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the clients of a route say what they send and want, and are answered.

    Attributes:
        key: the two headers of a request that its formats follow from.
        media_types: those headers -> ``Content-Type`` and ``Accept``, ``None`` if there is none. Raises
            ``RequestError``.
        entity_headers: media type of an answer -> the headers that say so.
        error_response: an error -> the answer; details are shown instead of the error's own.
    """

    key: Callable[[Head], tuple[bytes | None, bytes | None]]
    media_types: Callable[[bytes | None, bytes | None], tuple[str | None, str | None]]
    entity_headers: Callable[[str], tuple[Header, ...]]
    error_response: Callable[..., Response]


def fields_of(headers: Sequence[Header]) -> dict[bytes, bytes]:
    """Headers by name.

    Of repeated ones the last counts, but for those that are lists, which are joined (RFC 9110, section 5.3).

    Args:
        headers: in the order they came, names in lower case.
    """
    fields = dict(headers)
    if len(fields) < len(headers):
        for name in _LISTS & fields.keys():
            fields[name] = b", ".join([value for other, value in headers if other == name])
    return fields


def head_of(fields: Mapping[bytes, bytes], arrived_s: float) -> Head:
    """What the request path needs of the headers of a request."""
    get = fields.get
    return Head(get(b"content-type"), get(b"accept"), get(CUSTOM_ATTRIBUTES), get(INFERENCE_ID), arrived_s, fields)


def text_of(header: bytes | None) -> str | None:
    """A header as text; ``None`` if there is none."""
    return None if header is None else header.decode("latin-1")


INVOCATIONS = Dialect(
    key=lambda head: (head.content_type, head.accept),
    media_types=lambda content_type, accept: (text_of(content_type), text_of(accept)),
    entity_headers=lambda media_type: ((b"content-type", media_type.encode()),),
    error_response=error_response,
)
"""HTTP's own, as ``/invocations`` speaks it."""
