"""The cost model: how long a batch of b records takes, measured at warm-up.

Pure. From a few measured sizes ("rungs") follow the largest batch worth forming, the time of a batch in between, and
with it whether a batch may run on the event loop and how long a queue will take.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

LARGEST_RUNG = 256
"""No rung above this: on every CPU measured, throughput is flat long before."""
_WORTHWHILE_GAIN = 1.05
"""A larger batch must bring 5 % more rows a second to be worth its latency."""
_RUNGS_WITHOUT_GAIN = 2
"""Climbing ends after so many rungs in a row that gained nothing."""
INLINE_SECONDS = 0.0002
"""A batch this short runs on the event loop: handing it to a thread and back costs about as much."""


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Measured seconds by batch size.

    Attributes:
        rungs: (rows, seconds) in ascending order of rows; empty when nothing could be measured.
    """

    rungs: tuple[tuple[int, float], ...] = ()

    def seconds(self, rows: int) -> float | None:
        """Expected seconds of a batch: linear between rungs, proportional above the last; ``None`` when unknown."""
        if not self.rungs:
            return None
        index = bisect_left(self.rungs, (rows, 0.0))
        if index == len(self.rungs):
            last_rows, last_s = self.rungs[-1]
            return last_s * rows / last_rows
        high_rows, high_s = self.rungs[index]
        if index == 0 or high_rows == rows:
            return high_s
        low_rows, low_s = self.rungs[index - 1]
        return low_s + (high_s - low_s) * (rows - low_rows) / (high_rows - low_rows)

    @property
    def best_batch_size(self) -> int:
        """The size with the best throughput; of sizes within 5 % of it the smallest. 1 when unknown."""
        if not self.rungs:
            return 1
        best = max(rows / seconds for rows, seconds in self.rungs)
        return next(rows for rows, seconds in self.rungs if rows / seconds * _WORTHWHILE_GAIN >= best)

    @property
    def rows_per_s(self) -> float | None:
        """Throughput at the best batch size, in rows a second; ``None`` when unknown."""
        seconds = self.seconds(self.best_batch_size)
        return None if seconds is None else self.best_batch_size / seconds


def climb(measure: Callable[[int], float], largest: int, budget_s: float) -> BatchProfile:
    """Measure batch sizes 1, 2, 4, ... until throughput stops growing.

    Args:
        measure: runs batches of so many rows and returns the seconds of one. If it raises, the climb ends below: a
            batch may be too large for the memory of the device.
        largest: no rung above this.
        budget_s: end once the next rung would probably take the measured total over this.

    Returns:
        At least the rung of one row.

    Raises:
        Exception: what ``measure`` raised for one row.
    """
    rungs: list[tuple[int, float]] = []
    best_rows_per_s, without_gain, spent_s, rows = 0.0, 0, 0.0, 1
    while True:
        try:
            seconds = max(measure(rows), 1e-9)
        except Exception:  # whatever the engine raises
            if not rungs:
                raise
            return BatchProfile(tuple(rungs))
        rungs.append((rows, seconds))
        spent_s += seconds
        if rows / seconds > best_rows_per_s * _WORTHWHILE_GAIN:
            without_gain = 0
        else:
            without_gain += 1
        best_rows_per_s = max(best_rows_per_s, rows / seconds)
        # A rung costs two to three runs of up to twice the time of the one before.
        if rows >= largest or without_gain == _RUNGS_WITHOUT_GAIN or spent_s + 6 * seconds > budget_s:
            return BatchProfile(tuple(rungs))
        rows = min(rows * 2, largest)
