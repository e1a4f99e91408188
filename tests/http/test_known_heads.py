"""Which heads are remembered, and what counts as the same request again."""

from __future__ import annotations

import pytest

from byoc_server.http.dialect import INVOCATIONS, head_of
from byoc_server.http.known_heads import KnownHeads

HEAD = b"POST /invocations HTTP/1.1\r\nContent-Length: 3\r\n\r\n"
PARSED = head_of({b"content-length": b"3"}, INVOCATIONS)


def remembering(data: bytes, body_bytes: int = 3) -> KnownHeads:
    heads = KnownHeads()
    heads.remember(data, PARSED, body_bytes)
    return heads


def test_the_same_head_with_another_body_is_known() -> None:
    known = remembering(HEAD + b"[1]").find(HEAD + b"[2]")
    assert known is not None
    assert known.head is PARSED
    assert known.head_bytes == len(HEAD)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"[2",
        HEAD + b"[2]\r\n",
        HEAD + b"[2]" + HEAD + b"[3]",
        HEAD.replace(b"\r\n\r\n", b"\r\nAccept: text/csv\r\n\r\n") + b"[2]",
        HEAD[:-2],
        b"",
    ],
    ids=["short", "more behind it", "two requests", "another head", "part of a head", "nothing"],
)
def test_anything_else_is_not(data: bytes) -> None:
    assert remembering(HEAD + b"[1]").find(data) is None


@pytest.mark.parametrize(
    ("data", "body_bytes"),
    [
        (HEAD.replace(b"\r\n", b"\n") + b"[1]", 3),
        (HEAD.replace(b"\r\n\r\n", b"\n\n") + b"\r\n\r\n[1]\r\n\r\n", 7),
        (b"\r\n\r\n" + HEAD + b"[1]", 3),
        (HEAD + b"[1]\r\n", 3),
        (HEAD.replace(b"\r\n\r\n", b"\r\nX: %b\r\n\r\n" % (b"x" * 3000)) + b"[1]", 3),
    ],
    ids=["bare LF", "an end that only looks like one", "empty lines before", "something behind", "large"],
)
def test_heads_whose_end_is_not_certain_and_large_ones_are_not_remembered(data: bytes, body_bytes: int) -> None:
    assert remembering(data, body_bytes).find(data) is None


@pytest.mark.parametrize("name", [b"x-amzn-sagemaker-inference-id", b"x-amzn-sagemaker-custom-attributes"])
def test_a_head_with_an_id_of_its_own_is_not_remembered(name: bytes) -> None:
    heads = KnownHeads()
    heads.remember(HEAD + b"[1]", head_of({name: b"7"}, INVOCATIONS), 3)
    assert heads.find(HEAD + b"[1]") is None


def test_there_are_never_many() -> None:
    heads = KnownHeads()
    reads = [HEAD.replace(b"\r\n\r\n", b"\r\nX: %d\r\n\r\n" % number) + b"[1]" for number in range(1000)]
    for data in reads:
        heads.remember(data, PARSED, 3)
    found = [heads.find(data) is not None for data in reads]
    assert found[-1]
    assert sum(found) <= 256
