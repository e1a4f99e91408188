"""Heads that need no parser, because it has read the very same bytes before. Pure.

A client sends many requests with one head. The parser is a function of the bytes from the end of one message to the
end of the next, so equal bytes come to equal requests. That holds only where it is sure which bytes the head was:

* the read began where a message begins, and held one message and nothing else;
* its lines end with CR LF, all of them, so the first empty line is the end of the head.

Whoever asks sees to the first, ``remember`` to the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from byoc_server.http.dialect import Head

_MOST_HEADS = 256
"""Clients use a handful, an attacker gets no more."""
_LARGEST_HEAD_BYTES = 2048
_END = b"\r\n\r\n"
_END_BYTES = len(_END)


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A head, the bytes it takes, and those of the body it declares."""

    head: Head
    head_bytes: int
    message_bytes: int


class KnownHeads:
    """The heads of plain inferences, of HTTP/1.1, on connections that are kept open after them."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> KnownHead | None:
        """What is known of a read that begins a message; ``None`` unless it is one whole message with a known head."""
        known = self._known.get(data[: data.find(_END) + _END_BYTES])
        return known if known is not None and known.message_bytes == len(data) else None

    def remember(self, data: bytes, head: Head, body_bytes: int) -> None:
        """Take note of a head.

        Args:
            data: a read that began a message.
            head: what the parser made of it.
            body_bytes: of its message, with which the read ended as far as the parser told.
        """
        size = len(data) - body_bytes
        if head.inference_id is not None or head.custom_attributes is not None:  # they hardly come again
            return
        if size > _LARGEST_HEAD_BYTES:
            return
        key = data[:size]
        if key.find(_END) + _END_BYTES != size or key.count(b"\n") != key.count(b"\r\n"):
            return
        if len(self._known) >= _MOST_HEADS:
            self._known.clear()
        self._known[key] = KnownHead(head, size, len(data))
