"""``application/x-parquet``: a Parquet file (Apache Parquet format 2.11).

A table's columns are the inputs, see ``columnar.arrow_table``. What the file unpacks to is known before a page of it is
read, see ``columnar.parquet_walk``. Strings are read as a dictionary and places in it, as one long string may stand in
every row.
"""

from __future__ import annotations

import pyarrow as pa
from pyarrow import parquet

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.columnar.arrow_table import (
    batch_from_tensors,
    one_batch,
    require_layout,
    require_readable,
    require_rows,
    tensors_from_batch,
)
from byoc_server.codecs.columnar.arrow_walk import first_line
from byoc_server.codecs.columnar.parquet_walk import check_file
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import Signature, Tensors

_STRING_LIMIT_BYTES = 1024 * 1024
_CONTAINER_LIMIT = 100_000


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read all row groups. See ``Codec.decode``."""
    texts = check_file(body, options.max_tensor_bytes)
    try:
        file = parquet.ParquetFile(
            pa.BufferReader(body),
            memory_map=False,
            pre_buffer=False,  # it would read on threads of its own
            read_dictionary=texts,
            thrift_string_size_limit=_STRING_LIMIT_BYTES,
            thrift_container_size_limit=_CONTAINER_LIMIT,
        )
        schema = file.schema_arrow
        require_layout(schema.names, signature)
        require_readable(schema)
        require_rows(file.num_row_groups)
        # one by one: pyarrow does not read lists of strings across groups
        groups = [file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups)]
        table = pa.concat_tables(groups)
        table.validate(full=True)
        require_rows(table.num_rows)
        return tensors_from_batch(one_batch(table), signature, options.max_tensor_bytes)
    except (pa.ArrowException, NotImplementedError, UnicodeDecodeError, OSError, OverflowError) as error:
        raise InvalidPayload(
            f"the Parquet file cannot be read: {first_line(error)}", field="body", expected="a Parquet file"
        ) from None


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write one row group with a column per output. See ``Codec.encode``.

    Raises:
        NotAcceptable: also for records without values, as Parquet has no fixed-size lists and pyarrow does not read
            back what it writes for those of length 0.
    """
    for spec in signature.outputs:
        if 0 in tensors[spec.name].shape[1 if signature.batched else 0 :]:
            raise NotAcceptable(
                f"application/x-parquet cannot carry output {spec.name!r}, whose records are empty",
                accepted=["application/json"],
            )
    batch = batch_from_tensors(tensors, signature, "application/x-parquet")
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(
        sink, batch.schema, compression="none", use_dictionary=False, write_statistics=False
    ) as w:
        w.write_batch(batch)
    return bytes(sink.getvalue())
