"""``Content-Type`` and ``Accept`` -> codecs, or 415 and 406. Pure.

Follows RFC 9110 (June 2022), sections 8.3 (media types) and 12.5.1 (Accept): names and parameter names compare
without case, values may be quoted, the most specific range decides a type's weight, q=0 forbids. Among types of equal
weight those the client named win over those a wildcard covers, then the request's own format, then the order of the
client, then the order of the codec table.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from byoc_server.codecs.base import (
    CodecEntry,
    all_codecs,
    answer_codecs,
    codecs_by_media_type,
    media_types,
    request_codecs,
)
from byoc_server.codecs.media_type import MediaType, parse_media_type
from byoc_server.errors import NotAcceptable, UnsupportedMediaType

_QUALITY = re.compile(r"(?:[0-9]\.?|[0-9]?\.[0-9]{1,9})\Z")
"""Wider than the RFC: Java's own client sends ``q=.2``."""
_LIST_PART = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_SHOWN_CHARACTERS = 80
_MAX_RANGES = 64
"""Further ranges are not read: this runs on the event loop."""
_FORM = "application/x-www-form-urlencoded"
_SENT_BY_CURL = " (curl sends it by itself; name the body's own, as in -H 'Content-Type: application/json')"
_EXACT = 2
"""Specificity of a range that names type and subtype."""


def choose_decoder(content_type: str | None, default: str) -> tuple[CodecEntry, Mapping[str, str]]:
    """Find the codec for a request body.

    Args:
        content_type: the header, ``None`` or empty when missing.
        default: media type to assume then.

    Returns:
        The codec and the parameters of the media type.

    Raises:
        UnsupportedMediaType: malformed, or nothing reads it.
    """
    text = content_type if content_type and content_type.strip() else default
    media_type = parse_media_type(text)
    entry = _find(media_type)
    if media_type is None or entry is None or not entry.installed:
        accepted = media_types(request_codecs())
        missing = f" here (it needs {entry.requirement})" if entry is not None else ""
        hint = _SENT_BY_CURL if media_type is not None and media_type.essence == _FORM else ""
        raise UnsupportedMediaType(
            f"Content-Type {_shown(text)} is not supported{missing}{hint}; use {', '.join(accepted)}",
            accepted=accepted,
        )
    return entry, media_type.parameters


def _find(media_type: MediaType | None) -> CodecEntry | None:
    return codecs_by_media_type().get(media_type.essence) if media_type else None


def choose_encoder(
    accept: str | None, default: str, request_format: CodecEntry, outputs: int = 1
) -> tuple[CodecEntry, str]:
    """Find the codec for the answer.

    Args:
        accept: all ``Accept`` headers joined by commas; ``None`` or empty when missing.
        default: the answer's media type when the client does not care: an empty or no header, or only ``*/*``.
        request_format: the codec of the request.
        outputs: how many the model has; a format that cannot carry them is not offered.

    Returns:
        The codec, and the name the client asked for it by: that is what the answer is called.

    Raises:
        NotAcceptable: nothing in the header can be produced.
    """
    ranges = _parse_accept(accept) if accept and accept.strip(" \t,") else [_Range("*", "*", 1.0, 0)]
    entries = [entry for entry in answer_codecs() if outputs == 1 or not entry.sole_output]
    weights = {entry.media_type: _weigh(entry, ranges) for entry in entries}
    best = max(quality for quality, _ in weights.values())
    if best <= 0:
        accepted = media_types(entries)
        missing = [e for e in all_codecs() if not e.installed and any(r.covers(e.media_type) for r in ranges)]
        needs = "".join(f" ({entry.media_type} needs {entry.requirement})" for entry in missing[:1])
        raise NotAcceptable(
            f"Accept {_shown(accept or '')} cannot be met{needs}; available are {', '.join(accepted)}",
            accepted=accepted,
        )
    tied = [entry for entry in entries if weights[entry.media_type][0] == best]
    named = [entry for entry in tied if weights[entry.media_type][1].specificity > 0]
    if not named:
        default_type = parse_media_type(default)
        default_entry = _find(default_type)
        if default_type is None or default_entry not in entries:
            accepted = media_types(entries)
            raise NotAcceptable(
                f"the default format {_shown(default)} of this server cannot be produced; "
                f"ask by Accept for one of {', '.join(accepted)}",
                accepted=accepted,
            )
        if default_entry in tied:
            return default_entry, default_type.essence
    candidates = named or tied
    if request_format in candidates:
        entry = request_format
    else:
        entry = min(candidates, key=lambda entry: weights[entry.media_type][1].position)
    chosen = weights[entry.media_type][1]
    return entry, f"{chosen.type}/{chosen.subtype}" if chosen.specificity == _EXACT else entry.media_type


@dataclass(frozen=True, slots=True)
class _Range:
    type: str
    subtype: str
    quality: float
    position: int

    @property
    def specificity(self) -> int:
        return (self.type != "*") + (self.subtype != "*")

    def covers(self, name: str) -> bool:
        kind, _, subtype = name.partition("/")
        return self.type in ("*", kind) and self.subtype in ("*", subtype)


def _parse_accept(accept: str) -> list[_Range]:
    """Parse the list; a malformed part is passed over, as it can only be a wish for something unknown."""
    ranges = []
    for position, part in enumerate(itertools.islice(_LIST_PART.finditer(accept), _MAX_RANGES)):
        media_type = parse_media_type(part[0])
        if media_type is None or (media_type.type == "*" and media_type.subtype != "*"):
            continue
        quality = media_type.parameters.get("q", "1")
        if _QUALITY.match(quality):
            ranges.append(_Range(media_type.type, media_type.subtype, min(1.0, float(quality)), position))
    return ranges


def _weigh(entry: CodecEntry, ranges: Sequence[_Range]) -> tuple[float, _Range]:
    """The weight of a format: that of the most specific range that covers one of its names."""
    none = _Range("*", "*", 0.0, len(ranges))
    covering = [r for r in ranges if any(r.covers(name) for name in (entry.media_type, *entry.aliases))]
    if not covering:
        return 0.0, none
    chosen = max(covering, key=lambda r: (r.specificity, r.quality, -r.position))
    return chosen.quality, chosen


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
