"""What a model was measured to cost: seconds of batches of 1, 2, 4, ... records, taken before it is ready. Pure.

The sizes ("rungs") are those of a ladder, run from the largest down: memory that the engine keeps is then asked for
once, and what larger batches have warmed up serves the smaller ones.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LARGEST_RUNG = 256
"""No rung above this unless the user wants it: on every CPU measured, throughput is flat long before."""
_WORTHWHILE_GAIN = 1.05
"""A larger batch must bring 5 % more a second to be worth its latency."""
_RUNS_OF_A_RUNG = 3
"""What a rung that takes long is measured by, its warm-up included."""
TOO_SHORT_TO_SEE_S = 1e-9
"""What a batch takes at least, by a clock that did not see it."""


class DoesNotFit(Exception):
    """A batch is too large for the memory of the device."""


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Measured seconds by batch size.

    Attributes:
        rungs: (rows, seconds) in ascending order of rows; empty when nothing could be measured.
        fits: no batch of more rows has room in the memory of the device, as far as was tried; ``None`` when none was
            found too large.
    """

    rungs: tuple[tuple[int, float], ...] = ()
    fits: int | None = None

    def seconds(self, rows: int) -> float | None:
        """Expected seconds of a batch: linear between rungs, proportional above the last; ``None`` when unknown."""
        if not self.rungs:
            return None
        return interpolate([rung for rung, _ in self.rungs], [seconds for _, seconds in self.rungs], rows)

    def work_rungs(self, record_length: int) -> tuple[tuple[int, float], ...]:
        """The rungs as (work, seconds), when each record was so many positions long."""
        return tuple([(rows * record_length, seconds) for rows, seconds in self.rungs])

    @property
    def best_batch_size(self) -> int:
        """The size with the best throughput; of sizes within 5 % of it the smallest. 1 when unknown."""
        return best_rung(self.rungs)

    @property
    def rows_per_s(self) -> float | None:
        """Throughput at the best batch size, in rows a second; ``None`` when unknown."""
        seconds = self.seconds(self.best_batch_size)
        return None if seconds is None else self.best_batch_size / seconds


def interpolate(sizes: Sequence[int], seconds: Sequence[float], size: int) -> float:
    """Seconds at ``size``: those of the first below it, linear in between, proportional above the last.

    Args:
        sizes: ascending, at least one.
        seconds: of each size.
        size: at least 1.
    """
    index = bisect_left(sizes, size)
    if index == len(sizes):
        return seconds[-1] * size / sizes[-1]
    high = seconds[index]
    if index == 0 or sizes[index] == size:
        return high
    low, low_size = seconds[index - 1], sizes[index - 1]
    return low + (high - low) * (size - low_size) / (sizes[index] - low_size)


def best_rung(rungs: Sequence[tuple[int, float]]) -> int:
    """The size with the best throughput; of sizes within 5 % of it the smallest. 1 when there are none."""
    best = max((size / seconds for size, seconds in rungs), default=0.0)
    return next((size for size, seconds in rungs if size / seconds * _WORTHWHILE_GAIN >= best), 1)


def is_worthwhile(throughput: float, than: float) -> bool:
    """Whether it is worth changing the batch size for."""
    return throughput > than * _WORTHWHILE_GAIN


def find_top(probe: Callable[[int], float], largest: int, longest_s: float) -> tuple[int, bool]:
    """How far up the ladder begins: the largest size whose batch takes no longer than so many seconds.

    It begins with one record; each probe tells how far the next one may go.

    Args:
        probe: runs one batch of so many rows and returns its seconds; raises ``DoesNotFit``.
        largest: no rung above this.
        longest_s: of a batch.

    Returns:
        The size, at least 1, and whether the next larger one of the ladder is known not to fit.
    """
    top, seconds = 1, max(probe(1), TOO_SHORT_TO_SEE_S)
    too_large = False
    while True:
        following = _rung_at_most(longest_s * top / seconds, largest)
        while following > top:
            try:
                seconds = max(probe(following), TOO_SHORT_TO_SEE_S)
            except DoesNotFit:
                too_large = True
                largest = following = _rung_below(following)
            else:
                break
        if following <= top:
            return top, too_large
        top = following


def descend(measure: Callable[[int], float], top: int, budget_s: float) -> tuple[tuple[int, float], ...]:
    """Measure the rungs from the top down to one record.

    Args:
        measure: runs batches of so many rows, and returns the seconds of one. If it raises ``DoesNotFit``, the rung is
            left out.
        top: the first.
        budget_s: rungs are left out when what was measured has taken so long; the last one never is.

    Returns:
        (rows, seconds) in ascending order.
    """
    rungs: list[tuple[int, float]] = []
    rows, spent_s = top, 0.0
    while rows:
        if spent_s <= budget_s or rows == 1:
            with contextlib.suppress(DoesNotFit):
                seconds = max(measure(rows), TOO_SHORT_TO_SEE_S)
                rungs.append((rows, seconds))
                spent_s += _RUNS_OF_A_RUNG * seconds
        rows = _rung_below(rows)
    return tuple(reversed(rungs))


def _rung_below(rows: int) -> int:
    """The next lower power of two; 0 below 1."""
    return 1 << ((rows - 1).bit_length() - 1) if rows > 1 else 0


def _rung_at_most(rows: float, largest: int) -> int:
    """The largest rung up to ``rows``: a power of two, or ``largest`` itself."""
    return largest if rows >= largest else 1 << (max(1, int(rows)).bit_length() - 1)
