"""Codecs of other installed packages, found by their entry points.

A package adds a format by one line in its metadata, which names a ``CodecEntry``::

    [project.entry-points."byoc_server.codecs"]
    geojson = "my_package.geojson:ENTRY"
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

GROUP = "byoc_server.codecs"


def plug_ins(search_path: Sequence[str] | None = None) -> list[tuple[str, Callable[[], object]]]:
    """Find what installed packages offer.

    Args:
        search_path: folders that packages are installed in; ``None`` = those that Python imports from.

    Returns:
        Each entry point as it is declared, and what imports it, in the order of their names.
    """
    if not _any_declared(sys.path if search_path is None else search_path):
        return []
    from importlib.metadata import distributions  # noqa: PLC0415  # importing and asking it takes 15 ms of every start

    found = distributions() if search_path is None else distributions(path=list(search_path))
    points = [point for package in found for point in package.entry_points if point.group == GROUP]
    unique = {f"{point.name} = {point.value}": point.load for point in points}  # a package may be found twice
    return sorted(unique.items(), key=itemgetter(0))


def _any_declared(search_path: Sequence[str]) -> bool:
    """Whether the name of the group stands in the metadata of any package that this user may read."""
    return any(_declares(Path(folder)) for folder in search_path)


def _declares(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # what may not be read cannot be imported either
        return any(GROUP.encode() in file.read_bytes() for file in folder.glob("*.dist-info/entry_points.txt"))
    return False
