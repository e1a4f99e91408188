"""What reads headers, and what they say was done to the body, as fuzz targets."""

from __future__ import annotations

from benchmarks.fuzz.decoders import check_refusal
from benchmarks.fuzz.findings import FindingError
from byoc_server.codecs.base import codecs_by_media_type, request_codecs
from byoc_server.errors import ByocError
from byoc_server.http.content_coding import choose_answer_coding, decode, decode_small, parse_content_encoding
from byoc_server.http.negotiation import choose_decoder, choose_encoder

CODINGS = ("gzip", "deflate", "zstd", "gzip, deflate", "zstd, gzip", "deflate, x-gzip", "identity", "")
"""What ``Content-Encoding`` says; the first byte of an input chooses, the rest is the body."""
_MAX_PLAIN_BYTES = 1024 * 1024
_DEFAULT = "application/json"


def check_content_coding(data: bytes) -> None:
    """Undo the codings of a body; the short way, where it is taken, must give what the long one gives.

    Raises:
        FindingError: it is not bounded, or the two ways differ, or the error is not the client's.
    """
    codings = parse_content_encoding(CODINGS[data[0] % len(CODINGS)] if data else "")
    body = data[1:]
    short = decode_small(body, codings, _MAX_PLAIN_BYTES)
    held = [0]
    try:
        plain = decode(body, codings, _MAX_PLAIN_BYTES, held.append)
    except ByocError as error:
        check_refusal(error)
        plain = None
    if short is not None and short != plain:
        raise FindingError("a small body is undone differently")
    if plain is not None and codings and (len(plain) > _MAX_PLAIN_BYTES or max(held) != len(plain)):
        raise FindingError("more came out than was announced or allowed")


def check_negotiation(data: bytes) -> None:
    """Read four headers, one a line: ``Content-Type``, ``Accept``, ``Content-Encoding``, ``Accept-Encoding``.

    Raises:
        FindingError: a format is chosen that cannot be used here, or the error is not the client's.
    """
    content_type, accept, content_encoding, accept_encoding = [*data.decode("latin-1").split("\n"), "", "", ""][:4]
    entry = request_codecs()[0]
    try:
        entry, _ = choose_decoder(content_type, _DEFAULT)
    except ByocError as error:
        check_refusal(error)
    if not entry.installed:
        raise FindingError(f"{entry.media_type} was chosen to read, and is not installed")
    for outputs in (1, 2):
        try:
            answer, name = choose_encoder(accept, _DEFAULT, entry, outputs)
        except ByocError as error:
            check_refusal(error)
            continue
        if not answer.answers or (answer.sole_output and outputs > 1) or codecs_by_media_type()[name] is not answer:
            raise FindingError(f"{answer.media_type}, called {name}, was chosen for {outputs} outputs")
    try:
        parse_content_encoding(content_encoding)
    except ByocError as error:
        check_refusal(error)
    if choose_answer_coding(accept_encoding) not in (None, "gzip", "zstd"):
        raise FindingError("an answer would be coded in a way that is not made here")
