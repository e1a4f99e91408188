"""``text/libsvm``: lines, indices, values, shapes; the fast way and the exact one agree."""

from __future__ import annotations

import io
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from byoc_server.codecs import libsvm
from byoc_server.codecs.base import CODECS, DecodeOptions, codecs_by_media_type
from byoc_server.codecs.libsvm import decode
from byoc_server.errors import InvalidPayload
from byoc_server.types import Array, BatchAxis, Signature, Tensors
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal
from tests.server_process import running

NAN, INF = float("nan"), float("inf")
ENTRY = codecs_by_media_type()["text/libsvm"]


def read(body: bytes | str, signature: Signature | None = None) -> Tensors:
    return decode(body.encode() if isinstance(body, str) else body, signature or one(), OPTIONS)


def refusal(body: bytes | str, signature: Signature | None = None) -> str:
    with pytest.raises(InvalidPayload) as caught:
        read(body, signature)
    assert len(caught.value.message) < 300
    return caught.value.message


def f32(*rows: object) -> Array:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \n", "\t \r\n", " # id 7\n"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(
    "label", ["", "1 ", "-1 ", "+1 ", "0.5 ", "1e-3 ", "nan ", " 1  ", "\t", "1 qid:3 ", "qid:12 "]
)
def test_line_ends_labels_and_comments(end: str, final: bool, label: str) -> None:
    """Labels and query ids are not looked at and may be missing."""
    lines = [f"{label}0:1.5 3:-2", f"{label}2:7", f"{label}0:1e2 1:.5 2:+3 3:00.25"]
    body = end.join(lines) + (end if final else "")
    assert_same(read(body)["x"], f32([1.5, 0, 0, -2], [0, 0, 7, 0], [100, 0.5, 3, 0.25]))


def test_records_without_entries() -> None:
    assert_same(read("1\n0 1:2\n0\n")["x"], f32([0] * 4, [0, 2, 0, 0], [0] * 4))
    assert_same(read("1\n", one(shape=(None, None)))["x"], np.zeros((1, 0), np.float32))
    assert_same(read("qid:1\n")["x"], np.zeros((1, 4), np.float32))


def test_comments() -> None:
    assert_same(read("# head\n1 0:1 # a: b #\n  # between\n0 1:2\n#\n")["x"], f32([1, 0, 0, 0], [0, 2, 0, 0]))
    assert refusal("# a\n1 0:1\n# b\n1 4:1\n").startswith("line 4: ")
    assert refusal("# a\n\n1 0:1\n") == "line 2 is empty"
    assert refusal("#\n # only\n") == "body holds only comments"


@pytest.mark.parametrize(
    ("word", "dtype", "value"),
    [
        ("nan", "float32", NAN),
        ("NaN", "float64", NAN),
        ("inf", "float32", INF),
        ("-Infinity", "float16", -INF),
        ("3.4028235e38", "float32", 3.4028235e38),
        ("1e-400", "float64", 0),
        ("9" * 30, "float64", 1e30),
        ("65504", "float16", 65504),
        ("-128", "int8", -128),
        ("1.0", "int8", 1),
        ("1e2", "uint8", 100),
        ("9007199254740993", "int64", 2**53 + 1),
        ("9223372036854775807", "int64", 2**63 - 1),
        ("-9223372036854775808", "int64", -(2**63)),
        ("18446744073709551615", "uint64", 2**64 - 1),
        ("1", "bool", True),
        ("0", "bool", False),
        ("1.0", "bool", True),
    ],
)
def test_values(word: str, dtype: str, value: object) -> None:
    assert_same(read(f"1 1:{word}\n", one(dtype, (None, 2)))["x"], np.array([[0, value]], dtype))


