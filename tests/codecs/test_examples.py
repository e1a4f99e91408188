"""Example requests: what a format's decoder makes of them is what they were made from."""

from __future__ import annotations

import numpy as np
import pytest

from byoc_server.codecs.base import CodecEntry, DecodeOptions, Enveloped, request_codecs
from byoc_server.codecs.examples import example_request
from byoc_server.errors import ByocError
from byoc_server.types import STRING, Signature, Tensors
from tests.codecs.signatures import ABSENT, assert_same, one, several

SIGNATURES = {
    "row": one(),
    "doubles": one("float64"),
    "halves": one("float16"),
    "tokens": one("int64", (None, None)),
    "bytes": one("uint8", (None,)),
    "text": one("string", (None, 1)),
    "picture": one("float32", (None, 3, 2, 2)),
    "matrix": one("float64", (2, 3), ABSENT),
    "table": several(("age", "int64", (None, 1)), ("job", "string", (None, 1)), ("flags", "bool", (None, 2))),
    "matrices": several(("a", "float32", (2, 2)), ("b", "int32", (3,)), batch_axis=ABSENT),
}
CANNOT = {
    "application/octet-stream": {"table", "matrices"},
    "text/libsvm": {"text", "table", "matrix"},
}
"""Media type -> signatures that requests in it cannot be for."""
PLAIN = [e for e in request_codecs() if not e.media_type.startswith(("image/", "application/x-image", "multipart/"))]


def made_up(signature: Signature) -> Tensors:
    tensors: Tensors = {}
    for spec in signature.inputs:
        record = tuple(3 if d is None else d for d in signature.record_shapes[spec.name])
        shape = (1, *record) if signature.batched else record
        tensors[spec.name] = np.full(shape, "text", STRING) if spec.dtype == STRING else np.ones(shape, spec.dtype)
    return tensors


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("entry", PLAIN, ids=lambda entry: entry.media_type)
def test_an_example_is_read_as_what_it_was_made_from(entry: CodecEntry, name: str) -> None:
    signature = SIGNATURES[name]
    tensors = made_up(signature)
    if name in CANNOT.get(entry.media_type, ()):
        with pytest.raises(ByocError) as refusal:
            example_request(entry, tensors, signature)
        assert 400 <= refusal.value.status < 500
        return
    example = example_request(entry, tensors, signature)
    _, _, text = example.content_type.partition(";")
    parameters = dict([text.split("=")] if text else [])
    decoded = entry.load().decode(example.body, signature, DecodeOptions(parameters))
    received = decoded.tensors if isinstance(decoded, Enveloped) else decoded
    assert received.keys() == tensors.keys()
    for key, array in tensors.items():
        assert_same(received[key], array)
