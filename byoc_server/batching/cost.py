"""What a batch costs, from what was measured before serving, and refined by what batches take. Pure of clocks.

Two things are told apart. What a batch takes *by itself* decides how large batches get and whether they run on the
event loop. Everything that disturbs a run makes it longer, so estimates move quickly down and slowly up, and no single
run by much: they settle near the fastest fifth. What it takes *in service*, with everything that disturbs it, decides
how long a queue lasts: the ``stretch`` is the mean of how much longer that was.

Costs are counted by the work of a batch: its rows times the longest record (in positions; 1 for fixed shapes).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from byoc_server.batching.profile import TOO_SHORT_TO_SEE_S, best_rung, interpolate, is_worthwhile

_DOWN, _UP = 1 / 4, 1 / 32
"""Share of a difference that an estimate follows."""
_MOST = 2.0
"""A run that took longer than twice the estimate counts as twice."""
_STRETCH_WEIGHT = 1 / 16
_STRETCH_MOST = 4.0
"""A batch held up for longer than four times as long as usual counts as four times."""
_REVIEW_EVERY = 64
"""Batches between two looks at the best size."""
_REST = 1 / 2
"""Share by which rungs that no batch came near follow the others at each review."""


class CostModel:
    """Seconds of a batch by its work.

    Args:
        rungs: (work, seconds) as measured, in ascending order of work; empty when nothing could be measured. Then the
            first batch tells.

    Attributes:
        best_work: work of the largest useful batch; 1 when nothing could be measured, as nothing shows that batches
            are any good.
        stretch: how much longer batches take in service than by themselves.
    """

    def __init__(self, rungs: Sequence[tuple[int, float]] = ()) -> None:
        self._works = [work for work, _ in rungs]
        self._measured = [seconds for _, seconds in rungs]
        self._seconds = list(self._measured)
        self._visited = [False] * len(rungs)
        self._until_review = _REVIEW_EVERY
        self.best_work = best_rung(rungs)
        self.stretch = 1.0

    def seconds(self, work: int) -> float | None:
        """Expected seconds of a batch by itself; ``None`` when unknown."""
        return interpolate(self._works, self._seconds, work) if self._works else None

    def wait_s(self, work: int, batch_work: int) -> float:
        """Seconds in service of so much work, in batches of ``batch_work``; 0 when unknown."""
        if not self._works:
            return 0.0
        full, rest = divmod(work, batch_work)
        seconds = full * interpolate(self._works, self._seconds, batch_work) if full else 0.0
        if rest:
            seconds += interpolate(self._works, self._seconds, rest)
        return seconds * self.stretch

    def wait_at_most_s(self, work: int) -> float:
        """No less than ``wait_s``, at less cost: as if nothing were gained by batches."""
        return (work / self._works[0] + 1) * self._seconds[0] * self.stretch if self._works else 0.0

    def work_within(self, seconds: float) -> float:
        """The work for which ``wait_at_most_s`` is so long; below 0 where nothing is done as soon."""
        if not self._works:
            return math.inf
        return (seconds / (self._seconds[0] * self.stretch) - 1) * self._works[0]

    def observe(self, work: int, seconds: float) -> None:
        """Learn from a batch that took so long by itself."""
        works = self._works
        seconds = max(seconds, TOO_SHORT_TO_SEE_S)
        if not works:
            works.append(work)
            self._measured.append(seconds)
            self._seconds.append(seconds)
            self._visited.append(True)
            return
        ratio = seconds / interpolate(works, self._seconds, work)
        factor = 1 + (_DOWN * (ratio - 1) if ratio < 1 else _UP * (min(ratio, _MOST) - 1))
        index = bisect_left(works, work)
        if index < len(works):
            self._seconds[index] *= factor
            self._visited[index] = True
        if index and (index == len(works) or works[index] != work):
            self._seconds[index - 1] *= factor
            self._visited[index - 1] = True
        self._until_review -= 1
        if not self._until_review:
            self._until_review = _REVIEW_EVERY
            if len(works) > 1:
                self._review()

    def observe_service(self, expected_s: float, seconds: float) -> None:
        """Learn from a batch that was expected to take so long by itself, and held its place for ``seconds``."""
        stretch = min(max(seconds / expected_s, 1.0), _STRETCH_MOST * self.stretch)
        self.stretch += _STRETCH_WEIGHT * (stretch - self.stretch)

    def _review(self) -> None:
        """Let the rungs that nobody visited follow those that were, and look for a better size.

        A rung that went out of use because it got dear once is thus given another chance.
        """
        factors = [s / m for s, m, visited in zip(self._seconds, self._measured, self._visited, strict=True) if visited]
        follow = sum(factors) / len(factors)
        for index, visited in enumerate(self._visited):
            if not visited:
                self._seconds[index] += _REST * (self._measured[index] * follow - self._seconds[index])
        self._visited = [False] * len(self._works)
        best = best_rung(list(zip(self._works, self._seconds, strict=True)))
        if is_worthwhile(self._throughput(best), self._throughput(self.best_work)):
            self.best_work = best

    def _throughput(self, work: int) -> float:
        return work / interpolate(self._works, self._seconds, work)
