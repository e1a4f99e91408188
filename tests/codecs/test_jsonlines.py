"""``application/jsonlines`` and what the line formats share."""

from __future__ import annotations

import numpy as np
import pytest

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.jsonlines import decode, encode
from byoc_server.codecs.text.lines import body_lines, join_lines
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts

NAN = float("nan")
TWO = several(("a", "float32", (None, 2)), ("s", "string", (None,)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("final", [True, False])
def test_forms_line_ends_and_the_last_line(end: bytes, final: bool) -> None:
    """Checklist 61, 62 and 80: kinds may be mixed, one record a line, no extra record for a final line end."""
    lines = [
        b"[1, 2]",
        b'{"features": [1, 2]}',
        b'{"data": {"features": {"values": [1, 2]}}}',
        b'{"data": {"features": {"keys": [1, 0], "shape": [2], "values": [2, 1]}}}',
        b'{"x": [1, 2]}',
        b'  {"values": [1, 2]} ',
        b"[1, 2]",
    ]
    tensors = decode(end.join(lines) + (end if final else b""), one(shape=(None, 2)), OPTIONS)
    assert_same(tensors["x"], np.array([[1, 2]] * 7, np.float32))


def test_sparse_records_share_one_limit() -> None:
    """Checklist 84."""
    body = b"\n".join([b'{"keys": [], "shape": [100], "values": []}'] * 3)
    signature = one(shape=(None, None))
    assert decode(body, signature, DecodeOptions({}, max_tensor_bytes=1200))["x"].shape == (3, 100)
    with pytest.raises(TensorsTooLarge, match=r"^line 3: .* too large when dense"):
        decode(body, signature, DecodeOptions({}, max_tensor_bytes=1199))


@pytest.mark.parametrize(
    ("line", "count"),
    [(b"[1, 2]\n", 10), (b"[1, 2]\n", 4000), (b'[1, "NaN"]\n', 4000), (b'{"x": [1, 2]}\n', 4000)]
    + [(b'[1, "NaN"]\n', 40_000), (b'{"x": [1, 2]}\n', 40_000)],
)
def test_dense_records_have_the_same_limit(line: bytes, count: int) -> None:
    """Checklist 84."""
    signature = one(shape=(None, 2))
    assert len(decode(line * count, signature, DecodeOptions({}, 8 * count))["x"]) == count
    with pytest.raises(TensorsTooLarge, match=r"^line \d+: .* too large when dense$"):
        decode(line * count, signature, DecodeOptions({}, 8 * count - 1))


def test_scalars_and_missing_values() -> None:
    assert_same(
        decode(b"1\n[2]\nnull\nNaN", one(shape=(None, 1)), OPTIONS)["x"], np.array([[1], [2], [NAN], [NAN]], np.float32)
    )
    assert_same(decode(b"1\n2", one("uint8", (None,)), OPTIONS)["x"], np.array([1, 2], np.uint8))


def test_several_inputs() -> None:
    tensors = decode(b'{"a": [1, 2], "s": "x"}\n{"s": "y", "a": [3, 4]}', TWO, OPTIONS)
    assert_same(tensors["a"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(tensors["s"], texts(["x", "y"]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is empty"),
        (b"\n", "line 1 is empty"),
        (b"[1, 2]\n\n[3, 4]", "line 2 is empty"),
        (b"[1, 2]\n \r\n[3, 4]\n", "line 2 is empty"),
        (b"[1, 2]\n\n", "line 2 is empty"),
        (b"[1, 2]\n[3]", "line 2: expected 2 values for input 'x', got 1"),
        (b"[1, 2]\n[3, 4", "line 2 is not valid JSON: unexpected end of data: line 1 column 6 (char 5)"),
        (
            b'[1, 2]\n{"instances": [[1, 2]]}',
            "line 2: missing 'x'; unknown 'instances'; the model's inputs are x: float32[?, 2]",
        ),
        (b'[1, 2]\n{"features": [3, "a"]}', "line 2[1]: expected a number (float32) for input 'x', got 'a'"),
        (b"[1, 2]\n3", "line 2: expected a list of 2 values for input 'x', got 3"),
    ],
)
def test_one_bad_line_refuses_the_body(body: bytes, message: str) -> None:
    """Checklist 64: no line is dropped."""
    with pytest.raises(InvalidPayload) as caught:
        decode(body, one(shape=(None, 2)), OPTIONS)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("signature", "line", "value"),
    [
        (one(shape=(None, 2)), b"[1, 2.5]", [1, 2.5]),
        (one(shape=(None, 1)), b"7", [7]),
        (one(shape=(None,)), b"null", NAN),
        (one("int64", (None, None)), b"[1,2,3]", [1, 2, 3]),
        (one("float64", (None, 2, 2)), b"[[1,2],[NaN,4]]", [[1, 2], [NAN, 4]]),
    ],
)
def test_many_lines_of_numbers(signature: Signature, line: bytes, value: object) -> None:
    expected = np.array([value] * 4000, signature.inputs[0].dtype)
    for body in (b"\n".join([line] * 4000), (line + b"\r\n") * 4000, (line + b"\r") * 4000):
        assert_same(decode(body, signature, OPTIONS)["x"], expected)


@pytest.mark.parametrize(
    ("signature", "line", "last", "message"),
    [
        (one(shape=(None, 2)), b"[1, 2]", b"[3]", "line 2001: expected 2 values for input 'x', got 1"),
        (one(shape=(None, 2)), b"[1, 2]", b"", "line 2001 is empty"),
        (one(shape=(None, 2)), b"[1, 2]", b"[3, 4], [5, 6]", "line 2001 is not valid JSON: "),
        (one(shape=(None, 2)), b"[1, 2, 3]", b"[1, 2, 3]", "line 1: expected 2 values for input 'x', got 3"),
        (one(shape=(None, 2)), b"[1, 2", b"3]", "line 1 is not valid JSON: "),
        (one(shape=(None, 2)), b"[]      ", b"[]", "line 1: expected 2 values for input 'x', got 0"),
        (one("uint8", (None, 1)), b"[1]     ", b"256", "line 2001[0]: expected a whole number from 0 to 255"),
    ],
)
def test_many_lines_that_do_not_fit(signature: Signature, line: bytes, last: bytes, message: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        decode((line + b"\n") * 2000 + last + b"\n", signature, OPTIONS)
    assert caught.value.message.startswith(message)


def test_many_lines_of_something_else() -> None:
    assert decode(b'"a b c"\n' * 4000, one("string", (None,)), OPTIONS)["x"].shape == (4000,)
    assert decode(b'{"x": [1, 2]}\n' * 4000, one(shape=(None, 2)), OPTIONS)["x"].shape == (4000, 2)


@pytest.mark.parametrize(
    ("signature", "arrays", "text"),
    [
        (one(shape=(None, 2)), [[[0.1, NAN], [1, 2]]], b"[0.1,null]\n[1.0,2.0]\n"),
        (one(shape=(None,)), [[0.1, NAN]], b"0.1\nnull\n"),
        (one("int64", (None,)), [[1, 2]], b"1\n2\n"),
        (one("bool", (None,)), [[True]], b"true\n"),
        (one("string", (None,)), [["a\nb", "c"]], b'"a\\nb"\n"c"\n'),
        (one("string", (None, 1)), [[["a"]]], b'["a"]\n'),
        (one(shape=(None, 1, 2)), [[[[1, 2]], [[3, 4]]]], b"[[1.0,2.0]]\n[[3.0,4.0]]\n"),
        (TWO, [[[0.1, 2], [3, 4]], ["x", "y"]], b'{"a":[0.1,2.0],"s":"x"}\n{"a":[3.0,4.0],"s":"y"}\n'),
        (one(shape=(2, 2), batch_axis=ABSENT), [[[1, 2], [3, 4]]], b"[[1.0,2.0],[3.0,4.0]]\n"),
        (one(shape=(), batch_axis=ABSENT), [0.1], b"0.1\n"),
        (
            several(("a", "float32", (1,)), ("b", "int8", ()), batch_axis=ABSENT),
            [[1], 2],
            b'{"a":[1.0],"b":2}\n',
        ),
    ],
)
def test_answers(signature: Signature, arrays: list[object], text: bytes) -> None:
    """Checklist 61, 63 and 80: one answer a line, with or without a final line end."""
    tensors = {s.name: np.asarray(a, dtype=s.dtype) for s, a in zip(signature.outputs, arrays, strict=True)}
    assert encode(tensors, signature, ENCODE) == text
    assert encode(tensors, signature, EncodeOptions(final_newline=False)) == text[:-1]


def test_lines() -> None:
    """Checklist 62 and 63."""
    assert body_lines(b"a\nb\r\nc\rd\n") == [b"a", b"b", b"c", b"d"]
    assert join_lines([b"a", b"b"], ENCODE) == b"a\nb\n"
    assert join_lines([], ENCODE) == b""
