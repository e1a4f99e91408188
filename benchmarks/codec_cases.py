"""What ``bench_codecs`` measures: each codec beside what a user would write by hand for the same bytes."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from google.protobuf.internal import api_implementation  # type: ignore[import-untyped]  # ships no type information
from PIL import Image

from benchmarks.bench_overhead import make_body
from benchmarks.report import BenchmarkError
from byoc_server.codecs.base import Codec, DecodeOptions, EncodeOptions, Enveloped, codecs_by_media_type
from byoc_server.types import Array, ImageSpec, Signature, TensorSpec
from tests.codecs.protobuf_oracle import Record
from tests.codecs.signatures import one

Floats = npt.NDArray[np.float32]
Call = Callable[[], object]

_SEED = 1
_PIXELS = 224
_IMAGE_SHAPE = (1, 3, _PIXELS, _PIXELS)
_WIDTH = 1536
"""Of a record of the formats whose cost must not grow with the data: 100 records are 600 KB, one is 6 KB."""
_LARGE_ROWS, _SMALL_ROWS = 100, 1
_MAGIC = 0xCED7230A
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What images are normalised with for the networks that were trained on ImageNet."""
_OPEN_INFERENCE = "application/vnd.sagemaker-triton.binary+json"


@dataclass(frozen=True, slots=True)
class Case:
    """One codec, one payload.

    Attributes:
        name: for the table.
        ours: one call of the codec.
        by_hand: the same by hand.
        bound: what the ratio should be.
        at_most: whether it is the cost of ours over that by hand, and the bound is an upper one; else it is the
            speed-up, and the bound is a lower one.
        small: the codec on a hundredth of the data, where its cost must not grow with that.
        tolerance: how far two numbers of the results may be apart.
    """

    name: str
    ours: Call
    by_hand: Call
    bound: float
    at_most: bool = False
    small: Call | None = None
    tolerance: float = 1e-6

    def check(self) -> None:
        """Compare the two results, once.

        Raises:
            BenchmarkError: they are not the same, so that nothing can be said about which is faster.
        """
        ours, by_hand = _values(self.ours()), _values(self.by_hand())
        if ours.shape != by_hand.shape or not np.allclose(ours, by_hand, rtol=1e-6, atol=self.tolerance):
            raise BenchmarkError(f"{self.name}: by hand something else comes out")


def _values(result: object) -> Array:
    if isinstance(result, Enveloped):
        result = result.tensors
    if isinstance(result, dict):
        (array,) = result.values()
        return np.asarray(array)
    if isinstance(result, bytes):
        text = result.decode()
        if text.startswith("{"):
            return np.array(json.loads(text)["predictions"], np.float32)
        return np.loadtxt(io.StringIO(text), np.float32, delimiter=",")
    return np.asarray(result)


def cases() -> list[Case]:
    """All cases.

    Raises:
        BenchmarkError: protobuf was loaded with its compiled part.
    """
    return [*_json(), *_in_place(), _csv(), _recordio(), *_jpeg(), *_encoders()]


def _random(*shape: int) -> Floats:
    return np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32)


def _codec(media_type: str) -> Codec:
    return codecs_by_media_type()[media_type].load()


def _decode(media_type: str, body: bytes, signature: Signature, parameters: Mapping[str, str] | None = None) -> Call:
    return partial(_codec(media_type).decode, body, signature, DecodeOptions(parameters or {}))


def _json() -> list[Case]:
    image = _random(*_IMAGE_SHAPE)
    bodies = {
        "decode JSON 3x224x224, all digits": json.dumps({"instances": image.tolist()}).encode(),
        "decode JSON 3x224x224, 4 decimals": json.dumps({"instances": image.astype(float).round(4).tolist()}).encode(),
    }
    decode = partial(_decode, "application/json")
    large = [
        Case(name, decode(body, one(shape=(None, *image.shape[1:]))), partial(_json_by_hand, body), 2)
        for name, body in bodies.items()
    ]
    tensor = {"name": "x", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}
    request = json.dumps({"inputs": [tensor]}).encode()
    ours = decode(request, one(shape=(None, *image.shape[1:])))
    large.append(Case("decode OIP JSON 3x224x224", ours, partial(_open_inference_json_by_hand, request), 2))
    tiny = make_body("application/json")
    by_hand = partial(_json_by_hand, tiny)
    return [*large, Case("decode JSON 1x16", decode(tiny, one(shape=(None, 16))), by_hand, 1.3, at_most=True)]


