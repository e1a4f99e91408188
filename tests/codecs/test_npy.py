"""``application/x-npy``: good files of every kind, and headers that lie."""

from __future__ import annotations

import inspect
import io
import pickle  # noqa: TID251  # to show that nothing here is unpickled
import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy_format

from byoc_server.codecs import npy
from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.npy import decode, decoder, encode
from byoc_server.errors import ByocError, InvalidPayload, NotAcceptable
from byoc_server.types import Array, BatchAxis, Signature, Tensors
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    npy_format.write_array(stream, np.asanyarray(array), version=version)
    return stream.getvalue()


def forged(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def dressed(descr: str, shape: str, data: bytes = b"") -> bytes:
    return forged(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", data)


def read(body: bytes, signature: Signature) -> Any:
    tensors = decode(body, signature, OPTIONS)
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(body: bytes, signature: Signature) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(body, signature, OPTIONS)
    assert len(caught.value.message) < 400
    return caught.value


GRID = np.arange(8).reshape(2, 4)


@pytest.mark.parametrize(
    "array",
    [
        GRID.astype(np.float32),
        GRID.astype(np.float64),
        GRID.astype(np.float16),
        GRID.astype(np.longdouble),
        GRID.astype(">f4"),
        GRID.astype(">f8"),
        GRID.astype(">i2"),
        GRID.astype(np.uint64),
        np.asfortranarray(GRID.astype(np.float32)),
        np.asfortranarray(GRID.astype(">f8")),
        GRID.astype(np.float32)[:, ::-1][:, ::-1],
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_plain_arrays(array: Array, version: tuple[int, int]) -> None:
    """Checklist 80."""
    result = read(saved(array, version), one())
    assert_same(result, GRID.astype(np.float32))
    assert result.dtype.isnative
    assert result.flags.c_contiguous


def test_data_of_the_right_kind_is_not_copied() -> None:
    body = saved(GRID.astype(np.float32))
    assert np.shares_memory(read(body, one()), np.frombuffer(body, np.uint8))


def test_data_at_odd_places_is_aligned() -> None:
    for pad in range(8):
        body = dressed("'<f8'", "(2,)" + " " * pad, np.array([1.5, 2.5]).tobytes())
        result = read(body, one("float64", (None,)))
        assert result.flags.aligned
        assert_same(result, np.array([1.5, 2.5]))


@pytest.mark.parametrize(
    ("array", "signature", "expected"),
    [
        (np.zeros(4), one(), np.zeros((1, 4), np.float32)),
        (np.zeros((2, 4)), one(), np.zeros((2, 4), np.float32)),
        (np.zeros(3), one(shape=(None, None)), np.zeros((1, 3), np.float32)),
        (np.zeros(3), one(shape=(None, 1)), np.zeros((3, 1), np.float32)),
        (np.zeros(1), one(shape=(None, 1)), np.zeros((1, 1), np.float32)),
        (np.zeros(3), one(shape=(None,)), np.zeros(3, np.float32)),
        (np.float64(3), one(shape=(None,)), np.array([3], np.float32)),
        (np.zeros((2, 3, 4, 5)), one(shape=(None, 3, 4, 5)), np.zeros((2, 3, 4, 5), np.float32)),
        (np.zeros((3, 4, 5)), one(shape=(None, 3, 4, 5)), np.zeros((1, 3, 4, 5), np.float32)),
        (np.zeros((2, 2)), one(shape=(2, 2), batch_axis=ABSENT), np.zeros((2, 2), np.float32)),
        (np.float32(1), one(shape=(), batch_axis=ABSENT), np.array(1, np.float32)),
        (np.zeros((9, 4)), one(shape=(8, 4), batch_axis=BatchAxis.FIXED), np.zeros((9, 4), np.float32)),
    ],
)
def test_shapes(array: Array, signature: Signature, expected: Array) -> None:
    assert_same(read(saved(array), signature), expected)


@pytest.mark.parametrize(
    ("array", "signature", "words"),
    [
        (np.zeros(3), one(), "body: expected shape [?, 4], got [3]"),
        (np.zeros((2, 3)), one(), "body: expected shape [?, 4], got [2, 3]"),
        (np.float32(3), one(), "body: expected shape [?, 4], got []"),
        (np.zeros((2, 1, 4)), one(), "body: expected shape [?, 4], got [2, 1, 4]"),
        (np.zeros((1, 2, 2)), one(shape=(2, 2), batch_axis=ABSENT), "body: expected shape [2, 2], got [1, 2, 2]"),
    ],
)
def test_shapes_that_do_not_fit(array: Array, signature: Signature, words: str) -> None:
    assert refusal(saved(array), signature).message == words


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([-128, 127]), "int8"),
        (np.array([0, 255], np.float32), "uint8"),
        (np.array([-(2.0**53 - 1), 2.0**53 - 1]), "int64"),
        (np.array([2**64 - 1], np.uint64), "uint64"),
        (np.array([5, 7], np.float16), "int64"),
        (np.array([True, False]), "int32"),
        (np.array([True, False]), "float16"),
        (np.array([1, 0]), "bool"),
        (np.array([True, False]), "bool"),
        (np.array([2**63 - 1]), "int64"),
        (np.array([np.nan, np.inf, -np.inf]), "float16"),
        (np.array([1e-50]), "float32"),
    ],
)
def test_conversions(values: Array, dtype: str) -> None:
    assert_same(read(saved(values), one(dtype, (None,))), values.astype(dtype))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([128]), "int8"),
        (np.array([-1]), "uint64"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([0.5]), "int64"),
        (np.array([np.nan]), "int64"),
        (np.array([np.inf]), "int64"),
        (np.array([np.inf], np.float16), "int8"),
        (np.array([2.0**60]), "int64"),
        (np.array([1e39]), "float32"),
        (np.array([1e5]), "float16"),
        (np.array([100_000]), "float16"),
        (np.array([2]), "bool"),
        (np.array([1.0]), "bool"),
        (np.array([1j]), "float32"),
        (np.array(["1"]), "float32"),
        (np.array(["2020-01-01"], "M8[s]"), "int64"),
        (np.array([b"abc"]), "float32"),
        (np.array([b"abcd"], "V4"), "float32"),
        (np.array([1.0]), "string"),
    ],
)
def test_conversions_that_would_change_values(values: Array, dtype: str) -> None:
    error = refusal(saved(values), one(dtype, (None,)))
    assert error.message == f"body: dtype {values.dtype.name} does not convert to {dtype} without changing values"


