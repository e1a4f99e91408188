"""What an image file says of itself before it is decoded: its format, its size, and which way up it is.

JPEG (ITU-T T.81, September 1992, annex B), PNG (W3C, third edition, June 2025, sections 5 and 11), WebP (RFC 9649,
November 2024) and, within them, Exif (CIPA DC-008, version 2.32, section 4.6).

A decoder gets only the parts that make pixels. Comments, texts, colour profiles, previews and the further frames of an
animated PNG are left out here: it would inflate or collect them, and a body can hold a great many.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NoReturn

from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload

_MAX_PARTS = 4_096
"""Segments or chunks of a file; in pieces of 8 KiB, the smallest usual ones, a PNG of 32 MiB has so many."""
_MAX_SCANS = 50
"""Of a JPEG. Encoders write about ten; each goes over all pixels again, even if it takes a few bytes only."""
_MAX_FIELDS = 1_000
"""Of an Exif directory."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_PARTS = {b"PLTE", b"IDAT", b"IEND"}

_MARKER = re.compile(rb"\xff[\x01-\xfe]", re.DOTALL)
"""A marker may follow any number of bytes FF."""
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
"""Among the data of a scan; restart markers are a part of those."""
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
"""Huffman and arithmetic codes, quantisation, restart interval."""
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE

_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_SHORT = 3


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What is known of an image before it is decoded.

    Attributes:
        format: ``JPEG``, ``PNG`` or ``WEBP``.
        width: in pixels, as stored.
        height: in pixels, as stored.
        orientation: that of Exif, from 1 (as stored) to 8.
        data: the file, without the parts that make no pixels.
    """

    format: str
    width: int
    height: int
    orientation: int
    data: bytes


def read_header(data: bytes, field: str) -> ImageHeader:
    """Tell the format by the first bytes and read the header.

    Args:
        data: the file.
        field: how error messages call it.

    Raises:
        InvalidPayload: it is none of the three formats, ends early, or has no pixels.
    """
    if data.startswith(b"\xff\xd8\xff"):
        header = _read_jpeg(data, field)
    elif data.startswith(_PNG_MAGIC):
        header = _read_png(data, field)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        header = _read_webp(data, field)
    else:
        _refuse(field, "it is not a JPEG, PNG or WebP file", data[:12].hex(" ") or "nothing")
    if not header.width or not header.height:
        _refuse(field, f"the image is {header.width} x {header.height} pixels", "an image without pixels")
    return header


def _refuse(field: str, reason: str, got: str) -> NoReturn:
    raise InvalidPayload(f"{field}: {reason}", field=field, expected="a JPEG, PNG or WebP image", got=got)


def _refuse_parts(field: str) -> NoReturn:
    _refuse(field, f"the file has more than {_MAX_PARTS} parts", "too many parts")


def _read_jpeg(data: bytes, field: str) -> ImageHeader:
    kept, size, exif, at = [data[:2]], None, b"", 2
    for _ in range(_MAX_PARTS):
        marker, start, end = _segment(data, at, field)
        code = data[marker + 1]
        if code in _FRAMES:
            if size is not None or end - start < 8:
                _refuse(field, f"the frame header at byte {marker} is the second one or too short", "a damaged JPEG")
            size = struct.unpack_from(">2H", data, start + 3)
        elif code == _APP1 and data.startswith(_EXIF, start + 2) and not exif:
            exif = data[start + 2 : end]
        elif code == _SOS:
            break
        if code in _FRAMES or code in _TABLES or code in (_APP0, _APP14):
            kept.append(data[marker:end])
        at = end
    else:
        _refuse_parts(field)
    if size is None:
        _refuse(field, f"no frame header before the pixels at byte {marker}", "a damaged JPEG")
    _check_scans(data, end, field)
    height, width = size
    return ImageHeader("JPEG", width, height, _orientation(exif), b"".join([*kept, data[marker:]]))


def _segment(data: bytes, at: int, field: str) -> tuple[int, int, int]:
    """The next segment from byte ``at`` on: where its marker is, and where its length starts and its content ends."""
    found = _MARKER.search(data, at)
    while found is not None and data[found.end() - 1] in _WITHOUT_LENGTH:
        found = _MARKER.search(data, found.end())
    if found is None or data[found.end() - 1] in (_SOI, _EOI):
        _refuse(
            field,
            f"the JPEG ends at byte {len(data) if found is None else found.start()}, before its pixels",
            f"{len(data)} bytes",
        )
    start = found.end()
    length = int.from_bytes(data[start : start + 2], "big")
    if length < 2 or start + length > len(data):
        _refuse(
            field,
            f"the segment at byte {start - 2} claims {length} bytes, the file ends at {len(data)}",
            f"{len(data)} bytes",
        )
    return start - 2, start, start + length


def _check_scans(data: bytes, at: int, field: str) -> None:
    """Refuse an image of too many scans. What follows its end is none of it.

    Args:
        data: the file.
        at: where the header of the first scan ends.
        field: how error messages call it.
    """
    scans = 1
    for _ in range(_MAX_PARTS):
        found = _MARKER_IN_SCAN.search(data, at)
        if found is None or data[found.end() - 1] == _EOI:
            return
        scans += data[found.end() - 1] == _SOS
        if scans > _MAX_SCANS:
            _refuse(field, f"the JPEG has more than {_MAX_SCANS} scans", "too many scans")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    _refuse_parts(field)


def _read_png(data: bytes, field: str) -> ImageHeader:
    kept, exif, at = [_PNG_MAGIC], b"", 8
    for number in range(_MAX_PARTS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            _refuse(
                field,
                f"the PNG is truncated: chunk {shown(kind)} at byte {at} ends at {end}, the file at {len(data)}",
                f"{len(data)} bytes",
            )
        if number == 0 and (kind, length) != (b"IHDR", 13):
            _refuse(field, "the PNG does not begin with the chunk IHDR", shown(kind))
        if number == 0 or kind in _PNG_PARTS:
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        if kind == b"IEND":
            break
        at = end
    else:
        _refuse_parts(field)
    width, height = struct.unpack_from(">2I", data, 16)
    return ImageHeader("PNG", width, height, _orientation(exif), b"".join(kept))


def _read_webp(data: bytes, field: str) -> ImageHeader:
    kind, exif = data[12:16], b""
    if len(data) < 30:
        _refuse(field, f"the WebP is truncated: it has {len(data)} bytes", f"{len(data)} bytes")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<2H", data, 26))
    elif kind == b"VP8L" and data[20] == 0x2F:
        sides = int.from_bytes(data[21:25], "little")
        width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        exif = _webp_exif(data, field) if data[20] & 0x08 else b""
    else:
        _refuse(field, f"the WebP begins with {shown(kind)}", shown(kind))
    return ImageHeader("WEBP", width, height, _orientation(exif), data)


def _webp_exif(data: bytes, field: str) -> bytes:
    at = 12
    for _ in range(_MAX_PARTS):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF" or at >= len(data):
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    _refuse_parts(field)


def _orientation(exif: bytes) -> int:
    """The orientation in an Exif block, a small TIFF file; 1 if it says nothing that can be read."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for number in range(min(count, _MAX_FIELDS)):
            tag, kind, _, value = struct.unpack_from(f"{order}2HIH", tiff, directory + 2 + 12 * number)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # it ends early
        pass
    return 1
