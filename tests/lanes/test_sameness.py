"""The whole corpus, in both lanes: the same bytes come back, and the connection ends the same way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.lanes.case import Case, again
from tests.lanes.corpus import ALL
from tests.lanes.player import Transcript, is_head, play
from tests.server_process import ServerProcess, wait_for

_LARGE_BYTES = 2000
"""Too much to be sent again and again."""
_GIVEN_OUT = re.compile(r"[0-9a-f]+-[0-9a-f]+-[0-9a-f]+\Z")
"""An id of the server's own."""


def check(case: Case, servers: Mapping[str, ServerProcess]) -> None:
    """Play it in both lanes."""
    played = {lane: play(server, case) for lane, server in servers.items()}
    fast, ordinary = played["fast"], played["ordinary"]
    assert statuses(case, ordinary) == case.statuses + (200,) * case.kept, ordinary
    assert fast == ordinary


def statuses(case: Case, transcript: Transcript) -> tuple[int, ...]:
    return transcript.statuses_without_bodies if is_head(case) else transcript.statuses


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in ALL).items() if count > 1] == []


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_both_lanes_answer_the_same(inline: Mapping[str, ServerProcess], case: Case) -> None:
    check(case, inline)


def test_both_lanes_answer_the_same_to_what_they_know_already(inline: Mapping[str, ServerProcess]) -> None:
    """Nothing that is remembered of a request, on its connection or any other, changes the next."""
    for case in ALL:
        raw = case.steps[0]
        if case.kept and len(case.steps) == 3 and isinstance(raw, bytes) and len(raw) < _LARGE_BYTES:
            check(again(f"again: {case.name}", raw, *case.statuses), inline)


def test_both_lanes_answer_the_same_in_the_split_topology(split: Mapping[str, ServerProcess]) -> None:
    for case in ALL[::5]:
        check(case, split)


def test_both_lanes_log_the_same(inline: Mapping[str, ServerProcess]) -> None:
    """Whoever reads the log need not know which way a request went.

    But for one with nonsense right behind it, which is what is answered: the ordinary lane has begun it by then.
    """
    cases = [case for case in ALL if case.cut_anywhere][::4]
    before = {lane: logged(server) for lane, server in inline.items()}
    for server in inline.values():
        for case in cases:
            play(server, case)
    wait_for(
        lambda: logged(inline["fast"]) - before["fast"] == logged(inline["ordinary"]) - before["ordinary"],
        "the same is in both logs",
    )
    assert (logged(inline["fast"]) - before["fast"]).total() > len(cases) / 2


def logged(server: ServerProcess) -> Counter[tuple[Any, ...]]:
    """What the log says of invocations, without what differs from one run to the next."""
    fields = ("id", "level", "status", "rows", "request_bytes", "response_bytes", "code", "message")
    lines = [{**line, "id": _GIVEN_OUT.sub("", line["id"])} for line in server.events("request")]
    return Counter(tuple(line.get(field) for field in fields) for line in lines)
