"""The table of all fuzz targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.fuzz.connections import check_connection
from benchmarks.fuzz.decoders import check_decoder, decoder_entries
from benchmarks.fuzz.headers import check_content_coding, check_negotiation

Check = Callable[[bytes], None]
"""Takes one input; raises at whatever should not happen."""

CONNECTION, CONTENT_CODING, NEGOTIATION = "connection", "content-coding", "negotiation"


def targets() -> dict[str, Check]:
    """Name -> check: a decoder goes by its media type."""
    decoders = {name: partial(check_decoder, entry) for name, entry in decoder_entries().items()}
    heads = {CONNECTION: check_connection, CONTENT_CODING: check_content_coding, NEGOTIATION: check_negotiation}
    return {**decoders, **heads}