@pytest.mark.parametrize(
    ("word", "dtype", "expected"),
    [
        ("x", "float32", "a number (float32)"),
        ("1_0", "float32", "a number (float32)"),
        ("1e39", "float32", "a number within the range of float32"),
        ("1e400", "float64", "a number (float64)"),
        ("9" * 5000, "float64", "a number (float64)"),
        ("1e5", "float16", "a number within the range of float16"),
        ("0x10", "float32", "a number (float32)"),
        ("\u0663", "float32", "a number (float32)"),
        ("true", "float32", "a number (float32)"),
        ("null", "float32", "a number (float32)"),
        ('"1"', "float32", "a number (float32)"),
        ("[1]", "float32", "a number (float32)"),
        ("1,2", "float32", "a number (float32)"),
        ("1:2", "float32", "a number (float32)"),
        ("", "float32", "a number (float32)"),
        ("-", "float32", "a number (float32)"),
        ("1.5", "int8", "a whole number from -128 to 127"),
        ("128", "int8", "a whole number from -128 to 127"),
        ("nan", "int8", "a whole number from -128 to 127"),
        ("inf", "int64", "a whole number from "),
        ("9223372036854775808", "int64", "a whole number from "),
        ("-1", "uint64", "a whole number from 0 to "),
        ("2", "bool", "true or false"),
        ("nan", "bool", "true or false"),
    ],
)
def test_values_that_do_not_fit(word: str, dtype: str, expected: str) -> None:
    assert refusal(f"1 0:1\n1 1:{word}\n", one(dtype, (None, 2))).startswith(f"line 2, index 1: expected {expected}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "body is empty"),
        ("\n", "line 1 is empty"),
        ("1 0:1\n\n1 0:1\n", "line 2 is empty"),
        ("1 0:1\n \t\n", "line 2 is empty"),
        ("1 0:1\n1 4:1\n", "line 2: expected indices from 0 to 3, got index 4"),
        ("1 0:1\n1 9007199254740991:1\n", "line 2: expected indices from 0 to 3, got index 9007199254740991"),
        ("1 1:1 0:2\n", "line 1: indices must ascend: expected an index above 1, got index 0"),
        ("1 0:1\n0 2:1 2:2\n", "line 2: indices must ascend: expected an index above 2, got index 2"),
        ("1 0:1\n1 -1:1\n", "line 2: expected INDEX:VALUE with an index from 0, got '-1:1'"),
        ("1 +1:1", "line 1: expected INDEX:VALUE with an index from 0, got '+1:1'"),
        ("1 1.0:1", "line 1: expected INDEX:VALUE with an index from 0, got '1.0:1'"),
        ("1 1e0:1", "line 1: expected INDEX:VALUE with an index from 0, got '1e0:1'"),
        ("1 :1", "line 1: expected INDEX:VALUE with an index from 0, got ':1'"),
        ("1 9007199254740992:1", "line 1: expected INDEX:VALUE with an index from 0, got '9007199254740992:1'"),
        ("1 0:1 5", "line 1: expected INDEX:VALUE with an index from 0, got '5'"),
        ("1 2 0:1", "line 1: expected INDEX:VALUE with an index from 0, got '2'"),
        ("1 0: 1", "line 1: expected INDEX:VALUE with an index from 0, got '1'"),
        ("a 0:1", "line 1: expected INDEX:VALUE with an index from 0, got 'a'"),
        ("1,2 0:1", "line 1: expected INDEX:VALUE with an index from 0, got '1,2'"),
        ("1e400 a", "line 1: expected INDEX:VALUE with an index from 0, got '1e400'"),
        ("1 qid:x 0:1", "line 1: expected INDEX:VALUE with an index from 0, got 'qid:x'"),
        ("1 0:1 qid:1", "line 1: expected INDEX:VALUE with an index from 0, got 'qid:1'"),
        (b"1 0:1\n1 \xff:1", "line 2: expected INDEX:VALUE with an index from 0, got '\ufffd:1'"),
        (b"\xef\xbb\xbf1 0:1", "line 1: expected INDEX:VALUE with an index from 0, got '\\ufeff1'"),
        ("1 0:1\0", "line 1, index 0: expected a number (float32) for input 'x', got '1\\x00'"),
    ],
)
def test_lines_that_do_not_fit(body: bytes | str, message: str) -> None:
    """Checklist 36 and 64: one bad line refuses the body."""
    assert refusal(body).split(": expected at least")[0] == message


