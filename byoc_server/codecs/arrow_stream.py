"""``application/vnd.apache.arrow.stream``: the streaming form of the Arrow IPC format (columnar format 1.5).

A table's columns are the inputs, see ``columnar.arrow_table``. The stream must end with its end-of-stream marker, so
that a body that was cut between two batches is not taken for a shorter one. Compressed buffers are read; dictionaries
are replaced whole or not at all.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.columnar.arrow_table import (
    batch_from_tensors,
    may_hold_views,
    one_batch,
    require_honest_views,
    require_layout,
    require_rows,
    tensors_from_batch,
)
from byoc_server.codecs.columnar.arrow_walk import check_stream, first_line
from byoc_server.errors import InvalidPayload
from byoc_server.types import Signature, Tensors

_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False, ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read the record batches of a stream. See ``Codec.decode``."""
    end = check_stream(body, 0, len(body), options.max_tensor_bytes)
    if end is None:
        raise InvalidPayload(
            "the Arrow stream is cut: it has no end-of-stream marker; close the writer",
            field=f"byte {len(body)}",
            expected="the end-of-stream marker",
        )
    if end < len(body):
        raise InvalidPayload(
            f"{len(body) - end} bytes follow the end of the Arrow stream at byte {end}",
            field=f"byte {end}",
            expected="nothing",
            got=f"{len(body) - end} bytes",
        )
    return read_stream(pa.py_buffer(body), signature, options)


def read_stream(stream: Any, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read a stream that ``check_stream`` has passed.

    Args:
        stream: a ``pyarrow.Buffer``.
        signature: of the model.
        options: limits.

    Raises:
        InvalidPayload: the stream does not hold what it declares, or does not fit the model.
        TensorsTooLarge: its tensors would be larger than ``options`` allow.
    """
    try:
        with pa.ipc.open_stream(stream, options=_READ_OPTIONS) as reader:
            names = reader.schema.names
            require_layout(names, signature)
            views = may_hold_views(reader.schema.types)
            batches = []
            for batch in reader:
                for number in views:
                    require_honest_views(batch.column(number), names[number])
                batch.validate(full=True)  # lengths and offsets are the sender's until here
                if batch.num_rows:
                    batches.append(batch)
        require_rows(len(batches))
        batch = batches[0] if len(batches) == 1 else one_batch(pa.Table.from_batches(batches))
        return tensors_from_batch(batch, signature, options.max_tensor_bytes)
    except (pa.ArrowException, NotImplementedError, UnicodeDecodeError, OSError, OverflowError) as error:
        raise InvalidPayload(
            f"the Arrow data cannot be read: {first_line(error)}", field="body", expected="an Arrow stream"
        ) from None


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one record batch with a column per output. See ``Codec.encode``."""
    batch = batch_from_tensors(tensors, signature, "application/vnd.apache.arrow.stream")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
