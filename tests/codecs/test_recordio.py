"""``application/x-recordio-protobuf``: records as Google's library writes them, frames, and bodies that lie."""

from __future__ import annotations

import contextlib
import itertools
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

from byoc_server.codecs import recordio
from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.protobuf import flat
from byoc_server.codecs.protobuf.wire import encode_varint, field
from byoc_server.codecs.recordio import decode, encode
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import STRING, Array, BatchAxis, Signature, Tensors
from tests import onnx_models
from tests.codecs.protobuf_oracle import Record, UnpackedRecord, outcome
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.server_process import running

LAWS = settings(deadline=None, max_examples=150, derandomize=True)
MAGIC = struct.pack("<I", 0xCED7230A)
MEDIA_TYPE = "application/x-recordio-protobuf"
F32, F64, I32 = "float32_tensor", "float64_tensor", "int32_tensor"


def frame(data: bytes, flag: int = 0) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def set_value(record: Any, name: str, kind: str, values: Sequence[Any], keys: Any = (), shape: Any = ()) -> None:
    if kind == "bytes":
        record.features[name].bytes.value.extend(values)
        return
    tensor = getattr(record.features[name], kind)
    tensor.SetInParent()
    tensor.values.extend(values)
    tensor.keys.extend(keys)
    tensor.shape.extend(shape)


def record(kind: str, values: Sequence[Any], keys: Any = (), shape: Any = (), name: str = "values") -> bytes:
    message = Record()
    set_value(message, name, kind, values, keys, shape)
    return bytes(message.SerializeToString(deterministic=True))


def body(*records: bytes) -> bytes:
    return b"".join(map(frame, records))


def dense(rows: Any, kind: str = F32, shape: Sequence[int] = ()) -> bytes:
    return body(*(record(kind, row, shape=shape) for row in np.asarray(rows).tolist()))


def feature(number: int, content: bytes) -> bytes:
    """A record of one value, the content of its tensor made by hand."""
    return field(1, field(1, b"values") + field(2, field(number, content)))


def read(data: bytes, signature: Signature) -> Any:
    tensors = decode(data, signature, OPTIONS)
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(data: bytes, signature: Signature, options: DecodeOptions = OPTIONS) -> str:
    with pytest.raises(InvalidPayload) as caught:
        decode(data, signature, options)
    assert len(caught.value.message) < 400
    return caught.value.message


GRID = np.arange(8).reshape(2, 4)


def test_bytes_by_hand() -> None:
    """The frame and the message as the schema says, written down byte by byte."""
    data = bytes.fromhex(
        "0a23d7ce 18000000"  # magic; 24 bytes
        "0a16"  # features: an entry of 22 bytes
        "0a06 76616c756573"  # its key: values
        "120c"  # its value, 12 bytes
        "120a"  # float32_tensor, 10 bytes
        "0a08 0000803f 000000c0"  # values, packed: 1, -2
    )
    assert_same(read(data, one(shape=(None, 2))), np.array([[1, -2]], np.float32))
    assert data == dense([[1.0, -2.0]])


@pytest.mark.parametrize("kind", [F32, F64, I32])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int8", "uint8", "uint64"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_all_tensors_into_all_dtypes(kind: str, dtype: str, rows: int) -> None:
    values = np.arange(rows * 4).reshape(rows, 4)
    assert_same(read(dense(values, kind), one(dtype)), values.astype(dtype))


@pytest.mark.parametrize("kind", [F32, F64, I32])
def test_booleans(kind: str) -> None:
    assert_same(read(dense([[0, 1], [1, 1]], kind), one("bool", (None, 2))), np.array([[False, True], [True, True]]))
    message = refusal(dense([[0, 1], [1, 2]], kind), one("bool", (None, 2)))
    assert message.startswith("record 2, value 2: expected true or false for input 'x', got 2")


