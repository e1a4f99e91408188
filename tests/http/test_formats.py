"""What the headers of a request come to, and what of it is remembered."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest

from byoc_server.codecs import json as json_codec
from byoc_server.codecs import npy as npy_codec
from byoc_server.codecs.base import DecodeOptions, Decoder, EncodeOptions, Enveloped
from byoc_server.config import Settings
from byoc_server.errors import NotAcceptable, TensorsTooLarge, UnsupportedMediaType
from byoc_server.http.dialect import INVOCATIONS
from byoc_server.http.formats import Formats, FormatTable
from byoc_server.models.adapter import Adapter
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)
SIGNATURE = Signature(
    (TensorSpec("x", F32, (None, 2)),), (TensorSpec("y", F32, (None, 2)), TensorSpec("z", F32, (None, 1)))
)
ONE_OUTPUT = Signature(SIGNATURE.inputs, SIGNATURE.outputs[:1])
OUTPUTS: Tensors = {"y": np.ones((2, 2), np.float32), "z": np.zeros((2, 1), np.float32)}
JSON = b"application/json"
MIB = 1024 * 1024


def table(**settings: Any) -> FormatTable:
    return FormatTable(Settings(**settings), INVOCATIONS, 4 * MIB)


def find(
    content_type: bytes | None = JSON, accept: bytes | None = None, adapter: Adapter | None = None, **settings: Any
) -> Formats:
    return table(**settings).find((content_type, accept), adapter or Adapter(ONE_OUTPUT, ONE_OUTPUT))


def test_what_was_found_is_remembered() -> None:
    formats, adapter = table(), Adapter(ONE_OUTPUT, ONE_OUTPUT)
    for key in [(JSON, None), (JSON, b"text/csv"), (None, None)]:
        assert formats.known(key) is None
        assert formats.find(key, adapter) is formats.known(key)
    csv = formats.known((JSON, b"text/csv"))
    assert csv is not None
    assert csv.headers == ((b"content-type", b"text/csv"),)
    assert len({id(formats.known(key)) for key in [(JSON, None), (JSON, b"text/csv"), (None, None)]}) == 3


def test_what_was_not_found_is_looked_for_again() -> None:
    formats, adapter = table(), Adapter(ONE_OUTPUT, ONE_OUTPUT)
    for _ in range(2):
        with pytest.raises(UnsupportedMediaType):
            formats.find((b"text/nothing", None), adapter)
        with pytest.raises(NotAcceptable):
            formats.find((JSON, b"text/nothing"), adapter)
    assert formats.known((b"text/nothing", None)) is None
    assert formats.known((JSON, b"text/nothing")) is None


def test_the_boundary_of_a_form_is_not_remembered() -> None:
    """Every form has one of its own, which would push out all others."""
    formats, key = table(), (b"multipart/form-data; boundary=abc", None)
    form = formats.find(key, Adapter(ONE_OUTPUT, ONE_OUTPUT))
    body = b'--abc\r\nContent-Disposition: form-data; name="x"\r\nContent-Type: text/csv\r\n\r\n1,2\r\n--abc--\r\n'
    assert cast(Tensors, form.decode(body))["x"].tolist() == [[1, 2]]
    assert formats.known(key) is None


def test_only_so_many_headers_are_remembered() -> None:
    """An attacker gets no more, and everyone the right formats."""
    formats, adapter = table(), Adapter(ONE_OUTPUT, ONE_OUTPUT)
    keys = [(JSON, b"text/csv;q=0.%d" % number) for number in range(100, 700)]
    for key in keys:
        assert formats.find(key, adapter).headers == ((b"content-type", b"text/csv"),)
        assert formats.known(key) is not None
        assert len([known for known in keys if formats.known(known)]) <= 256


@pytest.mark.parametrize("accept", [b"application/json", b"application/jsonlines", b"text/csv", b"application/x-npy"])
def test_several_answers_in_one_pass_are_those_of_one_by_one(accept: bytes) -> None:
    formats = find(accept=accept, final_newline=False)
    assert formats.encode_each is not None
    outputs: Tensors = {"y": np.arange(6, dtype=np.float32).reshape(3, 2)}
    each = formats.encode_each(outputs, [1, 2])
    assert each == [formats.encode({"y": outputs["y"][:1]}), formats.encode({"y": outputs["y"][1:]})]


ABSENT = Signature((TensorSpec("x", F32, (2,)),), (TensorSpec("y", F32, (2,)),), BatchAxis.ABSENT)


@pytest.mark.parametrize(
    ("adapter", "accept"),
    [
        (Adapter(ONE_OUTPUT, ONE_OUTPUT, present=lambda tensors: tensors), JSON),
        (Adapter(ONE_OUTPUT, ONE_OUTPUT, answer_bytes=lambda tensors: 1), JSON),
        (Adapter(ABSENT, ABSENT), JSON),
        (Adapter(ONE_OUTPUT, ONE_OUTPUT), b"application/octet-stream"),
    ],
    ids=["presented", "of any size", "without a batch axis", "of a format that cannot"],
)
def test_some_answers_are_not_written_in_one_pass(adapter: Adapter, accept: bytes) -> None:
    assert find(accept=accept, adapter=adapter).encode_each is None


def test_a_format_with_a_decoder_makes_one_for_all_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two: one for the event loop, which builds small tensors only, and one for threads."""
    made: list[int] = []
    make = npy_codec.decoder

    def counted(signature: Signature, options: DecodeOptions) -> Decoder:
        made.append(options.max_tensor_bytes)
        return make(signature, options)

    monkeypatch.setattr(npy_codec, "decoder", counted)
    formats = find(b"application/x-npy")
    body = npy_codec.encode({"y": np.ones((1, 2), np.float32)}, ONE_OUTPUT, EncodeOptions())
    for _ in range(3):
        assert cast(Tensors, formats.decode_inline(body))["x"].tolist() == [[1, 1]]
        assert cast(Tensors, formats.decode(body))["x"].tolist() == [[1, 1]]
    assert made == [4 * MIB, MIB]


