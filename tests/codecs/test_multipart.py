"""``multipart/form-data``: bodies of urllib3 and of the standard library, parts of all types, and broken forms."""

from __future__ import annotations

import io
import time
import tracemalloc
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.policy import HTTP
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from urllib3 import encode_multipart_formdata
from urllib3.fields import RequestField

from byoc_server.codecs import base
from byoc_server.codecs.base import CODECS, CodecEntry, DecodeOptions, EncodeOptions, Enveloped, codecs_by_media_type
from byoc_server.codecs.multipart import decode
from byoc_server.errors import InvalidPayload, RequestError, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import Array, BatchAxis, ImageSpec, Signature, TensorSpec
from tests.codecs.signatures import ABSENT, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, body_of, echo, tensors

ENTRY = codecs_by_media_type()["multipart/form-data"]
TWO = several(("a", "float32", (None, 2)), ("s", "string", (None,)))
GRID = np.arange(8, dtype=np.float32).reshape(2, 4)
FIELD = b'Content-Disposition: form-data; name="x"\r\n'

Value = str | bytes | tuple[str, str | bytes] | tuple[str, str | bytes, str]


def form(*fields: tuple[str, Value] | RequestField, boundary: str = "b") -> bytes:
    """A body as urllib3 makes it; a value with a name is a file, the type of which it guesses from the name."""
    return encode_multipart_formdata(list(fields), boundary)[0]


def field(name: str, data: str | bytes, **headers: str) -> RequestField:
    """A part with just these headers; they are given with underscores."""
    named = {key.replace("_", "-").title(): value for key, value in headers.items()}
    disposition = {"Content-Disposition": f'form-data; name="{name}"'}
    return RequestField(name, data, headers={**disposition, **named})