@pytest.mark.parametrize(
    ("rows", "shape", "signature", "expected"),
    [
        (GRID, (), one(), GRID),
        (GRID, (4,), one(), GRID),
        (GRID, (), one(shape=(None, None)), GRID),
        (GRID, (), one(shape=(None, 2, 2)), GRID.reshape(2, 2, 2)),
        (GRID, (2, 2), one(shape=(None, 2, 2)), GRID.reshape(2, 2, 2)),
        (GRID, (), one(shape=(None, 2, None)), GRID.reshape(2, 2, 2)),
        (GRID, (1, 4), one(shape=(None, None, None)), GRID.reshape(2, 1, 4)),
        (GRID[:, :1], (), one(shape=(None, 1)), GRID[:, :1]),
        (GRID[:, :1], (1,), one(shape=(None, 1)), GRID[:, :1]),
        (GRID[:, :1], (), one(shape=(None,)), GRID[:, 0]),
        (GRID[:, :1], (1,), one(shape=(None,)), GRID[:, 0]),
        (GRID[:, :0], (), one(shape=(None, None)), np.zeros((2, 0))),
        (GRID[:, :0], (0,), one(shape=(None, None)), np.zeros((2, 0))),
        (np.tile(GRID, (3, 1)), (), one(shape=(8, 4), batch_axis=BatchAxis.FIXED), np.tile(GRID, (3, 1))),
        (GRID[:1], (), one(shape=(2, 2), batch_axis=ABSENT), GRID[0].reshape(2, 2)),
        (GRID[:1], (), one(shape=(None,), batch_axis=ABSENT), GRID[0]),
        (GRID[:1, :1], (), one(shape=(), batch_axis=ABSENT), GRID[0, 0]),
    ],
)
@pytest.mark.parametrize("kind", [F32, I32])
def test_shapes(rows: Array, shape: Any, signature: Signature, expected: Array, kind: str) -> None:
    assert_same(read(dense(rows, kind, shape), signature), np.asarray(expected, np.float32))


@pytest.mark.parametrize(
    ("data", "signature", "words"),
    [
        (dense([[1, 2, 3]]), one(), "record 1: expected 4 values for input 'x', got 3"),
        (dense([[1], [2]]), one(), "record 1: expected 4 values for input 'x', got 1"),
        (dense(np.zeros((3, 0))), one(shape=(None, 1)), "record 1: expected 1 value for input 'x', got 0"),
        (body(record(F32, [1] * 4), record(F32, [1] * 3)), one(), "record 2: expected 4 values for input 'x', got 3"),
        (
            body(record(F32, [1]), record(F32, [1, 2])),
            one(shape=(None, None)),
            "record 2: expected shape [1] as in record 1 for input 'x', got [2]",
        ),
        (dense([[1, 2]], shape=(2,)), one(), "record 1: expected shape [4] for input 'x', got [2]"),
        (dense([[1, 2]], shape=(4,)), one(), "record 1: expected 4 values for shape [4] for input 'x', got 2"),
        (dense([[1]], shape=[1] * 10), one(), "record 1: expected shape [4] for input 'x', got more axes"),
        (dense([[1]], shape=[2**64 - 1]), one(shape=(None, None)), "record 1: expected 18446744073709551615 values"),
        (dense([[1, 2, 3]]), one(shape=(None, 2, None)), "record 1: expected a multiple of 2 values for input 'x'"),
        (
            dense([[1, 2]]),
            one(shape=(None, None, None)),
            "record 1: expected a shape that fits [?, ?] for input 'x', got 2 values without a shape",
        ),
        (dense([[1]]), one(shape=(None, 0, None)), "record 1: expected a shape that fits [0, ?]"),
        (dense([[1], [2]]), one(shape=(1,), batch_axis=ABSENT), "the model takes one record per request, got 2"),
        (dense([[1]] * 3), one("string", (None, 1)), "record 1: expected strings for input 'x', got float32_tensor"),
        (body(record("bytes", [b"NaN"])), one(shape=(None, 1)), "record 1: expected numbers for input 'x', got bytes"),
    ],
)
def test_what_does_not_fit(data: bytes, signature: Signature, words: str) -> None:
    assert refusal(data, signature).startswith(words)


@pytest.mark.parametrize(
    ("kind", "rows", "dtype", "words"),
    [
        (F32, [[0, 0], [0, 0.5]], "int64", "record 2, value 2: expected a whole number"),
        (F32, [[0, 0], [float("nan"), 0]], "int64", "record 2, value 1: expected a whole number"),
        (F64, [[0, 0], [2.0**60, 0]], "int64", "record 2, value 1: expected a"),
        (F64, [[0, 0], [2.0**53, 0]], "int64", "record 2, value 1: expected a whole number from -"),
        (F64, [[0, 1e39], [0, 0]], "float32", "record 1, value 2: expected a number within the range of float32"),
        (F32, [[0, 0], [0, 1e5]], "float16", "record 2, value 2: expected a number within the range of float16"),
        (I32, [[0, 0], [0, 128]], "int8", "record 2, value 2: expected a whole number from -128 to 127"),
        (I32, [[0, -1], [0, 0]], "uint64", "record 1, value 2: expected a whole number from 0"),
    ],
)
def test_values_the_input_cannot_have(kind: str, rows: Any, dtype: str, words: str) -> None:
    assert refusal(dense(rows, kind), one(dtype, (None, 2))).startswith(words)


