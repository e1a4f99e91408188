"""``Content-Encoding`` and ``Accept-Encoding``: bodies that come compressed, and answers that leave so. Pure.

Follows RFC 9110 (June 2022), sections 8.4 and 12.5.3. A body is undone coding by coding, the last one applied first,
each a generator over pieces: what lies between two codings is never held, and what comes out stops at the limit. So a
body that unpacks to a thousand times its size costs no more work and memory than one that is sent plain.

An answer is compressed for who prefers that to a plain one and says so by a weight, as in ``gzip, identity;q=0.5``.
To name a coding is not enough: Go's HTTP client, which SageMaker's Batch Transform sends with
(``User-Agent: Go-http-client/1.1``, from a link-local address), and Python's requests name gzip by themselves with
every request, and on a link inside a data centre nobody wins. Measured on JSON of float32 probabilities, one core:
gzip at level 1 takes 7.8 ms a MiB, five times what it takes to write that JSON, and saves 57 %, which is gained below
0.6 Gbit/s; zstd at level 1 takes 2.5 ms, saves 63 %, and gains below 2 Gbit/s. Only answers that are written on a
thread are compressed, in the same visit to it; all others cost nothing.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from byoc_server.errors import InvalidPayload, PayloadTooLarge, UnsupportedContentEncoding
from byoc_server.http.responses import Header

CONTENT_ENCODING = b"content-encoding"
ACCEPT_ENCODING = b"accept-encoding"
LARGE_ANSWER_BYTES = 64 * 1024
"""Smaller answers are never compressed. At 64 KiB it takes 0.5 ms with gzip, on a thread, for 37 KiB less: 0.3 ms at
1 Gbit/s. Below 14 KiB nothing can be gained at all: TCP sends that much before it waits for the client (RFC 6928)."""
_INLINE_BYTES = 64 * 1024
"""What is no larger, packed and unpacked, is unpacked on the event loop: 0.13 ms with gzip."""
_PIECE_BYTES = 64 * 1024
_MAX_CODINGS = 2
_MAX_CHARACTERS = 256
_WISH = re.compile(r"[ \t]*([^\s;]+)[ \t]*(?:;[ \t]*[qQ][ \t]*=[ \t]*([0-9]\.?|[0-9]?\.[0-9]{1,9})[ \t]*)?\Z")
_MAX_STREAMS = 10_000
"""Gzip members or zstd frames in one body: an empty one is 20 or 9 bytes that cost 10 microseconds. Block gzip (BGZF),
which makes the most of them in earnest, has one in 64 KiB."""
_ZSTD_WINDOW_LOG = 23
"""RFC 9659 (September 2024): as a content coding zstd has windows of 8 MiB at most."""
_ZSTD_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_SAMPLE_BYTES = 16 * 1024
_WORTH_IT = 0.8
"""What the start of an answer must shrink to: JSON and CSV shrink to about 0.45, raw float32 to 0.93, at three times
the cost of JSON."""


class _Stream(Protocol):
    """One gzip member, zlib stream or zstd frame being undone."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Coding:
    """A content coding.

    Attributes:
        name: in lower case, as it is written in headers.
        begin: makes the decompressor of a stream that begins with these bytes.
        error: what that raises.
        joins: whether streams that follow one another are one body (RFC 1952, section 2.2; RFC 8878, section 3).
    """

    name: str
    begin: Callable[[bytes], _Stream]
    error: type[Exception]
    joins: bool


def parse_content_encoding(text: str) -> Sequence[Coding]:
    """Find the codings of a body.

    Args:
        text: all ``Content-Encoding`` headers joined by commas.

    Returns:
        The codings in the order in which they were applied, without ``identity``, which does nothing.

    Raises:
        UnsupportedContentEncoding: one is not known here, or there are too many.
    """
    names = [name for part in text.split(",") if (name := part.strip(" \t").lower()) not in ("", "identity")]
    known = _codings()
    if len(names) <= _MAX_CODINGS and len(text) <= _MAX_CHARACTERS and all(name in known for name in names):
        return [known[name] for name in names]
    accepted = [name for name, coding in known.items() if name == coding.name]
    if "zstd" in names and "zstd" not in known:
        reason = " here (it needs byoc-server[zstd])"
    elif len(names) > _MAX_CODINGS:
        reason = f": there may be {_MAX_CODINGS} codings at most"
    else:
        reason = ""
    shown = repr(text if len(text) <= 80 else text[:80] + "...")
    raise UnsupportedContentEncoding(
        f"Content-Encoding {shown} is not supported{reason}; use {', '.join(accepted)} or none", accepted
    )


def decode_small(body: bytes, codings: Sequence[Coding], limit_bytes: int) -> bytes | None:
    """Undo the codings if that is so little that the event loop can do it.

    Args:
        body: as it came.
        codings: in the order in which they were applied.
        limit_bytes: of what comes out.

    Returns:
        The plain body; ``None`` for what is larger, and for what is wrong: ``decode`` says what that is.
    """
    if not codings:
        return body
    if len(codings) > 1 or not 0 < len(body) <= _INLINE_BYTES:
        return None
    stream = codings[0].begin(body)
    try:
        plain = stream.decompress(body, min(_INLINE_BYTES, limit_bytes))
    except codings[0].error:
        return None
    return plain if stream.eof and not stream.unused_data else None


