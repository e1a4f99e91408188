from __future__ import annotations

import pytest

from byoc_server.server.roster import Kind, Role, Roster
from byoc_server.server.workers import Topology, Workers

WORKERS = Workers(Topology.SPLIT, 2, 2, 1, (), "")


def test_cores_come_first() -> None:
    """They take longest to start."""
    roster = Roster(WORKERS)
    assert [roster.take(age) for age in (1, 2, 3, 4)] == [
        Role(Kind.CORE, 0),
        Role(Kind.CORE, 1),
        Role(Kind.FRONT, 0),
        Role(Kind.FRONT, 1),
    ]
    with pytest.raises(LookupError):
        roster.take(5)


def test_who_comes_next_takes_the_role_of_who_has_died() -> None:
    roster = Roster(WORKERS)
    for age in (1, 2, 3, 4):
        roster.take(age)
    assert roster.give_back(3) == Role(Kind.FRONT, 0)
    assert roster.give_back(2) == Role(Kind.CORE, 1)
    assert roster.take(5) == Role(Kind.CORE, 1)
    assert roster.take(6) == Role(Kind.FRONT, 0)
    assert roster.give_back(5) == Role(Kind.CORE, 1)
