"""``application/msgpack``: the document forms, bytes, arrays, hostile headers, answers."""

from __future__ import annotations

import struct
import time
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.codecs import msgpack as codec
from byoc_server.codecs.base import CodecEntry, DecodeOptions, codecs_by_media_type, request_codecs
from byoc_server.codecs.msgpack import decode, encode
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Array, BatchAxis, Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_json import ROWS, wrap
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, TEXT, assert_tensors_or_refusal, documents, echo, tensors
from tests.server_process import running

NAN, INF = float("nan"), float("inf")
ENTRY = codecs_by_media_type()["application/msgpack"]
TWO = several(("a", "float32", (None, 2)), ("s", "string", (None,)))
GRID = np.arange(8, dtype=np.float32).reshape(2, 4)


def read(document: object, signature: Signature | None = None) -> Any:
    """``bytes`` are a body as it is."""
    signature = signature or one()
    body = document if isinstance(document, bytes) else msgpack.packb(document)
    tensors = decode(body, signature, OPTIONS)
    assert list(tensors) == [s.name for s in signature.inputs]
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(document: object, signature: Signature | None = None) -> str:
    with pytest.raises(InvalidPayload) as caught:
        read(document, signature)
    assert len(caught.value.message) < 400
    return caught.value.message


def packed(array: Any, **changes: object) -> dict[Any, object]:
    """An array as msgpack-numpy 0.4.8 writes it, by the package's source: keys are ``bin``, ``kind`` is empty."""
    array = np.asarray(array)
    form = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return {**form, **{name.encode(): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    "document",
    [
        {"instances": ROWS},
        {"instances": [{"features": row} for row in ROWS]},
        {"instances": [wrap(row) for row in ROWS]},
        {"instances": [{"x": row} for row in ROWS]},
        {"instances": [{"keys": [0, 1, 2, 3], "shape": [4], "values": row} for row in ROWS]},
        {"instances": ROWS, "configuration": {}, "signature_name": "serving_default"},
        {"inputs": ROWS},
        {"inputs": {"x": ROWS}},
        {"x": ROWS},
        {"features": ROWS},
        ROWS,
        [{"x": row} for row in ROWS],
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_the_forms_of_json(document: object, single: bool) -> None:
    """Checklist 80 and 83."""
    assert_same(read(msgpack.packb(document, use_single_float=single)), np.array(ROWS, np.float32))


@pytest.mark.parametrize("key", ["instances", "inputs", "features", None])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (20, 2), (3, 20, 2), (2, 70_000), (5,)])
def test_lists_of_floats(key: str | None, single: bool, dtype: str, shape: tuple[int, ...]) -> None:
    """All sizes of list headers; the fast way gives what the parser would."""
    values = (np.arange(np.prod(shape)) % 97 / 8).reshape(shape)
    body = msgpack.packb({key: values.tolist()} if key else values.tolist(), use_single_float=single)
    for record_shape in (shape[1:], (*shape[1:-1], None) if len(shape) > 1 else ()):
        signature = one(dtype, (None, *record_shape))
        assert_same(read(body, signature), values.astype(dtype))
        assert codec._float_records(body, signature.inputs[0], record_shape) is not None


def test_lists_that_only_look_regular() -> None:
    """Same size, another meaning: left to the parser."""
    assert_same(
        read(b"\x92\x91\xca\0\0\0\0\x91\xca\x3f\x80\0\0", one(shape=(None, 1))), np.array([[0], [1]], np.float32)
    )
    for odd in (
        b"\x92\x91\xca\0\0\0\0\xa1\xca\x3f\x80\0\0",
        b"\x92\x91\xca\0\0\0\0\x91\xd2\x3f\x80\0\0",
        b"\x92\x91\xcb\0\0\0\0\x91\xcb\x3f\x80\0\0",
        b"\x92\x91\xca\0\0\0\0\x91\xca\x3f\x80\0",
    ):
        assert codec._float_records(odd, one(shape=(None, 1)).inputs[0], (1,)) is None
        assert_tensors_or_refusal(ENTRY, odd, one(shape=(None, 1)), OPTIONS)
    assert refusal([[1.5, 2.5], [1.5]], one(shape=(None, None))).startswith("body[1]: expected 2 values")
    assert refusal([[1.5, 1e39]], one(shape=(None, 2))).startswith("body[0][1]: expected a number within the range")
    assert_same(read([[1.5, 2.5, NAN, -INF]]), np.array([[1.5, 2.5, NAN, -INF]], np.float32))


def test_scalars_and_conversions() -> None:
    assert_same(read([1, True, 0.5, None, "NaN"], one(shape=(None,))), np.array([1, 1, 0.5, NAN, NAN], np.float32))
    assert_same(read([INF, "-Infinity"], one(shape=(None,))), np.array([INF, -INF], np.float32))
    assert_same(read([2**64 - 1], one("uint64", (None,))), np.array([2**64 - 1], np.uint64))
    assert_same(read([-(2**63)], one("int64", (None,))), np.array([-(2**63)], np.int64))
    assert_same(read([True, 0], one("bool", (None,))), np.array([True, False]))
    assert_same(read(1.5, one(shape=(), batch_axis=ABSENT)), np.array(1.5, np.float32))
    assert_same(read(ROWS * 4, one(shape=(8, 4), batch_axis=BatchAxis.FIXED)), np.array(ROWS * 4, np.float32))
    assert refusal([128], one("int8", (None,))).startswith("body[0]: expected a whole number from -128 to 127")
    assert refusal([1, NAN], one("int8", (None,))).startswith("body[1]: expected a whole number")


def test_several_inputs() -> None:
    for document in (
        {"instances": [{"a": [1, 2], "s": "x"}, {"s": b"y", "a": np.array([3, 4], np.float32)}]},
        {"inputs": {"a": np.array([[1, 2], [3, 4]], np.float32), "s": ["x", b"y"]}},
        {"inputs": {"a": [[1, 2], [3, 4]], "s": np.array(["x", "y"])}},
    ):
        tensors = read(msgpack.packb(document, default=packed), TWO)
        assert_same(tensors["a"], np.array([[1, 2], [3, 4]], np.float32))
        assert_same(tensors["s"], texts(["x", "y"]))
    message = "input 'a' has 2 records but input 's' has 1"
    assert refusal({"inputs": {"a": packed(GRID[:, :2]), "s": ["x"]}}, TWO) == message
    assert refusal(packed(GRID), TWO).startswith("expected an object with 'instances', 'inputs' or 'features'")


def test_bytes_of_strings() -> None:
    """``bin`` values are the UTF-8 of a string."""
    assert_same(read([b"a", "b", "\u00e4".encode()], one("string", (None,))), texts(["a", "b", "\u00e4"]))
    assert_same(read([[b"a", "b"]], one("string", (None, 2))), texts([["a", "b"]]))
    assert_same(read({"x": b"a"}, one("string", (), ABSENT)), texts("a"))
    assert_same(read([[["a", b"b"], [b"", "d"]]], one("string", (None, 2, 2))), texts([[["a", "b"], ["", "d"]]]))
    assert_same(read([{"x": b"a"}, {"features": b"b"}], one("string", (None,))), texts(["a", "b"]))
    message = "body[1]: the bytes of a string are not UTF-8: byte 1 is 0xff"
    assert refusal([b"a", b"b\xff"], one("string", (None,))) == message
    assert refusal([b"1"], one(shape=(None,))).startswith(
        "body[0]: expected a number (float32) for input 'x', got b'1'"
    )


def test_sparse_records_of_strings_in_bytes() -> None:
    sparse = {"keys": [2, 0], "values": [b"a", "b"]}
    assert_same(read([sparse, [b"x", "y", "z"]], one("string", (None, 3))), texts([["b", "", "a"], ["x", "y", "z"]]))
    message = "body[0].values[0]: the bytes of a string are not UTF-8: byte 0 is 0xff"
    assert refusal([{"keys": [1], "values": [b"\xff"]}], one("string", (None, 3))) == message


def test_bytes_of_uint8_inputs() -> None:
    """``bin`` values are whole records."""
    for document in ([b"\x01\x02", b"\xff\x00"], {"instances": [b"\x01\x02", {"x": [255, 0]}]}):
        for shape in ((None, 2), (None, None)):
            assert_same(read(document, one("uint8", shape)), np.array([[1, 2], [255, 0]], np.uint8))
    assert_same(read([b"\x01\x02\x03\x04"], one("uint8", (None, 2, 2))), np.array([[[1, 2], [3, 4]]], np.uint8))
    assert_same(read({"inputs": b"\x01\x02"}, one("uint8", (None, None))), np.array([[1, 2]], np.uint8))
    assert_same(read(b"\xc4\x02ab", one("uint8", (2,), ABSENT)), np.array([97, 98], np.uint8))
    assert_same(read([b""], one("uint8", (None, None))), np.zeros((1, 0), np.uint8))
    assert refusal([b"abc"], one("uint8", (None, 2))).startswith("body[0]: expected shape [2] for input 'x', got [3]")
    assert refusal([b"abc", b"ab"], one("uint8", (None, None))).startswith("body[1]: expected shape [3]")


@pytest.mark.parametrize("keys", ["bin", "str"])
@pytest.mark.parametrize(
    "array",
    [GRID, GRID.astype(">f8"), GRID.astype("f2"), GRID.astype("i1"), GRID.astype(">u8"), GRID.astype("?").astype("u2")],
    ids=lambda a: a.dtype.str,
)
def test_arrays(array: Array, keys: str) -> None:
    form = packed(array) if keys == "bin" else {key.decode(): value for key, value in packed(array).items()}
    rows = [packed(row) for row in array]
    expected = array.astype(np.float32)
    for document in (form, {"instances": form}, {"inputs": {"x": form}}, {"x": form}, {"features": form}):
        assert_same(read(document), expected)
    for document in (rows, {"instances": rows}, {"instances": [{"x": row} for row in rows]}):  # type: ignore[assignment]  # another kind of document
        assert_same(read(document), expected)
    assert_same(read([rows[0], array[1].tolist()]), expected)
    assert_same(read(packed(array[0])), expected[:1])
    assert_same(read(packed(array), one(shape=(2, 4), batch_axis=ABSENT)), expected)


def test_arrays_are_used_where_they_lie() -> None:
    body = msgpack.packb({"instances": packed(np.zeros((1000, 1000), np.float32))})
    tracemalloc.start()
    try:
        result = read(body, one(shape=(None, 1000)))
        assert tracemalloc.get_traced_memory()[1] < 2.2 * len(body)  # one look over it, one copy into an object
        assert tracemalloc.get_traced_memory()[0] < 1.1 * len(body)
    finally:
        tracemalloc.stop()
    assert result.base is not None


def test_arrays_of_strings_and_scalars() -> None:
    for array in (
        np.array(["a", "\u00e4\u20ac"]),
        np.array(["a", "\u00e4\u20ac"], ">U5"),
        np.array([b"a", "\u00e4\u20ac".encode()]),
    ):
        assert_same(read(packed(array), one("string", (None,))), texts(["a", "\u00e4\u20ac"]))
        assert_same(read([packed(array)], one("string", (None, 2))), texts([["a", "\u00e4\u20ac"]]))
    scalar = packed(np.float32(1.5), nd=False)
    del scalar[b"shape"]
    assert_same(read([scalar, 2, packed(np.array(3))], one(shape=(None,))), np.array([1.5, 2, 3], np.float32))
    assert_same(read([packed(np.array("a"))], one("string", (None,))), texts(["a"]))
    assert "does not convert to float32" in refusal(packed(np.array(["1"])), one(shape=(None,)))


def test_arrays_that_are_not_alike() -> None:
    """Each keeps its meaning: beside floats an integer of 64 bits would lose digits."""
    mixed = [packed(np.array([2**62 + 1])), packed(np.array([0.0]))]
    assert_same(read(mixed, one("int64", (None, 1))), np.array([[2**62 + 1], [0]]))
    message = "body[1]: expected shape [4] for input 'x', got "
    assert refusal([packed(GRID[0]), packed(GRID[1, :3])]) == f"{message}[3]"
    assert refusal([packed(GRID[0]), packed(GRID)]) == f"{message}[2, 4]"
    assert refusal([[1, 2, 3, 4], packed(GRID[1, :3])], one(shape=(None, None))) == f"{message}[3]"
    assert refusal([packed(GRID[0]), [1, 2, 3]], one(shape=(None, None))).startswith("body[1]: expected 4 values")
    assert refusal([packed(GRID[0]), 5, packed(GRID[0])]).startswith("body[1]: expected a list of 4 values")
    assert refusal([packed(np.array([1.0, 300.0]))], one("uint8", (None, 2))).startswith("body[0][1]: expected a whole")
    grid = np.zeros((3, 5000))
    grid[2, 4321] = 1e39
    message = "body[1][2][4321]: expected a number within the range of float32 for input 'x', got 1e+39"
    assert refusal([packed(GRID[:1]), packed(grid)], one(shape=(None, None, None))).startswith(
        "body[1]: expected shape"
    )
    assert refusal([packed(np.zeros((3, 5000), "i1")), packed(grid)], one(shape=(None, 3, None))) == message
    flags = [packed(np.array([0.0, 1.0])), [True, 0], packed(np.array([2, 0], "u1").view("?"))]
    assert_same(read(flags, one("bool", (None, 2))), np.array([[False, True], [True, False], [True, False]]))
    words = [packed(np.array(["NaN", "Infinity"])), packed(np.array([1, 2]))]
    assert_same(read(words, one(shape=(None, 2))), np.array([[NAN, INF], [1, 2]], np.float32))
    assert refusal([[packed(GRID)]], one("bool", (None, 1))).startswith("body[0][0]: expected true or false")
    assert refusal(packed(GRID), one(shape=(None, 3))) == "body: expected shape [?, 3], got [2, 4]"
    assert refusal({"instances": {"keys": packed(np.array([0])), "values": [1]}}).startswith(
        "instances: a sparse record"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "|O"}, "'type': expected numbers, booleans or fixed-width strings, such as '<f4', got '|O'"),
        ({"type": [["", "|O"]], "kind": b"O"}, "'type': expected numbers"),
        ({"type": [["a", "<f4"]], "kind": b"V"}, "'type': expected numbers"),
        ({"type": b"<f4"}, ""),
        ({"type": "<c8"}, "'type': expected numbers"),
        ({"type": "<M8[s]"}, "'type': expected numbers"),
        ({"type": "<f16"}, "'type': expected numbers"),
        ({"type": "<U0"}, "'type': expected numbers"),
        ({"type": "<U99999999"}, "'data': expected 3199999968 bytes, got 32 bytes"),
        ({"type": "<U9999999999"}, "'type': expected numbers"),
        ({"type": "f4,f4"}, "'type': expected numbers"),
        ({"type": None}, "'type': expected numbers"),
        ({"type": "x" * 100_000}, "'type': expected numbers"),
        ({"shape": [2, 5]}, "'data': expected 40 bytes, got 32 bytes"),
        ({"shape": [2**63, 2]}, "'data': expected more bytes than there can be, got 32 bytes"),
        ({"shape": [2**64 - 1] * 32}, "'data': expected more bytes than there can be"),
        ({"shape": [1] * 33}, "'shape': expected a list of lengths from 1, got a list of 33"),
        ({"shape": [0, 4]}, "'shape': expected a list of lengths from 1"),
        ({"shape": [-2, -4]}, "'shape': expected a list of lengths from 1"),
        ({"shape": [2.0, 4]}, "'shape': expected a list of lengths from 1"),
        ({"shape": [True, 8]}, "'shape': expected a list of lengths from 1"),
        ({"shape": None}, "'shape': expected a list of lengths from 1, got null"),
        ({"data": "text"}, "'data': expected bin, got 'text'"),
        ({"data": b""}, "'data': expected 32 bytes, got 0 bytes"),
        ({"nd": False}, "'data': expected 4 bytes, got 32 bytes"),
        ({"type": "<U8", "shape": [1], "data": b"\xff" * 32}, "'data': expected valid characters, got others"),
        ({"type": "<U1", "shape": [], "data": struct.pack("<I", 0xD800)}, "'data': expected valid characters"),
        ({"type": "|S1", "shape": [1], "data": b"\xff"}, "'data': expected valid characters"),
    ],
)
def test_arrays_that_lie(changes: dict[str, object], words: str) -> None:
    """Checklist 46 and 84: nothing is unpickled, and sizes are checked before memory is taken."""
    form = packed(GRID, **changes)
    if not words:
        assert_same(read(form), GRID)
        return
    assert refusal(form).startswith(f"an array ('nd') with {words}")
    assert refusal({"instances": [form, form]}, one("string", (None,))).startswith("an array ('nd') with ")


