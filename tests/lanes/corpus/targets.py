"""Methods, targets and versions: what is for the model, what is a ping, and what is neither."""

from __future__ import annotations

from tests.lanes.case import Case, closes, joined, keeps, request

_INVOCATIONS: dict[bytes, int] = {
    b"/invocations": 200,
    b"/invocations?": 200,
    b"/invocations?a=b&c=%20": 200,
    b"/invocations?/ping": 200,
    b"/invocations#a": 200,
    b"/%69nvocations": 200,
    b"/invocation%73": 200,
    b"/invocations%3fa": 404,
    b"/invocations%00": 404,
    b"/invocations%20": 404,
    b"/invocations/": 404,
    b"//invocations": 404,
    b"/./invocations": 404,
    b"/a/../invocations": 404,
    b"/invocations/a": 404,
    b"/invocations;a": 404,
    b"/Invocations": 404,
    b"/invocationss": 404,
    b"/invocation": 404,
    b"/%2finvocations": 404,
    b"/": 404,
    b"/%": 404,
    b"/%zz%ff": 404,
    b"/predict": 404,
    b"*": 404,
    b"http://test/invocations": 200,
    b"http://test:8080/invocations?a": 200,
    b"HTTP://TEST/invocations": 200,
    b"https://elsewhere/invocations": 200,
    b"http://a@b/invocations": 200,
    b"/v2": 405,
    b"/v2/": 404,
    b"/v2/health/ready": 405,
    b"/v2/models/gather/infer": 400,
}
_NOT_HTTP = (
    b"invocations",
    b"http://",
    b"http://[",
    b"test:8080",
    b"\xc3\xa4",
    b"/\xc3\xa4",
    b"/invocations\x00",
    b"/invocations\x7f",
    b"/invocations\xff",
    b"/invocations a",
    b"",
)
_PINGS = (b"/ping", b"/ping?a=b", b"/%70ing", b"http://test/ping", b"/ping#a")
_METHODS = (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND", b"QUERY")
_NO_METHODS = (b"BREW", b"post", b"Post", b"", b"POST\x00", b"PO ST", b"P" * 5000, b"\xff")
_VERSIONS = (
    b"HTTP/9.9",
    b"HTTP/3.0",
    b"HTTP/1",
    b"HTTP/11",
    b"HTTP/1.1.1",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP",
    b"FTP/1.1",
)


def _shown(raw: bytes) -> str:
    text = raw[:30].decode("latin-1").encode("unicode_escape").decode()
    return text or "nothing"


CASES: tuple[Case, ...] = (
    *[
        keeps(f"target: POST {_shown(target)}", request(body=b"[[1]]", start=b"POST %b HTTP/1.1" % target), status)
        for target, status in _INVOCATIONS.items()
    ],
    *[
        closes(
            f"target: POST {_shown(target)}",
            request(body=b"[[1]]", start=b"POST %b HTTP/1.1" % target),
            400,
            cut_anywhere=False,
        )
        for target in _NOT_HTTP
    ],
    *[
        keeps(f"target: {_shown(method)} {_shown(target)}", request(start=b"%b %b HTTP/1.1" % (method, target)), 200)
        for method in (b"GET", b"POST")
        for target in _PINGS
    ],
    *[joined(f"target: HEAD {_shown(target)}", request(start=b"HEAD %b HTTP/1.1" % target), 200) for target in _PINGS],
    *[
        closes(f"method: {_shown(method)} /invocations", request(start=b"%b /invocations HTTP/1.1" % method), 405)
        for method in _METHODS
    ],
    *[
        keeps(f"method: {_shown(method)} /ping", request(start=b"%b /ping HTTP/1.1" % method), 405)
        for method in _METHODS[2:]
    ],
    *[
        keeps(f"method: {_shown(method)} /nowhere", request(start=b"%b /nowhere HTTP/1.1" % method), 404)
        for method in _METHODS[2:]
    ],
    *[
        closes(
            f"method: {_shown(method)} of no kind",
            request(start=b"%b /invocations HTTP/1.1" % method, body=b"[[1]]"),
            400,
            cut_anywhere=False,
        )
        for method in _NO_METHODS
    ],
    *[
        closes(
            f"version: {_shown(version)}",
            request(start=b"POST /invocations " + version, body=b"[[1]]"),
            400,
            cut_anywhere=False,
        )
        for version in _VERSIONS
    ],
    closes("method: PUT /invocations with a body", request(start=b"PUT /invocations HTTP/1.1", body=b"[[1]]"), 405),
    closes("method: GET /invocations with a body", request(start=b"GET /invocations HTTP/1.1", body=b"[[1]]"), 405),
    keeps("method: GET /ping with a body", request(start=b"GET /ping HTTP/1.1", body=b"[[1]]"), 200),
    keeps("method: POST /ping with a body", request(start=b"POST /ping HTTP/1.1", body=b"[[1]]"), 200),
    keeps("target: of 8 KiB", request(body=b"[[1]]", start=b"POST /invocations?%b HTTP/1.1" % (b"a" * 8192)), 200),
    keeps("target: of 8 KiB to nowhere", request(start=b"GET /%b HTTP/1.1" % (b"a" * 8192)), 404),
    closes("method: CONNECT", request(start=b"CONNECT example.com:443 HTTP/1.1"), 400, cut_anywhere=False),
    closes("method: CONNECT to a path", request(start=b"CONNECT /invocations HTTP/1.1"), 400, cut_anywhere=False),
    keeps("method: OPTIONS *", request(start=b"OPTIONS * HTTP/1.1"), 404),
    closes("version: HTTP/0.9", b"GET /ping\r\n\r\n", 200),
    closes("version: HTTP/2.0", request(start=b"POST /invocations HTTP/2.0", body=b"[[1]]"), 200),
)