def test_booleans_are_normal_whatever_their_bytes() -> None:
    for dtype in ("bool", "uint8", "float32"):
        result = read(dressed("'|b1'", "(3,)", b"\x00\x01\x07"), one(dtype, (None,)))
        assert result.astype(dtype).view("u1" if dtype == "bool" else dtype).tolist() == [0, 1, 1]


def test_strings() -> None:
    signature = one("string", (None,))
    for values in (np.array(["", "a", "\u00e4\u20ac\U0001f600"]), np.array(["", "a", "\u00e4\u20ac\U0001f600"], ">U9")):
        assert_same(read(saved(values), signature), texts(["", "a", "\u00e4\u20ac\U0001f600"]))
    assert_same(read(saved(np.array([b"", b"a", "\u00e4".encode()])), signature), texts(["", "a", "\u00e4"]))
    assert_same(read(saved(np.array([["a"], ["b"]])), one("string", (None, 1))), texts([["a"], ["b"]]))
    assert_same(read(saved(np.array("a")), one("string", (), ABSENT)), texts("a"))
    assert_same(read(saved(np.array(b"a")), one("string", (), ABSENT)), texts("a"))


@pytest.mark.parametrize("point", [0xD800, 0xDFFF, 0x110000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_impossible_characters(point: int) -> None:
    assert (
        "does not convert"
        in refusal(dressed("'<U1'", "(1,)", struct.pack("<I", point)), one("string", (None,))).message
    )
    assert (
        "does not convert"
        in refusal(dressed("'>U1'", "(1,)", struct.pack(">I", point)), one("string", (None,))).message
    )
    assert "does not convert" in refusal(dressed("'|S1'", "(1,)", b"\xff"), one("string", (None,))).message


TWO = several(("a", "float32", (None, 2)), ("s", "string", (None,)))


def test_structured_arrays() -> None:
    table = np.array([("x", [1, 2]), ("yy", [3, 4])], [("s", "U2"), ("a", ">f8", (2,))])
    tensors = read(saved(table), TWO)
    assert list(tensors) == ["a", "s"]
    assert_same(tensors["a"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(tensors["s"], texts(["x", "yy"]))
    flags = several(("f", "bool", (None,)), ("n", "int8", (None,)))
    tensors = read(saved(np.array([(True, 1), (False, 2)], [("f", "?"), ("n", "i1")])), flags)
    assert tensors["f"].tolist() == [True, False]
    absent = several(("a", "float32", (2,)), ("b", "int64", ()), batch_axis=ABSENT)
    tensors = read(saved(np.array(([1, 2], 3), [("a", "f4", (2,)), ("b", "i8")])), absent)
    assert_same(tensors["b"], np.array(3))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ([("a", "f4", (2,))], "body: missing 's'; the model's inputs are a: float32[?, 2], s: string[?]"),
        ([("a", "f4", (2,)), ("s", "U1"), ("c", "f4")], "body: unknown 'c'"),
        ([("a", "f4", (3,)), ("s", "U1")], "a: expected shape [?, 2], got [1, 3]"),
        ([("a", "f4", (2,)), ("s", "f4")], "s: dtype float32 does not convert to string"),
        ([("a", [("b", "f4")]), ("s", "U1")], "a: dtype void32 does not convert"),
    ],
)
def test_structured_arrays_that_do_not_fit(dtype: Any, words: str) -> None:
    assert words in refusal(saved(np.zeros(1, dtype)), TWO).message


def test_a_plain_array_for_several_inputs() -> None:
    assert refusal(saved(GRID), TWO).message == (
        "the model has several inputs: expected a structured array with the fields 'a', 's'"
    )


class _Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the body was unpickled",))


def test_nothing_is_unpickled() -> None:
    """Checklist 46."""
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
    for body in (forged(header, pickle.dumps(_Bomb())), forged(header.replace("'|O'", "[('a', '|O')]"), b"\0" * 8)):
        error = refusal(body, one("string", (None,)))
        assert error.message.startswith("the array holds pickled objects, which are never loaded")
    assert "does not start with" in refusal(pickle.dumps(_Bomb()), one()).message


@pytest.mark.parametrize(
    "shape",
    [
        "(2**63,)",
        f"({2**63},)",
        f"({2**63 - 1},)",
        f"(0, {2**62})",
        f"({2**62}, {2**62}, 0)",
        "(-1,)",
        "(-2, -2)",
        "(0,)",
    ]
    + ["(2, 0)", "(3,)", "(1,)", "()", "2", "(2.0,)", "('2',)", "(None,)", "[2]", "(True, 3)", "(2,)" * 2]
    + [f"({'0x' + 'f' * 9000},)", f"({'9' * 9000},)", f"({'1,' * 40})", f"({f'{2**62},' * 32})", f"({'2,' * 5000})"],
)
@pytest.mark.parametrize("descr", ["'<f4'", "'<U0'", "'|V0'", "'|S0'", "[('x', '<U0')]", "[]", "('<f4', (3,))"])
def test_shapes_that_lie(shape: str, descr: str) -> None:
    """Checklist 84: sizes are checked before memory is taken."""
    for signature in (one(shape=(None,)), one("string", (None,)), one(shape=(2**40,), batch_axis=ABSENT)):
        refusal(dressed(descr, shape, b"\0" * 8), signature)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "{'descr': (",
        "(" * 5000,
        "[" * 150,
        "-" * 9000 + "1",
        "{'descr': '<f4'}",
        "1L",
        "{1: 2}",
        "[]",
        "'a'",
        "None",
    ]
    + [
        "'\\",
        "{'descr': '\\x'}",
        "\x00",
        "\xff" * 10,
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "  x\n y\n",
    ]
    + ["lambda: 0", "__import__('os')", "1+1j", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}"],
)
def test_headers_that_do_not_parse(header: str) -> None:
    for version in (1, 2):
        assert "header" in refusal(forged(header, b"\0" * 8, version), one(shape=(None,))).message


