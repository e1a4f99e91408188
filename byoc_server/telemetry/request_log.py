"""The request log: one line an invocation, never one for a ping, and never the body.

It has its own writer because the logging module costs as much as a small inference: what comes within some
milliseconds is formatted and written together, once the answers are on their way.
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

from byoc_server.telemetry.logging import local_clock, timestamp
from byoc_server.telemetry.request_ids import RequestId, RequestIds

_FILE_PIECE_BYTES = 64 * 1024
_FLUSH_RECORDS = 512
"""Written at once when so many have gathered."""
_FLUSH_AFTER_S = 0.003
"""What a process that is killed may not have written of what it answered, and what one request in many waits for: at
10 ms the p99 of a lone client was twice as long."""

_JSON_LINE = (
    b'{"time":"%b","level":"%b","event":"request","id":%b,"status":%d,"duration_ms":%.3f,'
    b'"rows":%d,"request_bytes":%d,"response_bytes":%d%b}\n'
)
"""Filled in, which costs half of writing a dictionary; only texts of the client's need a JSON writer."""
_COMMON_JSON_LINE = (
    '{{"time":"{time}","level":"info","event":"request","id":"{prefix}%x","status":200,"duration_ms":%.3f,'
    '"rows":%d,"request_bytes":%d,"response_bytes":%d}}\n'
)
"""That of a request that went well and has no id of its client's; time and prefix are filled in first, for many."""

Reason = tuple[str, str]
"""Code and message of what went wrong. The error itself leads to the frames it came through, and to their bodies."""

Record = tuple[RequestId, int, float, int, int, int, Reason | None]
"""Request id, status, seconds from head to answer, rows (0 when refused before they were counted), bytes of the
request's body, bytes of the answer's body, and what went wrong, if anything."""


class RequestLog:
    """Gathers records and writes them as lines.

    Args:
        which: ``all``, ``errors`` or ``off``.
        log_format: ``json`` or ``text``.
        stream: binary, e.g. ``sys.stderr.buffer``.

    Attributes:
        ids: of requests that have none.
    """

    def __init__(self, which: str, log_format: str, stream: BinaryIO) -> None:
        self._errors_only = which == "errors"
        self._off = which == "off"
        self._is_json = log_format == "json"
        self._stream = stream
        self._piece_bytes = _largest_piece(stream)
        self._gathered: list[tuple[float, Sequence[Record]]] = []
        self._count = 0
        self._most = _FLUSH_RECORDS
        self._loop = asyncio.get_running_loop()
        self.ids = RequestIds()

    def add(self, record: Record) -> None:
        """Take a record; it is written soon."""
        if not self._errors_only or record[1] >= 400:
            self._gather((record,))

    def extend(self, records: Sequence[Record]) -> None:
        """Take records of requests that went well."""
        if not self._errors_only:
            self._gather(records)

    def _gather(self, records: Sequence[Record]) -> None:
        if self._off:
            return
        if not self._gathered:
            self._loop.call_later(_FLUSH_AFTER_S, self.flush)
        self._gathered.append((time.time(), records))
        self._count += len(records)
        if self._count >= self._most:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._gathered:
            return
        gathered, self._gathered, self._count = self._gathered, [], 0
        lines_of = self._json_lines if self._is_json else self._text_lines
        lines = [line for now_s, records in gathered for line in lines_of(now_s, records)]
        try:
            for piece in _pieces(lines, self._piece_bytes):
                self._stream.write(piece)
                self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; requests are served all the same
            self._off = True

    def close(self) -> None:
        """Write what has gathered; whatever still comes is written at once."""
        self._most = 1
        self.flush()

    def _json_lines(self, now_s: float, records: Sequence[Record]) -> list[bytes]:
        now = timestamp(now_s)
        common = _COMMON_JSON_LINE.format(time=now, prefix=self.ids.prefix).encode()
        return [
            common % (number, duration_s * 1000, rows, request_bytes, response_bytes)
            if status == 200 and type(number) is int
            else self._json_line((number, status, duration_s, rows, request_bytes, response_bytes, reason), now)
            for number, status, duration_s, rows, request_bytes, response_bytes, reason in records
        ]

    def _json_line(self, record: Record, now: str) -> bytes:
        request_id, status, duration_s, rows, request_bytes, response_bytes, reason = record
        more = b""
        if reason is not None:
            more = b',"code":%b,"message":%b' % (orjson.dumps(reason[0]), orjson.dumps(reason[1]))
        return _JSON_LINE % (
            now.encode(),
            _level(status).encode(),
            orjson.dumps(self.ids.text(request_id)),
            status,
            duration_s * 1000,
            rows,
            request_bytes,
            response_bytes,
            more,
        )

    def _text_lines(self, now_s: float, records: Sequence[Record]) -> list[bytes]:
        clock = local_clock(now_s)
        return [self._text_line(record, clock) for record in records]

    def _text_line(self, record: Record, clock: str) -> bytes:
        request_id, status, duration_s, rows, request_bytes, response_bytes, reason = record
        more = "" if reason is None else f" {reason[0]}: {reason[1]!a}"
        return (
            f"{clock} {_level(status):<7} request {status} {duration_s * 1000:.1f} ms rows={rows} "
            f"in={request_bytes} B out={response_bytes} B id={self.ids.text(request_id)!a}{more}\n"
        ).encode()


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
    sizes = list(map(len, lines))
    if sum(sizes) <= most_bytes:
        yield b"".join(lines)
        return
    start, size = 0, 0
    for end, line_bytes in enumerate(sizes):
        if size + line_bytes > most_bytes and size:
            yield b"".join(lines[start:end])
            start, size = end, 0
        size += line_bytes
    yield b"".join(lines[start:])


def _level(status: int) -> str:
    return "info" if status < 400 else "warning" if status < 500 else "error"