def test_long_indices() -> None:
    assert refusal(f"1 {'9' * 5000}:1").startswith("line 1: expected INDEX:VALUE")
    assert_same(read(f"1 {'0' * 5000}2:1 {'0' * 30}3:2")["x"], f32([0, 0, 1, 2]))


def test_shapes() -> None:
    assert_same(read("1 0:1 2:3\n0 1:2\n", one(shape=(None, None)))["x"], f32([1, 0, 3], [0, 2, 0]))
    assert_same(read("0:1\n1\n", one(shape=(None,)))["x"], f32(1, 0))
    assert_same(read("0:1\n0:2\n", one(shape=(None, 1)))["x"], f32([1], [2]))
    assert_same(read("1 3:5\n", one(shape=(None, 2, 2)))["x"], f32([[0, 0], [0, 5]]))
    assert_same(read("0:1\n" * 9, one(shape=(8, 1), batch_axis=BatchAxis.FIXED))["x"], np.ones((9, 1), np.float32))
    words = "text/libsvm cannot carry input x: "
    assert refusal("0:1", one(shape=(None, None, 3))).startswith(
        words + "float32[?, ?, 3]: its number of columns is open"
    )
    assert refusal("0:1", one("string", (None, 2))).startswith(words + "string[?, 2]: its values are strings")


def test_without_batch_axis() -> None:
    assert_same(read("1 1:2\n", one(shape=(2,), batch_axis=ABSENT))["x"], f32(0, 2))
    assert_same(read("1 2:2\n", one(shape=(None,), batch_axis=ABSENT))["x"], f32(0, 0, 2))
    assert_same(read("1 0:2\n", one(shape=(), batch_axis=ABSENT))["x"], np.array(2, np.float32))
    assert_same(read("0:1\n1:2\n", one(shape=(2, 2), batch_axis=ABSENT))["x"], f32([1, 0], [0, 2]))
    assert_same(read("0:1\n1:2\n", one(shape=(None, 2), batch_axis=ABSENT))["x"], f32([1, 0], [0, 2]))
    message = "the model takes one record per request, got 2"
    assert refusal("0:1\n1:2\n", one(shape=(2,), batch_axis=ABSENT)) == message
    message = "body: expected shape [2, 2], got [1, 2]"
    assert refusal("0:1\n", one(shape=(2, 2), batch_axis=ABSENT)) == message


@pytest.mark.parametrize("extra", ["", " # read word by word\n# and exactly"])
def test_several_inputs(extra: str) -> None:
    """The columns of the first input come first, as in CSV."""
    signature = several(("a", "float32", (None, 2)), ("b", "int64", (None,)), ("c", "bool", (None, 1)))
    tensors = read(f"1 0:1.5 2:7 3:1\n0 1:2 2:{2**53 + 1 if extra else 5}{extra}\n", signature)
    assert_same(tensors["a"], f32([1.5, 0], [0, 2]))
    assert_same(tensors["b"], np.array([7, 2**53 + 1 if extra else 5]))
    assert_same(tensors["c"], np.array([[True], [False]]))
    assert refusal("1 2:0.5\n", signature).startswith("line 1, index 2: expected a whole number")
    assert refusal("1 4:1\n", signature) == "line 1: expected indices from 0 to 3, got index 4"
    open_pair = several(("a", "float32", (None, None)), ("b", "float32", (None, 1)))
    assert "its number of columns is open" in refusal("1 0:1\n", open_pair)


