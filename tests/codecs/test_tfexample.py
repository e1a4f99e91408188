"""``application/x-tfexample``: examples as Google's library writes them, the TFRecord file, and bodies that lie."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from byoc_server.codecs import tfexample
from byoc_server.codecs.base import DecodeOptions, codecs_by_media_type
from byoc_server.codecs.protobuf import flat
from byoc_server.codecs.protobuf.crc32c import masked_crc32c
from byoc_server.codecs.protobuf.wire import encode_varint, field
from byoc_server.codecs.tfexample import decode
from byoc_server.errors import InvalidPayload
from byoc_server.types import BatchAxis, Signature, Tensors
from tests import onnx_models
from tests.codecs.protobuf.test_crc32c import by_definition
from tests.codecs.protobuf_oracle import Example, UnpackedExample, outcome
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several, texts
from tests.server_process import running

LAWS = settings(deadline=None, max_examples=150, derandomize=True)
MEDIA_TYPE = "application/x-tfexample"
FLOATS, INTS, BYTES = "float_list", "int64_list", "bytes_list"


def masked(data: bytes) -> bytes:
    crc = by_definition(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def frame(data: bytes) -> bytes:
    """As tf.io.TFRecordWriter writes a record."""
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example(kind: str, values: Sequence[Any], name: str = "x", message: Any = None) -> Any:
    message = Example() if message is None else message
    values_list = getattr(message.features.feature[name], kind)
    values_list.SetInParent()
    values_list.value.extend(values)
    return message


def data_of(kind: str, values: Sequence[Any], name: str = "x") -> bytes:
    return bytes(example(kind, values, name).SerializeToString())


def body(*records: bytes) -> bytes:
    return b"".join(map(frame, records))


def rows_of(kind: str, rows: Any) -> bytes:
    return body(*(data_of(kind, row) for row in np.asarray(rows).tolist()))


def read(data: bytes, signature: Signature) -> Any:
    tensors = decode(data, signature, OPTIONS)
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(data: bytes, signature: Signature, options: DecodeOptions = OPTIONS) -> str:
    with pytest.raises(InvalidPayload) as caught:
        decode(data, signature, options)
    assert len(caught.value.message) < 400
    return caught.value.message


def feature(number: int, content: bytes) -> bytes:
    """An example of one feature, its list made by hand."""
    return field(1, field(1, field(1, b"x") + field(2, field(number, content))))


GRID = np.arange(8).reshape(2, 4)
GOOD = data_of(FLOATS, [1, 2, 3, 4])


def test_bytes_by_hand() -> None:
    """The file and the message as their definitions say, written down byte by byte."""
    data = bytes.fromhex(
        "0a13"  # features, 19 bytes
        "0a11"  # a map entry of 17 bytes
        "0a01 78"  # its key: x
        "120c"  # its value, 12 bytes
        "120a"  # float_list, 10 bytes
        "0a08 0000803f 000000c0"  # values, packed: 1, -2
    )
    assert data == data_of(FLOATS, [1, -2])
    assert_same(read(data, one(shape=(None, 2))), np.array([[1, -2]], np.float32))
    # The empty record of a TFRecord file: its length and CRCs are in many files of TensorFlow's tests.
    assert frame(b"") == bytes.fromhex("0000000000000000 29039807 d8ea82a2")


@pytest.mark.parametrize("kind", [FLOATS, INTS])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int8", "uint8", "uint64", "bool"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_all_lists_into_all_dtypes(kind: str, dtype: str, rows: int) -> None:
    values = np.arange(rows * 4).reshape(rows, 4) % (2 if dtype == "bool" else 100)
    assert_same(read(rows_of(kind, values), one(dtype)), values.astype(dtype))


@pytest.mark.parametrize(
    ("rows", "signature", "expected"),
    [
        (GRID, one(shape=(None, None)), GRID),
        (GRID, one(shape=(None, 2, 2)), GRID.reshape(2, 2, 2)),
        (GRID, one(shape=(None, None, 2)), GRID.reshape(2, 2, 2)),
        (GRID[:, :1], one(shape=(None, 1)), GRID[:, :1]),
        (GRID[:, :1], one(shape=(None,)), GRID[:, 0]),
        (GRID[:, :0], one(shape=(None, None)), np.zeros((2, 0))),
        (np.tile(GRID, (3, 1)), one(shape=(8, 4), batch_axis=BatchAxis.FIXED), np.tile(GRID, (3, 1))),
        (GRID[:1], one(shape=(2, 2), batch_axis=ABSENT), GRID[0].reshape(2, 2)),
        (GRID[:1, :1], one(shape=(), batch_axis=ABSENT), GRID[0, 0]),
    ],
)
@pytest.mark.parametrize("kind", [FLOATS, INTS])
def test_shapes(rows: Any, signature: Signature, expected: Any, kind: str) -> None:
    assert_same(read(rows_of(kind, rows), signature), np.asarray(expected, np.float32))


def test_strings() -> None:
    data = body(data_of(BYTES, [b"a", b""]), data_of(BYTES, ["\u00e4\u20ac".encode(), b"\0"]))
    assert_same(read(data, one("string", (None, 2))), texts([["a", ""], ["\u00e4\u20ac", "\0"]]))
    assert_same(read(data_of(BYTES, [b"a"]), one("string", (), ABSENT)), texts("a"))


def test_several_inputs() -> None:
    signature = several(("a", "float32", (None, 2)), ("b", "int64", (None,)), ("c", "string", (None, 1)))
    records = []
    for number in range(3):
        message = example(INTS, [-number], "b")
        example(BYTES, [b"t%d" % number], "c", message)
        example(FLOATS, [number, 0.5], "a", message)
        records.append(bytes(message.SerializeToString()))
    tensors = read(body(*records), signature)
    assert_same(tensors["a"], np.array([[0, 0.5], [1, 0.5], [2, 0.5]], np.float32))
    assert_same(tensors["b"], np.array([0, -1, -2]))
    assert_same(tensors["c"], texts([["t0"], ["t1"], ["t2"]]))
    assert refusal(GOOD, signature).startswith("record 1: missing 'a', 'b', 'c'; unknown 'x'")


def test_64_bit_numbers() -> None:
    extremes = [[-(2**63), 2**63 - 1], [-1, 0]]
    assert_same(read(rows_of(INTS, extremes), one("int64", (None, 2))), np.array(extremes))
    for rows in (extremes, [[300, 301], [302, 303]]):
        assert_same(read(rows_of(INTS, rows), one("float64", (None, 2))), np.array(rows, np.float64))


@pytest.mark.parametrize(
    ("data", "signature", "words"),
    [
        (b"", one(), "body is empty"),
        (b"\x0b", one(), "record 1, byte 0: not an Example: a field of wire type 3; nor is the body a TFRecord file"),
        (bytes(30), one(), "record 1, byte 0: not an Example: a field whose number is none; nor is the body"),
        (body(b""), one(), "record 1: missing 'x'; the model's inputs are x: float32[?, 4]"),
        (field(2, b""), one(), "record 1: missing 'x'"),
        (body(GOOD)[:-1], one(), "record 1, byte 0: expected 33 bytes of data and CRC, got 32"),
        (body(GOOD) + b"\0", one(), "record 2, byte 45: expected 12 bytes of length and CRC, got 1"),
        (body(GOOD)[:12], one(), "record 1, byte 0: expected 33 bytes of data and CRC, got 0"),
        (body(GOOD, b"\x0b"), one(), "record 2, byte 57: not an Example: a field of wire type 3"),
        (GOOD * 2, one(), "record 1, byte 31: not an Example: a second 'features'; nor is"),
        (field(1, field(2, b"")), one(), "record 1: missing 'x'"),
        (b"\x08\x01", one(), "record 1, byte 1: not an Example: a number in the place of 'features'"),
        (field(1, b"\x08\x01"), one(), "record 1, byte 3: not an Example: a number in the place of a map entry"),
        (field(1, GOOD[2:] * 2), one(), "record 1, byte 31: not an Example: the feature 'x' for the second time"),
        (feature(7, b""), one(), "record 1, byte 9: not an Example: a feature without a list"),
        (feature(2, field(1, b"123")), one(), "record 1, byte 13: not an Example: 3 bytes of packed values"),
        (feature(3, field(1, b"\xff" * 10 + b"\1")), one(), "record 1, byte 13: not an Example: packed values of"),
        (feature(1, field(1, b"\xff")), one("string"), "record 1, byte 13: not an Example: a text that is not UTF-8"),
        (feature(2, b"") + b"\x08", one(), "record 1, byte 12: not an Example: a number that is cut off"),
        (
            field(1, field(1, field(1, b"x") + field(2, b"\x08\x01"))),
            one(),
            "record 1, byte 10: not an Example: a number in the place of a list",
        ),
        (
            field(1, field(1, field(1, b"x") + field(2, field(2, b"") + field(3, b"")))),
            one(),
            "record 1, byte 13: not an Example: a second list of one feature",
        ),
        (data_of(FLOATS, [1, 2]), one(), "record 1: expected 4 values for input 'x', got 2"),
        (data_of(FLOATS, [1]), one(shape=(None, None, None)), "record 1: expected a shape that fits [?, ?]"),
        (rows_of(FLOATS, GRID), one(shape=(4,), batch_axis=ABSENT), "the model takes one record per request, got 2"),
        (rows_of(FLOATS, GRID + 0.5), one("int64"), "record 1, value 1: expected a whole number"),
        (rows_of(INTS, GRID * 100), one("uint8"), "record 1, value 4: expected a whole number from 0 to 255"),
        (data_of(BYTES, [b"1"]), one(shape=(None, 1)), "record 1: expected numbers for input 'x', got bytes_list"),
        (data_of(INTS, [1]), one("string", (None, 1)), "record 1: expected strings for input 'x', got int64_list"),
    ],
)
def test_broken_bodies(data: bytes, signature: Signature, words: str) -> None:
    assert refusal(data, signature).startswith(words)


def test_more_features_than_inputs() -> None:
    message = Example()
    for number in range(5000):
        example(FLOATS, [1], str(number), message)
    assert refusal(bytes(message.SerializeToString()), one()).startswith("record 1: missing 'x'; unknown ")


def test_lengths_that_lie() -> None:
    """Their CRC is right: who lies can compute it."""
    for length in (2**63, 2**64 - 1, 2**32, len(GOOD) + 1):
        head = struct.pack("<Q", length)
        lie = head + masked(head) + GOOD + masked(GOOD)
        words = f"expected {length + 4} bytes of data and CRC, got {len(GOOD) + 4}"
        assert refusal(lie, one()) == f"record 1, byte 0: {words}"
        assert refusal(frame(GOOD) + lie, one()) == f"record 2, byte {len(frame(GOOD))}: {words}"


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_checksums(rows: int) -> None:
    sent = frame(GOOD) * rows
    size = len(frame(GOOD))
    assert read(sent, one()).tolist() == [[1, 2, 3, 4]] * rows
    for row in {0, rows // 2, rows - 1}:
        for place in (11, size - 5, size - 1):
            damaged = bytearray(sent)
            damaged[row * size + place] ^= 1
            message = refusal(bytes(damaged), one())
            if place == 11 and row == 0:  # then it does not look like a TFRecord file at all
                assert message.startswith("record 1, byte ")
                assert message.endswith("nor is the body a TFRecord file")
            elif place == 11:
                assert message == f"record {row + 1}, byte {row * size + 8}: the CRC-32C of the length does not match"
            else:
                offset = row * size + size - 4
                assert message == f"record {row + 1}, byte {offset}: the CRC-32C of the data does not match"


def general(data: bytes, signature: Signature) -> Tensors:
    starts, ends = tfexample._records(data)
    return flat.tensors_from_columns(tfexample._columns(data, starts, ends, signature), signature, OPTIONS)


@settings(LAWS, max_examples=400)
@given(st.data())
def test_equal_records_read_as_one_by_one(data: st.DataObject) -> None:
    """The way of records that differ only in their numbers, and the way of all, agree, in answer and in refusal."""
    inputs = data.draw(st.sampled_from([("x",), ("a", "b")]))
    signature = several(*((name, "int32", (None, None)) for name in inputs))
    layout = [(name, data.draw(st.sampled_from([FLOATS, INTS])), data.draw(st.integers(0, 4))) for name in inputs]
    records = []
    for _ in range(data.draw(st.integers(1, 6))):
        message = Example()
        for name, kind, count in layout:
            numbers = data.draw(st.lists(st.sampled_from([0, 1, 127, 128, 300, -1]), min_size=count, max_size=count))
            example(kind, numbers, name, message)
        record = bytearray(message.SerializeToString(deterministic=True))
        if data.draw(st.integers(0, 5)) == 0:
            record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
        records.append(bytes(record))
    sent = body(*records)
    assert outcome(decode, sent, signature, OPTIONS) == outcome(general, sent, signature)


def test_equal_records_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfexample, "_columns", lambda *_: pytest.fail("walked over all records"))
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert_same(read(rows_of(FLOATS, rows), one()), rows)
    numbers = np.random.default_rng(0).integers(128, 2**14, (50, 4))
    assert_same(read(rows_of(INTS, numbers), one("int64")), numbers)


@LAWS
@given(
    st.lists(st.lists(st.integers(-(2**23), 2**23), min_size=3, max_size=3), min_size=1, max_size=6),
    st.data(),
)
def test_what_the_library_writes_is_read(rows: list[list[int]], data: st.DataObject) -> None:
    records = []
    for row in rows:
        message = data.draw(st.sampled_from([Example, UnpackedExample]))()
        example(data.draw(st.sampled_from([FLOATS, INTS])), row, "x", message)
        records.append(bytes(message.SerializeToString()))
    assert_same(read(body(*records), one(shape=(None, 3))), np.array(rows, np.float32))
    if len(rows) == 1:
        assert_same(read(records[0], one(shape=(None, 3))), np.array(rows, np.float32))


@LAWS
@given(st.binary(max_size=80), st.sampled_from([one(), one("string", (None, 1)), one(shape=(), batch_axis=ABSENT)]))
def test_any_message_gives_tensors_or_a_refusal(data: bytes, signature: Signature) -> None:
    entry = field(1, field(1, field(1, b"x") + field(2, data)))
    for sent in (data, frame(data), frame(data) * 2, frame(GOOD) + frame(data), entry, frame(entry) * 2):
        try:
            tensors = decode(sent, signature, OPTIONS)
        except InvalidPayload:
            continue
        assert set(tensors) == set(signature.input_by_name)


@LAWS
@given(st.data())
def test_damaged_bodies(data: st.DataObject) -> None:
    sent = bytearray(rows_of(FLOATS, GRID))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(sent[data.draw(st.integers(0, 3)) :])
    try:
        array = read(cut, one())
    except InvalidPayload:
        return
    assert_same(array, GRID.astype(np.float32))  # what passes both checksums is what was sent


def test_memory_stays_in_proportion() -> None:
    bodies = {
        "many small": frame(data_of(FLOATS, [1])) * 20_000,
        "many small, two kinds": (frame(data_of(FLOATS, [1])) + frame(data_of(INTS, [1]))) * 5_000,
        "one-byte numbers": feature(3, field(1, bytes(200_000))),
        "numbers of mixed length": feature(3, field(1, b"\x01\x80\x01" * 100_000)),
        "not packed": feature(3, b"\x08\x01" * 100_000),
        "empty": frame(b"") * 20_000,
        "texts": feature(1, b"\x0a\0" * 100_000),
    }
    read(bodies["many small"], one(shape=(None, 1)))  # the tables of the CRC are kept
    for name, data in bodies.items():
        for signature in (one(shape=(None, None)), one("int64", (None, 1)), one("string", (None, None))):
            tracemalloc.start()
            try:
                with contextlib.suppress(InvalidPayload):
                    decode(data, signature, DecodeOptions({}, max_tensor_bytes=1_000_000))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 14 * len(data) + 50_000, (name, peak, len(data))


def test_large_bodies_stay_quick() -> None:
    one_large = data_of(FLOATS, np.zeros(1_500_000, np.float32).tolist())
    head = struct.pack("<Q", len(one_large))
    crc = struct.pack("<I", int(masked_crc32c(one_large, np.array([0]), np.array([len(one_large)]))[0]))
    start_s = time.monotonic()
    assert read(head + masked(head) + one_large + crc, one(shape=(None, None))).shape == (1, 1_500_000)
    assert read(frame(data_of(INTS, [300])) * 50_000, one(shape=(None,))).shape == (50_000,)
    mixed = frame(data_of(INTS, [300])) + frame(data_of(FLOATS, [3]))
    assert read(mixed * 5_000, one(shape=(None,))).shape == (10_000,)
    assert "missing" in refusal(frame(b"") * 50_000, one())
    refusal(feature(3, b"\x08\x01" * 300_000) + encode_varint(2**60), one())
    assert time.monotonic() - start_s < 10


def test_through_the_server(tmp_path: Path) -> None:
    """Checklist 80: requests over a real socket; a bad body harms nobody."""
    onnx_models.identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("N", 4))
    assert codecs_by_media_type()["application/x-tfrecord"].media_type == MEDIA_TYPE
    with running("--model", str(tmp_path)) as server:
        expected = {"predictions": GRID.astype(float).tolist()}
        for name in (MEDIA_TYPE, "application/x-tfrecord"):
            assert server.invoke(rows_of(FLOATS, GRID), Content_Type=name).json() == expected
        refused = server.invoke(rows_of(FLOATS, GRID)[:-1], Content_Type=MEDIA_TYPE)
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "record 2, byte 45"
        assert server.invoke(GOOD, Content_Type=MEDIA_TYPE).json() == {"predictions": [[1, 2, 3, 4]]}
        assert server.invoke(GOOD, Content_Type=MEDIA_TYPE, Accept=MEDIA_TYPE).status_code == 406
