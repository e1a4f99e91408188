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


Key = tuple[bytes | None, bytes | None]
"""Two headers as sent, ``None`` when missing; all of the name joined by commas where they are lists."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the request path needs of a request's head. Many requests may share one.

    Attributes:
        key: what the formats of the request and of its answer follow from.
        custom_attributes: ``X-Amzn-SageMaker-Custom-Attributes``, ``None`` when missing.
        inference_id: ``X-Amzn-SageMaker-Inference-Id``, ``None`` when missing.
        fields: all headers by name, in lower case; of repeated ones the last, or all joined where they are lists.
    """

    key: Key
    custom_attributes: bytes | None
    inference_id: bytes | None
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the clients of a route say what they send and want, and are answered.

    Attributes:
        key: headers of a request -> the two that its formats follow from.
        media_types: those two -> ``Content-Type`` and ``Accept``, ``None`` if there is none. Raises
            ``RequestError``.
        entity_headers: media type of an answer -> the headers that say so.
        error_response: an error -> the answer; details are shown instead of the error's own.
    """

    key: Callable[[Mapping[bytes, bytes]], Key]
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


def head_of(fields: Mapping[bytes, bytes], dialect: Dialect) -> Head:
    """What the request path needs of the headers of a request."""
    return Head(dialect.key(fields), fields.get(CUSTOM_ATTRIBUTES), fields.get(INFERENCE_ID), fields)


def text_of(header: bytes | None) -> str | None:
    """A header as text; ``None`` if there is none."""
    return None if header is None else header.decode("latin-1")


INVOCATIONS = Dialect(
    key=lambda fields: (fields.get(b"content-type"), fields.get(b"accept")),
    media_types=lambda content_type, accept: (text_of(content_type), text_of(accept)),
    entity_headers=lambda media_type: ((b"content-type", media_type.encode()),),
    error_response=error_response,
)
"""HTTP's own, as ``/invocations`` speaks it."""
