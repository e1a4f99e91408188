"""What is in the body, how it is called, and what is asked for: every format, good and bad."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np

from tests.lanes.case import Case, invocation, keeps, request

JSON, CSV, LINES, NPY = "application/json", "text/csv", "application/jsonlines", "application/x-npy"


def _npy(*rows: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(rows, np.int64)[:, None])
    return stream.getvalue()


_ROWS = {JSON: b'{"instances":[[1],[3]]}', CSV: b"1\n3\n", LINES: b"[1]\n[3]\n", NPY: _npy(1, 3)}
"""Two records in four formats."""

_GOOD = {
    "json array": (JSON, b"[[1]]"),
    "json of one record": (JSON, b'{"instances":[[2]]}'),
    "json with a charset": (f"{JSON}; charset=utf-8", b"[[1]]"),
    "json among white space": (JSON, b" \r\n[ [ 1 ] ]\n "),
    "json named input": (JSON, b'{"inputs":{"i":[[1],[2]]}}'),
    "json in upper case": ("APPLICATION/JSON", b"[[1]]"),
    "csv without a last newline": (CSV, b"1\r\n2"),
    "csv with a header": (f"{CSV}; header=present", b"i\n1\n"),
    "octets": ("application/octet-stream", np.array([1, 2], np.int64).tobytes()),
    "a thousand records": (JSON, b"[" + b",".join([b"[1]"] * 1000) + b"]"),
    "a heavy body": (CSV, b"1\n" * 100_000),
}
_BAD = {
    "nothing": (JSON, b"", 400),
    "no json": (JSON, b"?", 400),
    "json cut off": (JSON, b"[[1", 400),
    "json too deep": (JSON, b"[" * 2000 + b"]" * 2000, 400),
    "json of another shape": (JSON, b"[[1,2]]", 400),
    "json of another type": (JSON, b'[["a"]]', 400),
    "json of no records": (JSON, b"[]", 400),
    "bytes that are no text": (JSON, b"\xff\xfe\x00", 400),
    "csv of another shape": (CSV, b"1,2\n", 400),
    "npy that is none": (NPY, b"\x93NUMPY\x09\x00", 400),
    "npy cut off": (NPY, _npy(1, 2)[:-3], 400),
    "npy of more than there is": (NPY, _npy(1).replace(b"(1, 1)", b"(9, 1)"), 400),
    "an unknown format": ("text/html", b"<p>", 415),
    "a form": ("application/x-www-form-urlencoded", b"a=b", 415),
    "no media type at all": ("nonsense", b"[[1]]", 415),
    "a media type with half a parameter": ("application/json;\t=", b"[[1]]", 415),
    "a media type in Latin-1": ("caf\xe9", b"[[1]]", 415),
}
_ACCEPTS = {
    "any": ("*/*", 200),
    "any application": ("application/*", 200),
    "any text": ("text/*", 200),
    "csv": (CSV, 200),
    "weights": (f"{JSON};q=0.1, {CSV};q=0.9", 200),
    "a forbidden one": (f"{JSON};q=0, */*", 200),
    "an empty list": (", ,", 200),
    "unknown and known": (f"image/png, {NPY}", 200),
    "nonsense": (";;;", 406),
    "unknown": ("image/png", 406),
    "all forbidden": ("*/*;q=0", 406),
    "very long": ("a/b, " * 500 + JSON, 406),
}
_PLAIN = b"[[1],[2]]"
_CODINGS = {
    "gzip": (gzip.compress(_PLAIN, mtime=0), 200),
    "x-gzip": (gzip.compress(_PLAIN, mtime=0), 200),
    "GZIP": (gzip.compress(_PLAIN, mtime=0), 200),
    "deflate": (zlib.compress(_PLAIN), 200),
    "identity": (_PLAIN, 200),
    "deflate, gzip": (gzip.compress(zlib.compress(_PLAIN), mtime=0), 200),
    "br": (_PLAIN, 415),
    "gzip, nonsense": (_PLAIN, 415),
}
_BROKEN_CODINGS = {
    "gzip that is none": (b"gzip", _PLAIN, 400),
    "gzip cut off": (b"gzip", gzip.compress(_PLAIN, mtime=0)[:-4], 400),
    "gzip of nothing": (b"gzip", b"", 400),
    "gzip of more than the limit": (b"gzip", gzip.compress(bytes(2**20 + 1), mtime=0), 413),
    "a heavy one": (b"gzip", gzip.compress(b"[" + b",".join([b"[1]"] * 50_000) + b"]", mtime=0), 200),
}


def _asked(content_type: str, body: bytes, *lines: bytes) -> bytes:
    return request(b"Content-Type: " + content_type.encode("latin-1"), *lines, body=body, length=True)


CASES: tuple[Case, ...] = (
    *[keeps(f"body: {name}", _asked(kind, body), 200) for name, (kind, body) in _GOOD.items()],
    *[keeps(f"body: {name}", _asked(kind, body), status) for name, (kind, body, status) in _BAD.items()],
    *[
        keeps(f"formats: {kind} to {answer}", _asked(kind, body, b"Accept: " + answer.encode()), 200)
        for kind, body in _ROWS.items()
        for answer in _ROWS
    ],
    *[
        keeps(f"accept: {name}", invocation(1, b"Accept: " + accept.encode()), status)
        for name, (accept, status) in _ACCEPTS.items()
    ],
    *[
        keeps(f"coding: {name}", _asked(JSON, body, b"Content-Encoding: " + name.encode()), status)
        for name, (body, status) in _CODINGS.items()
    ],
    *[
        keeps(f"coding: {name}", _asked(JSON, body, b"Content-Encoding: " + coding), status)
        for name, (coding, body, status) in _BROKEN_CODINGS.items()
    ],
    keeps("body: a record that the model fails at", invocation(9, b"X-Amzn-SageMaker-Inference-Id: it"), 500),
    keeps("accept: a coded answer", _asked(CSV, b"1\n" * 50_000, b"Accept-Encoding: gzip"), 200),
    keeps("body: without a media type", request(body=b"[[1]]"), 200),
    keeps("body: with an empty media type", request(b"Content-Type:", body=b"[[1]]"), 200),
)