def test_what_another_library_writes_reads_back() -> None:
    """scikit-learn is the oracle, in both directions."""
    random = np.random.default_rng(5)
    dense = random.integers(-999, 999, (300, 40)) / 64 * (random.random((300, 40)) < 0.3)
    stream = io.BytesIO()
    dump_svmlight_file(
        dense, random.integers(0, 2, 300), stream, comment="by another hand", query_id=np.arange(300) // 7
    )
    assert_same(read(stream.getvalue(), one("float64", (None, 40)))["x"], dense)
    expected, _ = load_svmlight_file(io.BytesIO(stream.getvalue()), n_features=41, zero_based=True)
    assert_same(read(stream.getvalue(), one("float64", (None, 41)))["x"], expected.toarray())


def test_blocks_meet_at_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "1 0:1\n0 3:4\n\n".replace("\n\n", "\n") * 5 + "1 2:2"
    expected = read(body)["x"]
    for size in range(1, 40):
        monkeypatch.setattr(libsvm, "_BLOCK_BYTES", size)
        assert_same(read(body)["x"], expected)
        assert refusal(body + "\n1 0:1 4:1").startswith("line 12: ")
        assert refusal(body + "\n\n1 0:1") == "line 12 is empty"


def test_dense_results_are_bounded() -> None:
    """Checklist 84: a few bytes cannot ask for gigabytes."""
    for body in (b"1 9007199254740991:1", b"1 99999999:1\n" + b"1\n" * 100):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidPayload, match="too large when dense"):
                decode(body, one(shape=(None, None)), OPTIONS)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
    assert decode(b"1 4:1", one(shape=(None, None)), DecodeOptions({}, max_tensor_bytes=20))["x"].shape == (1, 5)
    with pytest.raises(InvalidPayload, match="1 records of 6 columns are too large when dense"):
        decode(b"1 5:1", one(shape=(None, None)), DecodeOptions({}, max_tensor_bytes=20))


