"""Everything that can go wrong, as one tree; each class knows its HTTP status and whether a retry can help.

::

    ByocError
    +-- RequestError                 the client's: 4xx, a retry of the same bytes cannot help
    |   +-- InvalidPayload           400  the body does not fit its media type or the model's inputs
    |   |   +-- TensorsTooLarge      400  its tensors would be larger than allowed
    |   +-- NotFound                 404  no such route
    |   +-- MethodNotAllowed         405
    |   +-- NotAcceptable            406  nothing in Accept can be produced
    |   +-- BodyTimeout              408  the body did not arrive in time
    |   +-- PayloadTooLarge          413
    |   +-- UnsupportedMediaType     415
    |   +-- UnsupportedContentEncoding   415
    |   +-- HeadTooLarge             431  the head of the request is over the limit
    +-- Unavailable                  503  the server's, for now: a retry can help, Retry-After says when
    |   +-- NotReady                      the model is still loading, or has failed
    |   +-- Overloaded                    queue full, or the answer would come after the deadline
    |   +-- DeadlineExceeded              the deadline passed while the request waited or ran
    +-- InferenceFailed              500  the engine failed on this very request
    +-- StartupError                      no HTTP status: the server cannot start
        +-- SettingsError
        +-- ModelLoadError
        +-- GpuUnavailable           503  also an Unavailable: the server stays up to say why

A message is written for the person who reads the answer: it names the field, what was expected and what came.
It never holds a path, a host name or a trace. The class docstring is the documentation of the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ByocError(Exception):
    """Base of all errors of this package."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: object) -> None:
        """Keep the message and the machine-readable details that go beside it into the error body."""
        super().__init__(message)
        self.message = message
        self.details = details

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers that belong to the error beyond the entity headers."""
        return []


class RequestError(ByocError):
    """The request cannot be served as it is."""

    status = 400
    code = "bad_request"


class InvalidPayload(RequestError):
    """The body does not parse, or does not fit the inputs of the model.

    Args:
        message: what is wrong, where, what was expected and what came.
        field: the place, such as ``instances[3]`` or ``line 7, column 2``.
        expected: what would have been right.
        got: what came, in a few words.
    """

    code = "invalid_payload"

    def __init__(
        self, message: str, *, field: str | None = None, expected: str | None = None, got: str | None = None
    ) -> None:
        """Name the place, what was expected and what came, as far as known."""
        details = {"field": field, "expected": expected, "got": got}
        super().__init__(message, **{key: value for key, value in details.items() if value is not None})


class TensorsTooLarge(InvalidPayload):
    """The tensors that the body stands for are larger than allowed; few bytes can declare many."""

    code = "tensors_too_large"


class NotFound(RequestError):
    """No such route, model or version."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        """Name the methods the route takes, in the body and in ``Allow`` (RFC 9110, section 15.5.6)."""
        super().__init__(f"method {method} is not allowed here; use {' or '.join(allowed)}", accepted=list(allowed))
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``Allow`` is required with 405."""
        return [(b"allow", ", ".join(self.allowed).encode())]


class NotAcceptable(RequestError):
    """None of the media types in ``Accept`` can be produced."""

    status = 406
    code = "not_acceptable"


class BodyTimeout(RequestError):
    """The request body did not arrive within the request's time."""

    status = 408
    code = "body_timeout"


class PayloadTooLarge(RequestError):
    """The request body is over the limit."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    """No codec reads this ``Content-Type``."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedContentEncoding(RequestError):
    """Nothing undoes this ``Content-Encoding``."""

    status = 415
    code = "unsupported_content_encoding"

    def __init__(self, message: str, accepted: Sequence[str]) -> None:
        """Name the codings that are taken, in the body and in ``Accept-Encoding`` (RFC 9110, section 15.5.16)."""
        super().__init__(message, accepted=list(accepted))
        self.accepted = accepted

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``Accept-Encoding`` tells it from a 415 for the media type."""
        return [(b"accept-encoding", ", ".join(self.accepted).encode())]


class HeadTooLarge(RequestError):
    """The head of the request is over the limit."""

    status = 431
    code = "head_too_large"


class Unavailable(ByocError):
    """The server cannot do it now; ``retry_after_s`` says when a retry makes sense."""

    status = 503
    code = "unavailable"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **details: object) -> None:
        """Keep the advice in whole seconds, at least one (RFC 9110, section 10.2.3)."""
        self.retry_after_s = max(1, round(retry_after_s))
        super().__init__(message, retry_after_s=self.retry_after_s, **details)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``Retry-After`` in seconds."""
        return [(b"retry-after", b"%d" % self.retry_after_s)]


class NotReady(Unavailable):
    """The model is not loaded yet, or could not be loaded."""

    code = "not_ready"


class Overloaded(Unavailable):
    """The queue is full, or the request would miss its deadline."""

    code = "overloaded"


class DeadlineExceeded(Unavailable):
    """The request's time was over before its answer was there."""

    code = "deadline_exceeded"


class InferenceFailed(ByocError):
    """The engine failed on this request; the log has the reason under the request id."""

    status = 500
    code = "inference_failed"


class StartupError(ByocError):
    """The server cannot start; the message says what to do about it."""

    code = "startup_error"


class SettingsError(StartupError):
    """A setting is unknown, malformed or out of range."""

    code = "settings_error"


class ModelLoadError(StartupError):
    """The model cannot be found, read or served."""

    code = "model_load_error"


class GpuUnavailable(Unavailable, StartupError):
    """The model is to run on a GPU and cannot.

    The server does not end: an operator who sees only that the endpoint does not get healthy can ask it for the reason,
    and nothing is gained by starting it again and again on the same host.
    """

    code = "gpu_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 60.0, lasting: bool = True, **details: object) -> None:
        """Advise a retry no sooner than another host could be there; ``lasting``: no other run would fare better."""
        super().__init__(message, retry_after_s=retry_after_s, **details)
        self.lasting = lasting
