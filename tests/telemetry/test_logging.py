"""Log lines: one event a line, JSON or text."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from byoc_server.telemetry.logging import JsonFormatter, TextFormatter, configure, resolve_format, timestamp


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    names = ("byoc_server", "uvicorn", "uvicorn.error", "gunicorn.error", "asyncio")
    before = [(logging.getLogger(n), logging.getLogger(n).handlers, logging.getLogger(n).level) for n in names]
    yield
    for logger, handlers, level in before:
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(level)


def test_a_json_line_has_the_fields_of_its_event() -> None:
    """Checklist 94."""
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("byoc_server.x").info("two\nlines %d", 1, extra={"event": "start", "port": 8080, "path": object})
    (text,) = stream.getvalue().splitlines()
    line = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "start",
        "message": "two\nlines 1",
        "port": 8080,
        "path": "<class 'object'>",
    }


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_is_kept(log_format: str) -> None:
    """Checklist 94: inside the one line when it is JSON."""
    stream = io.StringIO()
    configure("info", log_format, stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("byoc_server.x").exception("it failed")
    assert "ValueError: boom" in stream.getvalue()
    assert (len(stream.getvalue().splitlines()) == 1) == (log_format == "json")


def test_a_text_line_can_be_read() -> None:
    stream = io.StringIO()
    configure("info", "text", stream)
    logging.getLogger("byoc_server.x").warning("no room", extra={"event": "x", "rows": 3})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} warning no room rows=3\n", stream.getvalue())


def test_levels() -> None:
    """Own lines from the level set, those of libraries from warnings up."""
    stream = io.StringIO()
    configure("debug", "text", stream)
    for name in ("byoc_server.x", "uvicorn.error", "gunicorn.error", "asyncio"):
        logging.getLogger(name).debug("%s says little", name)
        logging.getLogger(name).warning("%s warns", name)
    messages = [line.split(None, 2)[2] for line in stream.getvalue().splitlines()]
    assert messages == [
        "byoc_server.x says little",
        "byoc_server.x warns",
        "uvicorn.error warns",
        "gunicorn.error warns",
        "asyncio warns",
    ]


def test_the_format_follows_the_terminal() -> None:
    assert resolve_format("auto", Terminal()) == "text"
    assert resolve_format("auto", io.StringIO()) == "json"
    assert resolve_format("json", Terminal()) == "json"
    assert resolve_format("text", io.StringIO()) == "text"


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (1.9999, "1970-01-01T00:00:01.999Z")])
def test_timestamps_are_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


def test_both_formatters_take_a_record_without_extras() -> None:
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "plain", (), None)
    assert json.loads(JsonFormatter().format(record))["event"] == "log"
    assert TextFormatter().format(record).endswith("error   plain")