def decode(body: bytes, codings: Sequence[Coding], limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Undo the codings of a body.

    Args:
        body: as it came.
        codings: in the order in which they were applied.
        limit_bytes: of what comes out, after each coding.
        hold: told how many decoded bytes there are about to be; what it raises ends the work.

    Returns:
        The plain body.

    Raises:
        InvalidPayload: the data is empty, damaged, cut short or followed by something else. The message names the
            coding and the byte, counted in the data of that coding.
        PayloadTooLarge: more than ``limit_bytes`` would come out.
    """
    pieces: Iterator[bytes] = (body[i : i + _PIECE_BYTES] for i in range(0, len(body), _PIECE_BYTES))
    for coding in reversed(codings):
        pieces = _decode_pieces(coding, pieces, limit_bytes)
    plain = io.BytesIO()  # grows in place, and hands out what it holds without a copy
    for piece in pieces:
        hold(plain.tell() + len(piece))
        plain.write(piece)
    return plain.getvalue()


def _decode_pieces(coding: Coding, pieces: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Undo one coding. Holds one piece of its input and one of its output at a time."""
    stream: _Stream | None = None
    begin = end = streams = size = 0
    for data in pieces:
        end += len(data)
        while True:
            if stream is None:
                if not data:
                    break
                begin = end - len(data)
                streams += 1
                if streams > (_MAX_STREAMS if coding.joins else 1):
                    raise _damaged(coding, begin, "there is more after its end")
                stream = coding.begin(data)
            plain, failure = b"", None
            try:
                plain = stream.decompress(data, _PIECE_BYTES)
            except coding.error as error:  # raised anew below, or it would keep all frames from here to the caller
                failure = str(error).rpartition(": ")[2]
            if failure is not None:
                raise _damaged(coding, begin, f"{failure}; it shows by byte {end}")
            size += len(plain)
            if size > limit_bytes:
                raise PayloadTooLarge(
                    f"the body is larger than the limit of {limit_bytes} decoded bytes ({coding.name})",
                    limit_bytes=limit_bytes,
                )
            if plain:
                yield plain
            if stream.eof:
                data, stream = stream.unused_data, None
                continue
            data = getattr(stream, "unconsumed_tail", b"")  # of zlib; zstd keeps what it has not read itself
            if not data and len(plain) < _PIECE_BYTES:
                break
    if stream is not None or not streams:
        raise _damaged(coding, begin, f"it is cut short at byte {end}")


def _damaged(coding: Coding, begin: int, reason: str) -> InvalidPayload:
    return InvalidPayload(
        f"the {coding.name} data that begins at byte {begin} cannot be decoded: {reason}",
        field=f"byte {begin}",
        expected=f"Content-Encoding {coding.name}",
    )


def choose_answer_coding(accept_encoding: str | None) -> str | None:
    """Find the coding of a large answer.

    Args:
        accept_encoding: all ``Accept-Encoding`` headers joined by commas; ``None`` when missing.

    Returns:
        What the client gives a higher weight than to a plain answer, whose weight is 1 where the header does not say
        otherwise; of several the cheapest; ``None`` if there is nothing like that. Never deflate, which some clients
        take for the zlib format and some for the bare one. A client that forbids a plain answer and can read nothing
        that is made here gets a plain one, not a 406: section 12.1 allows both.
    """
    if accept_encoding is None:
        return None
    weights: dict[str, float] = {}
    for part in accept_encoding[:_MAX_CHARACTERS].split(","):
        if wish := _WISH.match(part):  # what is malformed can only be a wish for something unknown
            name = wish[1].lower()
            weights.setdefault("gzip" if name == "x-gzip" else name, min(1.0, float(wish[2] or 1)))
    plain = weights.get("identity", weights.get("*", 1.0))
    wanted = {name: weight for name in ("zstd", "gzip") if (weight := weights.get(name, weights.get("*", 0.0))) > plain}
    if "zstd" in wanted and _zstd() is None:
        del wanted["zstd"]
    return max(wanted, key=wanted.__getitem__, default=None)


def encode_answer(body: bytes, coding: str | None) -> tuple[bytes, Sequence[Header]]:
    """Apply a coding to an answer if that is large and shrinks. For a thread.

    Args:
        body: the plain answer.
        coding: as ``choose_answer_coding`` found it.

    Returns:
        The body to send, and the headers that say what was done or, to caches, what might have been (``Vary``).
    """
    if len(body) < LARGE_ANSWER_BYTES:
        return body, ()
    vary = (b"vary", b"accept-encoding")
    if coding is None or len(_compress(body[:_SAMPLE_BYTES], coding)) > _SAMPLE_BYTES * _WORTH_IT:
        return body, (vary,)
    return _compress(body, coding), (vary, (CONTENT_ENCODING, coding.encode()))


def _compress(body: bytes, coding: str) -> bytes:
    zstd = _zstd() if coding == "zstd" else None
    return zlib.compress(body, level=1, wbits=31) if zstd is None else zstd.compress(body, level=1)


@cache
def _codings() -> Mapping[str, Coding]:
    """All codings of requests by name, zstd where it is installed."""
    gzip = Coding("gzip", lambda _: zlib.decompressobj(31), zlib.error, joins=True)
    known = {"gzip": gzip, "x-gzip": gzip, "deflate": Coding("deflate", _begin_deflate, zlib.error, joins=False)}
    if (zstd := _zstd()) is not None:
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        known["zstd"] = Coding("zstd", lambda _: zstd.ZstdDecompressor(options=options), zstd.ZstdError, joins=True)
    return known


@cache
def _zstd() -> Any:
    """The module, ``None`` where it is not installed. Loaded when first asked for: it takes 4 ms."""
    try:
        return importlib.import_module(_ZSTD_MODULE)
    except ImportError:
        return None


def _begin_deflate(data: bytes) -> _Stream:
    """Begin a zlib stream, or a bare deflate stream, which some clients send (RFC 9110, section 8.4.1.2).

    A zlib stream begins with a byte that ends in 8; in a bare one that would be a stored block with padding that is
    not zero, which no compressor writes.
    """
    return zlib.decompressobj(15 if data[0] & 15 == 8 else -15)
