"""Large arrays of plain numbers, read apart from the JSON document that they stand in.

They are cut out of the text, ``number_arrays`` reads each into the dtype of its input, and the little document that is
left is parsed as ever, with a text in the place of each array. That works where an array is the whole body or the value
of a key, and where not many keys and texts stand around it; anything else is left to the caller.
"""

from __future__ import annotations

import orjson

from byoc_server.codecs.text.number_arrays import read_array
from byoc_server.codecs.text.number_text import NotPlainError
from byoc_server.types import Array, Signature, TensorSpec

LARGE_BYTES = 16 * 1024
"""Smaller arrays are read sooner as lists."""

_MOST_QUOTES = 200


def document_with_arrays(body: bytes, signature: Signature) -> object | None:
    """Parse a document with arrays in the place of large lists of numbers.

    Returns:
        The document, or ``None`` if it has no such list or anything in it is not plain, right or wrong.
    """
    quotes = _quotes(body)
    if quotes is None or b"b64" in [
        body[first + 1 : last] for first, last in zip(quotes[::2], quotes[1::2], strict=True)
    ]:
        return None
    arrays: list[Array] = []
    texts: list[bytes] = []
    done = 0
    edges = [-1, *quotes, len(body)]
    try:
        for number in range(0, len(edges), 2):  # between two texts
            first, last = edges[number] + 1, edges[number + 1]
            if last - first < LARGE_BYTES:
                continue
            brace = body.find(b"}", first, last)
            start = body.find(b"[", first, last)
            end = body.rfind(b"]", first, last if brace < 0 else brace) + 1
            spec = _spec(body[edges[number - 1] + 1 : first - 1] if number else None, signature)
            if spec is None or start < 0 or end - start < LARGE_BYTES:
                return None
            arrays.append(read_array(body, start, end, spec.dtype, signature.record_shapes[spec.name]))
            # With no backslash in the body, no text of the sender's has this character.
            texts += [body[done:start], b'"\\u0000%d"' % len(arrays)]
            done = end
        document = orjson.loads(b"".join([*texts, body[done:]])) if arrays else None
    except (NotPlainError, orjson.JSONDecodeError):
        return None
    waiting = {f"\0{number}": array for number, array in enumerate(arrays, 1)}
    document = _with_arrays(document, waiting)
    return None if waiting else document


def _quotes(body: bytes) -> list[int] | None:
    """Places of the quotation marks; ``None`` if they are many, or if one may stand within a text."""
    if b"\\" in body:
        return None
    places: list[int] = []
    place = body.find(b'"')
    while place >= 0:
        places.append(place)
        if len(places) > _MOST_QUOTES:
            return None
        place = body.find(b'"', place + 1)
    return None if len(places) % 2 else places


def _spec(key: bytes | None, signature: Signature) -> TensorSpec | None:
    """The input that an array is for; ``None`` if that is not known or holds no numbers."""
    spec = signature.sole_input
    if spec is None and key is not None:
        spec = signature.input_by_name.get(key.decode(errors="replace"))
    return spec if spec is not None and spec.dtype.kind in "fiu" else None


def _with_arrays(value: object, waiting: dict[str, Array]) -> object:
    """Put each array in its place and take it out of ``waiting``: at the top, or in an object in objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _with_arrays(item, waiting)
    elif isinstance(value, str):
        return waiting.pop(value, value)
    return value