def test_floats_of_all_sorts() -> None:
    values = [[float("nan"), float("inf")], [float("-inf"), -0.0]]
    for kind in (F32, F64):
        assert_same(read(dense(values, kind), one(shape=(None, 2))), np.array(values, np.float32))


def test_one_record_is_not_copied() -> None:
    data = dense([[1.0, 2.0]])
    for pad in range(4):  # some name of the input puts the values where they are aligned
        name = "x" * (pad + 1)
        data = body(record(F32, [1, 2], name=name))
        signature = several((name, "float32", (None, 2)))
        array = read(data, signature)
        assert array.flags.aligned
        if np.shares_memory(array, np.frombuffer(data, np.uint8)):
            return
    raise AssertionError("all were copied")


def test_int32_beyond_its_range() -> None:
    for number in (2**31, 2**63, 2**64 - 2**31 - 1):
        tensor = field(7, field(1, b"\x01" + encode_varint(number)))
        wrong = field(1, field(1, b"values") + field(2, tensor))
        for data in (body(wrong), body(wrong, wrong)):
            words = "record 1, value 2: expected a number within the range of int32_tensor"
            assert refusal(data, one(shape=(None, 2))).startswith(words)
    extremes = [[-(2**31), 2**31 - 1], [-1, 0]]
    assert_same(read(dense(extremes, I32), one("int64", (None, 2))), np.array(extremes))


def test_sparse_records() -> None:
    """Keys say where in the flattened record a value goes; as scipy.sparse rows are written, with their shape."""
    expected = np.zeros((4, 300), np.float32)
    expected[0, [1, 299]], expected[1, 200], expected[3, [5, 4]] = [1, 2], 3, [4, 5]
    data = body(
        record(F32, [1, 2], [1, 299], [300]),
        record(I32, [3], [200], [300]),
        record(F32, [], [], [300]),
        record(F32, [4, 5], [5, 4], [300]),
    )
    for signature in (one(shape=(None, 300)), one(shape=(None, None))):
        assert_same(read(data, signature), expected)
    square = body(record(F64, [7], [3], [2, 2]), record(F64, [8], [0], [2, 2]))
    assert_same(read(square, one("int16", (None, 2, 2))), np.array([[[0, 0], [0, 7]], [[8, 0], [0, 0]]], np.int16))
    assert_same(read(body(record(F32, [7], [3])), one()), np.array([[0, 0, 0, 7]], np.float32))
    mixed = body(record(F32, [1, 2, 3, 4]), record(F32, [9], [2], [4]), record(F32, [5, 6, 7, 8]))
    assert_same(read(mixed, one()), np.array([[1, 2, 3, 4], [0, 0, 9, 0], [5, 6, 7, 8]], np.float32))
    wide = body(*[record(F32, range(100_000), range(100_000), [100_000])] * 3)
    assert_same(read(wide, one(shape=(None, 100_000))), np.tile(np.arange(100_000, dtype=np.float32), (3, 1)))
    assert_same(read(body(*[record(F32, [], [], [4])] * 3), one("bool")), np.zeros((3, 4), bool))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(F32, [1, 2], [1], [4]), "record 1: expected as many keys as values for input 'x', got 1 keys and 2"),
        (record(F32, [1], [4], [4]), "record 1, value 1: expected keys from 0 to 3 for input 'x', got 4"),
        (record(F32, [1, 2], [0, 2**64 - 1], [4]), "record 1, value 2: expected keys from 0 to 3"),
        (record(F32, [1, 2, 3], [2, 0, 2], [4]), "record 1: expected each key once for input 'x', got key 2 twice"),
        (record(F32, [1], [2], [5]), "record 1: expected shape [4] for input 'x', got [5]"),
        (record(F32, [1.5], [2], [4]), "record 1, value 1: expected a whole number"),
    ],
)
def test_sparse_records_that_do_not_fit(data: bytes, words: str) -> None:
    assert refusal(body(data), one("int32")).startswith(words)
    good = record(F32, [1, 1], [0, 3])
    message = refusal(body(good, data), one("int32"))
    assert message.startswith(words.replace("record 1", "record 2"))


