"""Requests as bytes, a file a topic; ``ALL`` is all of them."""

from __future__ import annotations

from tests.lanes.case import Case
from tests.lanes.corpus import bodies, chunks, connections, fields, lengths, nonsense, pipelines, targets

ALL: tuple[Case, ...] = (
    *bodies.CASES,
    *fields.CASES,
    *targets.CASES,
    *lengths.CASES,
    *chunks.CASES,
    *connections.CASES,
    *pipelines.CASES,
    *nonsense.CASES,
)
