"""The request log: one line an invocation, never one for a ping, and never the body.

It has its own writer because the logging module costs as much as a small inference: records of one turn of the event
loop are formatted and written together.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator, Sequence
from select import PIPE_BUF
from typing import BinaryIO

import orjson

from byoc_server.errors import ByocError
from byoc_server.telemetry.logging import local_clock, timestamp

_FILE_PIECE_BYTES = 64 * 1024
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
        self._piece_bytes = _largest_piece(stream)
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

    def extend(self, records: Sequence[Record]) -> None:
        """Take records of requests that went well."""
        if self._off or self._errors_only:
            return
        if not self._records:
            self._loop.call_soon(self.flush)
        self._records += records
        if len(self._records) >= _FLUSH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered. All of it gets the time of the writing, which is within the same turn."""
        if not self._records:
            return
        records, self._records = self._records, []
        now_s = time.time()
        if self._is_json:
            now = timestamp(now_s).encode()
            lines = [_json_line(record, now) for record in records]
        else:
            clock = local_clock(now_s)
            lines = [_text_line(record, clock) for record in records]
        try:
            for piece in _pieces(lines, self._piece_bytes):
                self._stream.write(piece)
                self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; requests are served all the same
            self._off = True


def _largest_piece(stream: BinaryIO) -> int:
    """Most bytes that are written as a whole, so that lines of several processes do not end up in each other.

    A file takes any write so (write(2)), a pipe only small ones (pipe(7)).
    """
    try:
        is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream without a descriptor
        is_file = False
    return _FILE_PIECE_BYTES if is_file else PIPE_BUF


def _pieces(lines: Sequence[bytes], most_bytes: int) -> Iterator[bytes]:
    """Join lines to pieces of so many bytes, or of one line."""
    start, size = 0, 0
    for end, line in enumerate(lines):
        if size + len(line) > most_bytes and size:
            yield b"".join(lines[start:end])
            start, size = end, 0
        size += len(line)
    yield b"".join(lines[start:])


def _level(status: int) -> bytes:
    return b"info" if status < 400 else b"warning" if status < 500 else b"error"


def _json_line(record: Record, now: bytes) -> bytes:
    request_id, status, duration_s, rows, request_bytes, response_bytes, error = record
    reason = b""
    if error is not None:
        reason = b',"code":%b,"message":%b' % (orjson.dumps(error.code), orjson.dumps(error.message))
    return _JSON_LINE % (
        now,
        _level(status),
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
        f"{now} {_level(status).decode():<7} request {status} {duration_s * 1000:.1f} ms rows={rows} "
        f"in={request_bytes} B out={response_bytes} B id={request_id!a}{reason}\n"
    ).encode()
