"""``application/vnd.apache.arrow.file``: what differs from the stream, the frame around it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from byoc_server.codecs.arrow_file import decode, encode
from byoc_server.codecs.base import DecodeOptions, codecs_by_media_type
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Signature
from tests.codecs.signatures import ENCODE, OPTIONS, assert_same, one, texts
from tests.codecs.test_arrow_stream import GRID, fixed_lists
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors
from tests.onnx_models import identity
from tests.server_process import running

MEDIA_TYPE = "application/vnd.apache.arrow.file"


def written(table: Any, rows_per_batch: int | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return bytes(sink.getvalue())


TABLE = pa.table({"x": fixed_lists(GRID)})


def refusal(body: bytes) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(body, one(), OPTIONS)
    return caught.value


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows_per_batch", [None, 1])
def test_files(compression: str | None, rows_per_batch: int | None) -> None:
    body = written(TABLE, rows_per_batch, compression=compression)
    assert_same(decode(body, one(), OPTIONS)["x"], GRID)
    words = pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode()})
    body = written(words, rows_per_batch, compression=compression)
    assert_same(decode(body, one("string", (None,)), OPTIONS)["x"], texts(["a", "b", "a"]))


def test_feather_files(tmp_path: Path) -> None:
    feather.write_feather(TABLE, str(tmp_path / "t"))
    assert_same(decode((tmp_path / "t").read_bytes(), one(), OPTIONS)["x"], GRID)


def test_data_of_the_right_kind_is_not_copied() -> None:
    body = written(TABLE)
    assert np.shares_memory(decode(body, one(), OPTIONS)["x"], np.frombuffer(body, np.uint8))


def test_a_file_without_an_end_of_stream_marker() -> None:
    """As before Arrow 0.15: the footer follows the last batch."""
    body = written(TABLE)
    size = struct.unpack("<i", body[-10:-6])[0]
    place = len(body) - 10 - size
    assert body[place - 8 : place] == b"\xff\xff\xff\xff\0\0\0\0"
    assert_same(decode(body[: place - 8] + body[place:], one(), OPTIONS)["x"], GRID)


def test_frames_that_lie() -> None:
    body = written(TABLE, 1)
    size = struct.unpack("<i", body[-10:-6])[0]
    place = len(body) - 10 - size
    for end in range(len(body)):
        refusal(body[:end])
    for start in range(1, 20):
        refusal(body[start:])
    for text in (b"", b"ARROW1", b"ARROW1\0\0", b"ARROW1\0\0ARROW1", b"ARROW1\0\0" + b"\xff" * 4 + b"ARROW1"):
        assert refusal(text).details["field"].startswith("byte ")  # type: ignore[attr-defined]  # a text in this error
    for claim in (0, -1, 2**31 - 1, len(body)):
        assert "footer of the Arrow file claims" in refusal(body[:-10] + struct.pack("<i", claim) + b"ARROW1").message
    grown = body[:place] + b"data" + body[place:]
    assert "4 bytes lie between the data and the footer" in refusal(grown).message
    padded = body[:place] + bytes(8) + body[place:]
    assert_same(decode(padded, one(), OPTIONS)["x"], GRID)


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_tensors_over_the_limit_are_told_from_other_faults(compression: str | None) -> None:
    body = written(TABLE, compression=compression)
    decode(body, one(), DecodeOptions({}, max_tensor_bytes=GRID.nbytes))
    with pytest.raises(TensorsTooLarge):
        decode(body, one(), DecodeOptions({}, max_tensor_bytes=GRID.nbytes - 1))


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_laws(signature: Signature) -> None:
    """Checklist 80 and 36: what is written reads back, and damage gives tensors or a refusal."""

    @LAWS
    @given(st.data())
    def law(data: st.DataObject) -> None:
        sent = data.draw(tensors(signature))
        body = bytearray(encode(sent, echo(signature), ENCODE))
        pa.ipc.open_file(bytes(body)).read_all().validate(full=True)
        for name, array in decode(bytes(body), signature, OPTIONS).items():
            assert_same(array, sent[name])
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        assert_tensors_or_refusal(codecs_by_media_type()[MEDIA_TYPE], bytes(body), signature, OPTIONS)

    law()


def test_over_a_socket(tmp_path: Path) -> None:
    with running("--model", str(identity(tmp_path / "m.onnx", shape=("N", 4)))) as server:
        answer = server.invoke(written(TABLE), Content_Type=MEDIA_TYPE, Accept=MEDIA_TYPE)
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert pa.ipc.open_file(answer.content).read_all().column(0).to_pylist() == GRID.tolist()
        assert server.invoke(written(TABLE)[:-1], Content_Type=MEDIA_TYPE).status_code == 400