def saved(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def options(boundary: str | None = "b", limit_bytes: int = 10_000_000) -> DecodeOptions:
    return DecodeOptions({} if boundary is None else {"boundary": boundary}, limit_bytes)


def read(body: bytes, signature: Signature | None = None, boundary: str = "b") -> Any:
    signature = signature or one()
    received = decode(body, signature, options(boundary))
    assert list(received) == [spec.name for spec in signature.inputs]
    return received["x"] if signature.sole_input else received


def refusal(body: bytes, signature: Signature | None = None, boundary: str | None = "b") -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(body, signature or one(), options(boundary))
    assert len(caught.value.message) < 900
    assert caught.value.__context__ is None or not isinstance(caught.value.__context__, RequestError)
    return caught.value


@pytest.mark.parametrize(
    "part",
    [
        "[[0, 1, 2, 3], [4, 5, 6, 7]]",
        '{"instances": [[0, 1, 2, 3], [4, 5, 6, 7]]}',
        ("x.json", "[[0, 1, 2, 3], [4, 5, 6, 7]]"),
        ("x.csv", "0,1,2,3\n4,5,6,7"),
        ("x.csv", "a,b,c,d\n0,1,2,3\n4,5,6,7", "text/csv; header=present"),
        ("x", "9,0,1,2,3\r\n9,4,5,6,7\r\n", "Text/CSV;LABEL_SIZE=1"),
        ("x.txt", "[[0, 1, 2, 3], [4, 5, 6, 7]]", "text/plain; charset=UTF-8"),
        ("x.txt", "[0, 1, 2, 3]\n[4, 5, 6, 7]", "application/x-ndjson"),
        ("x", "0 1:1 2:2 3:3\n0 0:4 1:5 2:6 3:7", "text/x-libsvm"),
        ("x.bin", GRID.tobytes()),
        ("x", GRID.tobytes(), "application/octet-stream"),
        ("x.npy", npy(GRID)),
        ("x", npy(GRID.astype(">f8")), "application/x-npy"),
        ("x", saved(x=GRID), "application/octet-stream"),
        ("x", saved(y=GRID), "application/x-npz"),
    ],
)
def test_parts_of_all_types(part: Value) -> None:
    """urllib3 guesses the types it is not told: application/octet-stream for what it does not know."""
    assert_same(read(form(("x", part))), GRID)


def test_a_file_without_a_type_is_bytes() -> None:
    """As ``requests`` sends the file of a plain ``files={"x": file}``."""
    body = form(RequestField("x", GRID.tobytes(), headers={"Content-Disposition": 'form-data; name="x"; filename="x"'}))
    assert_same(read(body), GRID)
    assert_same(read(body.replace(b"filename=", b"filename*=")), GRID)
    assert refusal(body.replace(b"filename=", b"file=")).message.startswith("part 'x': ")


@pytest.mark.parametrize(
    ("signature", "text", "expected"),
    [
        (one(shape=(None,)), "2.5", np.array([2.5], np.float32)),
        (one(shape=(None,)), " [2.5, NaN]\r\n", np.array([2.5, np.nan], np.float32)),
        (one(shape=(None, 1)), "2", np.array([[2]], np.float32)),
        (one(shape=(None, None)), "[1, 2, 3]", np.array([[1, 2, 3]], np.float32)),
        (one("bool", (None,)), "true", np.array([True])),
        (one("int64", (None,)), "9007199254740993", np.array([2**53 + 1])),
        (one(shape=(), batch_axis=ABSENT), "2", np.array(2, np.float32)),
        (one(shape=(2, 1), batch_axis=ABSENT), "[[1], [2]]", np.array([[1], [2]], np.float32)),
        (one(shape=(4, 2), batch_axis=BatchAxis.FIXED), "[1, 2]", np.array([[1, 2]], np.float32)),
        (one("string", (None,)), "[1]\r\n", texts(["[1]\r\n"])),
        (one("string", (None,)), "", texts([""])),
        (one("string", (None, 1)), "gr\u00fcn", texts([["gr\u00fcn"]])),
        (one("string", (None, None)), "a", texts([["a"]])),
        (one("string", (), ABSENT), "a", texts("a")),
        (one("string", (None,), ABSENT), "a", texts(["a"])),
        (one("string", (None, 2)), '["a", "b"]', texts([["a", "b"]])),
    ],
)
def test_what_a_person_types(signature: Signature, text: str, expected: Array) -> None:
    """Strings are what was typed, all else is JSON."""
    assert_same(read(form(("x", text)), signature), expected)
    assert_same(read(form(field("x", text, content_type="text/plain; charset=us-ascii")), signature), expected)
    if signature.inputs[0].dtype == object and "[" not in text[:1] + text[-1:]:
        assert_same(read(form(("x", ("x.bin", text))), signature), expected)


def test_several_inputs_in_any_order() -> None:
    for body in (
        form(("a", "[[1, 2], [3, 4]]"), ("s", "x"), ("s", "y")),
        form(("s", "x"), ("a", "[1, 2]"), ("s", ("y.txt", "y")), ("a", ("a.bin", np.array([3, 4], "<f4").tobytes()))),
        form(("s", ("s.json", '["x", "y"]')), ("a", ("a.csv", "1,2\n3,4"))),
    ):
        received = read(body, TWO)
        assert_same(received["a"], np.array([[1, 2], [3, 4]], np.float32))
        assert_same(received["s"], texts(["x", "y"]))


def test_parts_of_one_name_are_records() -> None:
    assert_same(read(form(("x", "[0, 1, 2, 3]"), ("x", "[4, 5, 6, 7]"))), GRID)
    assert_same(read(form(*[("x", ("x", row.tobytes())) for row in GRID]), one(shape=(None, None))), GRID)
    error = refusal(form(("x", "[1, 2, 3]"), ("x", "[4, 5, 6]"), ("x", "[1]")), one(shape=(None, None)))
    assert error.message == "part 'x', number 3: expected records of shape [3] as in the first, got [1]"
    error = refusal(form(("x", "[1, 2]"), ("x", "[1, 2]")), one(shape=(2,), batch_axis=ABSENT))
    assert error.message == "part 'x' is there twice; the model takes one record per request"
    error = refusal(form(("a", "[1, 2]"), ("s", "x"), ("s", "y")), TWO)
    assert error.message == "input 'a' has 1 records but input 's' has 2"


def test_parts_of_different_length_are_padded() -> None:
    spec = TensorSpec("x", np.dtype(np.int64), (None, None), padding_value=-1)
    signature = Signature((spec, TensorSpec("n", np.dtype(np.int8), (None,))), (spec,))
    body = form(("x", "[[1, 2], [3, 4]]"), ("n", "[1, 2, 3]"), ("x", "[5, 6, 7]"))
    assert decode(body, signature, options(limit_bytes=75))["x"].tolist() == [[1, 2, -1], [3, 4, -1], [5, 6, 7]]
    with pytest.raises(TensorsTooLarge, match="part 'x': the tensors of this request are too large"):
        decode(body, signature, options(limit_bytes=74))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([("s", "x")], "body: missing 'a'; the model's inputs are a: float32[?, 2], s: string[?]"),
        ([("a", "[1, 2]"), ("s", "x"), ("z", "1")], "body: unknown 'z'; the model's inputs are a: "),
        ([("A", "[1, 2]"), ("s", "x")], "body: missing 'a'; unknown 'A'"),
        ([], "body: missing 'a', 's'"),
    ],
)
def test_names_that_are_no_inputs(fields: list[tuple[str, Value]], words: str) -> None:
    assert refusal(form(*fields), TWO).message.startswith(words)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a b", 'name="a b"'),
        ("a b", 'NAME = "a b" ; other=1'),
        ("plain", "name=plain"),
        ('a"b', 'name="a%22b"'),
        ('a"b', 'name="a\\"b"'),
        ("a\\b", 'name="a\\\\b"'),
        ("a\r\nb", 'name="a%0D%0ab"'),
        ("a%20b", 'name="a%20b"'),
        ("gr\u00fcn/\u20ac:0", 'name="gr\u00fcn/\u20ac:0"'),
        ("a;b", 'filename="c;d\\"; name=e"; name="a;b"'),
        ("", 'name=""'),
    ],
)
def test_names_as_clients_write_them(name: str, written: str) -> None:
    signature = several((name, "int64", (None,)))
    body = (
        f"--b\r\ncontent-disposition:Form-Data;{written}\r\nContent-Type: application/json\r\n\r\n5\r\n--b--".encode()
    )
    assert decode(body, signature, options())[name].tolist() == [5]


