"""The fields of a head: their names, values, number and size, and what is echoed of them."""

from __future__ import annotations

from tests.lanes.case import Case, Wait, closes, invocation, keeps, request

_ID, _ATTRIBUTES = b"X-Amzn-SageMaker-Inference-Id: ", b"X-Amzn-SageMaker-Custom-Attributes: "
_TYPE = b"Content-Type: application/json"

_SERVED: dict[str, tuple[bytes, ...]] = {
    "none but Host": (),
    "names in lower case": (b"content-type: application/json",),
    "names in upper case": (b"CONTENT-TYPE: application/json",),
    "a name of odd characters": (b"!#$%&'*+-.^_`|~9: x",),
    "no space after the colon": (b"Content-Type:application/json",),
    "much space around a value": (b"Content-Type:  \t application/json \t ",),
    "an empty value": (b"X-A:",),
    "a value of spaces": (b"X-A:    ",),
    "a value of colons": (b"X-A: :::: b: c",),
    "a value in Latin-1": (b"X-A: caf\xe9",),
    "a value in UTF-8": ("X-A: \u00fc\u4e16".encode(),),
    "a value with a tab": (b"X-A: a\tb",),
    "media type twice, the good one last": (b"Content-Type: text/html", _TYPE),
    "accept twice": (b"Accept: image/png", b"Accept: text/csv"),
    "accept twice, once empty": (b"Accept:", b"Accept: text/csv"),
    "content encoding twice": (b"Content-Encoding: identity", b"Content-Encoding: identity"),
    "cookies": (b"Cookie: a=b", b"Cookie: c=d"),
    "authorization": (b"Authorization: AWS4-HMAC-SHA256 Credential=x/y/z",),
    "forwarded": (b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https"),
    "a second Host": (b"Host: other",),
    "five hundred": (b"X-A: b",) * 500,
    "a value of 8 KiB": (b"X-A: " + b"a" * 8192,),
    "a value of 30 KiB": (b"X-A: " + b"a" * 30_720,),
    "a name of 8 KiB": (b"X-" + b"a" * 8192 + b": b",),
    "method override": (b"X-HTTP-Method-Override: GET",),
    "trailers announced": (b"Trailer: X-A",),
    "priority": (_ATTRIBUTES + b"priority=high",),
}
_ECHOED: dict[str, tuple[bytes, ...]] = {
    "attributes": (_ATTRIBUTES + b"a=b; c",),
    "attributes in lower case": (_ATTRIBUTES.lower() + b"A",),
    "attributes of nothing": (_ATTRIBUTES,),
    "attributes twice": (_ATTRIBUTES + b"a", _ATTRIBUTES + b"b"),
    "attributes at their limit": (_ATTRIBUTES + b"a" * 1024,),
    "attributes over their limit": (_ATTRIBUTES + b"a" * 1025,),
    "attributes in Latin-1": (_ATTRIBUTES + b"caf\xe9",),
    "attributes with a tab": (_ATTRIBUTES + b"a\tb",),
    "attributes that look like a head": (_ATTRIBUTES + b"a%0d%0aSet-Cookie: b",),
    "attributes with a line in words": (_ATTRIBUTES + rb"a\r\nX-Evil: 1",),
    "an id": (_ID + b"abc",),
    "an id of nothing": (_ID,),
    "an id in Latin-1": (_ID + b"\xe9",),
    "an id of 5000": (_ID + b"i" * 5000,),
    "an id twice": (_ID + b"a", _ID + b"b"),
}
_REFUSED: dict[str, bytes] = {
    "space before the colon": b"Content-Type : application/json",
    "tab before the colon": b"Content-Type\t: application/json",
    "space in a name": b"Content Type: application/json",
    "no colon": b"Content-Type",
    "no name": b": a",
    "a line of spaces": b"   ",
    "a name of Latin-1": b"X-\xe9: a",
    "a name of control characters": b"X-\x01: a",
    "a name with NUL": b"X-\x00: a",
    "a value with NUL": b"X-A: a\x00b",
    "a value with a control character": b"X-A: a\x01b",
    "a value with DEL": b"X-A: a\x7fb",
    "a value with a bare CR": b"X-A: a\rb",
    "attributes with NUL": _ATTRIBUTES + b"a\x00b",
    "attributes with a bare CR": _ATTRIBUTES + b"a\rSet-Cookie: b",
    "an id with a bare CR": _ID + b"a\rSet-Cookie: b",
    "a line folded by a space": b"X-A: a\r\n b",
    "a line folded by a tab": b"X-A: a\r\n\tb",
    "attributes folded": _ATTRIBUTES + b"a\r\n Set-Cookie: b",
    "the first line folded": b" folded",
    "a name in brackets": b"X[A]: b",
    "a name with a quote": b'X"A: b',
}
_LONG_HEAD = request(_TYPE)[:-2] + b"X-A: "


def _too_large(name: str, start: bytes) -> Case:
    """The read that a head begins in is not counted, and the one that is too much holds nothing more."""
    steps = (start, Wait.TAKEN, b"a" * 60_000, Wait.TAKEN, b"a" * 5_000, Wait.TAKEN, b"a" * 1_000)
    return Case(f"head: {name}", steps, (431,), cut_anywhere=False)


CASES: tuple[Case, ...] = (
    *[keeps(f"fields: {name}", invocation(1, *lines), 200) for name, lines in _SERVED.items()],
    *[keeps(f"echo: {name}", invocation(2, *lines), 200) for name, lines in _ECHOED.items()],
    *[keeps(f"echo: {name}, of a bad request", request(*lines, body=b"?"), 400) for name, lines in _ECHOED.items()],
    *[closes(f"fields: {name}", invocation(1, line), 400, cut_anywhere=False) for name, line in _REFUSED.items()],
    *[
        closes(f"ping fields: {name}", request(line, start=b"GET /ping HTTP/1.1"), 400, cut_anywhere=False)
        for name, line in _REFUSED.items()
    ],
    keeps("fields: no Host", invocation().replace(b"Host: test\r\n", b""), 200),
    keeps("fields: an empty Host", invocation().replace(b"Host: test", b"Host:"), 200),
    keeps("fields: a nonsense Host", invocation().replace(b"Host: test", b"Host: a b@/?"), 200),
    keeps("fields: media type twice, the bad one last", invocation(1, b"Content-Type: text/html"), 415),
    keeps("echo: attributes, of a wrong method", request(_ATTRIBUTES + b"a", start=b"GET /ping HTTP/1.1"), 200),
    closes("echo: attributes, of a GET", request(_ATTRIBUTES + b"a", start=b"GET /invocations HTTP/1.1"), 405),
    _too_large("of a field without an end", _LONG_HEAD),
    _too_large("of a name without an end", _LONG_HEAD[:-2]),
    _too_large("of a target without an end", b"POST /invocations?"),
    _too_large("of a ping without an end", b"GET /ping HTTP/1.1\r\nX-A: "),
)
