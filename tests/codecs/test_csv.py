"""``text/csv``: parameters, cells, lines, layouts, answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.csv import decode, encode
from byoc_server.errors import InvalidPayload, NotAcceptable, UnsupportedMediaType
from byoc_server.types import Array, Signature, Tensors, TensorSpec
from tests.codecs.signatures import ABSENT, ENCODE, assert_same, one, several, spec, texts
from tests.onnx_models import two_inputs
from tests.server_process import running

NAN, INF = float("nan"), float("inf")
PAIR = one(shape=(None, 2))


def read(body: bytes | str, signature: Signature, **parameters: str) -> Tensors:
    data = body.encode() if isinstance(body, str) else body
    return decode(data, signature, DecodeOptions(parameters))


def refusal(body: bytes | str, signature: Signature, **parameters: str) -> str:
    with pytest.raises(InvalidPayload) as caught:
        read(body, signature, **parameters)
    assert len(caught.value.message) < 300
    return caught.value.message


def f32(*rows: object) -> Array:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("cell", ["1", '"1"', " 1", "1\t", "+1", "01", "1.", "1e0", "\ufeff1"])
def test_line_ends_and_spellings(end: str, final: bool, cell: str) -> None:
    """Checklist 61, 62 and 82: with or without a final line end, LF, CR LF or CR, cells quoted or not."""
    body = end.join([f"{cell},2", "3,4", "5,6"]) + (end if final else "")
    assert_same(read(body, PAIR)["x"], f32([1, 2], [3, 4], [5, 6]))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"header": "absent"},
        {"header": "ABSENT"},
        {"label_size": "0"},
        {"charset": "utf-8"},
        {"charset": "UTF-8"},
        {"charset": "utf8"},
        {"charset": "us-ascii"},
        {"charset": "ISO-8859-1"},
        {"label_size": "0", "charset": "utf-8", "header": "absent", "other": "ignored"},
    ],
)
def test_parameters_of_the_documentation(parameters: dict[str, str]) -> None:
    """Checklist 81: no header by default, and the documented parameters."""
    for body in ("1.5,2\n3,4\n", '"1.5",2\n3,4\n'):
        assert_same(read(body, PAIR, **parameters)["x"], f32([1.5, 2], [3, 4]))


def test_header_and_label() -> None:
    """Checklist 81: the first line is skipped on request, and so are label columns."""
    assert_same(read("a,b\n1,2\n", PAIR, header="present")["x"], f32([1, 2]))
    assert_same(read("1,2\n3,4\n", PAIR, header="Present")["x"], f32([3, 4]))
    assert_same(read("9,1,2\n8,3,4\n", PAIR, label_size="1")["x"], f32([1, 2], [3, 4]))
    assert_same(read("y,a,b\nlabel,1,2\n", PAIR, header="present", label_size="1")["x"], f32([1, 2]))
    assert refusal("a,b\n", PAIR, header="present") == "body has a header but no records"
    assert refusal("9,1,x\n", PAIR, label_size="1").startswith("line 1, column 3: ")
    message = "line 2: expected more than the 2 columns of label_size, got 2"
    assert refusal("1,2,3\n1,2\n", one(shape=(None, None)), label_size="2") == message


@pytest.mark.parametrize(
    "parameters",
    [{"header": "maybe"}, {"header": ""}, {"label_size": "-1"}, {"label_size": "x"}, {"label_size": ""}]
    + [{"label_size": "\u00b2"}, {"label_size": "99999"}, {"charset": "utf-16"}, {"charset": "rot13"}, {"charset": ""}],
)
def test_parameters_that_are_not_known(parameters: dict[str, str]) -> None:
    """Checklist 36."""
    with pytest.raises(UnsupportedMediaType) as caught:
        read("1,2", PAIR, **parameters)
    assert next(iter(parameters)) in caught.value.message


def test_charsets() -> None:
    signature = one("string", (None, 1))
    assert read("\u00e4\u20ac", signature)["x"].tolist() == [["\u00e4\u20ac"]]
    assert read(b"\xef\xbb\xbf\xc3\xa4", signature)["x"].tolist() == [["\u00e4"]]
    assert read(b"\xe4", signature, charset="latin1")["x"].tolist() == [["\u00e4"]]
    assert read(b"\x80", signature, charset="windows-1252")["x"].tolist() == [["\u20ac"]]
    assert refusal(b"ab\xff", signature) == "body is not utf-8: byte 2 is 0xff"
    assert refusal(b"ab\xff", signature, charset="ascii") == "body is not us-ascii: byte 2 is 0xff"
    assert refusal(b"\x81", signature, charset="windows-1252") == "body is not windows-1252: byte 0 is 0x81"


@pytest.mark.parametrize(
    ("cell", "dtype", "value"),
    [
        ("", "float32", NAN),
        ("  ", "float32", NAN),
        ("nan", "float32", NAN),
        ("NaN", "float64", NAN),
        ("inf", "float32", INF),
        ("-Infinity", "float16", -INF),
        (".5", "float32", 0.5),
        ("1E3", "float32", 1000),
        ("3.4028235e38", "float32", 3.4028235e38),
        ("1e-400", "float64", 0),
        ("9" * 30, "float64", 1e30),
        ("65504", "float16", 65504),
        ("-128", "int8", -128),
        ("1.0", "int8", 1),
        ("1e2", "int8", 100),
        ("9223372036854775807", "int64", 2**63 - 1),
        ("18446744073709551615", "uint64", 2**64 - 1),
        (" 7 ", "uint8", 7),
        ("true", "bool", True),
        ("False", "bool", False),
        (" 1", "bool", True),
        ("0", "bool", False),
    ],
)
def test_cells(cell: str, dtype: str, value: object) -> None:
    """Checklist 82: an empty cell is NaN."""
    signature = several(("a", dtype, (None, 1)), ("s", "string", (None,)))
    tensors = read(f"{cell},s\n", signature)
    assert_same(tensors["a"], np.array([[value]], dtype))
    assert_same(read(f'{cell},"{cell}"\n', one(dtype, (None, 2)))["x"], np.array([[value, value]], dtype))


def test_string_cells() -> None:
    """Checklist 82: quoted cells may hold commas, quotes and line ends."""
    body = 'a,"b,c"\r\n"d ""e""","f\r\ng\nh"\r\n"", x \r\n1,\u00e4\r\n'
    expected = [["a", "b,c"], ['d "e"', "f\r\ng\nh"], ["", " x "], ["1", "\u00e4"]]
    assert_same(read(body, one("string", (None, 2)))["x"], texts(expected))
    assert_same(read('a\n""\nb', one("string", (None,)))["x"], texts(["a", "", "b"]))