@pytest.mark.parametrize(
    "descr",
    [
        "None",
        "5",
        "'x'",
        "'<f99'",
        "('<f4',)",
        "()",
        "((), ())",
        "[()]",
        "[('a',)]",
        "[('a', '<f4', -1)]",
        "{'a': 1}",
        "''",
    ]
    + ["[('a', '<f4'), ('a', '<f4')]", "[('x', '<f4', (2**99,))]", "b'<f4'", "'<f4,<f4'", "['<f4']", "('<f4', (2, 3))"]
    + ["[('', '|V4')]", "[(('t', 'x'), '<f4', (2147483647, 2147483647))]", "('|O', (1,))", "'<M8[99999999999s]'"],
)
def test_dtypes_that_lie(descr: str) -> None:
    refusal(dressed(descr, "(2,)", b"\0" * 8), one("int64", (None,)))


@pytest.mark.filterwarnings("ignore:Reading .*required additional header parsing")
def test_a_header_of_python_2() -> None:
    assert read(dressed("'<f4'", "(2L,)", b"\0" * 8), one(shape=(None,))).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "this is not an .npy file: it does not start with the bytes 93 4E 55 4D 50 59"),
        (b"\x93NUMP", "does not start with"),
        (b"[[1, 2]]", "does not start with"),
        (b"\x93NUMPY", "not an .npy file of version 1 or 2"),
        (b"\x93NUMPY\x01\x00\x00", "not an .npy file of version 1 or 2"),
        (b"\x93NUMPY\x02\x00\x00\x00\x00", "not an .npy file of version 1 or 2"),
        (forged("{}", version=3), "not an .npy file of version 1 or 2"),
        (forged("{}", version=0), "not an .npy file of version 1 or 2"),
        (b"\x93NUMPY\x01\x00\xff\xff", "claims to end at byte 65545; the file has 10 bytes, the limit is 16384"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "claims to end at byte 4294967307"),
        (saved(GRID)[:-1], "declares shape [2, 4] of int64, 64 bytes; the file has 63"),
        (saved(GRID) + b"\0", "declares shape [2, 4] of int64, 64 bytes; the file has 65"),
        (saved(GRID)[:100], "claims to end at byte 128"),
        (saved(np.zeros((0, 4))), "declares shape [0, 4] of float64, 0 bytes"),
    ],
)
def test_files_that_are_cut_or_grown(body: bytes, words: str) -> None:
    assert words in refusal(body, one()).message


