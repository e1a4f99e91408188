"""Arrays of plain numbers, read in pieces: the same as the long way gives, or left to it."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any, cast
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs import csv, json, jsonlines, open_inference_binary
from byoc_server.codecs.base import DecodeOptions, Enveloped
from byoc_server.codecs.open_inference.data import DATATYPE_NAMES
from byoc_server.codecs.text import csv_rows, json_arrays, json_records, number_arrays, number_text
from byoc_server.codecs.text.csv_rows import Dialect, read_rows
from byoc_server.codecs.text.lines import body_lines
from byoc_server.codecs.text.number_arrays import Column, is_small, read_array, read_cells, read_lines
from byoc_server.codecs.text.number_text import NotPlainError
from byoc_server.codecs.values.documents import FORMS, tensors_from_document
from byoc_server.codecs.values.records import tensors_from_records
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, BatchAxis, Signature, Tensors
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several
from tests.codecs.test_roundtrip import LAWS, tensors_of

F32, F64, I64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
NAN = float("nan")
MANY = settings(LAWS, max_examples=300)


def with_spec(signature: Signature, **changes: Any) -> Signature:
    return replace(signature, inputs=(replace(signature.inputs[0], **changes),))


SIGNATURES = [
    one(shape=(None, 1)),
    one(shape=(None, 2)),
    one(shape=(None,)),
    one(shape=(None, None)),
    one("float64", (None, 2, 2)),
    one("float64", (None, None, 2, None)),
    one("float16", (None, 2)),
    one("int64", (None, 2)),
    one("int8", (None, None)),
    one("uint64", (None, 1)),
    one("bool", (None, 2)),
    one("string", (None, 2)),
    one(shape=(2, 2), batch_axis=ABSENT),
    one(shape=(2,), batch_axis=ABSENT),
    one(shape=(4, 2), batch_axis=BatchAxis.FIXED),
    several(("a", "float32", (None, 2)), ("b", "int64", (None,))),
    several(("a", "float64", (None, 1)), ("b", "float32", (None,))),
]
RECORD_SIGNATURES = [
    *SIGNATURES,
    with_spec(one(shape=(None, None)), padding_value=7),
    with_spec(one("int64", (None, None, 2, None)), padding_value=-1),
    with_spec(one("string", (None, None)), padding_value="-"),
    with_spec(one(shape=(None, 2)), columns=("a", "b")),
    with_spec(one("int64", (None, 1)), columns=("a",)),
    several(("instances", "float32", (None, 2)), ("values", "int64", (None,))),
]
PLAIN = ["0", "1", "-1", "2", "1.5", "-0.0", "-0", "1e3", "0.1", "127", "300", " 1 ", "1E+2"]
ODD = ["9007199254740991", "9007199254740993", "-9007199254740993", "1e30", "2e30", "3e30", " 3e30 ", "4e30", "1e39"]
ODD += ["1e400", "65504", "65510", "70000", "null", "NaN", "nan", "01", "+1", ".5", "1.", "1 2", "", "true", "inf"]
ODD += ["18446744073709551615", "1e-400", "3.4028235e38", "[1]", '"1"', '"1,2"', "1e", "--1", "1_0", "{}", "\u0663"]
SCRAPS = ["", "[", "]", ",", " ", "{", "}", '"', "1", "e", "-", ".", "\n", "\r", "],[", "1e30,", ",2e30", "\x00", "\\"]


@pytest.fixture(params=["fast", "slow"])
def small_pieces(request: pytest.FixtureRequest) -> Callable[[st.DataObject], ExitStack]:
    """Makes every body a large one, of many pieces; with the number parser, and with what stands in for it."""
    if request.param == "fast" and number_text._Parser is None:
        pytest.skip("no number parser is installed here")

    def apply(data: st.DataObject) -> ExitStack:
        settings: list[tuple[ModuleType, str, object]] = [
            *((module, "LARGE_BYTES", 1) for module in (json, jsonlines, open_inference_binary)),
            (json_arrays, "LARGE_BYTES", data.draw(st.sampled_from([1, 1, 1000]))),
            (json_records, "LARGE_BYTES", 1),
            (json_records, "PIECE_BYTES", data.draw(st.sampled_from([0, 0, 20, 4096]))),
            (csv, "_FEW_BYTES", 1),
            (csv_rows, "_BLOCK_CELLS", data.draw(st.sampled_from([1, 3, 4096]))),
            (number_arrays, "_LONG", data.draw(st.sampled_from([1, 5, 4096]))),
            (number_text, "FIRST_PIECE_BYTES", data.draw(st.sampled_from([0, 3, 20, 4096]))),
            (number_text, "PIECE_TOKENS", data.draw(st.sampled_from([0, 2, 4096]))),
        ]
        if request.param == "slow":
            settings.append((number_text, "_parse", number_text._parse_slowly))
        stack = ExitStack()
        for module, name, value in settings:
            stack.enter_context(mock.patch.object(module, name, value))
        return stack

    return apply


numbers = st.one_of(*[st.sampled_from(PLAIN)] * 15, st.sampled_from([*PLAIN, *ODD]))
plain_numbers = st.sampled_from(PLAIN)


@st.composite
def nested(draw: st.DrawFn, shape: tuple[int, ...], cells: st.SearchStrategy[str]) -> str:
    if not shape:
        return draw(cells)
    separator = draw(st.sampled_from([",", ", "]))
    return "[" + separator.join(draw(nested(shape[1:], cells)) for _ in range(shape[0])) + "]"


@st.composite
def values(
    draw: st.DrawFn, shape: tuple[int | None, ...], rows: int | None, cells: st.SearchStrategy[str] | None = None
) -> str:
    """The text of an array that fits, or nearly."""
    lengths = tuple(draw(st.integers(1, 3)) if length is None else length for length in shape)
    lengths = lengths if rows is None else (rows, *lengths)
    if draw(st.integers(0, 9)) == 0:
        lengths = tuple(draw(st.lists(st.integers(1, 3), max_size=4)))
    cells = draw(st.sampled_from([plain_numbers, numbers])) if cells is None else cells
    return draw(nested(lengths, cells))


def damaged(draw: st.DrawFn, text: str) -> bytes:
    if draw(st.integers(0, 3)) == 0 and text:
        start = draw(st.integers(0, len(text) - 1))
        text = text[:start] + draw(st.sampled_from(SCRAPS)) + text[start + draw(st.integers(0, 3)) :]
    return text.encode()


@st.composite
def json_bodies(draw: st.DrawFn, signature: Signature) -> bytes:
    rows = draw(st.integers(1, 4)) if signature.batched else None
    texts = {s.name: draw(values(signature.record_shapes[s.name], rows)) for s in signature.inputs}
    value = next(iter(texts.values()))
    columns = "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"
    forms = [
        value,
        columns,
        f'{{"inputs": {columns}, "id": "a"}}',
        f'[{{"x": {value}}}]',
        f'{{"instances": {value}}}',
        f'{{"signature_name": "s", "instances": {value}}}',
        f'{{"inputs": {value}}}',
        f'{{"features": {value}, "features": [1]}}',
        f'{{"data": {{"features": {{"values": {value}}}}}}}',
        f'{{"keys": {value}, "values": {value}, "shape": [2]}}',
    ]
    return damaged(draw, draw(st.sampled_from(forms)))


@st.composite
def record_objects(draw: st.DrawFn, signature: Signature) -> str:
    """One record, mostly an object."""
    spec = signature.inputs[0]
    cells = st.sampled_from(['"a"', '"},{"', '"]"', '"\\\\"']) if spec.dtype == STRING else None
    if draw(st.booleans()) and spec.columns:
        return "{" + ", ".join(f'"{name}": {draw(numbers)}' for name in spec.columns) + "}"
    texts = {s.name: draw(values(signature.record_shapes[s.name], None, cells)) for s in signature.inputs}
    value = next(iter(texts.values()))
    separator = draw(st.sampled_from([",", " , "]))
    by_name = "{" + separator.join(f'"{k}": {v}' for k, v in texts.items()) + "}"
    others = [f'{{"features": {value}}}', f'{{"values":{value}}}', f'{{"data": {{"features": {{"values": {value}}}}}}}']
    others += [f'{{"keys": [0], "values": {value}, "shape": [{draw(st.integers(1, 3))}]}}', value]
    others += [f'{{"keys": [0], "values": [1], "shape": [{draw(st.integers(1, 3))}]}}']
    others += [by_name.replace("}", ', "z": [{}, {}]}')]
    forms = [by_name] * 10 + others[:3] * 2 + others
    return draw(st.sampled_from(forms))


@st.composite
def record_bodies(draw: st.DrawFn, signature: Signature) -> bytes:
    records = draw(st.lists(record_objects(signature), min_size=1, max_size=6))
    text = draw(st.sampled_from([",", ", ", " ,\n"])).join(records)
    around = ["[%s]", " [ %s ] ", '{"instances": [%s]}', '{"id": {"a": "b"}, "instances": [%s], "b": 1}']
    around += ['{"instances": [%s], "instances": 1}', '{"data": {"features": 1}, "instances": [%s]}', '{"a": [%s]}']
    around += ['{"instances": "\\u0000", "b": [%s]}', '{"inputs": [%s]}', '{"instances": [%s], "z": [1, {}, {}]}']
    return damaged(draw, draw(st.sampled_from([*around[:4] * 3, *around])).replace("%s", text))


@st.composite
def requests(draw: st.DrawFn, signature: Signature) -> bytes:
    """An Open Inference request that fits, or nearly."""
    items = []
    for spec in signature.inputs:
        shape = signature.record_shapes[spec.name]
        lengths = tuple(draw(st.integers(1, 3)) if length is None else length for length in shape)
        lengths = (draw(st.integers(1, 3)), *lengths) if signature.batched else lengths
        count = draw(st.sampled_from([math.prod(lengths)] * 9 + [2]))
        inner = draw(st.sampled_from([lengths, (count,), (count,), lengths[1:]]))
        datatype = draw(st.sampled_from([DATATYPE_NAMES[spec.dtype]] * 4 + ["FP32", "FP64", "INT64", "UINT8", "BF16"]))
        fields = {"name": f'"{spec.name}"', "shape": str(list(lengths)), "datatype": f'"{datatype}"'}
        fields["data"] = draw(nested(inner, draw(st.sampled_from([plain_numbers, numbers]))))
        items.append("{" + ",".join(f'"{key}": {fields[key]}' for key in draw(st.permutations(list(fields)))) + "}")
    return damaged(
        draw, draw(st.sampled_from(['{"inputs":[%s]}', '{"id": "a", "inputs": [%s], "outputs": []}'])) % ",".join(items)
    )


@st.composite
def record_line_bodies(draw: st.DrawFn, signature: Signature) -> bytes:
    lines = draw(st.lists(record_objects(signature), min_size=1, max_size=6))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return damaged(draw, end.join(lines) + draw(st.sampled_from(["", end])))


@st.composite
def line_bodies(draw: st.DrawFn, signature: Signature) -> bytes:
    shape = signature.record_shapes[signature.inputs[0].name]
    lengths = tuple(draw(st.integers(1, 3)) if length is None else length for length in shape)
    cells = draw(st.sampled_from([plain_numbers, numbers]))
    lines = draw(st.lists(nested(() if lengths == (1,) and draw(st.booleans()) else lengths, cells), min_size=1))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    return damaged(draw, end.join(lines) + draw(st.sampled_from(["", end])))


@st.composite
def csv_bodies(draw: st.DrawFn, signature: Signature) -> tuple[bytes, Dialect]:
    width = draw(st.sampled_from([1, 2, 2, 2, 3, 4]))
    cells = draw(st.sampled_from([plain_numbers, numbers, st.sampled_from([*PLAIN, "", "nan", "NaN"])]))
    lines = [",".join(draw(cells) for _ in range(width)) for _ in range(draw(st.integers(1, 5)))]
    dialect = Dialect(draw(st.integers(0, 4)) == 0, draw(st.sampled_from([0, 0, 0, 1])), "utf-8")
    if dialect.has_header:
        lines.insert(0, ",".join(draw(st.sampled_from(["a", "b", "x", '"a"', ""])) for _ in range(width)))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return damaged(draw, end.join(lines) + draw(st.sampled_from(["", end]))), dialect


def outcome(decode: Callable[[], Any]) -> Tensors | tuple[str, dict[str, object]]:
    try:
        return cast(Tensors, decode())
    except InvalidPayload as error:
        return error.message, error.details


def assert_same_outcome(
    actual: Tensors | tuple[str, dict[str, object]], expected: Tensors | tuple[str, dict[str, object]]
) -> None:
    if isinstance(expected, tuple) or isinstance(actual, tuple):
        assert actual == expected
        return
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert_same(actual[name], array)
        assert actual[name].flags.c_contiguous


def test_json_is_the_same_as_the_long_way(small_pieces: Callable[[st.DataObject], ExitStack]) -> None:
    @MANY
    @given(st.data(), st.sampled_from(SIGNATURES))
    def law(data: st.DataObject, signature: Signature) -> None:
        body = data.draw(json_bodies(signature))
        expected = outcome(lambda: tensors_from_document(json.parse(body, "body", FORMS), signature, OPTIONS))
        assert_same_outcome(outcome(lambda: tensors_of(json.decode(body, signature, OPTIONS))), expected)
        with small_pieces(data):
            assert_same_outcome(outcome(lambda: tensors_of(json.decode(body, signature, OPTIONS))), expected)

    law()


def test_json_records_are_the_same_as_the_long_way(small_pieces: Callable[[st.DataObject], ExitStack]) -> None:
    @MANY
    @given(st.data(), st.sampled_from(RECORD_SIGNATURES))
    def law(data: st.DataObject, signature: Signature) -> None:
        body = data.draw(record_bodies(signature))
        expected = outcome(lambda: tensors_from_document(json.parse(body, "body", FORMS), signature, OPTIONS))
        with small_pieces(data):
            assert_same_outcome(outcome(lambda: tensors_of(json.decode(body, signature, OPTIONS))), expected)

    law()


def test_open_inference_requests_are_the_same_as_the_long_way(
    small_pieces: Callable[[st.DataObject], ExitStack],
) -> None:
    @MANY
    @given(st.data(), st.sampled_from(SIGNATURES))
    def law(data: st.DataObject, signature: Signature) -> None:
        body = data.draw(requests(signature))
        expected = outcome(lambda: tensors_of(json.decode(body, signature, OPTIONS)))
        in_binary = outcome(lambda: tensors_of(open_inference_binary.decode(body, signature, OPTIONS)))
        with small_pieces(data):
            assert_same_outcome(outcome(lambda: tensors_of(json.decode(body, signature, OPTIONS))), expected)
            actual = outcome(lambda: tensors_of(open_inference_binary.decode(body, signature, OPTIONS)))
            assert_same_outcome(actual, in_binary)

    law()


def test_json_lines_are_the_same_as_the_long_way(small_pieces: Callable[[st.DataObject], ExitStack]) -> None:
    def the_long_way(body: bytes, signature: Signature) -> Tensors:
        records = [json.parse(line, f"line {i}", "a JSON value") for i, line in enumerate(body_lines(body), 1)]
        return tensors_from_records(records, signature, OPTIONS, lambda i: f"line {i + 1}")

    @MANY
    @given(st.data(), st.sampled_from(RECORD_SIGNATURES))
    def law(data: st.DataObject, signature: Signature) -> None:
        body = data.draw(st.one_of(line_bodies(signature), record_line_bodies(signature)))
        expected = outcome(lambda: the_long_way(body, signature))
        with small_pieces(data):
            assert_same_outcome(outcome(lambda: jsonlines.decode(body, signature, OPTIONS)), expected)

    law()


def test_csv_is_the_same_as_the_long_way(small_pieces: Callable[[st.DataObject], ExitStack]) -> None:
    @MANY
    @given(st.data(), st.sampled_from(SIGNATURES))
    def law(data: st.DataObject, signature: Signature) -> None:
        body, dialect = data.draw(csv_bodies(signature))
        options = DecodeOptions(
            {"header": "present" if dialect.has_header else "absent", "label_size": str(dialect.label_columns)}
        )
        expected = outcome(lambda: read_rows(body, signature, dialect))
        assert_same_outcome(outcome(lambda: csv.decode(body, signature, options)), expected)
        with small_pieces(data):
            actual = outcome(lambda: csv.decode(body, signature, options))
            if signature.sole_input is None and isinstance(actual, tuple) and isinstance(expected, tuple):
                return  # of several faults in the cells of several inputs, the first one of a block is named
            assert_same_outcome(actual, expected)

    law()


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 3, 4), (1, 2, 3, 2), (2,) * 9])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n\t", ":")])
@pytest.mark.parametrize("hint", [(), (None,), (3, 4), (2, 3, 4, 5)])
def test_an_array_of_any_rank_is_read(
    shape: tuple[int, ...], separators: tuple[str, str], hint: tuple[int | None, ...]
) -> None:
    expected = np.arange(np.prod(shape)).reshape(shape) / 4
    body = orjson.dumps(expected.tolist()).replace(b",", separators[0].encode())
    if hint != (None,) and 1 < len(shape) <= len(hint) + 1 and shape[1:] != hint[len(hint) + 1 - len(shape) :]:
        with pytest.raises(NotPlainError):
            read_array(body, 0, len(body), F64, hint)
    else:
        assert_same(read_array(body, 0, len(body), F64, hint), expected)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[[]]",
        "[[],[]]",
        "[[1],2]",
        "[1,[2]]",
        "[[1],[2,3]]",
        "[[[1]],[2]]",
        "[[1]],[[2]]",
        "[[1]",
        "[1]]",
        "[" * 9,
    ]
    + ["[1 2]", "[1,,2]", "[1,]", "[,1]", "[1e30,1,2e30]", "[[1,2],1e30,3,4,2e30]", "[[1],[3e30]]", "[null, 3e30 ]"]
    + [
        "[[[1],[2]],[[3]],[[4],[5]]]",
        "[5e30]",
        "[[1,5e30],[2,3]]",
        "[1nul]",
        "[1null]",
        "[nullnull]",
        "[-NaN]",
        "[1[2]]",
    ]
    + [
        "[" * 20 + "1" + "]" * 20,
        "[true]",
        '["1"]',
        "[{}]",
        "[[[[1]]],[[[[2]]]]]",
        "[[1,[2]]]",
        "[[[1],[2,3]]]",
        "[9007199254740992]",
        "[[1,2][3,4]]",
    ],
)
@pytest.mark.parametrize("piece_bytes", [0, 4096])
def test_what_is_no_regular_array_of_small_numbers(
    text: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that the marks stand for, and no number that looks like one, can be mistaken for the other."""
    monkeypatch.setattr(number_text, "FIRST_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(number_text, "PIECE_TOKENS", 0)
    for long in (1, 4096):
        monkeypatch.setattr(number_arrays, "_LONG", long)
        for hint in ((None,), (2,), (1,), ()):
            with pytest.raises(NotPlainError):
                read_array(text.encode(), 0, len(text), F64, hint)


def test_missing_values_and_the_number_that_stands_for_them() -> None:
    assert_same(read_array(b"[1, null,NaN]", 0, 13, F64, ()), np.array([1, NAN, NAN]))
    with pytest.raises(NotPlainError):
        read_array(b"[1, null]", 0, 9, I64, ())
    assert_same(read_lines(b"null\n2\n", (), F32), np.array([NAN, 2], np.float32))
    assert_same(np.concatenate(list(read_cells(b",1\n,\nnan,2", 0, 2))), np.array([[NAN, 1], [NAN, NAN], [NAN, 2]]))
    for body, width in ((b"1,,3e30\n", 3), (b" 3e30 ,\n", 2), (b"1\n\n2\n", 1), (b"1\n\n", 1), (b"1,2\n4e30,3,4\n", 2)):
        with pytest.raises(NotPlainError):
            list(read_cells(body, 0, width))


@pytest.mark.parametrize(
    "body", [b"", b"[1],[2]", b"[1],2\n[3],4", b"1,2\n\n3,4", b"1,2\n3", b"1,2,4e30,3,4", b'1,"2"']
)
def test_lines_that_are_not_plain(body: bytes) -> None:
    with pytest.raises(NotPlainError):
        list(read_cells(body, 0, 2))
    with pytest.raises(NotPlainError):
        read_lines(body, (2,), F32)


@pytest.mark.parametrize("body", [b"[1,2],[3,4]\n[5,\n6]\n", b"[1,2],4e30,[3,4]\n", b"1,2\n3,4\n", b"[1,2]\n\n[3,4]"])
def test_lines_of_other_than_one_array_each(body: bytes) -> None:
    with pytest.raises(NotPlainError):
        read_lines(body, (2,), F32)


def test_small_numbers() -> None:
    assert is_small(np.array([2.0**53 - 1, -(2.0**53) + 1, NAN]))
    assert not is_small(np.array([2.0**53, NAN]))
    assert not is_small(np.array([-(2.0**53)]))


def test_an_empty_column() -> None:
    with pytest.raises(NotPlainError):
        Column(F32, (2,), 4).array()


def test_a_piece_gets_the_length_that_the_tokens_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is held for as long with numbers of one digit as with those of many."""
    sizes = []
    parse = number_text._parse

    def spy(text: bytes) -> number_text.Numbers:
        numbers = parse(text)
        sizes.append(len(numbers))
        return numbers

    monkeypatch.setattr(number_text, "_parse", spy)
    for number in (b"1", b"0.1234567890123456", b" " * 2000 + b"1"):
        sizes.clear()
        body = b"[" + number + (b"," + number) * 60_000 + b"]"
        assert len(read_array(body, 0, len(body), F32, ())) == 60_001
        assert sum(sizes) == 60_003
        assert max(sizes[1:]) < 1.1 * number_text.PIECE_TOKENS


def test_numbers_of_many_digits() -> None:
    expected = np.random.default_rng(0).random((500, 4))
    body = b"\n".join(b",".join(b"%.18e" % value for value in row) for row in expected.tolist())
    for start in (0, body.index(b"\n") + 1):
        assert_same(np.concatenate(list(read_cells(body, start, 4))), expected[start > 0 :])
    with pytest.raises(NotPlainError):
        list(read_cells(b"1,%.18e,true" % 1.5, 0, 3))


@pytest.mark.parametrize(
    ("decode", "body", "signature"),
    [
        (json.decode, b'{"instances":[' + b"[1,2]," * 300_000 + b"[1,2]]}", one(shape=(None, 2))),
        (json.decode, b'{"instances":[[' + b"1," * 900_000 + b"1]]}", one(shape=(None, None))),
        (jsonlines.decode, b"[1,2]\n" * 300_000, one(shape=(None, 2))),
        (csv.decode, b"1,2\n" * 400_000, one(shape=(None, 2))),
        (csv.decode, b",,,\n" * 400_000, one(shape=(None, 4))),
        (csv.decode, b'"1",2\n' * 30_000, one(shape=(None, 2))),
    ],
    ids=["JSON", "one row", "JSON Lines", "CSV", "empty cells", "quoted cells"],
)
def test_memory_is_a_small_multiple_of_the_body(
    decode: Callable[[bytes, Signature, DecodeOptions], Tensors | Enveloped], body: bytes, signature: Signature
) -> None:
    """Checklist 84: also counting what is set aside and not used. As lists it was 16 to 75 times."""
    tracemalloc.start()
    try:
        array = tensors_of(decode(body, signature, OPTIONS))["x"]
        assert tracemalloc.get_traced_memory()[1] < 5 * max(len(body), array.nbytes) + 1_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_the_number_parser(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheels do not cover every Python; what there is then reads the same numbers."""
    with mock.patch("importlib.import_module", side_effect=error):
        assert number_text._parser_class() is None
    monkeypatch.setattr(number_text, "_parse", number_text._parse_slowly)
    assert read_array(b"[[1,2.5],[-3,4e2]]", 0, 18, F32, (2,)).tolist() == [[1, 2.5], [-3, 400]]
    for text in (b"[]", b"[true]", b'["1"]', b"[1", b"[1,]"):
        with pytest.raises(NotPlainError):
            read_array(text, 0, len(text), F32, ())