@pytest.mark.parametrize(
    ("cell", "dtype", "expected"),
    [
        ("x", "float32", "a number within the range of float32"),
        ("1_0", "float32", "a number within the range of float32"),
        ("1e39", "float32", "a number within the range of float32"),
        ("1e400", "float32", "a number within the range of float32"),
        ("-1e400", "float64", "a number within the range of float64"),
        ("9" * 5000, "float64", "a number within the range of float64"),
        ("1e5", "float16", "a number within the range of float16"),
        ("0x10", "float32", "a number within the range of float32"),
        ("\u0663", "float32", "a number within the range of float32"),
        ("1 2", "float32", "a number within the range of float32"),
        ("true", "float32", "a number within the range of float32"),
        ("1],[3", "float32", "a number within the range of float32"),
        ("null", "float32", "a number within the range of float32"),
        ("", "int8", "a whole number from -128 to 127"),
        ("1.5", "int8", "a whole number from -128 to 127"),
        ("128", "int8", "a whole number from -128 to 127"),
        ("1_0", "int8", "a whole number from -128 to 127"),
        ("\u0663", "int8", "a whole number from -128 to 127"),
        ("nan", "int8", "a whole number from -128 to 127"),
        ("1e400", "int8", "a whole number from -128 to 127"),
        ("9" * 5000, "int64", "a whole number from "),
        ("-1", "uint64", "a whole number from 0 to "),
        ("", "bool", "true or false"),
        ("2", "bool", "true or false"),
    ],
)
def test_cells_that_do_not_fit(cell: str, dtype: str, expected: str) -> None:
    message = refusal(f'1,0\n1,"{cell}"\n', one(dtype, (None, 2)))
    assert message.startswith(f"line 2, column 2: expected {expected}")