@pytest.mark.parametrize(
    ("signature", "array"),
    [
        (one(), GRID.astype(np.float32)),
        (one("float16", (None,)), np.array([0.1, np.nan, np.inf], np.float16)),
        (one("uint64", (None,)), np.array([2**64 - 1], np.uint64)),
        (one("bool", (None, 1)), np.array([[True], [False]])),
        (one(shape=(None, 2, 2)), np.arange(8, dtype=np.float32).reshape(2, 2, 2).transpose(0, 2, 1)),
        (one(shape=(), batch_axis=ABSENT), np.array(1.5, np.float32)),
    ],
)
def test_one_output(signature: Signature, array: Array) -> None:
    """Checklist 80."""
    body = encode({"y": array}, signature, ENCODE)
    assert_same(np.load(io.BytesIO(body), allow_pickle=False), np.ascontiguousarray(array).reshape(array.shape))
    assert_same(read(body, signature), np.ascontiguousarray(array).reshape(array.shape))


def test_string_output() -> None:
    body = encode({"y": texts(["a", "", "\u00e4"])}, one("string", (None,)), ENCODE)
    assert np.load(io.BytesIO(body), allow_pickle=False).tolist() == ["a", "", "\u00e4"]
    assert_same(read(encode({"y": texts([""])}, one("string", (None,)), ENCODE), one("string", (None,))), texts([""]))


