"""Finds the parts of a ``multipart/form-data`` body (RFC 7578, July 2015; RFC 2046, section 5.1.1) where they lie.

Read as the RFCs have it: what stands before the first boundary and behind the last is passed over, blanks may follow a
boundary, and lines end in CR LF. A line of data that begins with the boundary is no data, whatever follows: a sender
has to choose another boundary then.

File names are not looked at, only whether there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from byoc_server.codecs.media_type import parse_parameters
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload

_MAX_PARTS = 1024
_MAX_HEADER_BYTES = 4096
"""Of one part; a name may be long, and browsers write three bytes for some characters of it."""
_PADDING = re.compile(rb"[ \t]*")
_FOLD = re.compile(r"\r\n[ \t]+")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
_ESCAPE = re.compile(r"%(22|0D|0A)", re.IGNORECASE)
"""What browsers write for a quotation mark and the two characters of a line end, and nothing else ("Multipart form
data" of the HTML Living Standard)."""
_PLAIN_ENCODINGS = frozenset(("", "7bit", "8bit", "binary"))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        content_type: as it came, ``None`` if there was none or an empty one.
        is_file: whether a file name came with it.
        start: where its data begins in the body.
        end: the byte after its data.
    """

    name: str
    content_type: str | None
    is_file: bool
    start: int
    end: int


def find_parts(body: bytes, boundary: str) -> list[Part]:
    """Find all parts, in order.

    Args:
        body: of the request.
        boundary: ASCII, as the media type gives it.

    Raises:
        InvalidPayload: naming the part or byte: the boundary is missing or followed by something else, a part has no
            end, no name, malformed or too many headers, or there are too many parts.
    """
    if not body:
        raise InvalidPayload("body is empty", field="body", expected="a part an input", got="nothing")
    first = b"--" + boundary.encode()
    delimiter = b"\r\n" + first
    if body.startswith(first):
        position = len(first)
    elif (place := body.find(delimiter)) >= 0:
        position = place + len(delimiter)
    else:
        raise InvalidPayload(
            f"the boundary {shown(boundary)} of the Content-Type does not begin a line of the body; lines end in CR LF",
            field="body",
            expected="the boundary",
            got=shown(body[: len(delimiter)]),
        )
    parts: list[Part] = []
    while not body.startswith(b"--", position):
        label = f"part {len(parts) + 1}"
        if len(parts) == _MAX_PARTS:
            expected = f"at most {_MAX_PARTS} parts"
            raise InvalidPayload(f"{label}: expected {expected}", field=label, expected=expected, got="more")
        name, content_type, is_file, start = _read_head(body, _end_of_line(body, position), label)
        end = body.find(delimiter, start)
        if end < 0:
            label = f"part {shown(name)}"
            raise InvalidPayload(
                f"{label}: the body ends before the boundary that ends it",
                field=label,
                expected="the boundary",
                got="the end",
            )
        parts.append(Part(name, content_type, is_file, start, end))
        position = end + len(delimiter)
    _end_of_line(body, position + len(b"--"))
    return parts


def _end_of_line(body: bytes, position: int) -> int:
    """The byte after the blanks and the line end that follow a boundary; after its last one the body may end, too."""
    padding = _PADDING.match(body, position)
    assert padding is not None  # it matches nothing, too
    end = padding.end()
    if body.startswith(b"\r\n", end):
        return end + 2
    if end == len(body) and body.endswith(b"--", 0, position):
        return end
    got = shown(body[end : end + 2]) if end < len(body) else "the end"
    where = f"byte {end}"
    raise InvalidPayload(
        f"{where}: expected CR LF behind the boundary, or -- after the last part, got {got}",
        field=where,
        expected="CR LF or --",
        got=got,
    )


def _read_head(body: bytes, start: int, label: str) -> tuple[str, str | None, bool, int]:
    """Name, media type, whether it is a file, and where the data begins."""
    end = body.find(b"\r\n\r\n", start - 2, start + _MAX_HEADER_BYTES)
    if end < 0:
        is_long = len(body) - start >= _MAX_HEADER_BYTES
        got = f"none in {_MAX_HEADER_BYTES} bytes" if is_long else "the end of the body"
        expected = "an empty line after the headers"
        raise InvalidPayload(f"{label}: expected {expected}, got {got}", field=label, expected=expected, got=got)
    try:
        text = body[start:end].decode()
    except UnicodeDecodeError as error:
        place = start + error.start
        raise InvalidPayload(
            f"{label}: its headers are not UTF-8: byte {place} is 0x{body[place]:02x}",
            field=f"byte {place}",
            expected="UTF-8",
        ) from None
    fields = _read_fields(text, label)
    encoding = fields.get("content-transfer-encoding", "")
    if encoding.lower() not in _PLAIN_ENCODINGS:
        raise _wrong(label, "Content-Transfer-Encoding binary, 8bit or 7bit", shown(encoding))
    disposition = fields.get("content-disposition")
    expected = 'Content-Disposition: form-data; name="..."'
    if disposition is None:
        raise _wrong(label, expected, "no such header")
    kind, semicolon, rest = disposition.partition(";")
    parameters = parse_parameters(semicolon + rest)
    if parameters is None or "name" not in parameters or kind.strip().lower() != "form-data":
        raise _wrong(label, expected, shown(disposition))
    name = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), parameters["name"])
    is_file = not parameters.keys().isdisjoint(("filename", "filename*"))
    return name, fields.get("content-type") or None, is_file, end + 4


def _read_fields(text: str, label: str) -> dict[str, str]:
    """The header fields of a part, names in lower case."""
    fields: dict[str, str] = {}
    for line in _FOLD.sub(" ", text).split("\r\n") if text else ():
        field = _FIELD.match(line)
        if field is None:
            raise _wrong(label, "headers, NAME: VALUE", shown(line))
        name = field[1].lower()
        if name in fields:
            raise _wrong(label, f"one header {shown(field[1])}", "another")
        fields[name] = field[2].strip()
    return fields


def _wrong(label: str, expected: str, got: str) -> InvalidPayload:
    return InvalidPayload(f"{label}: expected {expected}, got {got}", field=label, expected=expected, got=got)
