"""Whose turn it is on a device that several models share: deficit round robin. Pure.

Shreedhar and Varghese, "Efficient Fair Queueing Using Deficit Round Robin", SIGCOMM 1995, in the form that needs no
cost in advance: who has credit may run and pays afterwards, so credit can be overdrawn by what one turn costs. When
nobody who waits has any left, all of them get the same. Over any time in which two models both have work waiting, the
seconds they got thus differ by no more than a quantum and what a turn of each costs at most.

Who does not wait gains nothing, and keeps what is owed.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Generic, TypeVar

K = TypeVar("K")


class DeficitRoundRobin(Generic[K]):
    """The order of turns.

    Args:
        quantum_s: seconds that everybody gets at a time.
    """

    def __init__(self, quantum_s: float) -> None:
        self._quantum_s = quantum_s
        self._credit_s: dict[K, float] = {}

    def join(self, key: K) -> None:
        """Take part from now on."""
        self._credit_s[key] = 0.0

    def choose(self, waiting: Container[K]) -> K:
        """Whose turn it is: one that has joined and is among those waiting, of which there is at least one."""
        ready = []
        for key, credit_s in self._credit_s.items():
            if key in waiting:
                ready.append(key)
            elif credit_s > 0:
                self._credit_s[key] = 0.0
        while all(self._credit_s[key] <= 0 for key in ready):  # twice where rounding ate what was given
            least_s = min(-self._credit_s[key] for key in ready)
            more_s = (math.floor(least_s / self._quantum_s) + 1) * self._quantum_s
            for key in ready:
                self._credit_s[key] += more_s
        return next(key for key in ready if self._credit_s[key] > 0)

    def charge(self, key: K, seconds: float) -> None:
        """Let it pay for a turn, or get back (negative) what it has paid too much."""
        left_s = self._credit_s[key] - seconds
        if left_s <= 0 < seconds:  # the turn passes on to those behind
            del self._credit_s[key]
        self._credit_s[key] = left_s
