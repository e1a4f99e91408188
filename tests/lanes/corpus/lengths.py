"""``Content-Length`` and ``Transfer-Encoding``: where a body ends, and who might disagree about it.

The cases follow RFC 9112 (June 2022), section 6.3: what is ambiguous is refused, and the connection closed, so that
nothing behind it can be taken for a request by one and for a body by another.
"""

from __future__ import annotations

from tests.lanes.case import LAST, Answers, Case, Wait, closes, ends, invocation, keeps, request

_BODY = b"[[1]]"
_HIDDEN = b"[[1]]POST /invocations HTTP/1.1\r\nHost: smuggled\r\nContent-Length: 5\r\n\r\n[[2]]"
_CHUNKED = b"5\r\n[[1]]\r\n0\r\n\r\n"
LIMIT_BYTES = 1024 * 1024
"""Of a body; what the servers of these tests are told."""

_LENGTHS_REFUSED = (
    *b'-1|-5|+5|5x|x|0x5|5.0|5e0|5 5|5\t5|5,5|5, 5|5;|"5"|5_0|\xb2'.split(b"|"),
    *b"18446744073709551616|99999999999999999999999".split(b"|"),
)
_LENGTHS_SERVED = (b"5", b"05", b"0000000000005", b"\t5")
_CODINGS_REFUSED = (
    *b"gzip|identity|gzip, chunked, gzip|chunked, gzip|chunked, chunked|identity;q=1".split(b"|"),
    *b'xchunked|chunkedx|chunked;a=b|"chunked"|x chunked|chunked x|chunk|\xe9chunked|;chunked'.split(b"|"),
)
_CODINGS_SERVED = (
    b"chunked",
    b"CHUNKED",
    b"Chunked",
    b" chunked ",
    b"\tchunked",
    b"gzip, chunked",
    b"identity, chunked",
)
_PAIRS_REFUSED = {
    "two lengths that differ": (b"Content-Length: 5", b"Content-Length: 6"),
    "two lengths that differ, the longer first": (b"Content-Length: 6", b"Content-Length: 5"),
    "two lengths that agree": (b"Content-Length: 5", b"Content-Length: 5"),
    "two lengths, in two cases": (b"Content-Length: 5", b"content-length: 5"),
    "a length and none": (b"Content-Length: 5", b"Content-Length:"),
    "a length and chunks": (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and a length": (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "chunks and a length of nothing": (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
    "a length and another coding": (b"Content-Length: 5", b"Transfer-Encoding: gzip"),
    "chunks, and another coding later": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    "chunks, twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks and identity later": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "a length folded": (b"Content-Length:\r\n 5",),
    "a coding folded": (b"Transfer-Encoding:\r\n chunked",),
    "a length behind a space": (b"Content-Length : 5",),
    "a coding behind a space": (b"Transfer-Encoding : chunked",),
}


def _with(*lines: bytes, body: bytes, start: bytes = b"POST /invocations HTTP/1.1") -> bytes:
    return request(*lines, body=body, start=start, length=False)


def _sized(size: int) -> bytes:
    return request(b"Content-Type: text/csv", body=b"1\n" * (size // 2) + b"1" * (size % 2))


_HIDING = {
    "a ping": (b"POST /ping HTTP/1.1", 200),
    "a GET of a ping": (b"GET /ping HTTP/1.1", 200),
    "nowhere": (b"POST /nowhere HTTP/1.1", 404),
    "v2": (b"GET /v2 HTTP/1.1", 200),
}
"""First lines of requests that are answered whatever their bodies are."""


def _hides(name: str, start: bytes, status: int, *, chunked: bool) -> Case:
    """What is a request by itself, and has been one, comes in a read of its own as the body of another."""
    inner = invocation()
    line = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(inner)
    before, after = (b"%x\r\n" % len(inner), b"\r\n0\r\n\r\n") if chunked else (b"", b"")
    head = _with(line, body=before, start=start)
    steps = (inner, Answers(1), inner, Answers(2), head, Answers(3), inner, Wait.TAKEN, after + LAST)
    kind = "chunk" if chunked else "body"
    return Case(f"length: a request as the {kind} of {name}", steps, (200, 200, status), kept=True)


CASES: tuple[Case, ...] = (
    *[
        closes(f"length: {value!r}", _with(b"Content-Length: " + value, body=_HIDDEN), 400, cut_anywhere=False)
        for value in _LENGTHS_REFUSED
    ],
    *[keeps(f"length: {value!r}", _with(b"Content-Length:" + value, body=_BODY), 200) for value in _LENGTHS_SERVED],
    *[
        closes(f"coding: {value!r}", _with(b"Transfer-Encoding: " + value, body=_CHUNKED), 400, cut_anywhere=False)
        for value in _CODINGS_REFUSED
    ],
    *[
        keeps(f"coding: {value!r}", _with(b"Transfer-Encoding:" + value, body=_CHUNKED), 200)
        for value in _CODINGS_SERVED
    ],
    *[
        closes(f"{route}: {name}", _with(*lines, body=_HIDDEN, start=start), 400, cut_anywhere=False)
        for name, lines in _PAIRS_REFUSED.items()
        for route, start in (("invocation", b"POST /invocations HTTP/1.1"), ("ping", b"GET /ping HTTP/1.1"))
    ],
    closes("length: empty", _with(b"Content-Length:", body=b""), 400),
    closes("length: before a space", _with(b"Content-Length: 5 ", body=_BODY), 400),
    keeps("length: of nothing", _with(b"Content-Length: 0", body=b""), 400),
    keeps("length: none, and no body", _with(body=b""), 400),
    closes("length: shorter than the body", _with(b"Content-Length: 5", body=_BODY + b"]]]"), 400, cut_anywhere=False),
    keeps("length: a request as the body", _with(b"Content-Length: %d" % len(LAST), body=LAST), 400),
    *[
        _hides(name, start, status, chunked=chunked)
        for name, (start, status) in _HIDING.items()
        for chunked in (False, True)
    ],
    ends("length: longer than the body", invocation()[:-1]),
    ends("length: nothing of the body", invocation()[:-5]),
    ends("length: a head without its end", invocation()[:-7]),
    keeps("length: at the limit", _sized(LIMIT_BYTES), 200),
    closes("length: over the limit", _sized(LIMIT_BYTES + 1), 413),
    ends("length: far over the limit, and nothing sent", _with(b"Content-Length: 999999999999", body=b""), 413),
    ends("length: the largest there is", _with(b"Content-Length: 9223372036854775807", body=b""), 400),
    ends("length: of 18 digits", _with(b"Content-Length: 999999999999999999", body=b""), 413),
    keeps("length: on a ping of a GET", request(b"Content-Length: 0", start=b"GET /ping HTTP/1.1"), 200),
    Case(
        "length: a body in its own time",
        (invocation()[:-5], Wait.TAKEN, b"[", Wait.TAKEN, b"[1", Wait.TAKEN, b"]]", Answers(1), LAST),
        (200,),
        kept=True,
    ),
)
