"""A connection as a fuzz target: any bytes get well-formed answers, the same in both lanes, and leave nothing behind.

An input begins with one byte that says how: how the rest is cut into what the server reads at a time, how long an
inference takes, and whether the client is slow to read.
"""

from __future__ import annotations

import re

from benchmarks.fuzz.findings import FindingError
from benchmarks.fuzz.lanes import Conversation, lanes

PIECE_BYTES = (4096, 1, 2, 7, 33, 150, 400, 1000)
TURNS = (0, 1, 3, 12)
ROOM_BYTES = (None, 200)
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z -]*\r\n((?:[a-z][a-z0-9-]*: [\x20-\x7e]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"(?:^|\n)content-length: (\d+)\r\n")


def check_connection(data: bytes) -> None:
    """Send one input in both lanes.

    Raises:
        FindingError: an answer is not well-formed or blames the server, or something is left behind, or the lanes
            differ.
        Exception: whatever escapes from the connection.
    """
    how, sent = data[0] if data else 0, data[1:]
    size = PIECE_BYTES[how % 8]
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    turns, room_bytes = TURNS[how // 8 % 4], ROOM_BYTES[how // 32 % 2]
    loop, fast, ordinary = lanes()
    both = [loop.run_until_complete(lane.converse(pieces, turns, room_bytes)) for lane in (fast, ordinary)]
    for conversation in both:
        _check(conversation, sent)
    if both[0].answered != both[1].answered:
        raise FindingError(f"the lanes answer differently: {both[0].answered!r} and {both[1].answered!r}")
    if both[0].closed != both[1].closed:
        raise FindingError("one lane closes the connection, the other does not")


def _check(conversation: Conversation, sent: bytes) -> None:
    for fault in conversation.faults:
        raise fault
    if conversation.left_behind:
        raise FindingError(f"left behind: {conversation.left_behind}")
    if conversation.unsent_pieces and conversation.at_rest and not conversation.closed:
        raise FindingError("the server reads no more although all is answered")
    check_answers(conversation.answered, b"HEAD" in sent)


def check_answers(answered: bytes, maybe_bodiless: bool) -> None:
    """Hold what came back against the form of HTTP/1.1.

    Args:
        answered: all of it.
        maybe_bodiless: whether an answer may lack the body it declares, as those to ``HEAD`` do.

    Raises:
        FindingError: it is not a row of complete answers, or one blames the server.
    """
    start = 0
    while start < len(answered):
        head = _HEAD.match(answered, start)
        if head is None:
            raise FindingError("no head where one should be")
        status, start = int(head[1]), head.end()
        if status >= 500:
            raise FindingError(f"an answer has status {status}")
        if status == 100:
            continue
        length = _LENGTH.search(head[2])
        if length is None:
            raise FindingError("an answer does not say how long it is")
        if not (maybe_bodiless and (start == len(answered) or answered.startswith(b"HTTP/1.1 ", start))):
            start += int(length[1])
    if start > len(answered):
        raise FindingError("an answer is not complete")
