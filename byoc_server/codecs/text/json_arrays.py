"""Large arrays of plain numbers, read apart from the JSON document that they stand in.

They are cut out of the text, the little document that is left is parsed as ever, with a text in the place of each
array, and ``number_arrays`` reads each into the dtype of what it is for. That works where an array is the whole body or
the value of a key, and where not many keys and texts stand around it; anything else is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from byoc_server.codecs.open_inference.data import DATATYPES
from byoc_server.codecs.open_inference.request import is_request
from byoc_server.codecs.text.number_arrays import read_array
from byoc_server.codecs.text.number_text import NotPlainError
from byoc_server.types import Signature, TensorSpec

LARGE_BYTES = 16 * 1024
"""Smaller arrays are read sooner as lists."""

_MOST_QUOTES = 200
_NUMBER_KINDS = "fiu"


class _Place(NamedTuple):
    """Where an array belongs.

    Attributes:
        holder: the object.
        key: in it.
        spec: the input that it is for; ``None`` if that is not known.
        dtype: that it is to be read into; ``None`` if that is not known.
    """

    holder: dict[Any, object]
    key: Any
    spec: TensorSpec | None
    dtype: np.dtype[np.generic] | None


def document_with_arrays(body: bytes, signature: Signature) -> object | None:
    """Parse a document with arrays in the place of large lists of numbers.

    Data of an Open Inference request gets the dtype that the request declares, all else that of its input.

    Returns:
        The document, or ``None`` if it has no such list or anything in it is not plain, right or wrong.
    """
    spans: dict[object, tuple[int, int]] = {}
    try:
        document = _without_arrays(body, spans)
        if not spans:
            return None
        holder: dict[Any, object] = {None: document}
        found = (
            _places_in_request(document, signature) if is_request(document, signature) else _places(holder, signature)
        )
        places = [place for place in found if place.holder[place.key] in spans]
        if len(places) < len(spans):
            return None
        for at, key, spec, dtype in places:
            if spec is None or dtype is None or dtype.kind not in _NUMBER_KINDS:
                return None
            at[key] = read_array(body, *spans[at[key]], dtype, signature.record_shapes[spec.name])
    except (NotPlainError, orjson.JSONDecodeError):
        return None
    return holder[None]


def _without_arrays(body: bytes, spans: dict[object, tuple[int, int]]) -> object:
    """Parse what is left without the arrays.

    Args:
        body: the document.
        spans: learns where the arrays were, by the texts that now stand in their places; empty if there are none.

    Raises:
        NotPlainError: something large is no array, or it cannot be told what is one.
    """
    quotes = _quotes(body)
    if b"b64" in [body[first + 1 : last] for first, last in zip(quotes[::2], quotes[1::2], strict=True)]:
        raise NotPlainError
    texts: list[bytes] = []
    done = 0
    edges = [-1, *quotes, len(body)]
    for number in range(0, len(edges), 2):  # between two texts
        first, last = edges[number] + 1, edges[number + 1]
        if last - first < LARGE_BYTES:
            continue
        brace = body.find(b"}", first, last)
        start = body.find(b"[", first, last)
        end = body.rfind(b"]", first, last if brace < 0 else brace) + 1
        if start < 0 or end - start < LARGE_BYTES:
            raise NotPlainError
        # With no backslash in the body, no text of the sender's has this character.
        texts += [body[done:start], b'"\\u0000%d"' % len(spans)]
        spans[f"\0{len(spans)}"] = (start, end)
        done = end
    return orjson.loads(b"".join([*texts, body[done:]])) if spans else None


def _quotes(body: bytes) -> list[int]:
    """Places of the quotation marks.

    Raises:
        NotPlainError: they are many, or one may stand within a text.
    """
    places: list[int] = []
    place = -1 if b"\\" in body else body.find(b'"')
    while place >= 0 and len(places) <= _MOST_QUOTES:
        places.append(place)
        place = body.find(b'"', place + 1)
    if b"\\" in body or len(places) > _MOST_QUOTES or len(places) % 2:
        raise NotPlainError
    return places


def _places(value: object, signature: Signature) -> Iterator[_Place]:
    """Places of texts in objects, also in those that are in lists and objects."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _places(item, signature)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                spec = signature.sole_input or signature.input_by_name.get(key)
                yield _Place(value, key, spec, spec.dtype if spec else None)
            else:
                yield from _places(item, signature)


def _places_in_request(document: Any, signature: Signature) -> Iterator[_Place]:
    """Places of data that is a text among the inputs of an Open Inference request."""
    for item in document["inputs"]:
        if isinstance(item, dict) and isinstance(item.get("data"), str):
            name, datatype = item.get("name"), item.get("datatype")
            spec = signature.input_by_name.get(name) if isinstance(name, str) else None
            yield _Place(item, "data", spec, DATATYPES.get(datatype) if isinstance(datatype, str) else None)