def test_a_pickle_is_not_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("the body was unpickled",))

    form = packed(np.array([1.0]), type="|O", kind=b"O", data=np.array([Bomb()], dtype=object).dumps())
    assert "'type': expected numbers" in refusal(form)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body is empty"),
        (b"\xc1", "0xc1 starts no value"),
        (b"\x92\x01\xc1", "0xc1 starts no value"),
        (b"\x92\x01", "it ends in the middle of a value"),
        (b"\x92\xcb\x01", "it ends in the middle of a value"),
        (b"\x01\x02", "1 bytes follow the document"),
        (msgpack.packb(ROWS) + b"\0", "1 bytes follow the document"),
        (b"\xdd\xff\xff\xff\xff", "it ends in the middle of a value"),
        (b"\xdf\xff\xff\xff\xff", "it ends in the middle of a value"),
        (b"\xdb\xff\xff\xff\xff", "it ends in the middle of a value"),
        (b"\xc6\xff\xff\xff\xff", "it ends in the middle of a value"),
        (b"\xc9\xff\xff\xff\xff\x01", "1 bytes follow the document"),
        (b"\xc9\xff\xff\xff\xff", "body is not valid MessagePack: "),
        (b"\x91" * 3000 + b"\x01", "it is nested too deeply"),
        (b"\x81\xa1a" * 3000 + b"\x01", "it is nested too deeply"),
        (b"\x91" * 1000 + b"\x01", "body[0]"),
        (b"\x81\xa1x" + b"\x91" * 1000 + b"\x01", "x[0]: expected 4 values for input 'x', got 1"),
        (b"\x91\xa1\xff", "a string is not UTF-8: byte 0 of it is 0xff"),
        (b"\x91\xa3\xed\xa0\x80", "a string is not UTF-8: byte 0 of it is 0xed"),
        (b"\x81\x01\x02", "int is not allowed for map key"),
        (b"\x81\x90\x02", "list is not allowed for map key"),
        (b"\x82\xa1x\x01\xa1x\x02", "a map has the key 'x' twice"),
        (b"\x82\xc4\x01x\x01\xc4\x01x\x02", "a map has the key b'x' twice"),
        (b"\x81\xc4\x01x\x02", "got an object with b'x'"),
        (b"\xd4\x05a", "extension type 5, which is not understood"),
        (b"\xc7\x00\x05", "extension type 5, which is not understood"),
        (b"\x91\xd6\xff\0\0\0\0", "body: expected 4 values for input 'x', got 1"),
        (b"\x94\xd6\xff\0\0\0\0\x01\x01\x01", "body[0]: expected a number (float32) for input 'x', got Timestamp("),
        (b"\xc7\x00\xff", "body is not valid MessagePack: "),
        (b"[[1, 2, 3, 4]]", "13 bytes follow the document"),
    ],
)
def test_bodies_that_do_not_fit(body: bytes, words: str) -> None:
    """Checklist 36 and 84."""
    assert words in refusal(body)