def _json_by_hand(body: bytes) -> Floats:
    return np.array(orjson.loads(body)["instances"], np.float32)


def _open_inference_json_by_hand(body: bytes) -> Array:
    (tensor,) = orjson.loads(body)["inputs"]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


@dataclass(frozen=True, slots=True)
class _InPlace:
    """A format whose data is used where it lies.

    Attributes:
        media_type: of the format.
        write: a body, and the parameters of its media type.
        by_hand: reads such a body, given the parameters.
    """

    media_type: str
    write: Callable[[Floats], tuple[bytes, Mapping[str, str]]]
    by_hand: Callable[[bytes, Mapping[str, str]], Array]


def _in_place() -> list[Case]:
    formats = {
        "npy": _InPlace("application/x-npy", _npy, lambda body, _: np.load(io.BytesIO(body))),
        "npz": _InPlace("application/x-npz", _npz, lambda body, _: np.load(io.BytesIO(body))["x"]),
        "OIP binary": _InPlace(_OPEN_INFERENCE, partial(_open_inference, past=0), _open_inference_by_hand),
        "OIP binary, unaligned,": _InPlace(_OPEN_INFERENCE, partial(_open_inference, past=1), _open_inference_by_hand),
        "Arrow stream": _InPlace("application/vnd.apache.arrow.stream", _arrow, _arrow_by_hand),
    }
    signature = one(shape=(None, _WIDTH))
    made = []
    for name, form in formats.items():
        (large, large_parameters), (small, small_parameters) = (
            form.write(_random(rows, _WIDTH)) for rows in (_LARGE_ROWS, _SMALL_ROWS)
        )
        ours = _decode(form.media_type, large, signature, large_parameters)
        few = _decode(form.media_type, small, signature, small_parameters)
        made.append(Case(f"decode {name} 600 KB", ours, partial(form.by_hand, large, large_parameters), 5, small=few))
    return made


def _npy(array: Floats) -> tuple[bytes, Mapping[str, str]]:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue(), {}


def _npz(array: Floats) -> tuple[bytes, Mapping[str, str]]:
    stream = io.BytesIO()
    np.savez(stream, x=array)
    return stream.getvalue(), {}


