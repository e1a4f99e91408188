"""What is not HTTP, or hardly."""

from __future__ import annotations

from tests.lanes.case import LAST, Answers, Case, closes, invocation, request

_TLS = bytes.fromhex("16030100c5010000c10303") + bytes(range(32)) + b"\x00" * 32
_NOT_HTTP = {
    "TLS": _TLS,
    "NUL": b"\x00" * 1000,
    "all bytes": bytes(range(256)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "SMTP": b"EHLO example.com\r\n",
    "JSON": b'{"instances":[[1]]}\n',
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a PROXY line": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + LAST,
    "words": b"hello world\r\n\r\n",
    "a space": b" " + LAST,
    "a tab": b"\t" + LAST,
    "a byte order mark": b"\xef\xbb\xbf" + LAST,
    "a first line without a target": b"GET HTTP/1.1\r\n\r\n",
    "a first line of one word": b"GET\r\n\r\n",
    "a first line with a tab": b"GET\t/ping\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "a bare CR for each line end": LAST.replace(b"\r\n", b"\r"),
    "a bare CR behind the first line": LAST.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r"),
    "NUL in the first line": LAST.replace(b"/ping", b"/pi\x00ng"),
    "a bare LF for each line end": LAST.replace(b"\r\n", b"\n"),
    "a bare LF behind the first line": LAST.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "a bare LF behind a field": LAST.replace(b"Host: test\r\n", b"Host: test\n"),
    "a bare LF for each line end of an invocation": invocation().replace(b"\r\n", b"\n"),
    "a bare LF behind a field of an invocation": invocation().replace(b"Host: test\r\n", b"Host: test\n"),
    "a bare LF at the end of a head": invocation().replace(b"\r\n\r\n", b"\r\n\n"),
    "two CR for each line end": LAST.replace(b"\r\n", b"\r\r\n"),
}
"""Each without the end that a client would have to wait for: the first bytes show it."""
_NEARLY = {
    "a first line with two spaces": LAST.replace(b"GET /", b"GET  /"),
    "an empty line before": b"\r\n\r\n" + LAST,
    "a bare LF before": b"\n\n" + LAST,
}
"""Served all the same."""
_BEHIND = {
    "NUL": b"\x00\x01\x02",
    "TLS": _TLS,
    "no name": request(b": a", start=b"GET /ping HTTP/1.1"),
    "two lengths": request(b"Content-Length: 1", b"Content-Length: 2"),
    "a length and chunks": request(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    "a bare CR": request(b"X-A: b\rc", start=b"GET /ping HTTP/1.1"),
}


def _once_answered(name: str, raw: bytes) -> Case:
    return Case(f"not HTTP: {name}, behind an answer", (invocation(), Answers(1), raw), (200, 400), cut_anywhere=False)


CASES: tuple[Case, ...] = (
    *[closes(f"not HTTP: {name}", raw, 400, cut_anywhere=False) for name, raw in _NOT_HTTP.items()],
    *[closes(f"hardly HTTP: {name}", raw, 200) for name, raw in _NEARLY.items()],
    *[_once_answered(name, raw) for name, raw in _BEHIND.items()],
    *[
        closes(f"not HTTP: {name}, behind a request", invocation() + raw, 400, cut_anywhere=False)
        for name, raw in _BEHIND.items()
    ],
    *[
        closes(f"not HTTP: {name}, behind a ping", request(start=b"GET /ping HTTP/1.1") + raw, 400, cut_anywhere=False)
        for name, raw in _BEHIND.items()
    ],
)
