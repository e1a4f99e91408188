"""What all benchmarks share on their way out: the command line, the table, the JSON file."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import environment

_RESULTS = Path(__file__).resolve().parent / "results"

Row = Mapping[str, object]
T = TypeVar("T")


class BenchmarkError(Exception):
    """The benchmark cannot run, or what it measured is not worth anything. The message says why."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure this project wants to hold.

    Attributes:
        what: the figure in words.
        measured: its value.
        bound: what it should be.
        at_most: whether the bound is an upper one.
    """

    what: str
    measured: float
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is within its bound."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def describe(self) -> str:
        """One line for a person."""
        sign = "<=" if self.at_most else ">="
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {self.measured:.2f} (goal {sign} {self.bound:.2f})"


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found out.

    Attributes:
        settings: how it was measured: rounds, seconds, cores.
        rows: the table, with the same keys in every row.
        goals: the figures among them that are wanted.
        rounds: the single measurements behind the medians.
    """

    settings: Row
    rows: Sequence[Row]
    goals: Sequence[Goal]
    rounds: Sequence[Row]


def run(name: str, description: str | None, measure: Callable[[bool], Report]) -> int:
    """Run a benchmark from the command line: print its table, write its JSON file.

    Args:
        name: of the module, and of the file in ``benchmarks/results``.
        description: for ``--help``.
        measure: takes whether the run is a short one, whose figures mean nothing.

    Returns:
        The exit code: 0 also when a goal is missed, which is a finding and no failure.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short run that shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=_RESULTS / f"{name}.json", help="the JSON file to write")
    options = parser.parse_args()
    try:
        report = measure(options.quick)
    except BenchmarkError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print("\n".join([table(report.rows), "", *(goal.describe() for goal in report.goals)]))
    _write(options.output, name, options.quick, report)
    return 0


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios round by round: what disturbs a whole round disturbs both sides of it."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def progress(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def in_turns(samplers: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Take every sample once unmeasured, then ``rounds`` times in turns, each round beginning with another one."""
    for sample in samplers.values():
        sample()
    samples: dict[str, list[T]] = {name: [] for name in samplers}
    names = list(samplers)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
    return samples


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _write(path: Path, name: str, quick: bool, report: Report) -> None:
    document = {"benchmark": name, "quick": quick, "environment": environment.stamp(), **asdict(report)}
    for goal, fields in zip(report.goals, document["goals"], strict=True):
        fields["met"] = goal.met
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