def test_sparse_records_of_open_shape() -> None:
    signature = one(shape=(None, None))
    assert "got 1 values without a shape" in refusal(body(record(F32, [1], [2])), signature)
    huge = body(record(F32, [1], [2], [2**40]))
    start_s = time.monotonic()
    assert refusal(huge, signature) == "the tensors of this request would take more than 536870912 bytes"
    endless = one(shape=(None, None, None))
    assert "would take more" in refusal(body(record(F32, [1], [2], [2**63, 2**63])), endless)
    assert time.monotonic() - start_s < 1
    with pytest.raises(InvalidPayload, match="strings for input 'x', got float32_tensor"):
        read(body(record(F32, [], [], [4])), one("string", (None, 4)))


def test_strings() -> None:
    data = body(record("bytes", [b"a", b""]), record("bytes", ["\u00e4\u20ac".encode(), b"\0"]))
    assert_same(read(data, one("string", (None, 2))), texts([["a", ""], ["\u00e4\u20ac", "\0"]]))
    assert_same(read(data, one("string", (None, None))), texts([["a", ""], ["\u00e4\u20ac", "\0"]]))
    assert_same(read(body(record("bytes", [b"a"])), one("string", (), ABSENT)), texts("a"))
    bad = record("bytes", [b"a", b"b\xff"])
    offset = body(bad).index(b"\xff")
    assert refusal(body(bad), one("string", (None, 2))).startswith(
        f"record 1, byte {offset}: not a Record: a text that is not UTF-8"
    )
    message = refusal(body(record("bytes", [b"a"]), record(F32, [1])), one("string", (None, 1)))
    assert message == "record 2: expected strings for input 'x', got float32_tensor"


SEVERAL = several(("a", "float32", (None, 2)), ("b", "int64", (None,)), ("c", "string", (None, 1)))


def row_of_several(a: Sequence[float], b: int, c: bytes) -> bytes:
    message = Record()
    set_value(message, "c", "bytes", [c])
    set_value(message, "a", F64, a)
    set_value(message, "b", I32, [b])
    return bytes(message.SerializeToString())


def test_several_inputs() -> None:
    tensors = read(body(row_of_several([1, 2], 3, b"x"), row_of_several([4, 5], -6, b"yy")), SEVERAL)
    assert_same(tensors["a"], np.array([[1, 2], [4, 5]], np.float32))
    assert_same(tensors["b"], np.array([3, -6]))
    assert_same(tensors["c"], texts([["x"], ["yy"]]))
    numbers = several(("a", "float32", (None, 2)), ("b", "int64", (None,)))
    rows = [record(F32, [i, i + 1], name="a") + record(I32, [i], name="b") for i in range(9)]
    tensors = read(body(*rows), numbers)
    assert_same(tensors["a"], np.array([[i, i + 1] for i in range(9)], np.float32))
    assert_same(tensors["b"], np.arange(9))


def test_names() -> None:
    expected = np.array([[1, 2, 3, 4]], np.float32)
    assert_same(read(body(record(F32, [1, 2, 3, 4], name="x")), one()), expected)
    wrong = record(F32, [1, 2, 3, 4], name="y")
    assert refusal(body(wrong), one()).startswith(
        "record 1: missing 'x'; unknown 'y'; the model's inputs are x: float32"
    )
    message = refusal(body(record(F32, [1, 2, 3, 4]), record(F32, [1] * 4) + wrong), one())
    assert message.startswith("record 2: missing 'x'; unknown 'values', 'y'")
    assert refusal(body(record(F32, [1, 2], name="a")), SEVERAL).startswith("record 1: missing 'b', 'c'")
    assert refusal(body(b""), one()).startswith("record 1: missing 'x'")
    assert "the feature 'x' for the second time" in refusal(body(record(F32, [1] * 4, name="x") * 2), one())
    many = b"".join(record(F32, [1], name=str(i)) for i in range(5000))
    assert "unknown '0', '1'" in refusal(body(many), one())
    assert "not UTF-8" in refusal(body(field(1, field(1, b"\xff") + field(2, b""))), one())
    no_name = field(1, field(2, field(2, field(1, bytes(16)))))
    assert_same(read(body(no_name), several(("", "float32", (None, 4)))), np.zeros((1, 4), np.float32))


def test_what_else_a_record_has_is_not_looked_at() -> None:
    """Training files have labels; they differ from record to record, also where the rest is the same."""
    records = []
    for number in range(5):
        message = Record(uid=f"id {number}", metadata="{}", configuration="x" * number)
        set_value(message, "values", F32, [number] * 4)
        message.label["values"].float32_tensor.values.append(number)
        message.features["values"].float32_tensor.SetInParent()
        records.append(bytes(message.SerializeToString()) + b"\x98\x06\x05" + b"\xfd\x07abcd")
    expected = np.repeat(np.arange(5, dtype=np.float32), 4).reshape(5, 4)
    assert_same(read(body(*records), one()), expected)


