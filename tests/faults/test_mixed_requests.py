"""Thousands of requests of many kinds at once, no two with the same answer: nobody gets another one's."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from tests.faults.processes import SPLIT
from tests.load import ask_all
from tests.onnx_models import identity
from tests.server_process import post, running

Array = npt.NDArray[np.float32]

_MAX_VALUES = 128
_LARGE_EVERY, _LARGE_ROWS = 97, 6000


def write_json(array: Array) -> bytes:
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def read_json(body: bytes) -> Array:
    return np.array(orjson.loads(body)["predictions"], np.float32)


def write_csv(array: Array) -> bytes:
    return "\n".join(",".join(str(int(number)) for number in row) for row in array).encode()


def read_csv(body: bytes) -> Array:
    return np.array([line.split(",") for line in body.decode().split()], np.float32)


def write_npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read_npy(body: bytes) -> Array:
    array: Array = np.load(io.BytesIO(body))
    return array


FORMATS: dict[str, tuple[Callable[[Array], bytes], Callable[[bytes], Array]]] = {
    "application/json": (write_json, read_json),
    "text/csv": (write_csv, read_csv),
    "application/x-npy": (write_npy, read_npy),
}


def record_numbers(number: int) -> Array:
    """The records of one request: 1 to 40 of 1 to 16 numbers, all of them found in no other request.

    They are whole and below 2^24, which float32 holds exactly. A few requests are large, to take the way of the large.
    """
    if number % _LARGE_EVERY == 0:
        return np.full((_LARGE_ROWS, 16), number, np.float32)
    columns = 1 + number % 16
    rows = 1 + number // 16 % min(40, _MAX_VALUES // columns)
    return (number * _MAX_VALUES + np.arange(rows * columns)).astype(np.float32).reshape(rows, columns)


@pytest.mark.slow
@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_every_request_gets_its_own_answer(count: int, tmp_path: Path) -> None:
    """In three formats, of many shapes, in parts and joined: a batch has no more than 16 records."""
    model = str(identity(tmp_path / "model.onnx", shape=("N", "L")))
    media_types = list(FORMATS)
    with running("--model", model, *SPLIT, "--max-batch-size", "16", "--request-log", "off") as server:
        for first in range(0, count, 10_000):
            numbers = range(first, min(first + 10_000, count))
            kinds = [media_types[number % len(media_types)] for number in numbers]
            raws = [
                post(FORMATS[kind][0](record_numbers(number)), Content_Type=kind, Accept=kind)
                for number, kind in zip(numbers, kinds, strict=True)
            ]
            answers = ask_all(server.port, raws, connections=48)
            for number, kind, answer in zip(numbers, kinds, answers, strict=True):
                assert answer is not None
                assert answer.status == 200, answer
                assert np.array_equal(FORMATS[kind][1](answer.body), record_numbers(number)), f"request {number}"
        assert server.stop() == 0