def test_charset_of_the_form() -> None:
    """RFC 7578, section 4.6."""
    assert_same(read(form(("_charset_", "UTF-8"), ("x", "gr\u00fcn")), one("string", (None,))), texts(["gr\u00fcn"]))
    error = refusal(form(("_charset_", "iso-8859-1"), ("x", "a")))
    assert (error.status, error.message) == (415, "part '_charset_': charset 'iso-8859-1' is not supported")
    error = refusal(form(field("x", "a", content_type="text/plain; charset=utf-16")))
    assert (error.status, error.message) == (415, "part 'x': charset 'utf-16' is not supported")
    received = decode(form(("_charset_", "1")), several(("_charset_", "int8", (None,))), options())
    assert received["_charset_"].tolist() == [1]


def test_errors_name_the_part() -> None:
    error = refusal(form(("x", ("x.csv", "1,2,3,4\n5,6,7"))))
    assert error.message == "part 'x': line 2: expected 4 columns, got 3"
    assert error.details["field"] == "part 'x', line 2"
    error = refusal(form(("x", ("x.bin", b"\xff"))), one("string", (None,)))
    assert error.message == "part 'x', byte 0: expected UTF-8, got 0xff"
    error = refusal(form(("x", ("x.csv", "1,2", "text/csv; header=maybe"))))
    assert (error.status, error.message) == (415, "part 'x': text/csv parameter header='maybe' is not known")
    assert error.details["accepted"] == ["header=present", "header=absent"]
    assert refusal(form(("x", ("x.bin", b"")))).message.startswith("part 'x': body is empty")


@pytest.mark.parametrize(
    "media_type",
    ["application/pdf", "multipart/form-data; boundary=c", "multipart/mixed; boundary=c", "json", "a/b; c", "*/*"],
)
def test_types_that_no_part_can_have(media_type: str) -> None:
    """A form in a form is none, too."""
    error = refusal(form(field("x", "1", content_type=media_type)))
    assert isinstance(error, UnsupportedMediaType)
    assert error.message.startswith(f"part 'x': Content-Type '{media_type.partition(';')[0]}")
    assert "is not supported; use text/plain, application/json" in error.message
    assert "multipart/form-data" not in str(error.details["accepted"])


