"""Bodies in chunks (RFC 9112, section 7.1): sizes, extensions, trailers, and what is none of these."""

from __future__ import annotations

from tests.lanes.case import LAST, Answers, Case, Wait, closes, ends, keeps, request
from tests.lanes.corpus.lengths import LIMIT_BYTES

_GOOD: dict[str, bytes] = {
    "one": b"5\r\n[[1]]\r\n0\r\n\r\n",
    "one byte each": b"1\r\n[\r\n1\r\n[\r\n1\r\n1\r\n1\r\n]\r\n1\r\n]\r\n0\r\n\r\n",
    "an extension": b"5;a=b\r\n[[1]]\r\n0\r\n\r\n",
    "an extension of a name": b"5;a\r\n[[1]]\r\n0\r\n\r\n",
    "an extension in quotes": b'5;a="b c;d"\r\n[[1]]\r\n0\r\n\r\n',
    "several extensions": b"5;a=b;c=d\r\n[[1]]\r\n0;e=f\r\n\r\n",
    "a trailer": b"5\r\n[[1]]\r\n0\r\nX-A: b\r\n\r\n",
    "trailers": b"5\r\n[[1]]\r\n0\r\nX-A: b\r\nX-C: d\r\n\r\n",
    "a trailer that is a media type": b"5\r\n[[1]]\r\n0\r\nContent-Type: text/html\r\n\r\n",
    "a trailer that is echoed": b"5\r\n[[1]]\r\n0\r\nX-Amzn-SageMaker-Custom-Attributes: a\r\n\r\n",
    "a trailer that expects": b"5\r\n[[1]]\r\n0\r\nExpect: 100-continue\r\n\r\n",
    "a trailer that upgrades": b"5\r\n[[1]]\r\n0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "lower case": b"a\r\n      [[1]\r\nb\r\n]          \r\n0\r\n\r\n",
    "upper case": b"A\r\n      [[1]\r\nB\r\n]          \r\n0\r\n\r\n",
    "leading zeros": b"00005\r\n[[1]]\r\n000\r\n\r\n",
}
_EMPTY: dict[str, bytes] = {"none": b"0\r\n\r\n", "none, with a trailer": b"0\r\nX-A: b\r\n\r\n"}
_BAD: dict[str, bytes] = {
    "a size that is no number": b"zz\r\n[[1]]\r\n0\r\n\r\n",
    "an empty size": b"\r\n[[1]]\r\n0\r\n\r\n",
    "a negative size": b"-5\r\n[[1]]\r\n0\r\n\r\n",
    "a size with a plus": b"+5\r\n[[1]]\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\n[[1]]\r\n0\r\n\r\n",
    "a space before a size": b" 5\r\n[[1]]\r\n0\r\n\r\n",
    "a size over 64 bits": b"10000000000000005\r\n[[1]]\r\n0\r\n\r\n",
    "a size of all bits": b"ffffffffffffffffff\r\n[[1]]\r\n0\r\n\r\n",
    "a size with a comma": b"5,5\r\n[[1]]\r\n0\r\n\r\n",
    "a chunk longer than its size": b"5\r\n[[1]]]\r\n0\r\n\r\n",
    "no line end behind a chunk": b"5\r\n[[1]]0\r\n\r\n",
    "a bare LF behind a size": b"5\n[[1]]\r\n0\r\n\r\n",
    "a bare LF behind a chunk": b"5\r\n[[1]]\n0\r\n\r\n",
    "a bare CR behind a size": b"5\r[[1]]\r\n0\r\n\r\n",
    "a bare CR behind a chunk": b"5\r\n[[1]]\r0\r\n\r\n",
    "a bare LF in an extension": b"5;a\n[[1]]\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\n[[1]]\r\n0\r\n\r\n",
    "a trailer with NUL": b"5\r\n[[1]]\r\n0\r\nX-A: \x00\r\n\r\n",
    "a trailer without a colon": b"5\r\n[[1]]\r\n0\r\nX-A\r\n\r\n",
    "a trailer without a name": b"5\r\n[[1]]\r\n0\r\n: a\r\n\r\n",
    "a trailer that is a length": b"5\r\n[[1]]\r\n0\r\nContent-Length: 99\r\n\r\n",
    "a trailer folded": b"5\r\n[[1]]\r\n0\r\nX-A: a\r\n b\r\n\r\n",
    "a request in place of a size": b"GET /ping HTTP/1.1\r\nHost: smuggled\r\n\r\n",
}
_UNFINISHED: dict[str, bytes] = {
    "nothing": b"",
    "half a size": b"5",
    "half a chunk": b"5\r\n[[1",
    "no last chunk": b"5\r\n[[1]]\r\n",
    "no end of the trailers": b"5\r\n[[1]]\r\n0\r\n",
    "half a trailer": b"5\r\n[[1]]\r\n0\r\nX-A",
    "a chunk that is never full": b"7fffffffffffffff\r\n[[1]]",
}
_CLOSING_TRAILER = b"5\r\n[[1]]\r\n0\r\nConnection: close\r\n\r\n"
_START = b"POST /invocations HTTP/1.1"


def _chunked(body: bytes, *lines: bytes, start: bytes = _START) -> bytes:
    return request(b"Transfer-Encoding: chunked", *lines, body=body, start=start, length=False)


def _in_chunks(size: int) -> bytes:
    rows = b"1\n" * 8192
    whole = b"%x\r\n%b\r\n" % (len(rows), rows)
    rest = size % len(rows)
    last = b"%x\r\n%b\r\n" % (rest, b"1" * rest) if rest else b""
    return _chunked(whole * (size // len(rows)) + last + b"0\r\n\r\n", b"Content-Type: text/csv")


CASES: tuple[Case, ...] = (
    *[keeps(f"chunks: {name}", _chunked(body), 200) for name, body in _GOOD.items()],
    *[
        keeps(f"chunks of a ping: {name}", _chunked(body, start=b"POST /ping HTTP/1.1"), 200)
        for name, body in _GOOD.items()
    ],
    *[keeps(f"chunks: {name}", _chunked(body), 400) for name, body in _EMPTY.items()],
    *[closes(f"chunks: {name}", _chunked(body), 400, cut_anywhere=False) for name, body in _BAD.items()],
    *[ends(f"chunks: {name}", _chunked(body)) for name, body in _UNFINISHED.items()],
    *[
        Case(
            f"chunks: {name}, in their own time",
            (_chunked(b""), Wait.TAKEN, body[:cut], Wait.TAKEN, body[cut:], Answers(1), LAST),
            (200,),
            kept=True,
        )
        for name, body in _GOOD.items()
        for cut in [body.index(b"\r\n0") + 2]
    ],
    keeps("chunks: at the limit", _in_chunks(LIMIT_BYTES), 200),
    ends("chunks: a trailer that closes", _chunked(_CLOSING_TRAILER), 200),
    ends("chunks: over the limit", _in_chunks(LIMIT_BYTES + 1), 413),
    closes("chunks: with Connection: close", _chunked(_GOOD["one"], b"Connection: close"), 200),
    closes("chunks: in HTTP/1.0", _chunked(_GOOD["one"], start=b"POST /invocations HTTP/1.0"), 200),
    closes("chunks: to a GET", _chunked(_GOOD["one"], start=b"GET /invocations HTTP/1.1"), 405),
    keeps("chunks: to nowhere", _chunked(_GOOD["one"], start=b"POST /nowhere HTTP/1.1"), 404),
)