def _open_inference(array: Floats, past: int) -> tuple[bytes, Mapping[str, str]]:
    """A request whose data begins ``past`` bytes after a multiple of 8.

    Clients do not care, and meet a multiple of 4 in one case of four. What is not aligned must be copied, as vectorised
    code relies on it.
    """
    data = array.tobytes()
    tensor = {
        "name": "x",
        "shape": array.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    header = orjson.dumps({"inputs": [tensor]})
    header += b" " * ((past - len(header)) % 8)
    return header + data, {"json-header-size": str(len(header))}


def _open_inference_by_hand(body: bytes, parameters: Mapping[str, str]) -> Array:
    """As Triton's own Python client reads an answer: the standard library's JSON, and a slice for each tensor."""
    end = int(parameters["json-header-size"])
    (tensor,) = json.loads(body[:end])["inputs"]
    size = tensor["parameters"]["binary_data_size"]
    return np.frombuffer(body[end : end + size], np.float32).reshape(tensor["shape"])


def _arrow(array: Floats) -> tuple[bytes, Mapping[str, str]]:
    column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
    batch = pa.record_batch([column], ["x"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes(), {}


def _arrow_by_hand(body: bytes, _: Mapping[str, str]) -> Array:
    return np.stack(pa.ipc.open_stream(body).read_all()["x"].to_numpy())


def _csv() -> Case:
    array = _random(64, 16)
    body = "".join(",".join(map(str, row)) + "\n" for row in array.tolist()).encode()
    by_hand = partial(_csv_by_hand, body)
    return Case("decode CSV 64x16", _decode("text/csv", body, one(shape=(None, 16))), by_hand, 4)


def _csv_by_hand(body: bytes) -> Floats:
    return np.loadtxt(io.StringIO(body.decode()), np.float32, delimiter=",")


def _recordio() -> Case:
    """1000 records of 64 values, read by protobuf in pure Python, as it runs where its compiled part is missing."""
    if api_implementation.Type() != "python":
        raise BenchmarkError(
            "protobuf was loaded with its compiled part; run this as python -m benchmarks.bench_codecs"
        )
    array = _random(1000, 64)
    body = b""
    for row in array:
        record = Record()
        record.features["values"].float32_tensor.values.extend(row.tolist())
        data = record.SerializeToString()
        body += struct.pack("<II", _MAGIC, len(data)) + data + bytes(-len(data) % 4)
    ours = _decode("application/x-recordio-protobuf", body, one(shape=(None, array.shape[1])))
    return Case("decode recordio-protobuf 1000x64", ours, partial(_recordio_by_hand, body), 10)


def _recordio_by_hand(body: bytes) -> Floats:
    rows = []
    position = 0
    while position < len(body):
        _, length = struct.unpack_from("<II", body, position)
        record = Record()
        record.ParseFromString(body[position + 8 : position + 8 + length])
        rows.append(list(record.features["values"].float32_tensor.values))
        position += 8 + length + -length % 4
    return np.array(rows, np.float32)


def _jpeg() -> list[Case]:
    """One image, read whole, and shrunk while it is read, which byoc.toml can allow."""
    body = photograph(640, 480)
    exact = ImageSpec(_PIXELS, _PIXELS, scale=1 / 255, mean=_MEAN, std=_STD)
    by_hand = partial(_jpeg_by_hand, body)
    images = {"": (exact, 1e-5), ", shrunk on load": (replace(exact, shrink_on_load=True), 0.2)}
    made = []
    for name, (image, tolerance) in images.items():
        spec = TensorSpec("x", np.dtype(np.float32), (None, *_IMAGE_SHAPE[1:]), image=image)
        ours = _decode("image/jpeg", body, Signature((spec,), one().outputs))
        made.append(Case(f"decode JPEG 640x480 to 3x224x224{name}", ours, by_hand, 1.5, tolerance=tolerance))
    return made


def photograph(width: int, height: int) -> bytes:
    """A JPEG file of soft coloured spots with a little noise: about as hard to decode as a photograph."""
    rng = np.random.default_rng(_SEED)
    spots = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8))
    smooth = np.asarray(spots.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _jpeg_by_hand(body: bytes) -> Floats:
    """As it stands in many handlers: what numpy.array makes of three numbers is float64, and so is what follows."""
    image = Image.open(io.BytesIO(body)).convert("RGB").resize((_PIXELS, _PIXELS), Image.Resampling.BILINEAR)
    pixels = np.array(image).astype(np.float32) / 255
    normalised: npt.NDArray[np.float64] = (pixels - np.array(_MEAN)) / np.array(_STD)
    return normalised.transpose(2, 0, 1)[None].astype(np.float32, order="C")


def _encoders() -> list[Case]:
    scores = np.exp(_random(64, 1000))
    array = scores / scores.sum(axis=1, keepdims=True)
    formats: Sequence[tuple[str, str, Callable[[Floats], bytes], float]] = (
        # orjson does it on both sides: a fiftieth is for what the clock cannot tell
        ("encode JSON 64x1000", "application/json", _json_by_hand_encoded, 0.98),
        ("encode CSV 64x1000", "text/csv", _csv_by_hand_encoded, 5),
    )
    made = []
    for name, media_type, by_hand, bound in formats:
        ours = partial(_codec(media_type).encode, {"y": array}, one(shape=(None, array.shape[1])), EncodeOptions())
        made.append(Case(name, ours, partial(by_hand, array), bound))
    return made


def _json_by_hand_encoded(array: Floats) -> bytes:
    return orjson.dumps({"predictions": array}, option=orjson.OPT_SERIALIZE_NUMPY)


def _csv_by_hand_encoded(array: Floats) -> bytes:
    stream = io.StringIO()
    rows: list[Any] = array.tolist()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()
