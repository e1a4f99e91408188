"""Heads of answers, as they go over the wire."""

from __future__ import annotations

import pytest
from uvicorn.server import ServerState

from byoc_server.http.responses import Response
from byoc_server.server.answer_head import AnswerHeads

JSON = ((b"content-type", b"application/json"),)


@pytest.fixture
def state() -> ServerState:
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    return state


def test_a_head_has_status_defaults_headers_and_length(state: ServerState) -> None:
    heads = AnswerHeads(state)
    for _ in range(2):  # made, and remembered
        assert heads.write(Response(200, JSON, b"[1]"), True) == (
            b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n"
        )
        assert heads.write(Response(200, JSON, b"[1]"), False).endswith(
            b"content-length: 3\r\nconnection: close\r\n\r\n"
        )


def test_answers_that_follow_each_other_keep_their_own(state: ServerState) -> None:
    """The same headers with another status, other headers, other lengths, and back again."""
    heads = AnswerHeads(state)
    answers = [
        Response(200, JSON, b"1"),
        Response(503, JSON, b"22"),
        Response(200, (), b"333"),
        Response(200, ((b"content-type", b"application/json"),), b"4444"),
        Response(200, JSON, b""),
    ]
    fresh = [AnswerHeads(state).write(answer, True) for answer in answers]
    for _ in range(3):
        assert [heads.write(answer, True) for answer in answers] == fresh
    assert len({*fresh}) == len(answers)


def test_default_headers_are_those_of_the_moment(state: ServerState) -> None:
    heads = AnswerHeads(state)
    heads.write(Response(200, JSON, b"1"), True)
    state.default_headers = [(b"date", b"tomorrow")]
    assert b"date: tomorrow\r\n" in heads.write(Response(200, JSON, b"1"), True)


def test_what_is_remembered_is_bounded(state: ServerState) -> None:
    """A client that has another thing echoed each time, or gets another length, is answered well all the same."""
    heads = AnswerHeads(state)
    for number in range(600):
        echoed = Response(200, ((b"x-echo", b"%d" % number),), b"")
        assert b"x-echo: %d\r\ncontent-length: 0\r\n" % number in heads.write(echoed, True)
        assert b"content-length: %d\r\n" % number in heads.write(Response(200, JSON, b"x" * number), True)
    assert len(heads._known) <= 256
    assert max(len(known.by_length) for known in heads._known.values()) <= 256