@pytest.mark.parametrize("shape", [(None, 2), (None, None), (None, 1), (None,)])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "body is empty"),
        ("\n", "line 1 is empty"),
        ("\n\n", "line 1 is empty"),
        ("\r\n1,2", "line 1 is empty"),
        ("1,2\n\n3,4\n", "line "),
        ("1,2\n\n", "line "),
        ("1,2],[3,4", "line 1"),
        ('1,"2', "line 1 is not valid CSV: unexpected end of data"),
        ('1,"2"3', "line 1 is not valid CSV: "),
        ("1,x", "line 1"),
        ("1,2\n3,4,5\n", "line "),
        ("[[1,2]]", "line 1"),
    ],
)
def test_bodies_that_do_not_fit(body: str, words: str, shape: tuple[int | None, ...]) -> None:
    """Checklist 36 and 64: one bad line refuses the body."""
    assert refusal(body, one(shape=shape)).startswith(words)


def test_wrong_numbers_of_columns() -> None:
    assert refusal("1,2\n1\n", PAIR) == "line 2: expected 2 columns, got 1"
    assert refusal("1,2,3\n", PAIR) == "line 1: expected 2 columns, got 3"
    assert refusal('"a\nb",1\nc\n', one("string", (None, 2))) == "line 3: expected 2 columns, got 1"
    assert refusal("1,2\n3\n", one(shape=(None, None))) == "line 2: expected 2 columns, got 1"


def test_shapes() -> None:
    assert_same(read("1\n2\n", one(shape=(None, 1)))["x"], f32([1], [2]))
    assert_same(read("1\n2\n", one(shape=(None,)))["x"], f32(1, 2))
    assert_same(read("1\n\t\n", one(shape=(None,)))["x"], f32(1, NAN))
    assert_same(read("1,2,3\n", one(shape=(None, None)))["x"], f32([1, 2, 3]))
    for first in ("0", '"0"'):
        body = first + "," + ",".join(map(str, range(1, 24))) + "\n"
        expected = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
        assert_same(read(body, one(shape=(None, 2, 3, 4)))["x"], expected)
    assert_same(read("1,2\n3,4\n", one("int64", (None, 2)))["x"], np.array([[1, 2], [3, 4]]))
    words = "text/csv cannot carry input x: float32[?, ?, 3]: its number of columns is open; use application/json"
    assert refusal("1,2,3", one(shape=(None, None, 3))) == words


THREE = several(("a", "float32", (None, 1)), ("b", "string", (None,)), ("c", "int64", (None, 1)))
WIDE = several(("a", "float32", (None, 2)), ("b", "int64", (None,)))


def test_several_inputs_by_order() -> None:
    for body, parameters in (("1.5,x,2\n", {}), ("p,q,r\n1.5,x,2\n", {"header": "present"})):
        tensors = read(body, THREE, **parameters)
        assert tensors["a"].tolist() == [[1.5]]
        assert tensors["b"].tolist() == ["x"]
        assert tensors["c"].tolist() == [[2]]
    tensors = read("a_1,a_2,b\n1,2,3\n4,5,6\n", WIDE, header="present")
    assert_same(tensors["a"], f32([1, 2], [4, 5]))
    assert_same(tensors["b"], np.array([3, 6]))
    assert refusal("1,2\n", THREE) == "line 1: expected 3 columns, got 2"


def test_several_inputs_by_header() -> None:
    tensors = read("c, b ,a\n2,x,1.5\n", THREE, header="present")
    assert [t.tolist() for t in tensors.values()] == [[[1.5]], ["x"], [[2]]]
    tensors = read("y,c,b,a\n0,2,x,1.5\n", THREE, header="present", label_size="1")
    assert tensors["a"].tolist() == [[1.5]]
    assert refusal("y,c,b,a\n0,z,x,1\n", THREE, header="present", label_size="1").startswith("line 2, column 2: ")
    assert refusal("c,b\n2,x\n", THREE, header="present").startswith("header: missing 'a'")
    assert refusal("c,b,a,d\n2,x,1,1\n", THREE, header="present").startswith("header: unknown 'd'")
    assert refusal("c,b,a,a\n2,x,1,1\n", THREE, header="present") == "header: a column name stands there twice"