@pytest.mark.parametrize("library", ["no_such_module", "tests.codecs.broken_library"])
def test_a_type_that_needs_a_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, or there and not to be imported."""
    entry = CodecEntry("application/msgpack", library, library=library.partition(".")[0], extra="msgpack")
    monkeypatch.setattr("byoc_server.codecs.multipart.codecs_by_media_type", lambda: {entry.media_type: entry})
    monkeypatch.setattr(base, "_broken", set())
    error = refusal(form(field("x", b"\1", content_type="application/msgpack")))
    assert isinstance(error, UnsupportedMediaType)
    assert "'application/msgpack' is not supported here (it needs byoc-server[msgpack])" in error.message


def test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of unknown type are an image where the input takes images; the codec tells which."""
    asked = []

    def decode_image(body: bytes, signature: Signature, given: DecodeOptions) -> Any:
        asked.append((body, signature.inputs, dict(given.parameters)))
        return Enveloped({"x": np.full((1, 1, 2, 3), len(body), np.float32)}, None)  # type: ignore[arg-type]  # as other formats

    codec: Any = SimpleNamespace(
        media_type="application/x-image", installed=True, load=lambda: codec, decode=decode_image
    )
    table = {**codecs_by_media_type(), "application/x-image": codec, "image/png": codec}
    monkeypatch.setattr("byoc_server.codecs.multipart.codecs_by_media_type", lambda: table)
    spec = TensorSpec("x", np.dtype(np.float32), (None, 1, 2, 3), image=ImageSpec(2, 3, "L"))
    number = TensorSpec("n", np.dtype(np.int8), (None,))
    signature = Signature((spec, number), (spec,))
    body = form(
        ("x", ("1.bin", b"12")), ("x", ("2.png", b"1")), ("n", "[1, 2, 3]"), ("x", ("x", npy(np.ones((1, 2, 3)))))
    )
    received = decode(body, signature, options())
    assert received["x"][:, 0, 0, 0].tolist() == [2, 1, 1]
    assert asked == [(b"12", (spec,), {}), (b"1", (spec,), {})]


def test_files_of_images() -> None:
    """Told by what they begin with where curl does not know their type, and stacked."""
    signature = Signature((TensorSpec("x", np.dtype(np.float32), (None, 3, 2, 2), image=ImageSpec(2, 2)),), ())
    files = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), colour).save(stream, "PNG")
        files.append(stream.getvalue())
    expected = np.zeros((2, 3, 2, 2), np.float32)
    expected[0, 0] = expected[1, 2] = 255
    assert_same(read(form(("x", ("1.png", files[0])), ("x", ("2.bin", files[1]))), signature), expected)
    assert_same(read(form(("x", ("x.json", str(expected.tolist())))), signature), expected)
    error = refusal(form(("x", ("x.bin", b"no image"))), signature)
    assert error.message.startswith("part 'x': ")


def test_the_limit_is_for_all_parts_together() -> None:
    sparse = '{"keys": [], "shape": [4], "values": []}'
    body = form(*[("x", sparse)] * 10)
    assert decode(body, one(), options(limit_bytes=160))["x"].shape == (10, 4)
    with pytest.raises(TensorsTooLarge, match=r"part 'x': .*too large when dense"):
        decode(body, one(), options(limit_bytes=159))
    body = form(*[("x", ("x", GRID.tobytes()))] * 3)
    assert decode(body, one(), options(limit_bytes=96))["x"].shape == (6, 4)
    with pytest.raises(TensorsTooLarge, match="part 'x': the tensors of this request are too large") as caught:
        decode(body, one(), options(limit_bytes=95))
    assert caught.value.details["expected"] == "at most 95 bytes"


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" + FIELD + b"\r\n5\r\n--b--",
        b"--b\r\n" + FIELD + b"\r\n5\r\n--b--\r\n",
        b"--b \t\r\n" + FIELD + b"\r\n5\r\n--b-- \r\nand an epilogue\r\n--b\r\n",
        b"a preamble\r\n--b\r\n" + FIELD + b"\r\n5\r\n--b--",
        b"\r\n--b\r\n" + FIELD + b"\r\n5\r\n--b--",
        b"--\r\n--a\r\n --b\r\n-b\r\n--b\r\n" + FIELD + b"\r\n5\r\n--b--",
        b"--b\r\n" + FIELD + b"X-More: 1\r\nContent-Type:text/plain\r\n\r\n5\r\n--b--",
        b"--b\r\n"
        + FIELD.replace(b"; ", b";\r\n\t ")
        + b"content-type:\r\ncontent-transfer-encoding: 7BIT\r\n\r\n5\r\n--b--",
        b"--b\r\nContent-Length: 900\r\n" + FIELD + b"\r\n\r\n\n5\r\n--b--",
    ],
)
def test_what_may_stand_around_parts(body: bytes) -> None:
    """RFC 2046, section 5.1.1: blanks behind a boundary, a preamble and an epilogue; folded headers."""
    assert read(body, one(shape=(None,))).tolist() == [5]


