"""Which process has which role: the first free place is taken by whoever starts next. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from byoc_server.server.workers import Workers


class Kind(enum.Enum):
    """What a process does."""

    FRONT = "front"
    """It serves HTTP, and in the inline topology runs the model as well."""
    CORE = "core"
    """It runs the model for the fronts."""


@dataclass(frozen=True, slots=True)
class Role:
    """The part of one process.

    Attributes:
        kind: what it does.
        index: its number among those of its kind, from 0; another process takes it over when this one has died.
    """

    kind: Kind
    index: int


class Roster:
    """The roles of one server and who has them. Core processes come first: they take longest to start."""

    def __init__(self, workers: Workers) -> None:
        cores = [Role(Kind.CORE, index) for index in range(workers.cores)]
        fronts = [Role(Kind.FRONT, index) for index in range(workers.fronts)]
        self._free = [*cores, *fronts]
        self._order = tuple(self._free)
        self._taken: dict[int, Role] = {}

    def take(self, age: int) -> Role:
        """Give a role to the process that is the ``age``-th to be started.

        Raises:
            LookupError: there are more processes than roles.
        """
        if not self._free:
            raise LookupError("there are more processes than roles")
        role = self._taken[age] = self._free.pop(0)
        return role

    def give_back(self, age: int) -> Role:
        """The process has ended; its role goes to the next one."""
        role = self._taken.pop(age)
        self._free = [other for other in self._order if other in self._free or other == role]
        return role