def with_columns(*tensors: tuple[TensorSpec, tuple[str, ...]]) -> Signature:
    specs = tuple(replace(tensor, columns=columns) for tensor, columns in tensors)
    return Signature(specs, specs)


IRIS = with_columns((spec("x", "float32", (None, 2)), ("width", "length")))
MIXED = with_columns((spec("x", "float32", (None, 2)), ("p", "q")), (spec("n", "int64", (None,)), ()))
ALL_NAMED = with_columns(
    (spec("x", "float32", (None, 2)), ("p", "q")),
    (spec("s", "string", (None, 1)), ("t",)),
    (spec("w", "int8", ()), ("q",)),
)


@pytest.fixture(params=[0, 100_000], ids=["numbers", "rows"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of any size are read as plain numbers, if they are such; or none are."""
    monkeypatch.setattr("byoc_server.codecs.csv._FEW_BYTES", request.param)


@pytest.mark.usefixtures("both_ways")
def test_columns_go_by_the_names_of_an_input() -> None:
    """Checklist 81: in the order of the input, wherever they stand; what else is there may be an id."""
    expected = f32([2, 1], [4, 3])
    for body in ("length,width\n1,2\n3,4\n", " length ,width\r\n1,2\r\n3,4", "id,length,width\n7,1,2\n8,3,4\n"):
        assert_same(read(body, IRIS, header="present")["x"], expected)
        assert_same(read("\ufeff" + body, IRIS, header="present")["x"], expected)
    assert_same(read('"length",width,id\n1,2,a\n3,4,"b"\n', IRIS, header="present")["x"], expected)
    assert_same(read("y,id,length,width\n9,7,1,2\n9,8,3,4\n", IRIS, header="present", label_size="1")["x"], expected)
    assert_same(
        read("id,x\n1,2\n", with_columns((spec("x", "float32", (None,)), ("x",))), header="present")["x"], f32(2)
    )
    assert_same(read("2,1\n4,3\n", IRIS)["x"], expected)


@pytest.mark.usefixtures("both_ways")
def test_columns_of_several_inputs() -> None:
    tensors = read("n,q,p\n5,2,1\n6,4,3\n", MIXED, header="present")
    assert_same(tensors["x"], f32([1, 2], [3, 4]))
    assert_same(tensors["n"], np.array([5, 6]))
    named = read(
        "id,t,q,p\n0,a,2,1.5\n0,b,4,3\n",
        with_columns(*((s, s.columns) for s in ALL_NAMED.inputs[:2])),
        header="present",
    )
    assert_same(named["x"], f32([1.5, 2], [3, 4]))
    assert_same(named["s"], texts([["a"], ["b"]]))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("body", "signature", "message"),
    [
        (
            "length,wide\n1,2\n",
            IRIS,
            "header: missing 'width'; unknown 'wide'; the model's inputs are x: float32[?, 2] (columns 'width', ",
        ),
        ("length,width\n1,2,3\n", IRIS, "line 2: expected 2 columns, got 3"),
        ("length,width,width\n1,2,3\n", IRIS, "header: a column name stands there twice"),
        ("length,width,id,id\n1,x,3,3\n", IRIS, "line 2, column 2: expected a number"),
        ("p,q,n,id\n1,2,3,4\n", MIXED, "header: unknown 'id'"),
        ("p,q\n1,2\n", MIXED, "header: missing 'n'"),
        ("x\n1\n", IRIS, "header: input x: float32[?, 2] takes another number of columns than 1"),
        ("length,width\n\n1,2\n", IRIS, "line 2 is empty"),
        ("\nlength,width\n1,2\n", IRIS, "line 1 is empty"),
        ("length,width\r\r\n1,2\n", IRIS, "line 2 is empty"),
        ("length,width\n", IRIS, "body has a header but no records"),
        ("length,width", IRIS, "body has a header but no records"),
        (b"l\xffngth,width\n1,2\n", IRIS, "body is not utf-8: byte 1 is 0xff"),
    ],
)
def test_columns_that_do_not_fit(body: bytes | str, signature: Signature, message: str) -> None:
    assert refusal(body, signature, header="present").startswith(message)


@pytest.mark.usefixtures("both_ways")
def test_numbers_of_all_kinds_of_inputs() -> None:
    signature = several(("a", "float64", (None, 2)), ("b", "int64", (None, 1)), ("c", "uint8", (None,)))
    tensors = read(",1e3,-5,7\n2,3,9007199254740993,255\n", signature)
    assert_same(tensors["a"], np.array([[NAN, 1000], [2, 3]]))
    assert_same(tensors["b"], np.array([[-5], [2**53 + 1]]))
    assert_same(tensors["c"], np.array([7, 255], np.uint8))
    assert refusal("1,2,3,4\n1,2,,4\n", signature).startswith("line 2, column 3: expected a whole number")


@pytest.mark.parametrize("cells", [1, 2, 3, 4096])
def test_rows_are_read_in_blocks(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fault is named does not depend on where a block ends."""
    monkeypatch.setattr("byoc_server.codecs.text.csv_rows._BLOCK_CELLS", cells)
    body = '"1",2\n"",+4\n"5","6"\n' + "x,8\n" * 3
    assert_same(read(body[:20], PAIR)["x"], f32([1, 2], [NAN, 4], [5, 6]))
    assert refusal(body, PAIR) == "line 4, column 1: expected a number within the range of float32, got 'x'"
    assert refusal(body + "1\n", PAIR) == "line 7: expected 2 columns, got 1"
    assert refusal(body + "1\n\n", PAIR) == "line 8 is empty"
    assert refusal(body + '1\n"', PAIR).startswith("line 8 is not valid CSV: ")
    assert (
        refusal(body + "1\n", PAIR, label_size="1") == "line 7: expected more than the 1 columns of label_size, got 1"
    )
    assert_same(read('a,"b,c"\n,""\n', one("string", (None, 2)))["x"], texts([["a", "b,c"], ["", ""]]))
    assert refusal('1,"2,5"\n', PAIR).startswith("line 1, column 2: ")
    assert refusal('"1,5",""\n', PAIR).startswith("line 1, column 1: ")


def test_a_large_body_through_the_server(tmp_path: Path) -> None:
    """Checklist 81 and 82: as plain numbers, and the same with a quoted cell in it."""
    with running("--model", str(two_inputs(tmp_path / "model.onnx"))) as server:
        rows = np.arange(6000).reshape(-1, 2) % 1000
        body = "\n".join(",".join(map(str, row)) for row in rows.tolist())
        answers = [
            server.invoke(text.encode(), Content_Type="text/csv", Accept="text/csv").content
            for text in (body, f'"0"{body[1:]}')
        ]
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 3000


def test_several_inputs_of_open_width() -> None:
    open_pair = several(("a", "float32", (None, None)), ("b", "float32", (None, 1)))
    assert read("b,a\n1,2\n", open_pair, header="present")["a"].tolist() == [[2]]
    assert "its number of columns is open" in refusal("1,2\n", open_pair)


def test_without_batch_axis() -> None:
    assert_same(read("1,2\n", one(shape=(2,), batch_axis=ABSENT))["x"], f32(1, 2))
    assert_same(read("1,2,3\n", one(shape=(None,), batch_axis=ABSENT))["x"], f32(1, 2, 3))
    assert_same(read("1,2\n3,4\n", one(shape=(2, 2), batch_axis=ABSENT))["x"], f32([1, 2], [3, 4]))
    assert_same(read("1,2,3,4\n", one(shape=(2, 2), batch_axis=ABSENT))["x"], f32([1, 2], [3, 4]))
    assert_same(read("1,2\n3,4\n", one(shape=(None, 2), batch_axis=ABSENT))["x"], f32([1, 2], [3, 4]))
    assert_same(read("5\n", one(shape=(), batch_axis=ABSENT))["x"], np.array(5, np.float32))
    assert_same(read("a\n", one("string", (), ABSENT))["x"], texts("a"))
    message = "body: expected shape [2], got [2, 2]"
    assert refusal("1,2\n3,4\n", one(shape=(2,), batch_axis=ABSENT)) == message
    assert refusal("1,2\n", one(shape=(3,), batch_axis=ABSENT)) == "body: expected shape [3], got [2]"
    several_inputs = several(("a", "float32", (2, 2)), ("b", "int64", ()), batch_axis=ABSENT)
    tensors = read("1,2,3,4,5\n", several_inputs)
    assert_same(tensors["a"], f32([1, 2], [3, 4]))
    assert_same(tensors["b"], np.array(5))
    assert "expected shape" in refusal("1,2,3,4,5\n1,2,3,4,5\n", several_inputs)


def test_large_bodies_stay_linear() -> None:
    start_s = time.monotonic()
    rows = 30_000
    for body in ("1,2\n" * rows, '"1",2\n' * rows, "1,\n" * rows, "1,2\n" * rows + "1,x\n"):
        if body.endswith("x\n"):
            assert refusal(body, PAIR).startswith(f"line {rows + 1}, column 2")
        else:
            assert read(body, PAIR)["x"].shape == (rows, 2)
    assert time.monotonic() - start_s < 10


@pytest.mark.parametrize(
    ("signature", "arrays", "text"),
    [
        (PAIR, [[[0.1, 2], [3, 4]]], b"0.1,2.0\n3.0,4.0\n"),
        (PAIR, [[[0.1, NAN], [INF, -INF]]], b"0.1,nan\ninf,-inf\n"),
        (one(shape=(None,)), [[0.1, 2]], b"0.1\n2.0\n"),
        (one("float16", (None,)), [[0.1, 2]], b"0.099975586\n2.0\n"),
        (one("float16", (None, 2)), [[[0.1, NAN]]], b"0.099975586,nan\n"),
        (one("float64", (None,)), [[0.1]], b"0.1\n"),
        (
            one("float64", (None, 3)),
            [[[NAN, 1e-5, -INF], [1e20, NAN, 3]]],
            b"nan,0.00001,-inf\n1e+20,nan,3.0\n",
        ),
        (one("int64", (None,)), [[-1, 2]], b"-1\n2\n"),
        (one("uint64", (None,)), [[2**64 - 1]], b"18446744073709551615\n"),
        (one("bool", (None, 2)), [[[True, False]]], b"true,false\n"),
        (one("string", (None, 2)), [[["a", 'b "c", d'], ["e\nf", ""]]], b'a,"b ""c"", d"\n"e\nf",\n'),
        (one("string", (None,)), [["", "\u00e4"]], '""\n\u00e4\n'.encode()),
        (one(shape=(None, 2, 2)), [[[[1, 2], [3, 4]]]], b"1.0,2.0,3.0,4.0\n"),
        (one(shape=(None, 0)), [np.zeros((2, 0))], b"\n\n"),
        (THREE, [[[0.1], [1]], ["x", "y,z"], [[1], [2]]], b'0.1,x,1\n1.0,"y,z",2\n'),
        (one(shape=(2, 2), batch_axis=ABSENT), [[[1, 2], [3, 4]]], b"1.0,2.0\n3.0,4.0\n"),
        (one(shape=(2,), batch_axis=ABSENT), [[1, 2]], b"1.0,2.0\n"),
        (one(shape=(), batch_axis=ABSENT), [0.1], b"0.1\n"),
        (one(shape=(None, 4), batch_axis=ABSENT), [np.zeros((0, 4))], b""),
        (one("string", (), ABSENT), ["a"], b"a\n"),
        (
            several(("a", "float32", (2, 2)), ("b", "int8", ()), batch_axis=ABSENT),
            [[[1, 2], [3, 4]], 5],
            b"1.0,2.0,3.0,4.0,5\n",
        ),
    ],
)
def test_answers(signature: Signature, arrays: list[object], text: bytes) -> None:
    """Checklist 61, 63 and 80: one line a record, no header, with or without a final line end."""
    tensors = {s.name: np.asarray(a, dtype=s.dtype) for s, a in zip(signature.outputs, arrays, strict=True)}
    assert encode(tensors, signature, ENCODE) == text
    assert encode(tensors, signature, EncodeOptions(final_newline=False)) == text[:-1]


def test_outputs_of_different_lengths() -> None:
    with pytest.raises(NotAcceptable, match="different numbers of records"):
        encode({"a": np.zeros((1, 2)), "b": np.zeros(2)}, WIDE, ENCODE)
