"""``application/octet-stream``: bytes that only the graph gives a shape."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from byoc_server.codecs.base import codecs_by_media_type
from byoc_server.codecs.octet_stream import decode, encode
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import BatchAxis, Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors
from tests.onnx_models import identity
from tests.server_process import running

ENTRY = codecs_by_media_type()["application/octet-stream"]
FIXED = BatchAxis.FIXED


def read(body: bytes, signature: Signature) -> Any:
    return decode(body, signature, OPTIONS)["x"]


def refusal(body: bytes, signature: Signature) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(body, signature, OPTIONS)
    assert set(caught.value.details) & {"field", "expected"}
    return caught.value


@pytest.mark.parametrize(
    ("signature", "elements", "shape"),
    [
        (one(), 8, (2, 4)),
        (one(shape=(None,)), 8, (8,)),
        (one(shape=(None, 1)), 8, (8, 1)),
        (one(shape=(None, 2, 2)), 8, (2, 2, 2)),
        (one(shape=(4, 2), batch_axis=FIXED), 6, (3, 2)),
        (one(shape=(None, None)), 7, (1, 7)),
        (one(shape=(None, None, 2)), 8, (1, 4, 2)),
        (one(shape=(None, 2, None)), 8, (1, 2, 4)),
        (one(shape=(4, None), batch_axis=FIXED), 6, (1, 6)),
        (one(shape=(2, 4), batch_axis=ABSENT), 8, (2, 4)),
        (one(shape=(None, 4), batch_axis=ABSENT), 8, (2, 4)),
        (one(shape=(2, None), batch_axis=ABSENT), 8, (2, 4)),
        (one(shape=(), batch_axis=ABSENT), 1, ()),
    ],
)
def test_shapes(signature: Signature, elements: int, shape: tuple[int, ...]) -> None:
    body = struct.pack(f"<{elements}f", *range(elements))
    assert_same(read(body, signature), np.arange(elements, dtype=np.float32).reshape(shape))


@pytest.mark.parametrize(
    ("signature", "body_bytes", "words"),
    [
        (one(), 15, "x: float32[?, 4] takes a multiple of 16 bytes (a record), got 15"),
        (one(), 17, "takes a multiple of 16 bytes (a record), got 17"),
        (one("int8", (None, 3)), 4, "takes a multiple of 3 bytes (a record), got 4"),
        (one(shape=(4, 2), batch_axis=FIXED), 9, "x: float32[4, 2] takes a multiple of 8 bytes (a record), got 9"),
        (one(shape=(None, None, 2)), 12, "x: float32[?, ?, 2] takes a multiple of 8 bytes, got 12"),
        (one(shape=(2, 4), batch_axis=ABSENT), 64, "x: float32[2, 4] takes 32 bytes, got 64"),
        (one(shape=(2, 4), batch_axis=ABSENT), 31, "takes 32 bytes, got 31"),
        (one(shape=(None, 4), batch_axis=ABSENT), 31, "takes a multiple of 16 bytes, got 31"),
        (one(shape=(), batch_axis=ABSENT), 5, "takes 4 bytes, got 5"),
        (one(shape=(None, 0)), 4, "takes a multiple of 0 bytes (a record), got 4"),
        (one(shape=(None, 2**62, 2**62)), 4, "bytes (a record), got 4"),
        (
            one(shape=(None, None, None)),
            8,
            "does not follow from the length of the body: it has 2 open axes in a record",
        ),
        (one(shape=(None, None), batch_axis=ABSENT), 8, "it has 2 open axes"),
        (one(), 0, "body is empty; the model takes x: float32[?, 4]"),
        (one("string", (None,)), 0, "body is empty"),
        (several(("a", "float32", (None,)), ("b", "int8", (None,))), 5, "the model has a: float32[?], b: int8[?]"),
    ],
)
def test_lengths_that_do_not_fit(signature: Signature, body_bytes: int, words: str) -> None:
    assert words in refusal(bytes(body_bytes), signature).message


@pytest.mark.parametrize(
    ("dtype", "code", "values"),
    [
        ("float16", "e", [0.5, -2.0, float("inf")]),
        ("float32", "f", [0.5, -2.0, float("nan")]),
        ("float64", "d", [0.5, -2.0, 1e300]),
        ("int8", "b", [-128, 127]),
        ("int16", "h", [-(2**15), 2**15 - 1]),
        ("int32", "i", [-(2**31), 2**31 - 1]),
        ("int64", "q", [-(2**63), 2**63 - 1]),
        ("uint8", "B", [0, 255]),
        ("uint16", "H", [2**16 - 1]),
        ("uint32", "I", [2**32 - 1]),
        ("uint64", "Q", [2**64 - 1]),
        ("bool", "?", [True, False]),
    ],
)
def test_all_dtypes_both_ways(dtype: str, code: str, values: list[Any]) -> None:
    """Checklist 80. Little-endian, as ``struct`` writes it."""
    body, array = struct.pack(f"<{len(values)}{code}", *values), np.array(values, dtype)
    assert_same(read(body, one(dtype, (None,))), array)
    assert encode({"y": array}, one(dtype, (None,)), ENCODE) == body
    assert encode({"y": array.astype(array.dtype.newbyteorder(">"))}, one(dtype, (None,)), ENCODE) == body


def test_booleans_are_normal_whatever_their_bytes() -> None:
    assert read(b"\0\1\7", one("bool", (None,))).view(np.uint8).tolist() == [0, 1, 1]
    assert_same(read(b"\7", one("bool", (), ABSENT)), np.array(True))


def test_nothing_is_copied() -> None:
    for dtype in ("float32", "uint8", "int64"):
        body = bytes(32)
        received = read(body, one(dtype, (None,)))
        assert np.shares_memory(received, np.frombuffer(body, np.uint8))
        assert received.flags.aligned
    body = bytes(4 * 2**20)
    tracemalloc.start()
    try:
        read(body, one())
        refusal(body[:-1], one(shape=(None, None, None)))
        assert tracemalloc.get_traced_memory()[1] < len(body) + 100_000  # the slice of the second body
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("signature", "shape"),
    [
        (one("string", (None,)), (1,)),
        (one("string", (None, 1)), (1, 1)),
        (one("string", (None, None)), (1, 1)),
        (one("string", (4, 1), FIXED), (1, 1)),
        (one("string", (), ABSENT), ()),
        (one("string", (1,), ABSENT), (1,)),
        (one("string", (None,), ABSENT), (1,)),
    ],
)
def test_one_string(signature: Signature, shape: tuple[int, ...]) -> None:
    text = "Gr\u00fc\u00dfe,\n\0 \U0001f600"
    assert_same(read(text.encode(), signature), texts(text).reshape(shape))
    assert encode({"y": texts(text).reshape(shape)}, signature, ENCODE) == text.encode()


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        (one("string", (None, 2)), b"ab", "raw bytes carry one string, a record of x: string[?, 2] has shape [2]"),
        (one("string", (None, 1, 1)), b"ab", "has shape [1, 1]"),
        (one("string", (2,), ABSENT), b"ab", "has shape [2]"),
        (one("string", (None,)), b"ab\xff", "byte 2 of the body is not UTF-8"),
        (one("string", (None,)), "\u00e4".encode()[:1], "byte 0 of the body is not UTF-8"),
        (one("string", (None,)), b"a\xed\xa0\x80", "byte 1 of the body is not UTF-8"),
    ],
)
def test_strings_that_do_not_fit(signature: Signature, body: bytes, words: str) -> None:
    assert words in refusal(body, signature).message


def test_outputs() -> None:
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert encode({"y": grid.T}, one(shape=(None, 2)), ENCODE) == struct.pack("<6f", 0, 3, 1, 4, 2, 5)
    with pytest.raises(NotAcceptable, match="several outputs"):
        encode({"a": grid, "b": grid}, several(("a", "float32", (None, 3)), ("b", "float32", (None, 3))), ENCODE)
    with pytest.raises(NotAcceptable, match="carries one string, the answer has 2"):
        encode({"y": texts(["a", "b"])}, one("string", (None,)), ENCODE)


CARRIED = [
    signature
    for signature in SIGNATURES
    if signature.sole_input is not None
    and signature.sole_input.dtype != object
    and None not in signature.record_shapes["x"]
]


@pytest.mark.parametrize("signature", CARRIED, ids=lambda s: s.inputs[0].describe())
def test_what_is_written_reads_back(signature: Signature) -> None:
    @LAWS
    @given(tensors(signature))
    def law(sent: Any) -> None:
        assert_same(read(encode(sent, echo(signature), ENCODE), signature), sent["x"])

    law()


@LAWS
@given(st.binary(max_size=200), st.sampled_from(SIGNATURES))
def test_any_body_gives_tensors_or_a_refusal(body: bytes, signature: Signature) -> None:
    """Checklist 36 and 41."""
    assert_tensors_or_refusal(ENTRY, body, signature, OPTIONS)


def test_over_a_socket(tmp_path: Path) -> None:
    named = {"content_type": "application/octet-stream", "accept": "application/octet-stream"}
    with running("--model", str(identity(tmp_path / "model.onnx"))) as server:
        for rows in (1, 100_000):  # on the event loop, and on a thread
            body = np.arange(4 * rows, dtype="<f4").tobytes()
            answer = server.invoke(body, **named)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.content == body
        refused = server.invoke(bytes(15), **named)
        assert refused.status_code == 400
        assert refused.json()["error"]["expected"] == "a multiple of 16 bytes"
    with running("--model", str(identity(tmp_path / "text.onnx", TensorProto.STRING, ("N", 1)))) as server:
        assert server.invoke("gr\u00fcn".encode(), **named).content == "gr\u00fcn".encode()