@pytest.mark.parametrize("kind", [F32, F64, I32])
def test_repeated_fields_not_packed(kind: str) -> None:
    messages = []
    for number in range(3):
        message = UnpackedRecord()
        set_value(message, "values", kind, [number, -1, 300], [0, 2, 3], [4])
        messages.append(bytes(message.SerializeToString()))
    assert_same(read(body(*messages), one("int64")), np.array([[i, 0, -1, 300] for i in range(3)]))


def test_bare_records() -> None:
    """Batch Transform may take the frames off; of two such records the second would hide the first."""
    assert_same(read(record(F32, [1, 2, 3, 4]), one()), np.array([[1, 2, 3, 4]], np.float32))
    message = refusal(record(F32, [1] * 4) * 2, one())
    assert "the feature 'values' for the second time" in message
    assert message.endswith("nor does the body begin with the magic number 0a 23 d7 ce")
    assert refusal(b"\x00\x00\x00\x00", one()).startswith(
        "record 1, byte 0: not a Record: a field whose number is none"
    )
    assert refusal(MAGIC[:3], one()).startswith("record 1, byte 0: not a Record")


def test_records_of_several_frames() -> None:
    """As dmlc-core writes a record that holds the magic number at a multiple of 4, which here is a float."""
    holds_magic = np.frombuffer(MAGIC * 3 + bytes(4), np.float32)
    values = record(F32, holds_magic.tolist())
    whole = next(w for w in (field(9, bytes(n)) + values for n in range(4)) if w.index(MAGIC) % 4 == 0)
    first, *middle, last = whole.split(MAGIC)
    split = frame(first, 1) + b"".join(frame(part, 2) for part in middle) + frame(last, 3)
    assert split.count(MAGIC) == 4
    for data in (frame(whole), split):
        assert read(data, one()).tobytes() == holds_magic.tobytes()
        assert read(data * 3, one()).tobytes() == holds_magic.tobytes() * 3
    other = frame(record(F32, [1, 2, 3, 4]))
    assert read(other + split + other, one()).shape == (3, 4)
    assert refusal(frame(first, 1), one()).endswith("expected the last part of a record, got the end of the body")
    assert "expected the next part of a record, got a frame with flag 1" in refusal(frame(first, 1) * 2, one())
    assert "expected the next part of a record, got a frame with flag 0" in refusal(frame(first, 1) + other, one())
    for flag in (2, 3, 4, 7):
        message = refusal(other + frame(last, flag), one())
        assert (
            message == f"record 2, byte {len(other) + 4}: expected the start of a record, got a frame with flag {flag}"
        )
    cut = frame(first, 1) + frame(b"\xff", 3)
    assert refusal(cut, one()).startswith("record 1, byte ")


GOOD = record(F32, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "body is empty"),
        (MAGIC, "record 1, byte 0: expected the magic number 0a 23 d7 ce and a length, got 0a 23 d7 ce"),
        (MAGIC + b"\0\0\0", "record 1, byte 0: expected the magic number"),
        (MAGIC + struct.pack("<I", 2**29 - 1), "record 1, byte 4: expected 536870911 bytes, got 0"),
        (frame(GOOD)[:-1], "record 1, byte 4: expected 32 bytes, got 31"),
        (
            frame(GOOD) + b"\0",
            f"record 2, byte {len(frame(GOOD))}: expected the magic number 0a 23 d7 ce and a length, got 00",
        ),
        (frame(GOOD) + frame(GOOD)[:9], "record 2, byte 44: expected 32 bytes, got 1"),
        (frame(GOOD) * 2 + b"\x0b" + frame(GOOD)[1:], "record 3, byte 80: expected the magic number"),
        (frame(GOOD) + GOOD + frame(GOOD), "record 2, byte 40: expected the magic number"),
        (body(GOOD + b"\x0b"), "record 1, byte 40: not a Record: a field of wire type 3"),
        (body(GOOD, GOOD[:-1]), "record 2, byte 48: not a Record: a field of 30 bytes where 29 are left"),
        (body(b"\x08\x01"), "record 1, byte 9: not a Record: a number in the place of a map entry"),
        (body(field(1, b"\x08\x01")), "record 1, byte 11: not a Record: a map entry that is not one key"),
        (body(field(1, field(1, b"a") * 2)), "record 1, byte 15: not a Record: a map entry that is not one key"),
        (body(field(1, field(1, b"values"))), "record 1, byte 18: not a Record: a feature without a tensor"),
        (body(field(1, field(2, b"\x10\x01"))), "record 1, byte 13: not a Record: a number in the place of a tensor"),
        (body(field(1, field(2, field(2, b"") + field(3, b"")))), "record 1, byte 16: not a Record: a second tensor"),
        (body(field(1, field(2, field(2, field(1, b"123"))))), "record 1, byte 16: not a Record: 3 bytes of packed"),
        (body(field(1, field(2, field(7, field(1, b"\x80"))))), "record 1, byte 16: not a Record: packed values"),
        (
            body(field(1, field(2, field(2, field(3, bytes(33)))))),
            "record 1, byte 14: not a Record: a shape of 33 axes",
        ),
        (
            body(field(1, field(2, field(9, b"\x08\x01")))),
            "record 1, byte 15: not a Record: a number in the place of a text",
        ),
    ],
)
def test_broken_bodies(data: bytes, words: str) -> None:
    assert refusal(data, one()).startswith(words)