@pytest.mark.parametrize(
    "body",
    [
        (b"\xdd" + struct.pack(">I", 200_000)) * 1000 + b"\x01" * 200_000,
        (b"\xdc\xff\xff") * 1000 + b"\x01" * 200_000,
        (b"\xdd\xff\xff\xff\xff") * 40_000,
        (b"\xdf\xff\xff\xff\xff\xa1a") * 40_000,
        b"\xdd" + struct.pack(">I", 200_000) + b"\xc6\x7f\xff\xff\xff" * 40_000,
        msgpack.packb({"instances": packed(GRID, shape=[2**31, 2**31])}) + b"\0" * 200_000,
    ],
    ids=lambda body: repr(body[:8]),
)
def test_headers_that_lie_take_no_memory(body: bytes) -> None:
    """Checklist 84: also not when each of many nested lists claims all of the body, as the parser alone would."""
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        refusal(body)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(body) + 100_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start_s < 2


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\x91\x90"])
def test_too_many_lists_and_maps_are_refused(item: bytes) -> None:
    """Checklist 84: each takes a hundred times the byte that it is in the body."""
    body = b"\xdd" + struct.pack(">I", 300_000) + item * 300_000
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(TensorsTooLarge, match=r"more than .* lists and maps"):
            read(body)
        assert tracemalloc.get_traced_memory()[1] < 80 * len(body)
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start_s < 5