def test_large_tensors_are_not_for_the_event_loop() -> None:
    wide = Signature((TensorSpec("x", F32, (None, None)),), ONE_OUTPUT.outputs)
    formats = find(adapter=Adapter(wide, wide))
    small, large, huge = [
        json.dumps({"instances": [{"keys": [], "shape": [columns], "values": []}]}).encode()
        for columns in (MIB // 4, MIB // 4 + 1, MIB + 1)
    ]
    assert cast(Tensors, formats.decode_inline(small))["x"].shape == (1, MIB // 4)
    with pytest.raises(TensorsTooLarge):
        formats.decode_inline(large)
    assert cast(Tensors, formats.decode(large))["x"].shape == (1, MIB // 4 + 1)
    with pytest.raises(TensorsTooLarge):
        formats.decode(huge)


def triple(tensors: Tensors) -> Tensors:
    return {name: cast(Any, array) * 3 for name, array in tensors.items()}


ENVELOPED = b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]%s}'


def test_what_the_adapter_does_before_the_model_is_done_to_every_form() -> None:
    formats = find(adapter=Adapter(ONE_OUTPUT, ONE_OUTPUT, prepare=triple))
    for decode in (formats.decode, formats.decode_inline):
        assert cast(Tensors, decode(b"[[1, 2]]"))["x"].tolist() == [[3, 6]]
        decoded = decode(ENVELOPED % b"")
        assert isinstance(decoded, Enveloped)
        assert (decoded.envelope.id, decoded.tensors["x"].tolist()) == ("7", [[3, 6]])


@pytest.mark.parametrize(
    ("asked", "outputs"),
    [(b"", ["y", "z"]), (b', "outputs": [{"name": "z"}]', ["z"]), (b', "outputs": []', ["y", "z"])],
)
def test_a_request_gets_the_outputs_it_names(asked: bytes, outputs: list[str]) -> None:
    """As clients see them."""
    formats = find(adapter=Adapter(SIGNATURE, SIGNATURE, present=triple, model_name="mine"))
    decoded = formats.decode(ENVELOPED % asked)
    assert isinstance(decoded, Enveloped)
    answer = json.loads(cast(bytes, _body(formats.enveloped(decoded.envelope, OUTPUTS))))
    assert [output["name"] for output in answer["outputs"]] == outputs
    assert (answer["id"], answer["model_name"]) == ("7", "mine")
    if "y" in outputs:
        assert answer["outputs"][0]["data"] == [3, 3, 3, 3]


def _body(answer: object) -> object:
    return getattr(answer, "body", answer)


def test_what_is_known_of_the_size_of_answers() -> None:
    """4 MiB may be held; a record of the answer takes 12 bytes at least."""
    formats = find(adapter=Adapter(SIGNATURE, SIGNATURE))
    assert formats.most_rows == 4 * MIB // 12
    assert formats.counted == "x"
    assert find(adapter=Adapter(ABSENT, ABSENT)).counted == ""
    nothing = Signature(SIGNATURE.inputs, (TensorSpec("y", F32, (None, 0)),))
    assert find(adapter=Adapter(nothing, nothing)).most_rows == 4 * MIB


def test_the_limits_are_those_of_the_formats() -> None:
    formats = find(b"application/x-npy", b"application/json")
    assert (formats.decode_inline_bytes, formats.encode_inline_bytes) == (MIB, 64 * 1024)
    assert formats.encode({"y": OUTPUTS["y"]}) == json_codec.encode(OUTPUTS, ONE_OUTPUT, EncodeOptions())
