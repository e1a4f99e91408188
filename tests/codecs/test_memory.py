"""How much memory decoders take for the worst bodies there are, as a multiple of what comes in or goes out.

``CASES`` is the table: the peak beside the body, over the larger of the body and the tensors (a string counting as 64
bytes), and a little for what does not grow. It is measured as the resident size of a process forked for each body, so
it holds what NumPy, pyarrow and C code take, too.

The multiples are those of bodies made to be the worst: text or markers of a byte or two for what is an object in
Python. Bodies of numbers as clients send them take 1 to 10 times.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from byoc_server.codecs.base import DecodeOptions, Enveloped, codecs_by_media_type
from byoc_server.codecs.protobuf.crc32c import masked_crc32c
from byoc_server.errors import RequestError
from byoc_server.types import STRING, STRING_BYTES, Signature
from tests.codecs.signatures import one

MIB = 1024 * 1024
BODY_BYTES = MIB
SPARE_BYTES = 4 * MIB
"""What is taken whatever the size of the body: blocks that are worked on one at a time, tables, modules."""
LIMIT_BYTES = 16 * MIB
"""Of the tensors. Bodies that are small, but stand for more, get just below it."""

NUMBERS, COLUMN, ROWS = one(shape=(None,)), one(shape=(None, 1)), one(shape=(None, None))
TEXTS, IMAGES = one("string", (None,)), one("uint8", (None, None))


@dataclass(frozen=True)
class Case:
    """One body and what it may take.

    Attributes:
        media_type: of the body.
        what: it is.
        most: times the body or the tensors.
        signature: of the model.
        body: makes it.
        outcome: how the refusal begins, if it is refused.
        parameters: of the media type.
    """

    media_type: str
    what: str
    most: float
    signature: Signature
    body: Callable[[], bytes]
    outcome: str = "tensors"
    parameters: dict[str, str] = field(default_factory=dict)


def filled(unit: bytes, before: bytes = b"", after: bytes = b"") -> Callable[[], bytes]:
    return lambda: before + unit * (BODY_BYTES // len(unit)) + after


def packed(item: bytes) -> Callable[[], bytes]:
    """A MessagePack list."""
    count = BODY_BYTES // len(item)
    return lambda: b"\xdd" + struct.pack(">I", count) + item * count


def npy(array: Any) -> Callable[[], bytes]:
    def body() -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    return body


def npz(array: Any) -> Callable[[], bytes]:
    def body() -> bytes:
        stream = io.BytesIO()
        np.savez_compressed(stream, x=array)
        return stream.getvalue()

    return body


def table(array: pa.Array, kind: str) -> Callable[[], bytes]:
    def body() -> bytes:
        stream = io.BytesIO()
        columns = pa.table({"x": array})
        if kind == "parquet":
            parquet.write_table(columns, stream)
        else:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with opened(stream, columns.schema, options=options) as writer:
                writer.write_table(columns)
        return stream.getvalue()

    return body


def message(number: int, content: bytes) -> bytes:
    """A field of a protobuf message; the length takes four bytes, whatever it is."""
    size = len(content)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    return bytes([number << 3 | 2]) + length + content


def record(content: bytes, name: bytes = b"values", number: int = 2) -> bytes:
    """A RecordIO frame of one tensor."""
    data = message(1, message(1, name) + message(2, message(number, content)))
    return b"\x0a\x23\xd7\xce" + struct.pack("<I", len(data)) + data + bytes(-len(data) % 4)


def example(content: bytes, number: int) -> bytes:
    """A record of a TFRecord file, with one list."""
    data = message(1, message(1, message(1, b"x") + message(2, message(number, content))))
    head = struct.pack("<Q", len(data))
    return head + crc(head) + data + crc(data)


def crc(data: bytes) -> bytes:
    return masked_crc32c(data, np.array([0]), np.array([len(data)])).tobytes()


def form(part: bytes) -> Callable[[], bytes]:
    head = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
    return (
        filled(b"0," * (BODY_BYTES // 2), head + b"[", b"0]\r\n--b--")
        if not part
        else lambda: (head + part + b"\r\n") * 1024 + b"--b--"
    )


OPEN_INFERENCE = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d],"data":[' % (BODY_BYTES // 2 + 1)
J, L, C, M = "application/json", "application/jsonlines", "text/csv", "application/msgpack"
S, Z, Y, P = "text/libsvm", "application/x-npz", "application/x-npy", "application/x-parquet"
R, T, A = "application/x-recordio-protobuf", "application/x-tfexample", "application/vnd.apache.arrow."
CASES = [
    Case(J, "digits", 6, NUMBERS, filled(b"0,", b"[", b"0]")),
    Case(J, "numbers", 9, ROWS, filled(b"1.5,", b"[[", b"0]]")),
    Case(J, "rows of one number", 11, COLUMN, filled(b"[0],", b'{"instances":[', b"[0]]}")),
    Case(J, "records of one number", 4, NUMBERS, filled(b'{"x":1},', b'{"instances":[', b'{"x":1}]}')),
    Case(J, "empty lists", 2, ROWS, filled(b"[],", b"[", b"[]]"), "the lists and objects"),
    Case(J, "empty lists, not too many", 28, ROWS, filled(b"[],  ", b"[", b"[]]")),
    Case(J, "empty objects", 3, NUMBERS, filled(b"{},", b"[", b"{}]"), "the lists and objects"),
    Case(J, "NaN", 8, NUMBERS, filled(b"NaN,", b"[", b"0]")),
    Case(L, "digits", 7, NUMBERS, filled(b"0\n")),
    Case(L, "empty objects", 3, NUMBERS, filled(b"{}\n"), "the lists and objects"),
    Case(L, "empty objects, not too many", 28, NUMBERS, filled(b"{}  \n"), "line 1: missing"),
    Case(L, "empty lists", 4, ROWS, filled(b"[]\n")),
    Case(L, "records of one number", 5, NUMBERS, filled(b'{"x":1}\n')),
    Case(J, "Open Inference", 6, NUMBERS, filled(b"0,", OPEN_INFERENCE, b"0]}]}")),
    Case(C, "digits", 7, COLUMN, filled(b"0\n")),
    Case(C, "empty cells", 6, ROWS, filled(b",\n")),
    Case(C, "quoted cells", 2, TEXTS, filled(b'""\n')),
    Case(C, "digits under a header", 7, COLUMN, filled(b"0\n", b"x\n"), parameters={"header": "present"}),
    Case(Y, "bytes to floats", 1.5, one("float64", (None,)), npy(np.zeros(BODY_BYTES, np.int8))),
    Case(Y, "texts", 1.5, TEXTS, npy(np.full(BODY_BYTES // 4, b"a\0\0\0", "S4"))),
    Case(Z, "zeros", 1.5, one(), npz(np.zeros((LIMIT_BYTES // 16 - 8, 4), np.float32))),
    Case(Z, "zeros to smaller ones", 3.5, one(), npz(np.zeros((LIMIT_BYTES // 32 - 8, 4)))),
    Case("application/octet-stream", "booleans", 3, one("bool", (None,)), filled(b"\2")),
    Case(S, "short lines", 12, ROWS, filled(b"0:1\n")),
    Case(S, "comments", 6, ROWS, filled(b"#\n"), "body holds only comments"),
    Case(S, "lines to read word by word", 14, COLUMN, filled(b"0:1\n", b"", b"0:1_0\n"), "line 262145, index 0"),
    Case(S, "one line", 50, ROWS, filled(b":"), "line 1: expected INDEX"),
    Case(M, "digits", 13, NUMBERS, packed(b"\1")),
    Case(M, "lists of one digit", 40, ROWS, packed(b"\x91\1")),
    Case(M, "empty lists", 46, ROWS, packed(b"\x90"), "body holds more than"),
    Case(M, "short arrays", 12, IMAGES, packed(b"\xc4\1a"), "body holds more than"),
    Case(R, "empty records", 3, NUMBERS, filled(b"\x0a\x23\xd7\xce\0\0\0\0"), "record 1: missing"),
    Case(R, "small records", 5, COLUMN, filled(record(struct.pack("<Bf", 13, 1)), b"", record(b"\x0a\4" + bytes(4)))),
    Case(R, "varints", 6, ROWS, lambda: record(message(1, b"\1" * (BODY_BYTES - 1)), number=7)),
    Case(T, "small records", 10, COLUMN, filled(example(b"\x0a\4" + bytes(4), 2), b"", example(b"\x0d" + bytes(4), 2))),
    Case(T, "texts", 1.5, one("string", (None, None)), lambda: example(b"\x0a\0" * (BODY_BYTES // 2 - 1), 1)),
    Case(A + "stream", "zeros", 2, NUMBERS, table(pa.array(np.zeros(LIMIT_BYTES // 4 - 100, np.float32)), "stream")),
    Case(A + "file", "zeros to smaller ones", 4.5, NUMBERS, table(pa.array(np.zeros(LIMIT_BYTES // 8 - 99)), "file")),
    Case(P, "numbers", 16, NUMBERS, table(pa.array(np.random.default_rng(0).random(180_000)), "parquet")),
    Case("multipart/form-data", "one part", 6, NUMBERS, form(b""), parameters={"boundary": "b"}),
    Case("multipart/form-data", "parts", 4, NUMBERS, form(b"[" + b"0," * 1000 + b"0]"), parameters={"boundary": "b"}),
]


def measure(folder: str) -> None:
    """Decode the body of each case in a process of its own; print bytes of tensors and peak, and what came of it.

    The processes are forked from one that has loaded all codecs and decoded nothing.
    """
    decoders = [codecs_by_media_type()[case.media_type].load().decode for case in CASES]
    for number, (case, decode) in enumerate(zip(CASES, decoders, strict=True)):
        body = Path(folder, str(number)).read_bytes()
        if os.fork():
            os.wait()
            continue
        options = DecodeOptions(case.parameters, LIMIT_BYTES)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        size, outcome = 0, "tensors"
        try:
            decoded = decode(body, case.signature, options)
            tensors = decoded.tensors if isinstance(decoded, Enveloped) else decoded
            size = sum(a.size * STRING_BYTES if a.dtype == STRING else a.nbytes for a in tensors.values())
        except RequestError as error:
            outcome = error.message
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(json.dumps([number, len(body), size, peak, outcome]), flush=True)
        os._exit(0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("bodies")
    for number, case in enumerate(CASES):
        (folder / str(number)).write_bytes(case.body())
    command = "import sys; from tests.codecs.test_memory import measure; measure(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder)], stdout=subprocess.PIPE, text=True, timeout=240, check=True
    )
    return {number: rest for number, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.media_type} {case.what}" for case in CASES])
def test_the_worst_bodies_take_a_multiple(number: int, measured: dict[int, Any]) -> None:
    """Checklist 84."""
    case = CASES[number]
    body_bytes, tensor_bytes, peak_bytes, outcome = measured[number]
    allowed_bytes = case.most * max(body_bytes, tensor_bytes) + SPARE_BYTES
    assert peak_bytes <= allowed_bytes, (body_bytes, tensor_bytes, outcome)
    assert outcome.startswith(case.outcome)
