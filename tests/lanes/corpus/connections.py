"""What becomes of a connection: kept, closed, half closed, upgraded, asked to go on."""

from __future__ import annotations

from tests.lanes.case import LAST, Answers, Case, Wait, closes, ends, invocation, keeps, request

_PING = b"GET /ping HTTP/1.1"
_CLOSING = (b"close", b"CLOSE", b"Close", b" close ", b"close, x", b"x, close", b"close, keep-alive", b"close,close")
_KEEPING = (b"keep-alive", b"Keep-Alive", b"x", b"closed", b"", b"close-not", b"upgrade", b"x, y")
_UPGRADES = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAA"),
    "websocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "TLS": (b"Connection: upgrade", b"Upgrade: TLS/1.0, HTTP/1.1"),
    "nothing": (b"Connection: upgrade", b"Upgrade:"),
    "h2c without Connection": (b"Upgrade: h2c",),
}
_CONTINUE = b"Expect: 100-continue"


def _version_10(raw: bytes) -> bytes:
    return raw.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")


def _asks_first(name: str, raw: bytes, body: bytes, *statuses: int) -> Case:
    """Sends its body only when it is told to."""
    return Case(f"expect: {name}", (raw, Wait.CONTINUE, body, Answers(len(statuses)), LAST), statuses, kept=True)


CASES: tuple[Case, ...] = (
    *[closes(f"connection: {value!r}", invocation(1, b"Connection:" + value), 200) for value in _CLOSING],
    *[keeps(f"connection: {value!r}", invocation(1, b"Connection: " + value), 200) for value in _KEEPING],
    *[
        closes(f"connection: {value!r} of a ping", request(b"Connection:" + value, start=_PING), 200)
        for value in _CLOSING
    ],
    closes("connection: close, in two fields", invocation(1, b"Connection: keep-alive", b"Connection: close"), 200),
    closes("connection: close, of a bad request", request(b"Connection: close", body=b"?"), 400),
    closes(
        "connection: close, of a failure", invocation(9, b"Connection: close", b"X-Amzn-SageMaker-Inference-Id: a"), 500
    ),
    closes("connection: close, to nowhere", request(b"Connection: close", start=b"GET /nowhere HTTP/1.1"), 404),
    closes(
        "connection: close, and more behind",
        invocation(1, b"Connection: close") + invocation(),
        200,
        cut_anywhere=False,
    ),
    closes(
        "connection: close, and nonsense behind", invocation(1, b"Connection: close") + b"\x00", 200, cut_anywhere=False
    ),
    closes("connection: Proxy-Connection", invocation(1, b"Proxy-Connection: close"), 200),
    closes("HTTP/1.0", _version_10(invocation()), 200),
    closes("HTTP/1.0: keep-alive", _version_10(invocation(1, b"Connection: keep-alive")), 200),
    closes("HTTP/1.0: close", _version_10(invocation(1, b"Connection: close")), 200),
    closes("HTTP/1.0: a ping", _version_10(request(start=_PING)), 200),
    closes("HTTP/1.0: a ping, keep-alive", _version_10(request(b"Connection: keep-alive", start=_PING)), 200),
    closes("HTTP/1.0: without Host", b"GET /ping HTTP/1.0\r\n\r\n", 200),
    closes("HTTP/1.0: a bad request", _version_10(request(body=b"?")), 400),
    closes("HTTP/1.0: to nowhere", b"GET /nowhere HTTP/1.0\r\n\r\n", 404),
    closes("HTTP/1.0: HEAD", b"HEAD /ping HTTP/1.0\r\n\r\n", 200),
    closes("HTTP/1.0: a wrong method", b"GET /invocations HTTP/1.0\r\n\r\n", 405),
    closes("HTTP/1.0: expects", _version_10(invocation(1, _CONTINUE)), 100, 200),
    *[keeps(f"upgrade: {name}", invocation(1, *lines), 200) for name, lines in _UPGRADES.items()],
    *[keeps(f"upgrade: {name}, of a ping", request(*lines, start=_PING), 200) for name, lines in _UPGRADES.items()],
    *[
        closes(f"upgrade: {name}, of HTTP/1.0", _version_10(invocation(1, *lines)), 200)
        for name, lines in _UPGRADES.items()
    ],
    closes("upgrade: and close", invocation(1, b"Connection: close, upgrade", b"Upgrade: h2c"), 200),
    _asks_first("waits", invocation(1, _CONTINUE)[:-5], b"[[1]]", 100, 200),
    _asks_first("waits, in another case", invocation(1, b"EXPECT: 100-Continue")[:-5], b"[[1]]", 100, 200),
    _asks_first(
        "waits, for chunks", request(_CONTINUE, b"Transfer-Encoding: chunked"), b"5\r\n[[1]]\r\n0\r\n\r\n", 100, 200
    ),
    _asks_first("waits, for a bad body", invocation(1, _CONTINUE)[:-5], b"[[1,]", 100, 400),
    Case(
        "expect: waits twice",
        (
            invocation(1, _CONTINUE)[:-5],
            Wait.CONTINUE,
            b"[[1]]",
            invocation(2, _CONTINUE),
            Answers(4),
            LAST,
        ),
        (100, 200, 100, 200),
        kept=True,
        cut_anywhere=False,
    ),
    keeps("expect: does not wait", invocation(1, _CONTINUE), 100, 200),
    keeps("expect: something else", invocation(1, b"Expect: 200-ok"), 200),
    keeps("expect: nothing", invocation(1, b"Expect:"), 200),
    keeps("expect: of a ping", request(_CONTINUE, start=_PING), 200),
    ends("expect: too large a body", request(_CONTINUE, b"Content-Length: 99999999"), 413),
    ends("expect: a wrong method", request(_CONTINUE, b"Content-Length: 5", start=b"PUT /invocations HTTP/1.1"), 405),
    Case("half closed: before anything", (Wait.HALF_CLOSED,), ()),
    *[
        ends(f"half closed: after {cut} bytes", invocation()[:cut])
        for cut in (1, 5, 17, 26, 30, 60, len(invocation()) - 1)
    ],
    ends("half closed: after an answer", invocation(), 200),
    ends("half closed: after a ping", request(start=_PING), 200),
    ends("half closed: after a bad request", request(body=b"?"), 400),
    Case("half closed: in a second request", (invocation(), Answers(1), invocation()[:30], Wait.HALF_CLOSED), (200,)),
)
