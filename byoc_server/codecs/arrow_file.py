"""``application/vnd.apache.arrow.file``: the file form of the Arrow IPC format, also known as Feather version 2.

A file is a stream between two magic words with a footer that tells where each batch lies (columnar format 1.5, "IPC
File Format"). The stream is read from its beginning to its end; the footer, which may name the same bytes many times
over, serves random access only and is left alone.
"""

from __future__ import annotations

import pyarrow as pa

from byoc_server.codecs.arrow_stream import read_stream
from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.columnar.arrow_table import batch_from_tensors
from byoc_server.codecs.columnar.arrow_walk import check_stream
from byoc_server.errors import InvalidPayload
from byoc_server.types import Signature, Tensors

_HEAD = b"ARROW1\0\0"
_TAIL = b"ARROW1"
_FOOTER_LENGTH_BYTES = 4


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read the record batches of a file. See ``Codec.decode``."""
    if not body.startswith(_HEAD) or not body.endswith(_TAIL):
        place = len(body) - len(_TAIL) if body.startswith(_HEAD) else 0
        raise InvalidPayload(
            "body is not an Arrow file: it does not start and end with ARROW1",
            field=f"byte {max(place, 0)}",
            expected="ARROW1",
            got=body[max(place, 0) :][:6].hex(" ") or "nothing",
        )
    footer_end = len(body) - len(_TAIL) - _FOOTER_LENGTH_BYTES
    footer_bytes = int.from_bytes(body[max(footer_end, 0) :][:_FOOTER_LENGTH_BYTES], "little", signed=True)
    stream_end = footer_end - footer_bytes
    if footer_bytes <= 0 or stream_end < len(_HEAD):
        raise InvalidPayload(
            f"the footer of the Arrow file claims {footer_bytes} bytes of {len(body)}", field=f"byte {footer_end}"
        )
    end = check_stream(body, len(_HEAD), stream_end, options.max_tensor_bytes)
    if end is not None and body[end:stream_end].strip(b"\0"):
        raise InvalidPayload(
            f"{stream_end - end} bytes lie between the data and the footer of the Arrow file",
            field=f"byte {end}",
            expected="the footer",
        )
    stream = pa.py_buffer(body).slice(len(_HEAD), stream_end - len(_HEAD))
    return read_stream(stream, signature, options)


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one record batch with a column per output. See ``Codec.encode``."""
    batch = batch_from_tensors(tensors, signature, "application/vnd.apache.arrow.file")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