@pytest.mark.parametrize(
    "data", [b"\r\n-b", b"--b", b"\n--b\n", b"\r--b", b"\r\n --b\r\n", b"\r\n--a", b"\r\n", b"-", b"\r"]
)
def test_data_that_looks_like_a_boundary(data: bytes) -> None:
    assert_same(read(form(("x", data)), one("string", (None,))), texts([data.decode()]))


@pytest.mark.parametrize("boundary", ["b", "a" * 70, "a b", "'()+_,-./:=?", "0"])
def test_boundaries(boundary: str) -> None:
    assert read(form(("x", "5"), boundary=boundary), one(shape=(None,)), boundary).tolist() == [5]


@pytest.mark.parametrize("boundary", [None, "", "a" * 71, "a ", "a\r\nb", "a\n", "\u00e4", 'a"', "a;b"])
def test_boundaries_that_are_none(boundary: str | None) -> None:
    error = refusal(form(("x", "5")), boundary=boundary)
    assert error.status == 415
    assert error.message.startswith("multipart/form-data needs the parameter boundary, 1 to 70 characters")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body is empty"),
        (b"[1, 2, 3, 4]", "the boundary 'b' of the Content-Type does not begin a line of the body; lines end in CR LF"),
        (b"\n--b\n" + FIELD, "the boundary 'b' of the Content-Type does not begin a line"),
        (b"--", "the boundary 'b' of the Content-Type does not begin a line"),
        (b"--b", "byte 3: expected CR LF behind the boundary, or -- after the last part, got the end"),
        (b"--b-", "byte 3: expected CR LF behind the boundary, or -- after the last part, got b'-'"),
        (b"--b  ", "byte 5: expected CR LF behind the boundary, or -- after the last part, got the end"),
        (
            b"--b\n" + FIELD + b"\n5\n--b--",
            r"byte 3: expected CR LF behind the boundary, or -- after the last part, got b'\nC'",
        ),
        (b"--b\r\n" + FIELD + b"\r\n5\r\n--boring\r\n--b--", "byte 55: expected CR LF behind the boundary"),
        (b"--b\r\n" + FIELD + b"\r\n5\r\n--b--x", "byte 57: expected CR LF behind the boundary"),
        (b"--b\r\n" + FIELD + b"\r\n5", "part 'x': the body ends before the boundary that ends it"),
        (b"--b\r\n" + FIELD + b"\r\n5\n--b--", "part 'x': the body ends before the boundary"),
        (b"--b\r\n" + FIELD + b"\r\n5\r\n--b", "byte 55: expected CR LF"),
        (
            b"--b\r\n" + FIELD + b"\r\n5\r\n--b\r\n",
            "part 2: expected an empty line after the headers, got the end of the body",
        ),
        (b"--b\r\n" + FIELD, "part 1: expected an empty line after the headers, got the end of the body"),
        (b"--b\r\n" + FIELD[:-2], "part 1: expected an empty line after the headers, got the end"),
        (
            b"--b\r\n" + FIELD + b"X: " + b"y" * 5000 + b"\r\n\r\n5\r\n--b--",
            "part 1: expected an empty line after the headers, got none in 4096 bytes",
        ),
        (
            b"--b\r\n" + b"X: y\r\n" * 100_000,
            "part 1: expected an empty line after the headers, got none in 4096 bytes",
        ),
        (b"--b\r\n\r\n5\r\n--b--", 'part 1: expected Content-Disposition: form-data; name="...", got no such header'),
        (b"--b\r\n\r\n--b--", "part 1: expected Content-Disposition"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\n5\r\n--b--", "part 1: expected Content-Disposition"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n5\r\n--b--", "part 1: expected Content-Disposition"),
        (
            b"--b\r\nContent-Disposition: form-data; filename=x\r\n\r\n5\r\n--b--",
            "part 1: expected Content-Disposition",
        ),
        (
            b"--b\r\nContent-Disposition: form-data; name*=utf-8''x\r\n\r\n5\r\n--b--",
            "part 1: expected Content-Disposition",
        ),
        (b"--b\r\nContent-Disposition: attachment; name=x\r\n\r\n5\r\n--b--", "part 1: expected Content-Disposition"),
        (b'--b\r\nContent-Disposition: form-data; name="x\r\n\r\n5\r\n--b--', "part 1: expected Content-Disposition"),
        (
            b"--b\r\nContent-Disposition: form-data; name=\xff\r\n\r\n5\r\n--b--",
            "part 1: its headers are not UTF-8: byte 42 is 0xff",
        ),
        (
            b"--b\r\n" + FIELD + FIELD + b"\r\n5\r\n--b--",
            "part 1: expected one header 'Content-Disposition', got another",
        ),
        (b"--b\r\nX: 1\r\nx: 1\r\n" + FIELD + b"\r\n5\r\n--b--", "part 1: expected one header 'x', got another"),
        (b"--b\r\n--b\r\n" + FIELD + b"\r\n5\r\n--b--", "part 1: expected headers, NAME: VALUE, got '--b'"),
        (b"--b\r\n" + FIELD + b"X\r\n\r\n5\r\n--b--", "part 1: expected headers, NAME: VALUE, got 'X'"),
        (b"--b\r\nX : 1\r\n" + FIELD + b"\r\n5\r\n--b--", "part 1: expected headers, NAME: VALUE, got 'X : 1'"),
        (b"--b\r\nX: a\nb\r\n" + FIELD + b"\r\n5\r\n--b--", "part 1: expected headers, NAME: VALUE, got"),
        (b"--b\r\n " + FIELD + b"\r\n5\r\n--b--", "part 1: expected headers, NAME: VALUE, got"),
        (
            b"--b\r\nContent-Transfer-Encoding: base64\r\n" + FIELD + b"\r\n5\r\n--b--",
            "part 1: expected Content-Transfer-Encoding binary, 8bit or 7bit, got 'base64'",
        ),
        (b"--b--", "body: missing 'x'; the model's inputs are x: float32[?, 4]"),
    ],
)
def test_forms_that_are_none(body: bytes, words: str) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidPayload)
    assert error.message.startswith(words)
    assert error.details["field"]