def test_the_last_padding_may_be_missing() -> None:
    data = record(F32, [1, 2, 3, 4], name="x")
    assert len(data) % 4
    framed = frame(data)
    assert read(framed[: 8 + len(data)], one()).tolist() == [[1, 2, 3, 4]]
    assert read(framed + framed[: 8 + len(data)], one()).tolist() == [[1, 2, 3, 4]] * 2
    assert "the magic number" in refusal(framed[: 8 + len(data)] + framed, one())


def general(data: bytes, signature: Signature) -> Tensors:
    return flat.tensors_from_columns(recordio._columns(data, signature), signature, OPTIONS)


@settings(LAWS, max_examples=500)
@given(st.data())
def test_equal_records_read_as_one_by_one(data: st.DataObject) -> None:
    """The way of records that differ only in their numbers, and the way of all, agree, in answer and in refusal."""
    inputs = data.draw(st.sampled_from([("values",), ("x",), ("a", "b")]))
    signature = several(*((name if len(inputs) > 1 else "x", "int32", (None, None)) for name in inputs))
    layout = [(name, data.draw(st.sampled_from([F32, F64, I32])), data.draw(st.integers(0, 4))) for name in inputs]
    records = []
    for _ in range(data.draw(st.integers(1, 6))):
        message = Record(uid=data.draw(st.sampled_from(["", "ab", "cd"])))
        for name, kind, count in layout:
            numbers = data.draw(st.lists(st.sampled_from([0, 1, 127, 128, 300, -1]), min_size=count, max_size=count))
            set_value(message, name, kind, numbers, shape=data.draw(st.sampled_from([(), (count,)])))
        records.append(bytes(message.SerializeToString(deterministic=True)))
    whole = bytearray(body(*records))
    for _ in range(data.draw(st.integers(0, 2))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(whole)
    assert outcome(decode, sent, signature, OPTIONS) == outcome(general, sent, signature)


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (b"\x01\xac\x02", b"\x01\x02\xac", "packed values of which the last one is cut off"),
        (b"\xff" * 9 + b"\x01\x80\x00", b"\xff" * 10 + b"\x01\x00", "packed values of which one has more than 64 bits"),
    ],
)
def test_numbers_that_are_none_behind_the_first_record(good: bytes, bad: bytes, words: str) -> None:
    """The records are of one layout, and of each as many numbers end."""
    first, second = (feature(7, field(1, values)) for values in (good, bad))
    assert read(body(first, first, first), one("int32", (None, 2))).shape == (3, 2)
    message = refusal(body(first, second, first), one("int32", (None, 2)))
    assert message == f"record 2, byte {2 * 8 + len(first) + -len(first) % 4 + 16}: not a Record: {words}"


def test_equal_records_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_columns", lambda *_: pytest.fail("walked over all records"))
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert_same(read(dense(rows), one()), rows)
    assert_same(read(dense(rows, F64, [4]), one()), rows)
    numbers = np.random.default_rng(0).integers(128, 2**14, (50, 4))
    assert_same(read(dense(numbers, I32), one("int64")), numbers)


@LAWS
@given(st.data())
def test_what_the_library_writes_is_read(data: st.DataObject) -> None:
    """Records of any mixture: tensors, sparse or not, packed or not."""
    expected, records = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        message = data.draw(st.sampled_from([Record, UnpackedRecord]))()
        kind = data.draw(st.sampled_from([F32, F64, I32]))
        values = data.draw(st.lists(st.integers(-(2**23), 2**23), min_size=6, max_size=6))
        if data.draw(st.booleans()):
            keys = data.draw(st.lists(st.integers(0, 5), unique=True, max_size=6))
            row = [0] * 6
            for key in keys:
                row[key] = values[key]
            set_value(message, "values", kind, [values[key] for key in keys], keys, [6])
            values = row
        else:
            set_value(message, "values", kind, values, shape=data.draw(st.sampled_from([(), (6,)])))
        expected.append(values)
        records.append(bytes(message.SerializeToString()))
    assert_same(read(body(*records), one(shape=(None, 6))), np.array(expected, np.float32))