def test_several_outputs() -> None:
    tensors = {"a": np.array([[1, 2], [3, 4]], np.float32), "s": texts(["x", "yy"])}
    body = encode(tensors, TWO, ENCODE)
    table = np.load(io.BytesIO(body), allow_pickle=False)
    assert table.shape == (2,)
    assert table.dtype.names == ("a", "s")
    assert read(body, TWO)["s"].tolist() == ["x", "yy"]
    absent = several(("a", "float32", (2,)), ("b", "int64", ()), batch_axis=ABSENT)
    body = encode({"a": np.array([1, 2], np.float32), "b": np.array(3)}, absent, ENCODE)
    assert np.load(io.BytesIO(body), allow_pickle=False).shape == ()


def test_outputs_that_npy_cannot_carry() -> None:
    signature = several(("a", "float32", (None,)), ("b", "float32", (None,)))
    with pytest.raises(NotAcceptable, match="different numbers of records"):
        encode({"a": np.zeros(1, np.float32), "b": np.zeros(2, np.float32)}, signature, ENCODE)
    signature = several(("\u20ac", "float32", (None,)), ("b", "float32", (None,)))
    with pytest.raises(NotAcceptable, match="names"):
        encode({"\u20ac": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}, signature, ENCODE)


def test_strings_that_would_lose_their_end_are_refused() -> None:
    """NumPy pads fixed-width strings with zeros, so a zero at the end cannot be told from the padding."""
    with pytest.raises(NotAcceptable, match="zero character"):
        encode({"y": texts(["a\0"])}, one("string", (None,)), ENCODE)


def test_a_boolean_without_axes_is_still_an_array() -> None:
    received = decode(saved(np.array(True)), one(shape=(), batch_axis=ABSENT), OPTIONS)
    assert_same(received["x"], np.array(1, np.float32))


def test_a_signalling_nan_is_a_nan() -> None:
    signalling = np.frombuffer(struct.pack("<Q", 0x7FF0000000000001), np.float64).reshape(1, 1)
    received = decode(saved(signalling), one(shape=(None, 1)), OPTIONS)
    assert np.isnan(received["x"]).all()


@pytest.mark.parametrize(("dtype", "value"), [(np.float32, 2**24), (np.float16, 2**11), (np.float64, 2**53)])
def test_integers_beyond_what_a_float_can_tell_apart_are_refused(dtype: type, value: int) -> None:
    good = decode(saved(np.array([[value - 1]], dtype)), one("int64", (None, 1)), OPTIONS)
    assert good["x"].tolist() == [[value - 1]]
    with pytest.raises(InvalidPayload):
        decode(saved(np.array([[value]], dtype)), one("int64", (None, 1)), OPTIONS)


def outcome(read_body: Any, body: bytes) -> tuple[Any, ...]:
    """What comes of a body, in a form that can be compared."""
    try:
        tensors = read_body(body)
    except ByocError as error:
        return type(error), error.message, error.details
    numbers = [array for array in tensors.values() if not array.dtype.hasobject]
    assert all(a.flags.aligned and a.flags.c_contiguous and a.dtype.isnative for a in numbers)
    return tuple(
        (name, a.dtype, a.shape, a.tolist() if a.dtype.hasobject else a.tobytes()) for name, a in tensors.items()
    )


def padded(array: Array, header_bytes: int) -> bytes:
    """An array behind a header of so many bytes."""
    order = not array.flags.c_contiguous
    text = f"{{'descr': {array.dtype.str!r}, 'fortran_order': {order}, 'shape': {array.shape}}}"
    return forged(text.ljust(header_bytes - 11) + "\n", array.tobytes("F" if order else "C"))


