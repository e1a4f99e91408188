"""The request log: one line an invocation, never one for a ping, and never the body.

It has its own writer because the logging module costs as much as a small inference: records of one turn of the event
loop are formatted and written together.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from byoc_server.errors import ByocError
from byoc_server.telemetry.logging import timestamp

_FLUSH_RECORDS = 512
"""Written at once when so many have gathered in one turn."""


@dataclass(slots=True)
class RequestRecord:
    """What the log keeps of one invocation.

    Attributes:
        id: the request id.
        status: of the answer.
        duration_s: from the head to the answer.
        rows: records in the request; 0 when it was refused before they were counted.
        request_bytes: size of the body.
        response_bytes: size of the answer's body.
        error: what went wrong, if anything.
    """

    id: str
    status: int
    duration_s: float
    rows: int
    request_bytes: int
    response_bytes: int
    error: ByocError | None


class RequestLog:
    """Gathers records and writes them as lines.

    Args:
        which: ``all``, ``errors`` or ``off``.
        log_format: ``json`` or ``text``.
        stream: binary, e.g. ``sys.stderr.buffer``.
    """

    def __init__(self, which: str, log_format: str, stream: BinaryIO) -> None:
        self._errors_only = which == "errors"
        self._off = which == "off"
        self._format = _json_line if log_format == "json" else _text_line
        self._stream = stream
        self._records: list[RequestRecord] = []
        self._loop = asyncio.get_running_loop()

    def add(self, record: RequestRecord) -> None:
        """Take a record; it is written at the end of this turn of the event loop."""
        if self._off or (self._errors_only and record.status < 400):
            return
        if not self._records:
            self._loop.call_soon(self.flush)
        self._records.append(record)
        if len(self._records) >= _FLUSH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._records:
            return
        records, self._records = self._records, []
        now_s = time.time()
        lines = [self._format(record, now_s) for record in records]
        try:
            self._stream.write(b"\n".join(lines) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; requests are served all the same
            self._off = True


def _level(status: int) -> str:
    return "info" if status < 400 else "warning" if status < 500 else "error"


def _json_line(record: RequestRecord, now_s: float) -> bytes:
    line: dict[str, object] = {
        "time": timestamp(now_s),
        "level": _level(record.status),
        "event": "request",
        "id": record.id,
        "status": record.status,
        "duration_ms": round(record.duration_s * 1000, 3),
        "rows": record.rows,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
    }
    if record.error is not None:
        line |= {"code": record.error.code, "message": record.error.message}
    return orjson.dumps(line)


def _text_line(record: RequestRecord, now_s: float) -> bytes:
    clock = time.strftime("%H:%M:%S", time.localtime(now_s))
    error = f" {record.error.code}: {record.error.message!a}" if record.error is not None else ""
    return (
        f"{clock}.{int(now_s % 1 * 1000):03d} {_level(record.status):<7} request {record.status} "
        f"{record.duration_s * 1000:.1f} ms rows={record.rows} in={record.request_bytes} B "
        f"out={record.response_bytes} B id={record.id!a}{error}"
    ).encode()