def test_many_parts_cost_little() -> None:
    """Also headers that never end, and data that nearly is a boundary."""
    start_s = time.monotonic()
    part = b"--b\r\n" + FIELD + b"\r\n5\r\n"
    boundary = "-" * 69 + "b"
    for body, words, mark in (
        (part * 1024 + b"--b--", "", "b"),
        (part * 100_000, "part 1025: expected at most 1024 parts", "b"),
        (b"--b\r\n\r\n\r\n" * 100_000, "part 1: expected Content-Disposition", "b"),
        (b"--b" + b" " * 4_000_000, "byte 4000003: expected CR LF", "b"),
        (b"\r\n" + b"-" * 4_000_000, "the boundary", boundary),
        (b"\r\n--" * 1_000_000, "the boundary", boundary),
        (part + b"\r\n--" * 1_000_000, "part 'x': the body ends", "b"),
        (part[:-1] + b";=" * 1_000_000, "part 'x': the body ends", "b"),
        (part.replace(b"name", b";" * 3000 + b"name") + b"--b--", "", "b"),
        (part.replace(b"name", b"a=" + b'"\\' * 1500 + b"name") + b"--b--", "part 1: expected Content-Disp", "b"),
    ):
        tracemalloc.start()
        try:
            if words:
                assert refusal(body, boundary=mark).message.startswith(words)
            else:
                assert len(decode(body, one(shape=(None,)), options(mark))["x"]) == body.count(b"name=")
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
    assert time.monotonic() - start_s < 10


BYTES = {"application/x-npy", "application/x-npz", "application/octet-stream"}
WRITERS = [entry for entry in CODECS if entry.media_type in {*BYTES, "application/json", "application/jsonlines"}]


@st.composite
def written_parts(draw: st.DrawFn, signature: Signature, sent: dict[str, Array]) -> list[tuple[str, bytes, str]]:
    """Each input as some format writes an output of its name, or record by record."""
    parts = []
    for spec in signature.inputs:
        alone = Signature((spec,), (spec,), signature.batch_axis, signature.batch_size)
        array = sent[spec.name]
        pieces = [array[i : i + 1] for i in range(len(array))] if signature.batched and draw(st.booleans()) else [array]
        for piece in pieces:
            entry = draw(st.sampled_from(WRITERS))
            plain = spec.dtype.kind != "f" or bool(np.isfinite(piece.astype(np.float64)).all())
            elements = spec.dtype == object or None in signature.record_shapes[spec.name]
            if (elements and entry.media_type == "application/octet-stream") or not (
                plain or entry.media_type in BYTES
            ):
                entry = codecs_by_media_type()["application/x-npy"]
            data = body_of(entry.load().encode({spec.name: piece}, echo(alone), EncodeOptions()))
            if entry.media_type == "application/json":
                data = data.replace(b"predictions", b"instances" if signature.batched else b"inputs", 1)
            parts.append((spec.name, data, entry.media_type))
    return parts