@st.composite
def arrays_of_any_kind(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(["<f4", "<f4", "<f4", ">f4", "<f8", "<i4", ">i8", "|i1", "|b1", "<f2", "<c8", "<U2"]))
    shape = draw(st.sampled_from([(1, 4), (2, 4), (2, 4), (4,), (3, 4), (4, 1), (1, 2, 2), ()]))
    values = np.resize(np.array(draw(st.lists(st.integers(0, 100), min_size=1, max_size=4))), shape)
    array = values.astype(dtype)
    return np.asfortranarray(array) if draw(st.integers(0, 4)) == 0 else array


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """Bodies in any order, many of which have a header that has come before, with other values or of other length."""
    drawn: list[bytes] = []
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()) and drawn:
            body = draw(st.sampled_from(drawn))
            end = draw(st.sampled_from([len(body), len(body), len(body) - 1, len(body) - 4, 128, 127, 100, 64, 7, 0]))
            more = draw(st.sampled_from([b"", b"", b"", b"\0", bytes(4), bytes(16)]))
            body = body[: min(end, len(body))] + more
            if draw(st.booleans()) and len(body) > 128:
                body = body[:128] + draw(st.binary(min_size=len(body) - 128, max_size=len(body) - 128))
        else:
            header_bytes = draw(st.sampled_from([128, 128, 128, 96, 192, 256, 129]))
            array = draw(arrays_of_any_kind())
            body = saved(array) if draw(st.booleans()) else padded(array, header_bytes)
        drawn.append(body)
    return drawn


@pytest.mark.parametrize(
    "signature",
    [
        one(),
        one(shape=(None, None)),
        one(shape=(None, 1)),
        one("int32"),
        one("bool"),
        one("string", (None, 4)),
        one(shape=(2, 4), batch_axis=ABSENT),
        one(shape=(4, 4), batch_axis=BatchAxis.FIXED),
        TWO,
    ],
    ids=lambda signature: " ".join(spec.describe() for spec in signature.inputs),
)
def test_a_decoder_gives_what_decode_gives_whatever_came_before(signature: Signature) -> None:
    @settings(deadline=None, max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def law(received: list[bytes]) -> None:
        read_body = decoder(signature, OPTIONS)
        for body in received:
            assert outcome(read_body, body) == outcome(lambda body: decode(body, signature, OPTIONS), body)

    law()


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every body that is looked at as a whole: of their lengths."""
    looks: list[int] = []

    def counted(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
        looks.append(len(body))
        return decode(body, signature, options)

    monkeypatch.setattr(npy, "decode", counted)
    return looks


def test_a_header_that_came_before_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the data copied: each answer is a view of its own body."""
    read_body, looks = decoder(one(), OPTIONS), count_looks(monkeypatch)
    for number in range(4):
        body = saved(np.full((2, 4), number, np.float32))
        (array,) = cast(Tensors, read_body(body)).values()
        assert_same(array, np.full((2, 4), number, np.float32))
        assert np.shares_memory(array, np.frombuffer(body, np.uint8))
        assert not array.flags.writeable
        assert len(looks) == 1


@pytest.mark.parametrize(
    "array",
    [
        GRID.astype(np.float64),
        GRID.astype(">f4"),
        np.asfortranarray(GRID.astype(np.float32)),
        np.zeros(4, np.float32),  # one record without its axis
        np.ones(2, [("x", "f4", (4,))]),
    ],
    ids=["dtype", "byte order", "layout", "shape", "structured"],
)
def test_what_has_to_be_made_to_fit_is_looked_at_every_time(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    read_body, looks = decoder(one(), OPTIONS), count_looks(monkeypatch)
    expected = decode(saved(array), one(), OPTIONS)["x"]
    for _ in range(3):
        assert_same(cast(Tensors, read_body(saved(array)))["x"], expected)
    assert len(looks) == 3


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-16], lambda b: b + b"\0", lambda b: b + bytes(16)])
def test_a_known_header_before_too_little_or_too_much_is_refused(change: Callable[[bytes], bytes]) -> None:
    read_body, body = decoder(one(), OPTIONS), saved(GRID.astype(np.float32))
    read_body(body)
    with pytest.raises(InvalidPayload, match=r"declares shape \[2, 4\] of float32, 32 bytes; the file has"):
        read_body(change(body))
    assert_same(cast(Tensors, read_body(body))["x"], GRID.astype(np.float32))


def test_only_so_many_headers_are_remembered() -> None:
    """An attacker gets no more, and everyone the right answer."""
    read_body = decoder(one(), OPTIONS)
    for _ in range(2):
        for rows in range(1, 400):
            array = np.full((rows, 4), rows, np.float32)
            assert_same(cast(Tensors, read_body(saved(array)))["x"], array)
    known = inspect.getclosurevars(read_body).nonlocals["known"]
    assert len(known) == 32
