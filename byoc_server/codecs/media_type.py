"""Media types and their parameters, as ``Content-Type``, ``Accept`` and the parts of a form spell them.

Follows RFC 9110 (June 2022), section 8.3.1: names and parameter names compare without case, values may be quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*({_TOKEN})/({_TOKEN})\s*")
_PARAMETER = re.compile(rf'\s*;\s*(?:({_TOKEN})\s*=\s*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")\s*)?')
_MAX_CHARACTERS = 1024
"""A longer media type is malformed: this runs on the event loop."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A parsed media type or media range.

    Attributes:
        type: e.g. ``application``, in lower case.
        subtype: e.g. ``json``, in lower case.
        parameters: names in lower case, values unquoted.
    """

    type: str
    subtype: str
    parameters: Mapping[str, str]

    @property
    def essence(self) -> str:
        """``type/subtype``."""
        return f"{self.type}/{self.subtype}"


def parse_media_type(text: str) -> MediaType | None:
    """Parse one media type; ``None`` if it is malformed."""
    match = _TYPE.match(text)
    if match is None or len(text) > _MAX_CHARACTERS:
        return None
    parameters = parse_parameters(text[match.end() :])
    return None if parameters is None else MediaType(match[1].lower(), match[2].lower(), parameters)


def parse_parameters(text: str) -> dict[str, str] | None:
    """Parse ``; NAME=VALUE; NAME="VALUE" ...``.

    Returns:
        Values by name, the names in lower case; the first of several with one name. ``None`` if it is malformed.
    """
    parameters: dict[str, str] = {}
    position = 0
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            return None
        position = parameter.end()
        name, token, quoted = parameter.groups()
        if name:
            parameters.setdefault(name.lower(), token if token is not None else re.sub(r"\\(.)", r"\1", quoted))
    return parameters
