"""Log lines on stderr: one event a line, JSON for machines or plain text for a terminal.

Modules log through ``logging.getLogger(__name__)`` with ``extra={"event": NAME, ...}``; every extra becomes a field of
the JSON line. The lines of uvicorn and gunicorn pass through the same handler, from warnings up.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_LIBRARIES = ("uvicorn", "uvicorn.error", "gunicorn.error", "asyncio")


def configure(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send this package's and the server libraries' log lines to ``stream`` (stderr).

    Args:
        level: least severe level of this package's lines.
        log_format: ``json`` or ``text``.
        stream: where to, for tests.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    own = logging.getLogger("byoc_server")
    own.setLevel(level.upper())
    for logger in (own, *(logging.getLogger(name) for name in _LIBRARIES)):
        logger.handlers = [handler]
        logger.propagate = False
        if logger is not own:
            logger.setLevel(logging.WARNING)


def resolve_format(setting: str, stream: TextIO | None = None) -> str:
    """``auto`` becomes ``text`` on a terminal and ``json`` elsewhere."""
    if setting != "auto":
        return setting
    return "text" if (stream or sys.stderr).isatty() else "json"


def timestamp(seconds: float) -> str:
    """UTC in ISO 8601 with milliseconds."""
    whole = int(seconds)
    return f"{_utc_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=1)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def local_clock(seconds: float) -> str:
    """Local time of day with milliseconds."""
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03d}"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, the event's fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        fields = _fields(record)
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": fields.pop("event", "log"),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """``HH:MM:SS.mmm level message key=value ...``, local time, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        fields = _fields(record)
        fields.pop("event", None)
        text = f"{local_clock(record.created)} {record.levelname.lower():<7} {record.getMessage()}"
        text += "".join(f" {key}={value}" for key, value in fields.items())
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