def test_short_rows_are_not_too_many() -> None:
    """Also where every byte looks like the start of a list, or the lists are counted and there is room for them."""
    rows = np.arange(200_000) % 2
    assert_same(read(rows.reshape(-1, 1).tolist(), one(shape=(None, 1))), rows.reshape(-1, 1).astype(np.float32))
    body = b"\xdd" + struct.pack(">I", 200_000) + b"\x91\x90" * 10_000 + b"\xcc\x90" * 190_000
    assert refusal(body, one(shape=(None, 1))).startswith("body[0][0]: expected a number")
    records = [{"x": 144}] * 10_000
    body = msgpack.packb({"instances": records, "signature_name": b"\x90" * 100_000})
    assert_same(read(body, one(shape=(None,))), np.full(10_000, 144, np.float32))


def test_many_short_bins_are_too_many_arrays() -> None:
    """Only where they are arrays; longer ones, and bytes that look like them, are not."""
    limit = DecodeOptions({}, 10**9)
    body = b"\xdd" + struct.pack(">I", 100_000) + b"\xc4\x01a" * 100_000
    for document in (body, b"\x91\x81\xa1x" + body):
        with pytest.raises(TensorsTooLarge, match="lists and maps in"):
            decode(document, one("uint8", (None, None)), limit)
    assert read(body, one("string", (None,))).shape == (100_000,)
    body = b"\xdd" + struct.pack(">I", 100_000) + b"\xc4\x08abcdefgh" * 100_000
    assert read(body, one("uint8", (None, 8))).shape == (100_000, 8)
    assert read([b"\xc4" * 1_000_000], one("uint8", (None, None))).shape == (1, 1_000_000)
    with pytest.raises(TensorsTooLarge):
        read({"instances": [{"x": b"a"}] * 100_000}, one("uint8", (None, None)))


