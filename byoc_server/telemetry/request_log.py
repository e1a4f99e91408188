"""The request log: one line an invocation, never one for a ping, and never the body.

It has its own writer because the logging module costs as much as a small inference: records of one turn of the event
loop are formatted and written together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from select import PIPE_BUF
from typing import BinaryIO

import orjson

from byoc_server.errors import ByocError
from byoc_server.telemetry.logging import local_clock, timestamp

_FLUSH_RECORDS = 512
"""Written at once when so many have gathered in one turn."""


_JSON_LINE = (
    b'{"time":"%b","level":"%b","event":"request","id":%b,"status":%d,"duration_ms":%.3f,'
    b'"rows":%d,"request_bytes":%d,"response_bytes":%d%b}\n'
)
"""Filled in, which costs half of writing a dictionary; only texts of the client's need a JSON writer."""

Record = tuple[str, int, float, int, int, int, ByocError | None]
"""Request id, status, seconds from head to answer, rows (0 when refused before they were counted), bytes of the
request's body, bytes of the answer's body, and what went wrong, if anything."""


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
        self._is_json = log_format == "json"
        self._stream = stream
        self._records: list[Record] = []
        self._loop = asyncio.get_running_loop()

    def add(self, record: Record) -> None:
        """Take a record; it is written at the end of this turn of the event loop."""
        if self._off or (self._errors_only and record[1] < 400):
            return
        if not self._records:
            self._loop.call_soon(self.flush)
        self._records.append(record)
        if len(self._records) >= _FLUSH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered. All of it gets the time of the writing, which is within the same turn."""
        if not self._records:
            return
        records, self._records = self._records, []
        now_s = time.time()
        if self._is_json:
            now = timestamp(now_s)
            lines = [_json_line(record, now) for record in records]
        else:
            now = local_clock(now_s)
            lines = [_text_line(record, now) for record in records]
        try:
            for piece in _pieces(lines):
                self._stream.write(piece)
                self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; requests are served all the same
            self._off = True


def _pieces(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Join lines to pieces a pipe takes as a whole, so that lines of several processes do not end up in each other."""
    start, size = 0, 0
    for end, line in enumerate(lines):
        if size + len(line) > PIPE_BUF and size:
            yield b"".join(lines[start:end])
            start, size = end, 0
        size += len(line)
    yield b"".join(lines[start:])


def _level(status: int) -> str:
    return "info" if status < 400 else "warning" if status < 500 else "error"


def _json_line(record: Record, now: str) -> bytes:
    request_id, status, duration_s, rows, request_bytes, response_bytes, error = record
    reason = b""
    if error is not None:
        reason = b',"code":%b,"message":%b' % (orjson.dumps(error.code), orjson.dumps(error.message))
    return _JSON_LINE % (
        now.encode(),
        _level(status).encode(),
        orjson.dumps(request_id),
        status,
        duration_s * 1000,
        rows,
        request_bytes,
        response_bytes,
        reason,
    )


def _text_line(record: Record, now: str) -> bytes:
    request_id, status, duration_s, rows, request_bytes, response_bytes, error = record
    reason = f" {error.code}: {error.message!a}" if error is not None else ""
    return (
        f"{now} {_level(status):<7} request {status} {duration_s * 1000:.1f} ms rows={rows} "
        f"in={request_bytes} B out={response_bytes} B id={request_id!a}{reason}\n"
    ).encode()