@LAWS
@given(
    st.binary(max_size=80),
    st.sampled_from([one(), one("string", (None, 1)), SEVERAL, one(shape=(), batch_axis=ABSENT)]),
)
def test_any_message_gives_tensors_or_a_refusal(data: bytes, signature: Signature) -> None:
    for sent in (
        frame(data),
        frame(data) * 2,
        frame(GOOD) + frame(data),
        body(field(1, field(1, b"x") + field(2, data))),
    ):
        try:
            tensors = decode(sent, signature, OPTIONS)
        except InvalidPayload:
            continue
        assert set(tensors) == set(signature.input_by_name)


def messages(answer: bytes) -> list[Any]:
    """Read an answer as the SageMaker SDK does: magic, length, data, padding."""
    found, position = [], 0
    while position < len(answer):
        magic, length = struct.unpack_from("<4sI", answer, position)
        assert magic == MAGIC
        found.append(Record.FromString(answer[position + 8 : position + 8 + length]))
        position += 8 + length + -length % 4
    assert position == len(answer)
    return found


def label(message: Any, name: str) -> tuple[str, list[Any], list[int]]:
    value = message.label[name]
    kind = value.WhichOneof("kind")
    tensor = getattr(value, kind)
    return (kind, list(tensor.value), []) if kind == "bytes" else (kind, list(tensor.values), list(tensor.shape))


@pytest.mark.parametrize(
    ("dtype", "values", "kind"),
    [
        ("float32", [[1.5], [-2]], F32),
        ("float16", [[1.5], [-2]], F32),
        ("float64", [[0.1], [float("inf")]], F64),
        ("int64", [[1], [-1]], I32),
        ("int64", [[1, 2], [3, 4]], I32),
        ("int32", [[2**31 - 1], [-(2**31)]], I32),
        ("uint8", [[1, 200], [3, 255]], I32),
        ("uint64", [[1], [2]], I32),
        ("bool", [[True, False], [True, True]], I32),
        ("float32", [1.5, 2], F32),
        ("int64", [1, 300], I32),
        ("float32", [[], []], F32),
        ("int8", [[], []], I32),
        ("float32", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], F32),
        ("int16", [[[1, 2], [3, 4]], [[5, -6], [7, 8]]], I32),
        ("string", [["a", "\u00e4"], ["", "ccc"]], "bytes"),
        ("string", ["a", "b"], "bytes"),
    ],
)
def test_answers(dtype: str, values: Any, kind: str) -> None:
    array = np.array(values, STRING if dtype == "string" else dtype)
    signature = one(dtype, (None, *array.shape[1:]))
    found = messages(encode({"y": array}, signature, ENCODE))
    shape = list(array.shape[1:]) if array.ndim > 2 else []
    assert len(found) == len(array)
    for message, row in zip(found, array, strict=True):
        expected = np.asarray(row).ravel().tolist()
        expected = [text.encode() for text in expected] if kind == "bytes" else expected
        assert list(message.label) == ["score"]
        assert not message.features
        assert label(message, "score") == (kind, expected, shape)


def test_answers_of_several_outputs() -> None:
    """Named as the outputs are; equal in layout or not."""
    signature = several(
        ("predicted_label", "int64", (None,)), ("score", "float32", (None, 2)), ("t", "string", (None,))
    )
    for labels, names in (([1, 2], ["p", "q"]), ([1, 300, 2], ["p", "qqq", "r"])):
        tensors = {
            "score": np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32)[: len(labels)],
            "predicted_label": np.array(labels),
            "t": texts(names),
        }
        found = messages(encode(tensors, signature, ENCODE))
        for number, message in enumerate(found):
            assert label(message, "predicted_label") == (I32, [labels[number]], [])
            assert label(message, "score") == (F32, tensors["score"][number].tolist(), [])
            assert label(message, "t") == ("bytes", [names[number].encode()], [])