def by_urllib3(parts: list[tuple[str, bytes, str]]) -> tuple[bytes, str]:
    body, content_type = encode_multipart_formdata([(name, ("f", data, kind)) for name, data, kind in parts])
    return body, content_type.partition("boundary=")[2]


def by_the_standard_library(parts: list[tuple[str, bytes, str]]) -> tuple[bytes, str]:
    document = MIMEMultipart("form-data")
    for name, data, kind in parts:
        part = MIMEApplication(data, kind.partition("/")[2], lambda message: None)
        part.add_header("Content-Disposition", "form-data", name=name, filename="f")
        part.set_payload(data.decode("latin-1"))
        document.attach(part)
    return flat(document)


def flat(document: Message) -> tuple[bytes, str]:
    stand_ins = []
    for number, part in enumerate(document.walk()):
        if number:
            stand_ins.append(str(part.get_payload()).encode("latin-1"))
            part.set_payload(f"<{number - 1}>")
    body = document.as_bytes(policy=HTTP).partition(b"\r\n\r\n")[2]
    for number, data in enumerate(stand_ins):
        body = body.replace(b"\r\n\r\n<%d>\r\n" % number, b"\r\n\r\n" + data + b"\r\n", 1)
    return body, str(document.get_boundary())


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_others_write_reads_back(signature: Signature) -> None:
    """Checklist 80."""

    @settings(LAWS, max_examples=30)
    @given(st.data(), st.sampled_from([by_urllib3, by_the_standard_library]))
    def law(data: st.DataObject, write: Any) -> None:
        sent = data.draw(tensors(signature))
        body, boundary = write(data.draw(written_parts(signature, sent)))
        received = decode(body, signature, options(boundary))
        for name, array in sent.items():
            assert_same(received[name], array)

    law()


NAMES = st.sampled_from(["x", "a", "b", "_charset_", "z"])
KINDS = st.sampled_from([entry.media_type for entry in CODECS] + ["text/plain", "text/csv; header=present", "x", ""])
ANY_FIELD = st.tuples(NAMES, st.sampled_from(["1", "[1, 2]", '[["a", "b"]]', "", "true"]) | st.binary(max_size=40))
ANY_FILE = st.builds(
    lambda name, data, kind: (name, ("f", data, kind)),
    NAMES,
    st.binary(max_size=40) | st.sampled_from([b"1,2\n3,4", b"[[1, 2]]", npy(GRID), saved(a=GRID), GRID.tobytes()]),
    KINDS,
)
ANY_PIECES = st.lists(
    st.sampled_from(
        [b"--b", b"--", b"\r\n", b"\n", b" ", FIELD, b"Content-Type: text/csv\r\n", b"5", b":", b'"', b"\xff"]
    ),
    max_size=20,
).map(b"".join)


def test_any_body_gives_tensors_or_a_refusal() -> None:
    """Checklist 36 and 41: any bytes, any form, and good ones with bytes changed."""

    @settings(LAWS, max_examples=300)
    @given(
        st.lists(ANY_FIELD | ANY_FILE, max_size=5).map(lambda fields: form(*fields))
        | ANY_PIECES
        | st.binary(max_size=60),
        st.sampled_from(SIGNATURES),
        st.data(),
    )
    def law(body: bytes, signature: Signature, data: st.DataObject) -> None:
        limited = options(limit_bytes=10_000)
        assert_tensors_or_refusal(ENTRY, body, signature, limited)
        damaged = bytearray(body)
        for _ in range(data.draw(st.integers(1, 3)) if damaged else 0):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        assert_tensors_or_refusal(ENTRY, bytes(damaged), signature, limited)
        assert_tensors_or_refusal(ENTRY, body[: data.draw(st.integers(0, len(body)))], signature, limited)

    law()