@pytest.mark.parametrize("item", [b"\x01", b"\x90", b"\x80", b"\xa1a", b"\xc4\x01a", b"\xc0", b"\xcb" + b"\x3f" * 8])
@pytest.mark.parametrize("signature", [one(shape=(None,)), one("string", (None,)), one("uint8", (None, None))])
def test_many_items_stay_linear(item: bytes, signature: Signature) -> None:
    """Memory is bounded by what Python's objects take, which an item of one byte makes the most of."""
    body = b"\xdd" + struct.pack(">I", 20_000) + item * 20_000
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        assert_tensors_or_refusal(ENTRY, body, signature, OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 120 * len(body)
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start_s < 5


@pytest.mark.parametrize(
    ("signature", "arrays", "predictions"),
    [
        (one(shape=(None, 2)), [[[0.5, NAN], [INF, 2]]], [[0.5, NAN], [INF, 2.0]]),
        (one("float16", (None,)), [[0.5, 2]], [0.5, 2.0]),
        (one("float64", (None,)), [[0.1]], [0.1]),
        (one("int64", (None,)), [[-1, 2]], [-1, 2]),
        (one("uint64", (None,)), [[2**64 - 1]], [2**64 - 1]),
        (one("bool", (None, 2)), [[[True, False]]], [[True, False]]),
        (one("string", (None,)), [["a", "\u00e4"]], ["a", "\u00e4"]),
        (one(shape=(None, 0)), [np.zeros((2, 0))], [[], []]),
        (one(shape=(), batch_axis=ABSENT), [0.5], 0.5),
        (one(shape=(2, 1), batch_axis=ABSENT), [[[1], [2]]], [[1.0], [2.0]]),
        (TWO, [[[0.5, 2], [3, 4]], ["x", "y"]], [{"a": [0.5, 2.0], "s": "x"}, {"a": [3.0, 4.0], "s": "y"}]),
        (
            several(("a", "float64", (1,)), ("b", "int8", ()), batch_axis=ABSENT),
            [[0.1], 2],
            {"a": [0.1], "b": 2},
        ),
    ],
)
def test_answers(signature: Signature, arrays: list[object], predictions: object) -> None:
    """Checklist 80: plain lists, as any MessagePack reader takes them; NaN stays NaN."""
    sent = {s.name: np.asarray(a, dtype=s.dtype) for s, a in zip(signature.outputs, arrays, strict=True)}
    answer = msgpack.unpackb(encode(sent, signature, ENCODE))
    assert repr(answer) == repr({"predictions": predictions})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(200,), (2, 100), (70_000, 1), (20, 3, 4), (1, 1, 70_000)])
