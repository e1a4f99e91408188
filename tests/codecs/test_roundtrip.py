"""Laws that hold for all codecs, on inputs nobody thought of."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from byoc_server.codecs.base import (
    CODECS,
    Answer,
    CodecEntry,
    DecodeOptions,
    Enveloped,
    codecs_by_media_type,
    media_types,
    request_codecs,
)
from byoc_server.errors import ByocError
from byoc_server.types import STRING, BatchAxis, Signature, Tensors
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, one, several

LAWS = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)

SIGNATURES = [
    one(),
    one(shape=(None, 1)),
    one(shape=(None,)),
    one("float64", (None, None)),
    one("int8", (None, 2)),
    one("uint64", (None,)),
    one("bool", (None, 1)),
    one("string", (None, 2)),
    one("string", (None,)),
    one("float16", (None, 2, 2)),
    one(shape=(2, 2), batch_axis=ABSENT),
    one(shape=(), batch_axis=ABSENT),
    one("string", (None,), ABSENT),
    one(shape=(4, 2), batch_axis=BatchAxis.FIXED),
    several(("a", "float32", (None, 2)), ("b", "string", (None,))),
    several(("a", "float32", (None,)), ("b", "int64", (None, 1))),
    several(("a", "float32", (2,)), ("b", "bool", ()), batch_axis=ABSENT),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    return TEXT if dtype == STRING else arrays.from_dtype(dtype, allow_nan=True, allow_infinity=True)


@st.composite
def tensors(draw: st.DrawFn, signature: Signature) -> Tensors:
    rows = draw(st.integers(1, 5))
    drawn = {}
    for spec in signature.inputs:
        shape = tuple(draw(st.integers(1, 3)) if d is None else d for d in signature.record_shapes[spec.name])
        full = (rows, *shape) if signature.batched else shape
        drawn[spec.name] = draw(arrays.arrays(spec.dtype, full, elements=elements(spec.dtype)))
    return drawn


def echo(signature: Signature) -> Signature:
    """The signature of a model that gives its inputs back."""
    return Signature(signature.inputs, signature.inputs, signature.batch_axis, signature.batch_size)


def is_exact(entry: CodecEntry, sent: Tensors, signature: Signature) -> bool:
    """Whether the format can tell these values apart at all."""
    floats = [np.asarray(a, np.float64) for a in sent.values() if a.dtype.kind == "f"]
    if entry.media_type in ("application/json", "application/jsonlines"):
        return not any(np.isinf(a).any() for a in floats)  # null is NaN
    return entry.media_type == "application/x-npy" or (
        all(len(shape) < 3 for shape in signature.record_shapes.values())
    )


GENERAL = CODECS[:4]
"""Formats that carry every signature; the others have laws of their own in their own tests."""


@pytest.mark.parametrize("entry", GENERAL, ids=lambda e: e.media_type)
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_is_written_reads_back(entry: CodecEntry, signature: Signature) -> None:
    """Checklist 80."""
    codec, same = entry.load(), echo(signature)

    @LAWS
    @given(tensors(signature))
    def law(sent: Tensors) -> None:
        body = body_of(codec.encode(sent, same, ENCODE))
        if entry.media_type == "application/json":
            predictions = orjson.loads(body)["predictions"]
            body = orjson.dumps({"instances" if signature.batched else "inputs": predictions})
        if not is_exact(entry, sent, signature):
            return
        received = tensors_of(codec.decode(body, signature, OPTIONS))
        for name, array in sent.items():
            assert received[name].dtype == array.dtype
            np.testing.assert_array_equal(received[name], array, strict=True)

    law()


def tensors_of(decoded: Tensors | Enveloped) -> Tensors:
    return decoded.tensors if isinstance(decoded, Enveloped) else decoded


def body_of(answer: bytes | Answer) -> bytes:
    return answer.body if isinstance(answer, Answer) else answer


def assert_tensors_or_refusal(entry: CodecEntry, body: bytes, signature: Signature, options: DecodeOptions) -> None:
    try:
        result = tensors_of(entry.load().decode(body, signature, options))
    except ByocError as error:
        refusal = error
    else:
        assert_fit(result, signature)
        return
    assert 400 <= refusal.status < 500
    assert 0 < len(refusal.message) < 1000
    orjson.dumps([refusal.message, refusal.details])


def assert_fit(result: Tensors, signature: Signature) -> None:
    counts = set()
    for spec in signature.inputs:
        array = result[spec.name]
        assert isinstance(array, np.ndarray)
        assert array.dtype == spec.dtype
        assert array.flags.c_contiguous
        assert array.flags.aligned
        shape = array.shape[1:] if signature.batched else array.shape
        counts.add(len(array) if signature.batched else 1)
        wanted = signature.record_shapes[spec.name]
        assert len(shape) == len(wanted)
        assert all(w is None or w == s for w, s in zip(wanted, shape, strict=True))
        if spec.dtype == STRING:
            assert all(type(item) is str and item.encode() is not None for item in array.ravel().tolist())
    assert len(counts) == 1
    assert counts.pop() > 0


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.sampled_from(["NaN", 0, 1])
)
keys = st.sampled_from(["instances", "inputs", "features", "data", "values", "keys", "shape", "x", "a", "b"]) | TEXT
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def npy_file(header: str, data: bytes) -> bytes:
    text = header.encode("latin-1", "replace")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


descr = st.sampled_from(
    ["'<f4'", "'>f8'", "'<U1'", "'|S2'", "'|b1'", "'<i8'", "'|O'", "[('a', '<f4', (2,)), ('b', '<U1')]", "'|V0'"]
) | st.text(max_size=12).map(repr)
shapes = st.lists(st.integers(-2, 5) | st.integers(2**62, 2**70), max_size=4).map(lambda dims: str(tuple(dims)))
npy_bodies = st.builds(
    lambda d, f, s, data: npy_file(f"{{'descr': {d}, 'fortran_order': {f}, 'shape': {s}}}", data),
    descr,
    st.sampled_from(["True", "False", "0"]),
    shapes,
    st.binary(max_size=64),
)
any_npy = arrays.arrays(
    arrays.boolean_dtypes()
    | arrays.integer_dtypes()
    | arrays.floating_dtypes()
    | arrays.unicode_string_dtypes(max_len=3),
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
).map(saved)
cells = (
    st.sampled_from(["1", "2.5", "", "x", "1e400", "-", '"', '"a,b"', "nan", " ", "1_0", "\u0663", "true", "\ufeff"])
    | TEXT
)
csv_bodies = st.builds(
    lambda rows, end: end.join(",".join(row) for row in rows).encode(),
    st.lists(st.lists(cells, max_size=4), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


def to_json(document: object) -> bytes:
    return json.dumps(document).encode()  # with bare NaN and Infinity


bodies = {
    "application/json": documents.map(to_json),
    "application/jsonlines": st.lists(documents, max_size=4).map(lambda ds: b"\n".join(to_json(d) for d in ds)),
    "text/csv": csv_bodies,
    "application/x-npy": npy_bodies | any_npy,
}
parameters = st.dictionaries(
    st.sampled_from(["header", "label_size", "charset"]),
    st.sampled_from(["present", "absent", "0", "1", "utf-8", "latin1", "us-ascii", "x"]),
    max_size=2,
)


@pytest.mark.filterwarnings("ignore:Reading .*required additional header parsing")
@pytest.mark.parametrize("entry", request_codecs(), ids=lambda e: e.media_type)
def test_any_body_gives_tensors_or_a_refusal(entry: CodecEntry) -> None:
    """Checklist 36 and 41: never another exception, and what passes fits the model completely."""

    @settings(LAWS, max_examples=400)
    @given(
        st.binary(max_size=200) | bodies.get(entry.media_type, st.binary(max_size=20)),
        st.sampled_from(SIGNATURES),
        parameters,
    )
    def law(body: bytes, signature: Signature, given_parameters: dict[str, str]) -> None:
        assert_tensors_or_refusal(entry, body, signature, DecodeOptions(given_parameters, max_tensor_bytes=10_000))

    law()


@pytest.mark.parametrize("entry", GENERAL, ids=lambda e: e.media_type)
def test_damaged_bodies(entry: CodecEntry) -> None:
    @settings(LAWS, max_examples=150)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        signature = data.draw(st.sampled_from(SIGNATURES))
        body = bytearray(body_of(entry.load().encode(data.draw(tensors(signature)), echo(signature), ENCODE)))
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        start = data.draw(st.integers(0, 3))
        assert_tensors_or_refusal(entry, bytes(body[start:]), signature, OPTIONS)

    law()


def test_the_table() -> None:
    assert media_types(CODECS)[:3] == ["application/json", "application/jsonlines", "text/csv"]
    assert codecs_by_media_type()["application/x-ndjson"].media_type == "application/jsonlines"
    for name, entry in codecs_by_media_type().items():
        assert name == name.lower()
        assert callable(entry.load().decode)
        assert hasattr(entry.load(), "encode") == entry.answers
        assert bool(entry.library) == bool(entry.extra)
