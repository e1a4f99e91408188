"""Bytes in JSON and JSON Lines: ``{"b64": "..."}``."""

from __future__ import annotations

import base64
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import packb
from onnx import TensorProto
from PIL import Image

from byoc_server.codecs import json, jsonlines, msgpack
from byoc_server.codecs.base import BrokenLibraryError, CodecEntry, DecodeOptions, codecs_by_media_type
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import Array, ImageSpec, Layout, Signature
from tests.codecs.image_files import saved, taking_images
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, scalars
from tests.onnx_models import identity
from tests.server_process import running


def b64(data: bytes | str) -> dict[str, str]:
    return {"b64": base64.b64encode(data.encode() if isinstance(data, str) else data).decode()}


def read(document: object, signature: Signature) -> Any:
    tensors: Any = json.decode(orjson.dumps(document), signature, OPTIONS)
    return tensors[signature.inputs[0].name] if signature.sole_input else tensors


def refusal(document: object, signature: Signature) -> str:
    with pytest.raises(InvalidPayload) as caught:
        read(document, signature)
    assert len(caught.value.message) < 400
    return caught.value.message


WORDS = one("string", (None,))
IMAGES = one("uint8", (None, None))


@pytest.mark.parametrize(
    ("document", "signature", "expected"),
    [
        ({"instances": [b64("a"), b64("\u00e4"), "c"]}, WORDS, texts(["a", "\u00e4", "c"])),
        ({"instances": [{"x": b64("a")}, {"features": b64("")}]}, WORDS, texts(["a", ""])),
        ({"signature_name": "s", "instances": [{"data": {"features": {"values": b64("a")}}}]}, WORDS, texts(["a"])),
        ({"inputs": {"x": [b64("a"), "b"]}}, WORDS, texts(["a", "b"])),
        ({"inputs": [b64("a")]}, WORDS, texts(["a"])),
        ({"inputs": b64("a")}, WORDS, texts(["a"])),
        ({"x": [b64("a")]}, WORDS, texts(["a"])),
        ([b64("a"), b64("b")], WORDS, texts(["a", "b"])),
        (b64("a"), WORDS, texts(["a"])),
        (b64("a"), one("string", (), ABSENT), texts("a")),
        ([[b64("a"), "b"], ["c", b64("d")]], one("string", (None, 2)), texts([["a", "b"], ["c", "d"]])),
        ([{"keys": [1], "values": [b64("a")]}], one("string", (None, 2)), texts([["", "a"]])),
        ({"instances": [b64(b"\xff\x00"), b64(b"\x01\x02")]}, IMAGES, np.array([[255, 0], [1, 2]], np.uint8)),
        ({"instances": [{"x": b64(b"\xff\x00")}, [1, 2]]}, IMAGES, np.array([[255, 0], [1, 2]], np.uint8)),
        ({"inputs": {"x": b64(b"\xff\x00")}}, IMAGES, np.array([[255, 0]], np.uint8)),
        ([b64(b"abcd")], one("uint8", (None, 2, 2)), np.array([[[97, 98], [99, 100]]], np.uint8)),
        (b64(b"ab"), one("uint8", (None,), ABSENT), np.array([97, 98], np.uint8)),
    ],
)
def test_forms(document: object, signature: Signature, expected: Array) -> None:
    """Checklist 80: the form of TensorFlow Serving, wherever a value may stand."""
    assert_same(read(document, signature), expected)


def test_several_inputs() -> None:
    signature = several(("image", "uint8", (None, None)), ("note", "string", (None,)), ("n", "float32", (None,)))
    for document in (
        {"instances": [{"image": b64(b"\x01\x02"), "note": b64("a"), "n": 1}]},
        {"inputs": {"image": [b64(b"\x01\x02")], "note": [b64("a")], "n": [1]}},
    ):
        tensors = read(document, signature)
        assert_same(tensors["image"], np.array([[1, 2]], np.uint8))
        assert_same(tensors["note"], texts(["a"]))


def test_an_input_may_be_called_b64() -> None:
    signature = several(("b64", "string", (None,)), ("y", "float32", (None,)))
    assert read({"instances": [{"b64": "YQ==", "y": 1}]}, signature)["b64"].tolist() == ["YQ=="]
    signature = Signature(signature.inputs[:1], signature.outputs[:1])
    assert read({"instances": [{"b64": "YQ=="}]}, signature).tolist() == ["YQ=="]