def test_large_answers_are_what_the_library_writes(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)) / 7).astype(dtype).reshape(shape)
    expected = msgpack.packb({"predictions": array.tolist()}, use_single_float=dtype != "float64")
    assert encode({"y": array}, one(dtype, (None, *shape[1:])), ENCODE) == expected
    transposed = array.T
    expected = msgpack.packb({"predictions": transposed.tolist()}, use_single_float=dtype != "float64")
    assert encode({"y": transposed}, one(dtype, (None, *transposed.shape[1:])), ENCODE) == expected


def array_or_list(array: Array, is_array: bool) -> object:
    return packed(array.astype(np.str_) if array.dtype == object else array) if is_array else array.tolist()


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_is_written_reads_back(signature: Signature) -> None:
    """Checklist 80: exactly, with NaN and infinities."""

    @LAWS
    @given(tensors(signature), st.booleans())
    def law(sent: Any, as_arrays: bool) -> None:
        answer = msgpack.unpackb(encode(sent, echo(signature), ENCODE))["predictions"]
        columns = {name: array_or_list(array, as_arrays) for name, array in sent.items()}
        for document in ({"instances" if signature.batched else "inputs": answer}, {"inputs": columns}):
            received = decode(msgpack.packb(document), signature, OPTIONS)
            for name, array in sent.items():
                assert_same(received[name], array)

    law()


