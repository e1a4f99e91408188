"""Bytes in JSON: ``{"b64": "..."}`` wherever a value may stand, as TensorFlow Serving takes them.

What the bytes are depends on the input: text, elements, or an image file (``records``).

The alphabet is the standard one with padding (RFC 4648, section 4, October 2006; TensorFlow Serving's RESTful API,
"Encoding binary values").
"""

from __future__ import annotations

import base64
from typing import Any

from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload
from byoc_server.types import Signature

_KEY = "b64"
_SHOWN_CHARACTERS = 200


def may_hold_base64(body: bytes, signature: Signature) -> bool:
    """Whether it is worth looking for such values: a model with an input of that name keeps it for itself."""
    return b'"b64"' in body and _KEY not in signature.input_by_name


def with_bytes(document: object, root: str) -> object:
    """Put ``bytes`` in the place of every ``{"b64": TEXT}``, in the lists and objects themselves.

    Args:
        document: as a JSON parser returns it.
        root: how error messages call it; empty if they begin with the key.

    Raises:
        InvalidPayload: a text that is not base64, by its place.
    """
    holder = [document]
    # A chain of keys for every container, and not its path as text: keys may be long, and containers many.
    waiting: list[tuple[Any, _Place]] = [(holder, ())]
    while waiting:
        container, place = waiting.pop()
        for key, item in enumerate(container) if isinstance(container, list) else container.items():
            if isinstance(item, dict) and len(item) == 1 and _KEY in item:
                container[key] = _decoded(item[_KEY], (place, key), root)
            elif isinstance(item, dict | list):
                waiting.append((item, (place, key)))
    return holder[0]


_Place = tuple[Any, ...]
"""Empty, or the place of the container and the key or number in it."""


def _decoded(text: object, place: _Place, root: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
        reason = f"it is {shown(text)}"
    except ValueError as error:
        reason = str(error)
    where = _text(place, root)
    raise InvalidPayload(
        f"{where}: 'b64' is not base64 text: {reason}", field=where, expected="base64 text", got=shown(text)
    )


def _text(place: _Place, root: str) -> str:
    keys = []
    while place:
        place, key = place
        keys.append(key)
    text = root
    for key in keys[-2::-1]:  # the last one is the number of the document in its holder
        text += f"[{key}]" if isinstance(key, int) else f".{key[:_SHOWN_CHARACTERS]}" if text else key
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