@pytest.mark.parametrize(
    "body",
    [
        b"1\n" * 100_000,
        b"0:1\n" * 50_000,
        b"1 " + b" ".join(b"%d:1" % i for i in range(30_000)),
        b"0:1 #\n" * 30_000,
        b" " * 200_000 + b"#",
        b"#" * 200_000,
        b"qid:" * 50_000,
        b"qid:1 " * 30_000,
        b"1" * 200_000,
        b":" * 200_000,
        b"0:" + b"1" * 200_000,
        b"\r" * 200_000,
        b"1\t" * 100_000,
        b"0:1\n" * 50_000 + b"0:x\n",
    ],
    ids=lambda body: repr(body[:6]),
)
def test_large_bodies_stay_linear(body: bytes) -> None:
    """Time and memory are a small multiple of the body's, whatever it is made of."""
    start_s = time.monotonic()
    signature = one(shape=(None, None))
    assert_tensors_or_refusal(ENTRY, body, signature, OPTIONS)
    assert time.monotonic() - start_s < 5
    tracemalloc.start()
    try:
        assert_tensors_or_refusal(ENTRY, body[:20_000], signature, OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 60 * 20_000
    finally:
        tracemalloc.stop()


words = st.sampled_from(
    ["1", "0:1", "1:2.5", "3:1e400", "2:nan", ":", "1:", ":1", "-1:1", "qid:1", "#", " ", "\t", "x", "1_0:1", "0:1_0"]
    + ["4:1", "9" * 20 + ":1", "+1", ".5", "0:\u0663", "\x0b", "1:1:1", "18446744073709551615", "2:-inf"]
)
any_lines = st.lists(st.lists(words, max_size=5).map(" ".join), max_size=5)
any_body = st.builds(lambda lines, end: end.join(lines).encode(), any_lines, st.sampled_from(["\n", "\r\n", "\r"]))


def test_any_body_gives_tensors_or_a_refusal() -> None:
    """Checklist 36 and 41."""

    @LAWS
    @given(any_body | st.binary(max_size=60), st.sampled_from(SIGNATURES))
    def law(body: bytes, signature: Signature) -> None:
        assert_tensors_or_refusal(ENTRY, body, signature, DecodeOptions({}, max_tensor_bytes=10_000))

    law()


def test_both_ways_to_read_agree() -> None:
    """What is taken apart as a whole is what is read word by word, and nothing that the latter refuses passes."""

    @LAWS
    @given(any_body.map(lambda body: body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")))
    def law(body: bytes) -> None:
        plain = libsvm._plain_entries(body)
        if plain is None:
            return
        exact = libsvm._read_entries(body, 1)
        assert len(plain.lines) == len(exact.lines)
        np.testing.assert_array_equal(plain.row, exact.row)
        np.testing.assert_array_equal(plain.index, exact.index)
        np.testing.assert_array_equal(plain.value, np.array(exact.value, np.float64))

    law()


def test_blocks_of_lines_are_read_as_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the cuts are: before a comment, an empty line, one that must be read word by word."""

    def outcome(body: bytes, signature: Signature, block_bytes: int) -> object:
        monkeypatch.setattr(libsvm, "_BLOCK_BYTES", block_bytes)
        try:
            return {name: (a.shape, a.tobytes()) for name, a in decode(body, signature, OPTIONS).items()}
        except InvalidPayload:
            return None

    @LAWS
    @given(any_body, st.sampled_from(SIGNATURES), st.integers(0, 12))
    def law(body: bytes, signature: Signature, block_bytes: int) -> None:
        assert outcome(body, signature, block_bytes) == outcome(body, signature, 1000)

    law()
    for body, message in (
        (b"0:1\n# a\n\n0:1", "line 3 is empty"),
        (b"0:1\r\n0:1\r# a\r\n#\n0:1 0:1", "line 5: indices must ascend"),
        (b"0:1\n# a\n0:x", "line 3, index 0: expected a number"),
        (b"0:1\n# a\n4:1", "line 3: expected indices from 0 to 2"),
        (b"# a\n#\n # b", "body holds only comments"),
        (b"# a\n\n", "line 2 is empty"),
        (b"0:1\n1:1e39\n", "line 2, index 1: expected a number within the range"),
    ):
        for block_bytes in (0, 1, 5, 1000):
            monkeypatch.setattr(libsvm, "_BLOCK_BYTES", block_bytes)
            with pytest.raises(InvalidPayload, match=message):
                decode(body, one(shape=(None, 3)), OPTIONS)


def test_what_is_written_reads_back() -> None:
    @LAWS
    @given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), min_size=1, max_size=6))
    def law(rows: list[list[float]]) -> None:
        body = "\n".join("1 " + " ".join(f"{i}:{v!r}" for i, v in enumerate(row) if v) for row in rows)
        assert_same(read(body, one(shape=(None, 3)))["x"], f32(*rows))

    law()


def test_the_row_of_the_table() -> None:
    assert codecs_by_media_type()["text/x-libsvm"] is ENTRY
    assert ENTRY in CODECS
    assert not ENTRY.answers


def test_over_a_socket() -> None:
    """The demo model answers the same as for JSON; answers cannot be in this format."""
    with running() as server:
        expected = server.invoke(b"[[5.1, 3.5, 0, 0.2], [6.3, 2.8, 5.1, 1.5]]").json()
        body = b"0 0:5.1 1:3.5 3:0.2\n2 0:6.3 1:2.8 2:5.1 3:1.5\n"
        for name in ("text/libsvm", "text/x-libsvm; charset=utf-8"):
            assert server.invoke(body, Content_Type=name).json() == expected
        answer = server.invoke(b"1 4:1\n", Content_Type="text/libsvm")
        assert answer.status_code == 400
        assert "line 1: expected indices from 0 to 3, got index 4" in answer.text
        assert server.invoke(body, Content_Type="text/libsvm", Accept="text/libsvm").status_code == 406
        assert server.invoke(body, Content_Type="text/libsvm", Accept="text/csv").text.count("\n") == 2