keys = st.sampled_from(["instances", "inputs", "x", "a", "nd", "type", "shape", "data", b"nd", b"type", b"data"]) | TEXT
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXT
    | st.binary(max_size=9)
    | st.sampled_from(["<f4", "|S1", "<U1", msgpack.Timestamp(1), msgpack.ExtType(3, b"a")])
)
arrays = st.builds(
    lambda array, changes: packed(array, **changes),
    st.sampled_from([GRID, np.array(["a", "b"]), np.array([b"a"]), np.array([1, 2], "u1"), np.array(True)]),
    st.dictionaries(
        st.sampled_from(["nd", "type", "shape", "data"]), scalars | st.lists(scalars, max_size=3), max_size=1
    ),
)
any_document = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


def test_any_body_gives_tensors_or_a_refusal() -> None:
    """Checklist 36 and 41: any bytes, any document, and good ones with bytes changed."""

    @LAWS
    @given(
        (any_document | documents).map(msgpack.packb) | st.binary(max_size=60), st.sampled_from(SIGNATURES), st.data()
    )
    def law(body: bytes, signature: Signature, data: st.DataObject) -> None:
        assert_tensors_or_refusal(ENTRY, body, signature, OPTIONS)
        damaged = bytearray(body)
        for _ in range(data.draw(st.integers(1, 3)) if damaged else 0):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        assert_tensors_or_refusal(ENTRY, bytes(damaged), signature, OPTIONS)
        assert_tensors_or_refusal(ENTRY, body[: data.draw(st.integers(0, len(body)))], signature, OPTIONS)

    law()


def test_the_row_of_the_table() -> None:
    assert codecs_by_media_type()["application/x-msgpack"] is ENTRY
    assert ENTRY in request_codecs()
    assert (ENTRY.library, ENTRY.extra) == ("msgpack", "msgpack")
    assert CodecEntry("a/b", "m", library="msgpack", extra="msgpack").installed


def test_over_a_socket() -> None:
    """The demo model answers the same as for JSON."""
    rows = [[5.1, 3.5, 1.4, 0.2], [6.3, 2.8, 5.1, 1.5]]
    with running() as server:
        expected = server.invoke(msgpack.packb({"instances": rows}), Content_Type="application/msgpack").json()
        assert expected == server.invoke(b"[[5.1, 3.5, 1.4, 0.2], [6.3, 2.8, 5.1, 1.5]]").json()
        body = msgpack.packb({"instances": packed(np.array(rows, np.float32))})
        answer = server.invoke(body, Content_Type="application/x-msgpack", Accept="application/msgpack")
        assert answer.headers["content-type"] == "application/msgpack"
        predictions = msgpack.unpackb(answer.content)["predictions"]
        assert [p["label"] for p in predictions] == [p["label"] for p in expected["predictions"]]
        answer = server.invoke(b"\x92\x01", Content_Type="application/msgpack")
        assert answer.status_code == 400
        assert "it ends in the middle of a value" in answer.text