def test_answers_without_records_or_batch_axis() -> None:
    (message,) = messages(encode({"y": np.array([[1, 2]], np.float32)}, one(shape=(1, 2), batch_axis=ABSENT), ENCODE))
    assert label(message, "score") == (F32, [1, 2], [1, 2])
    (message,) = messages(encode({"y": np.array(5, np.int8)}, one("int8", (), ABSENT), ENCODE))
    assert label(message, "score") == (I32, [5], [])
    assert encode({"y": np.zeros((0, 2), np.float32)}, one(shape=(None, 2)), ENCODE) == b""


def test_answers_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAcceptable, match="whole numbers of more than 32 bits, as output 'y' has"):
        encode({"y": np.array([2**31])}, one("int64", (None,)), ENCODE)
    with pytest.raises(NotAcceptable, match="strings of more than one axis"):
        encode({"y": texts([[["a"]]])}, one("string", (None, 1, 1)), ENCODE)
    pair = several(("a", "float32", (None,)), ("b", "float32", (None,)))
    with pytest.raises(NotAcceptable, match="different numbers of records"):
        encode({"a": np.zeros(1, np.float32), "b": np.zeros(2, np.float32)}, pair, ENCODE)
    monkeypatch.setattr(recordio, "_LENGTH_BITS", 5)  # 2^29 bytes would take a machine of its own
    with pytest.raises(NotAcceptable, match="a record of 512 MiB or more"):
        encode({"y": np.zeros((1, 8), np.float32)}, one(shape=(None, 8)), ENCODE)


def test_memory_stays_in_proportion() -> None:
    """The record is small, what it declares is not; and many small records are not kept as objects."""
    limit = 4 * 1024 * 1024
    bodies = {
        "declares 2^40": body(record(F32, [1], [2], [2**40])),
        "sparse, over the limit in all": body(*[record(F32, [1], [2], [500_000])] * 3),
        "many small": dense(np.zeros((20_000, 1)))[:-4],
        "many small and sparse": body(*[record(I32, [1], [i % 2], [2]) for i in range(20_000)]),
        "not packed": frame(feature(7, b"\x08\x01" * 200_000)),
        "one-byte numbers": frame(feature(7, field(1, bytes(200_000)))),
        "numbers of mixed length": frame(feature(7, field(1, b"\x01\x80\x01" * 100_000))),
        "texts": frame(feature(9, b"\x0a\0" * 100_000)),
        "one large sparse record": body(record(F32, range(100_000), range(100_000), [100_000])),
        "of two kinds in turn": body(*[record(F32, [1]), record(I32, [1])] * 10_000),
        "frames without end": frame(b"", 1) + frame(b"", 2) * 50_000,
        "empty names": frame(field(1, b"") * 100_000),
        "names": frame(b"".join(field(1, field(1, b"%d" % i)) for i in range(50_000))),
    }
    signatures = itertools.cycle([one(shape=(None, None)), one("int64", (None, 1)), one("string", (None, None))])
    for (name, data), signature in zip(bodies.items(), signatures, strict=False):
        tracemalloc.start()
        try:
            with contextlib.suppress(InvalidPayload):
                decode(data, signature, DecodeOptions({}, max_tensor_bytes=limit))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 14 * len(data) + 50_000, (name, peak, len(data))


def test_hostile_bodies_take_linear_time() -> None:
    start_s = time.monotonic()
    refusal(frame(feature(7, b"\x08\x01" * 300_000)), one())
    refusal(frame(feature(2, field(1, bytes(4)) * 100_000)), one())
    refusal(frame(b"", 1) + frame(b"", 2) * 200_000, one())
    refusal(body(*[GOOD] * 20_000, b"\x0b"), one())
    alternating = body(*[record(F32, [1] * 4), record(I32, [1] * 4)] * 5_000)
    assert read(alternating, one()).shape == (10_000, 4)
    assert time.monotonic() - start_s < 10


def test_through_the_server(tmp_path: Path) -> None:
    """Checklist 80 and 84: request and answer over a real socket; a bad body harms nobody."""
    onnx_models.identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("N", 3))
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    with running("--model", str(tmp_path)) as server:
        for data in (dense(rows), body(*[record(F32, rows[i], [0, 1, 2], [3]) for i in range(2)])):
            answer = server.invoke(data, Content_Type=MEDIA_TYPE, Accept=MEDIA_TYPE)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == MEDIA_TYPE
            assert [label(m, "score") for m in messages(answer.content)] == [(F32, row, []) for row in rows.tolist()]
        refused = server.invoke(dense(rows)[:-4], Content_Type=MEDIA_TYPE)
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "record 2, byte 40"
        assert server.invoke(dense(rows), Content_Type=MEDIA_TYPE).json() == {"predictions": rows.tolist()}
