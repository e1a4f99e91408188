"""The fast lane: plain requests to the hot routes, without ASGI. Knows no sockets and awaits nothing.

The task, the scope and the cycle that uvicorn makes for every request cost more than a small inference. Most requests
need none of them: their whole body is there at once, and their answer is one piece. Those go from the connection
(``server.fast_connection``) to the request path and back by plain calls. What is plain is said here, by one rule; all
else goes to the ordinary lane: uvicorn, ASGI and ``invocations``. Both lanes have the same request path behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from byoc_server.batching.batcher import Cancel
from byoc_server.errors import Unavailable
from byoc_server.http.content_coding import CONTENT_ENCODING
from byoc_server.http.dialect import INVOCATIONS, Head, fields_of, head_of
from byoc_server.http.inference import InferencePath
from byoc_server.http.invocations import ENDING, PingEndpoint
from byoc_server.http.known_heads import KnownHeads
from byoc_server.http.responses import Header, Response

FAST_LANE = "fast_lane"
"""The name under which the application hands it to connections: in the state of its ASGI lifespan."""

_MAX_BODY_BYTES = 64 * 1024
"""As much as uvicorn reads ahead. Larger bodies have to be counted and held back, and hide what the lane would save."""
_CONTENT_LENGTH = b"content-length"
_NOT_PLAIN = frozenset([b"transfer-encoding", b"expect", CONTENT_ENCODING])
_BODY = frozenset([b"transfer-encoding", b"expect", _CONTENT_LENGTH])

Reply = Callable[[Response], None]


class FastLane:
    """What the connections of one worker put plain requests into.

    Args:
        path: serves inferences.
        ping: knows whether requests are served.
    """

    def __init__(self, path: InferencePath, ping: PingEndpoint) -> None:
        self.infer: Callable[[Head, float, bytes, Reply], Cancel] = path.submit
        self.answer_ping: Callable[[], Response] = ping.answer
        self.heads = KnownHeads()
        self._path = path

    def end(self, head: Head, arrived_s: float, reply: Reply) -> None:
        """Answer a request that cannot be waited for any more."""
        self._path.refuse(head, arrived_s, Unavailable(ENDING), reply)


def plain_inference(method: bytes, headers: Sequence[Header]) -> Head | None:
    """The head of a request to ``/invocations`` if it may take the fast lane.

    That is a POST with a small body of a declared length, in no coding, that waits for no ``100 Continue``.

    Args:
        method: of the request.
        headers: in the order they came, names in lower case.
    """
    fields = fields_of(headers)
    length = fields.get(_CONTENT_LENGTH, b"")
    if method != b"POST" or not length.isdigit() or len(length) > len(str(_MAX_BODY_BYTES)):
        return None
    if int(length) > _MAX_BODY_BYTES or not _NOT_PLAIN.isdisjoint(fields):
        return None
    return head_of(fields, INVOCATIONS)


def is_plain_ping(method: bytes, headers: Sequence[Header]) -> bool:
    """Whether a request to ``/ping`` may take the fast lane: a GET without a body."""
    return method == b"GET" and _BODY.isdisjoint([name for name, _ in headers])