def test_text_that_mentions_it_is_text() -> None:
    assert read(['{"b64": "YQ=="}', b64("a")], WORDS).tolist() == ['{"b64": "YQ=="}', "a"]
    assert refusal([{"b64": "YQ==", "x": "b"}], WORDS).startswith("body[0]: unknown 'b64'")


@pytest.mark.parametrize(
    ("document", "signature", "message"),
    [
        ({"instances": ["a", {"b64": "YQ="}]}, WORDS, "instances[1]: 'b64' is not base64 text: Incorrect padding"),
        ({"inputs": {"x": [{"b64": "Y Q=="}]}}, WORDS, "inputs.x[0]: 'b64' is not base64 text: "),
        ({"instances": [{"x": {"b64": "\u00e4"}}]}, WORDS, "instances[0].x: 'b64' is not base64 text: "),
        ([[{"b64": "_-=="}]], WORDS, "body[0][0]: 'b64' is not base64 text: "),
        ([{"b64": 5}], WORDS, "body[0]: 'b64' is not base64 text: it is 5"),
        ([{"b64": ["YQ=="]}], WORDS, "body[0]: 'b64' is not base64 text: it is a list of 1"),
        ({"b64": None}, WORDS, ": 'b64' is not base64 text: it is null"),
        ({"k" * 500: {"b64": None}}, WORDS, "k" * 200 + "...: 'b64' is not base64 text: it is null"),
        ([b64("a"), b64(b"b\xff")], WORDS, "body[1]: the bytes of a string are not UTF-8: byte 1 is 0xff"),
        ([b64("1")], one(shape=(None,)), "body[0]: expected a number (float32) for input 'x', got b'1'"),
        ([b64("ab"), b64("a")], IMAGES, "body[1]: expected shape [2] for input 'x', got [1]"),
        ([b64("ab")], one("uint8", (None,)), "body[0]: expected shape [] for input 'x', got [2]"),
    ],
)
def test_values_that_do_not_fit(document: object, signature: Signature, message: str) -> None:
    assert refusal(document, signature).startswith(message)


def test_lines() -> None:
    body = b'{"b64": "YQ=="}\n{"x": {"b64": "Yg=="}}\n"c"\n'
    assert_same(jsonlines.decode(body, WORDS, OPTIONS)["x"], texts(["a", "b", "c"]))
    for line, words in (
        (b'{"x": {"b64": "Y"}}', "line 2.x: 'b64' is not"),
        (b'{"b64": "/w=="}', "line 2: the bytes of"),
    ):
        with pytest.raises(InvalidPayload, match=words):
            jsonlines.decode(b'"a"\n' + line, WORDS, OPTIONS)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1000 + b'{"b64": "Y"}' + b"]" * 1000,
        b'{"' + b"k" * 50_000 + b'": [' + b"[]," * 20_000 + b'{"b64": "Y"}]}',
        b"[" + b'{"b64": ""},' * 8_000 + b'{"b64": "Y"}]',
        b'[{"b64": "' + b"/" * 100_000 + b'"}]',
    ],
)
def test_hostile_bodies_stay_linear(body: bytes) -> None:
    """Checklist 84: depth, and many values below a long key, cost no more than parsing them."""
    start_s = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidPayload, match=r"'b64' is not base64 text|are not UTF-8|expected a string"):
            json.decode(body, one("string", (None, 1)), OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 60 * len(body) + 200_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start_s < 5


values = (
    st.binary(max_size=6).map(b64)
    | st.builds(lambda shade: b64(shades(shade)[0]), st.integers(0, 255))
    | st.builds(lambda v: {"b64": v}, scalars)
    | scalars
)
any_document = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["instances", "inputs", "x", "a", "b", "b64"]), inner, max_size=3)
    ),
    max_leaves=10,
)


def test_any_document_gives_tensors_or_a_refusal() -> None:
    """Checklist 36 and 41."""

    @LAWS
    @given(any_document, st.sampled_from([*SIGNATURES, IMAGES, GREYS, one("uint8", (None, 2, 1))]))
    def law(document: object, signature: Signature) -> None:
        body = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
        for name in ("application/json", "application/jsonlines"):
            assert_tensors_or_refusal(codecs_by_media_type()[name], body, signature, OPTIONS)

    law()


def shades(*values: int) -> list[bytes]:
    """PNG files of one colour each."""
    return [saved(Image.new("RGB", (20, 10), (value, value, value)), "PNG") for value in values]


TEN = np.full((1, 2), 10, np.uint8)
GREYS = taking_images(ImageSpec(1, 2, "L", Layout.HW, scale=0.5), (None, 1, 2))


