"""The tree of errors: statuses, codes, headers, details."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from byoc_server import errors
from byoc_server.errors import ByocError, GpuUnavailable, InvalidPayload, MethodNotAllowed, StartupError, Unavailable


def tree(root: type[ByocError]) -> Iterator[type[ByocError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


@pytest.mark.parametrize(
    ("name", "status", "retryable"),
    [
        ("ByocError", 500, False),
        ("RequestError", 400, False),
        ("InvalidPayload", 400, False),
        ("NotFound", 404, False),
        ("MethodNotAllowed", 405, False),
        ("NotAcceptable", 406, False),
        ("BodyTimeout", 408, False),
        ("PayloadTooLarge", 413, False),
        ("UnsupportedMediaType", 415, False),
        ("UnsupportedContentEncoding", 415, False),
        ("HeadTooLarge", 431, False),
        ("Unavailable", 503, True),
        ("NotReady", 503, True),
        ("Overloaded", 503, True),
        ("DeadlineExceeded", 503, True),
        ("InferenceFailed", 500, False),
        ("GpuUnavailable", 503, True),
    ],
)
def test_statuses(name: str, status: int, retryable: bool) -> None:
    """Checklist 36."""
    error = getattr(errors, name)
    assert (error.status, error.retryable) == (status, retryable)


def test_codes_are_unique_and_every_class_is_in_the_overview() -> None:
    classes = set(tree(ByocError))  # one of them has two parents
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes)
    assert errors.__doc__ is not None
    for error in classes:
        assert error is ByocError or f"+-- {error.__name__}" in errors.__doc__


def test_details_hold_only_what_is_known() -> None:
    error = InvalidPayload("wrong", field="line 1", got="x")
    assert (str(error), error.message) == ("wrong", "wrong")
    assert error.details == {"field": "line 1", "got": "x"}
    assert error.headers() == []


def test_allow_goes_with_405() -> None:
    error = MethodNotAllowed("PUT", ["GET", "HEAD"])
    assert error.message == "method PUT is not allowed here; use GET or HEAD"
    assert error.headers() == [(b"allow", b"GET, HEAD")]
    assert error.details == {"accepted": ["GET", "HEAD"]}


@pytest.mark.parametrize(("advice_s", "whole"), [(0.0, 1), (0.4, 1), (1.6, 2), (30, 30)])
def test_retry_after_is_whole_seconds(advice_s: float, whole: int) -> None:
    """Checklist 36: 503 comes with Retry-After."""
    error = Unavailable("later", retry_after_s=advice_s, queued=3)
    assert error.headers() == [(b"retry-after", b"%d" % whole)]
    assert error.details == {"retry_after_s": whole, "queued": 3}


def test_a_missing_gpu_is_both_a_failed_start_and_an_answer() -> None:
    error = GpuUnavailable("no driver")
    assert isinstance(error, StartupError)
    assert (error.message, error.headers()) == ("no driver", [(b"retry-after", b"60")])
