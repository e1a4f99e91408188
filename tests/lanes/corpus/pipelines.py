"""Several requests on one connection, in one piece or one after the other: answered in their order."""

from __future__ import annotations

from tests.lanes.case import LAST, Answers, Case, Wait, again, closes, ends, invocation, joined, keeps, request

_KINDS: dict[str, tuple[bytes, *tuple[int, ...]]] = {
    "ping": (request(start=b"GET /ping HTTP/1.1"), 200),
    "nowhere": (request(start=b"GET /nowhere HTTP/1.1"), 404),
    "v2": (request(start=b"GET /v2/models/gather HTTP/1.1"), 200),
    "v2 inference": (
        request(
            b"Content-Type: application/json",
            body=b'{"inputs":[{"name":"i","shape":[1,1],"datatype":"INT64","data":[2]}]}',
            start=b"POST /v2/models/gather/infer HTTP/1.1",
        ),
        200,
    ),
    "first row": (invocation(0), 200),
    "third row": (invocation(2), 200),
    "chunks": (request(b"Transfer-Encoding: chunked", body=b"5\r\n[[3]]\r\n0\r\n\r\n", length=False), 200),
    "bad body": (request(body=b"?"), 400),
    "bad format": (request(b"Content-Type: text/html", body=b"?"), 415),
    "failure": (invocation(9, b"X-Amzn-SageMaker-Inference-Id: it"), 500),
    "heavy": (request(b"Content-Type: text/csv", b"Accept: text/csv", body=b"1\n" * 40_000), 200),
    "upgrade": (invocation(1, b"Connection: upgrade", b"Upgrade: h2c"), 200),
    "expects": (invocation(1, b"Expect: 100-continue"), 100, 200),
    "empty": (request(length=True), 400),
}


def _of(*names: str) -> tuple[bytes, list[int]]:
    kinds = [_KINDS[name] for name in names]
    return b"".join([raw for raw, *_ in kinds]), [status for _, *statuses in kinds for status in statuses]


def _one_by_one(*names: str) -> Case:
    statuses = _of(*names)[1]
    steps = [step for name in names for step in (_KINDS[name][0], Wait.TAKEN)]
    return Case(f"one by one: {', '.join(names)}", (*steps, Answers(len(statuses)), LAST), tuple(statuses), kept=True)


_ROWS = b"".join([invocation(i % 4) for i in range(50)])

CASES: tuple[Case, ...] = (
    *[
        keeps(f"pipeline: {first}, then {second}", raw, *statuses)
        for first in _KINDS
        for second in _KINDS
        for raw, statuses in [_of(first, second)]
    ],
    *[
        joined(f"pipeline: a row, {name}, a row, {name}", raw, *statuses)
        for name in _KINDS
        for raw, statuses in [_of("first row", name, "third row", name)]
    ],
    *[again(f"again and again: {name}", raw, *statuses) for name, (raw, *statuses) in _KINDS.items()],
    *[_one_by_one("third row", name, "first row") for name in _KINDS],
    keeps("pipeline: fifty rows", _ROWS, *[200] * 50),
    joined("pipeline: all kinds", _of(*_KINDS)[0], *_of(*_KINDS)[1]),
    joined("pipeline: all kinds backwards", _of(*reversed(_KINDS))[0], *_of(*reversed(_KINDS))[1]),
    keeps("pipeline: empty lines before a request", b"\r\n\r\n" + invocation(), 200),
    keeps("pipeline: empty lines in between", invocation() + b"\r\n\r\n" + invocation(2), 200, 200),
    ends("pipeline: the beginning of another", invocation() + invocation()[:20], 200),
    ends("pipeline: another without its body", invocation() + invocation()[:-5], 200),
    closes("pipeline: the last one closes", invocation(0) + invocation(1, b"Connection: close"), 200, 200),
    closes(
        "pipeline: a wrong method closes",
        request(start=b"GET /invocations HTTP/1.1") + invocation(),
        405,
        cut_anywhere=False,
    ),
    closes(
        "pipeline: HTTP/1.0 closes",
        invocation(0) + invocation().replace(b"1.1", b"1.0") + invocation(),
        200,
        200,
        cut_anywhere=False,
    ),
    Case(
        "pipeline: nonsense once it is answered",
        (invocation(), Answers(1), b"\x00 nonsense\r\n\r\n"),
        (200, 400),
        cut_anywhere=False,
    ),
)