@pytest.mark.parametrize("form", ["instances", "inputs", "list", "objects", "columns", "lines", "msgpack"])
def test_several_images(form: str) -> None:
    """Checklist 80: one image a record, for an input that takes them."""
    files = shades(10, 20, 30)
    values = [b64(file) for file in files]
    document: Any = {
        "instances": {"instances": values},
        "inputs": {"inputs": {"x": values}},
        "objects": {"instances": [{"x": value} for value in values]},
        "columns": {"x": values},
    }.get(form, values)
    tensors: Any
    if form == "lines":
        tensors = jsonlines.decode(b"\n".join(map(orjson.dumps, values)), GREYS, OPTIONS)
    elif form == "msgpack":
        tensors = msgpack.decode(packb({"instances": files}), GREYS, OPTIONS)
    else:
        tensors = json.decode(orjson.dumps(document), GREYS, OPTIONS)
    assert_same(tensors["x"], np.array([[[5, 5]], [[10, 10]], [[15, 15]]], np.float32))


def test_an_image_among_other_values() -> None:
    (file,) = shades(10)
    assert_same(read([b64(file), [[1, 2]]], GREYS), np.array([[[5, 5]], [[1, 2]]], np.float32))
    assert_same(read(b64(file), taking_images(ImageSpec(1, 2, "L", Layout.HW), (1, 2), "uint8", ABSENT)), TEN)
    image = taking_images(ImageSpec(1, 2), (None, 3, 1, 2), "uint8").inputs[0]
    words = WORDS.inputs[0]
    signature = Signature((image, replace(words, name="note")), GREYS.outputs)
    tensors = read({"instances": [{"x": b64(file), "note": b64("a")}]}, signature)
    assert_same(tensors["x"], np.full((1, 3, 1, 2), 10, np.uint8))
    assert_same(tensors["note"], texts(["a"]))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([b64("a")], "body[0]: it is not a JPEG, PNG or WebP file"),
        ({"instances": [b64(shades(1)[0]), b64(shades(1)[0][:-1])]}, "instances[1]: the PNG is truncated"),
        ([[[b64(shades(1)[0]), 1]]], "body[0][0][0]: expected a number (float32) for input 'x', got"),
    ],
)
def test_images_that_cannot_be_read(document: object, message: str) -> None:
    assert refusal(document, GREYS).startswith(message)


def test_what_images_count_for() -> None:
    """Checklist 84: no image, however small, is free of cost: a few are decoded on the event loop, not hundreds."""
    body = orjson.dumps([b64(file) for file in shades(1, 2)])
    cost = 2 * (8 + 2 * 200 + 32 * 1024)
    enough: Any = json.decode(body, GREYS, DecodeOptions({}, max_tensor_bytes=cost + 8 * 200))
    assert len(enough["x"]) == 2
    for limit, words in (
        (cost - 1, r"body\[1\]: the records of"),
        (cost + 8 * 200 - 1, r"body\[1\]: an image of 20 x 10"),
    ):
        with pytest.raises(TensorsTooLarge, match=words):
            json.decode(body, GREYS, DecodeOptions({}, max_tensor_bytes=limit))


@pytest.mark.parametrize("state", ["missing", "broken"])
def test_without_the_library(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checklist 81: the extra is named."""
    if state == "missing":
        monkeypatch.setattr(CodecEntry, "installed", False)
    else:
        monkeypatch.setattr(CodecEntry, "load", Mock(side_effect=BrokenLibraryError("no")))
    with pytest.raises(UnsupportedMediaType, match=r"instances\[0\]: images are not read here .*byoc-server\[image\]"):
        json.decode(orjson.dumps({"instances": [b64(shades(1)[0])]}), GREYS, OPTIONS)


def test_over_a_socket(tmp_path: Path) -> None:
    """A model of strings gives back what came as base64, and one of bytes the bytes."""
    body = b'{"instances": [{"b64": "aGVsbG8="}]}'
    for kind, shape, expected in (
        (TensorProto.STRING, ("N",), ["hello"]),
        (TensorProto.UINT8, ("N", 5), [[*b"hello"]]),
    ):
        model = identity(tmp_path / f"{kind}.onnx", kind, shape)
        with running("--model", str(model)) as server:
            assert server.invoke(body, Content_Type="application/json").json() == {"predictions": expected}
            line = server.invoke(body[15:-2], Content_Type="application/jsonlines", Accept="application/json")
            assert line.json() == {"predictions": expected}
            answer = server.invoke(body.replace(b"=", b""), Content_Type="application/json")
            assert answer.status_code == 400
            assert "instances[0]: 'b64' is not base64 text" in answer.text
