"""What a model was measured to cost: seconds of batches of 1, 2, 4, ... records, taken before it is ready. Pure.

The sizes ("rungs") are those of a ladder, run from the largest down: memory that the engine keeps is then asked for
once, and what larger batches have warmed up serves the smaller ones. A climb finds out before how far up it begins.
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
_SLOW = 1 / 4
"""A record is slow that takes more than this share of the longest batch that is tried without looking at its gain."""
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


class Climb:
    """The sizes tried so far, each larger than the one before.

    Args:
        probe: runs one batch of so many rows and returns its seconds; raises ``DoesNotFit``.
        largest: no larger one is tried.

    Attributes:
        largest: likewise; no more than what was not found too large for the memory of the device.
        fits: ``largest``, if one was found too large; else ``None``.
        spent_s: seconds of all probes.
    """

    def __init__(self, probe: Callable[[int], float], largest: int) -> None:
        self.largest = largest
        self.fits: int | None = None
        self.spent_s = 0.0
        self._probe = probe
        self._before = self._last = (0, 0.0)
        self.step(1)

    @property
    def rows(self) -> int:
        """The largest size that has run."""
        return self._last[0]

    @property
    def grows(self) -> bool:
        """Whether the last step made a difference to the throughput, as far as that can be told."""
        rows, seconds = self._before
        return not rows or is_worthwhile(self._last[0] / self._last[1], than=rows / seconds)

    def expected_s(self, rows: int) -> float:
        """Seconds that a larger batch would take: on a line through the last two."""
        (low, low_s), (high, high_s) = self._before, self._last
        return high_s + (rows - high) * max(0.0, high_s - low_s) / (high - low)

    def rows_within(self, seconds: float) -> float:
        """How many rows run in so many seconds, at the least: as if a larger batch gained nothing."""
        rows, last_s = self._last
        return seconds * rows / last_s

    def step(self, rows: int) -> bool:
        """Try a larger size; returns whether it fits."""
        try:
            seconds = max(self._probe(rows), TOO_SHORT_TO_SEE_S)
        except DoesNotFit:
            self.largest = self.fits = _rung_below(rows)
            return False
        self._before, self._last = self._last, (rows, seconds)
        self.spent_s += seconds
        return True


def find_top(climb: Climb, longest_s: float, budget_s: float, *, wanted: bool = False) -> int:
    """How far up the ladder begins: the largest size, at least 1, whose batch takes no longer than so many seconds.

    Each size tried tells how far the next one may go. That finds nothing where a single record takes long, although a
    model with a high cost of any run may take no longer for many. So where a record is slow, or the user wants large
    batches, it goes on as long as throughput grows and there is time.

    Args:
        climb: has tried one record.
        longest_s: of a batch.
        budget_s: of all that is tried, where it goes on.
        wanted: batches of ``climb.largest`` are what the user wants.
    """
    goes_on = wanted or climb.spent_s > _SLOW * longest_s
    while (rows := _rung_at_most(climb.rows_within(longest_s), climb.largest)) > climb.rows:
        climb.step(rows)
    top = climb.rows
    while goes_on and top < climb.largest and climb.grows:
        left_s = budget_s - climb.spent_s
        rows = min(2 * top, climb.largest)
        if wanted and climb.expected_s(climb.largest) <= left_s:
            rows = climb.largest
        if climb.expected_s(rows) > left_s:
            break
        if climb.step(rows) and (wanted or climb.grows):
            top = rows
    return top


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
