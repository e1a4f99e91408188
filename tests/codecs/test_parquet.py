"""``application/x-parquet``: files of several writers' options, and files that declare more than they hold."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from byoc_server.codecs.base import DecodeOptions, codecs_by_media_type
from byoc_server.codecs.columnar import parquet_walk
from byoc_server.codecs.parquet import decode, encode
from byoc_server.errors import InvalidPayload, NotAcceptable, TensorsTooLarge
from byoc_server.types import Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_arrow_stream import GRID, fixed_lists, shared_schema
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors
from tests.onnx_models import identity
from tests.server_process import running

MEDIA_TYPE = "application/x-parquet"
WORDS = ["a", "b" * 50, "a", "\u00e4"]


def written(columns: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink, **options)
    return sink.getvalue()


def read(columns: Any, signature: Signature, **options: Any) -> Any:
    body = columns if isinstance(columns, bytes) else written(columns, **options)
    result = decode(body, signature, OPTIONS)
    return result["x"] if signature.sole_input else result


def refusal(body: bytes, signature: Signature | None = None, options: DecodeOptions = OPTIONS) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(body, signature or one(), options)
    assert len(caught.value.message) < 600
    return caught.value


WRITERS: list[dict[str, Any]] = [
    {},
    {"compression": "none", "use_dictionary": False},
    {"compression": "gzip", "row_group_size": 1},
    {"compression": "zstd", "data_page_version": "2.0"},
    {"compression": "brotli", "store_schema": False},
    {"compression": "lz4", "version": "1.0", "write_page_index": True, "write_page_checksum": True},
    {"use_dictionary": False, "use_byte_stream_split": True},
    {"write_statistics": False, "use_compliant_nested_type": False},
]


@pytest.mark.parametrize("options", WRITERS, ids=str)
def test_files(options: dict[str, Any]) -> None:
    plain = {key: value for key, value in options.items() if key != "use_byte_stream_split"}
    assert_same(read({"x": fixed_lists(GRID)}, one(), **options), GRID)
    assert_same(read({name: GRID[:, i] for i, name in enumerate("abcd")}, one(), **options), GRID)
    assert_same(read({"x": pa.array(GRID.tolist(), pa.large_list(pa.float64()))}, one(), **options), GRID)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())):
        assert_same(read({"x": pa.array(WORDS, kind)}, one("string", (None,)), **plain), texts(WORDS))
    for kind in (pa.list_(pa.string()), pa.large_list(pa.list_(pa.large_string(), 4))):
        nested = [[WORDS]] * 2 if pa.types.is_large_list(kind) else [WORDS] * 2
        shape = (None, 1, 4) if pa.types.is_large_list(kind) else (None, 4)
        assert_same(read({"x": pa.array(nested, kind)}, one("string", shape), **plain), texts(nested))
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        info = np.iinfo(dtype)
        values = np.array([info.min, 1, info.max], dtype)
        assert_same(read({"x": values}, one(dtype, (None,)), **plain), values)
    for dtype in ("float16", "float32", "float64"):
        floats = np.array([1.5, np.nan, np.inf], dtype)
        assert_same(read({"x": floats}, one(dtype, (None,)), **plain), floats)
    assert_same(read({"x": [True, False]}, one("bool", (None,)), **plain), np.array([True, False]))
    assert_same(read({"x": pa.array([1, None])}, one("float64", (None,)), **plain), np.array([1, np.nan]))
    both = several(("a", "float32", (None, 2)), ("s", "string", (None,)))
    received = read({"s": ["u"], "a": pa.array([[1, 2]])}, both, **plain)
    assert_same(received["a"], np.array([[1, 2]], np.float32))
    assert_same(received["s"], texts(["u"]))


def test_tensors() -> None:
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(cube)
    assert_same(read({"x": column}, one(shape=(None, 3, 4))), cube)


def test_deltas_of_numbers() -> None:
    values = np.arange(1000, dtype=np.int64)
    body = written({"x": values}, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED")
    assert_same(read(body, one("int64", (None,))), values)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body is not a Parquet file: it does not start and end with PAR1"),
        (b"PAR1", "the Parquet footer claims"),
        (b"PAR1PAR1", "the Parquet footer claims"),
        (b"PAR1\0\0\0\0PAR1", "the Parquet footer claims 0 bytes of 12"),
        (b"PAR1\xff\xff\xff\xffPAR1", "the Parquet footer claims 4294967295 bytes of 12"),
        (b"PAR1\x15\x01\0\0\0PAR1", "the Parquet footer cannot be read: it is cut"),
        (b"PAR1\0\x01\0\0\0PAR1", "the Parquet footer cannot be read: field 3 is missing"),
        (written({"x": pa.array([1], pa.timestamp("s"))}), "column 'x' holds timestamp, which is not read"),
        (written({"x": pa.array([1], pa.timestamp("s"))}, store_schema=False), "type 'timestamp[ms]' is not read"),
        (written({"x": pa.array([1], pa.decimal128(20))}, store_schema=False), "holds 96-bit times, decimals or fixed"),
        (
            written({"x": pa.array([b"ab"], pa.binary(2))}),
            "column 'x' holds 96-bit times, decimals or fixed-size binary",
        ),
        (written({"x": pa.array([b"abc"], pa.binary(3))}), "column 'x' holds 96-bit times, decimals or fixed-size"),
        (written({"x": pa.array([{"a": 1}])}, store_schema=False), "type 'struct<a: int64>' is not read"),
        (written({"x": GRID[:0, 0]}), "the table has no rows"),
        (written({"x": GRID[:, 0], "y": GRID[:, 0]}), "expected 4 columns or one of lists"),
        (written({"x": ["a"]}, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY"), "the encoding DELTA_BYTE_A"),
        (
            written({"x": ["a"]}, use_dictionary=False, column_encoding="DELTA_LENGTH_BYTE_ARRAY"),
            "column 'x': the encoding DELTA_LENGTH_BYTE_ARRAY is not read; write plain or dictionary pages",
        ),
    ],
)
def test_bodies_that_do_not_fit(body: bytes, words: str) -> None:
    assert words in refusal(body).message


def test_files_that_are_cut_or_grown() -> None:
    body = written({"x": fixed_lists(GRID)})
    for end in range(len(body)):
        refusal(body[:end])
    for start in range(1, 30):
        refusal(body[start:])
    assert "does not start and end with PAR1" in refusal(body + b"\0").message


# Files by hand: Thrift compact protocol (thrift-compact-protocol.md), fields as in parquet.thrift.

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
Field = tuple[int, int, bytes]


def varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def zigzag(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def record(*fields: Field) -> bytes:
    text, last = b"", 0
    for number, kind, value in fields:
        text += bytes([(number - last) << 4 | kind]) if 0 < number - last < 16 else bytes([kind]) + zigzag(number)
        text, last = text + value, number
    return text + b"\0"


def i32(number: int, value: int) -> Field:
    return number, I32, zigzag(value)


def i64(number: int, value: int) -> Field:
    return number, I64, zigzag(value)


def binary(number: int, value: bytes) -> Field:
    return number, BINARY, varint(len(value)) + value


def items(number: int, kind: int, values: Sequence[bytes]) -> Field:
    head = bytes([len(values) << 4 | kind]) if len(values) < 15 else bytes([0xF0 | kind]) + varint(len(values))
    return number, LIST, head + b"".join(values)


def framed(pages: bytes, footer: bytes) -> bytes:
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"


ROOT = record(binary(4, b"schema"), i32(5, 1))
LEAF = record(i32(1, 4), i32(3, 0), binary(4, b"x"))


def data_page(values: int, unpacked: int, data: bytes, packed: int | None = None, encoding: int = 0) -> bytes:
    inner = record(i32(1, values), i32(2, encoding), i32(3, 3), i32(4, 3))
    size = len(data) if packed is None else packed
    return record(i32(1, 0), i32(2, unpacked), i32(3, size), (5, STRUCT, inner)) + data


def chunk(
    pages: bytes, values: int, *, start: int = 4, size: int | None = None, codec: int = 0, more: tuple[Field, ...] = ()
) -> bytes:
    meta = record(
        i32(1, 4),
        items(2, I32, [zigzag(0)]),
        items(3, BINARY, [varint(1) + b"x"]),
        i32(4, codec),
        i64(5, values),
        i64(6, 10),
        i64(7, len(pages) if size is None else size),
        i64(9, start),
        *more,
    )
    return record(i64(2, 0), (3, STRUCT, meta))


def footer_of(chunks: Sequence[bytes], rows: int, *more: Field, elements: Sequence[bytes] = (ROOT, LEAF)) -> bytes:
    group = record(items(1, STRUCT, chunks), i64(2, 0), i64(3, rows))
    return record(i32(1, 1), items(2, STRUCT, elements), i64(3, rows), items(4, STRUCT, [group]), *more)


def hand_made(pages: bytes, values: int, rows: int, **changes: Any) -> bytes:
    return framed(pages, footer_of([chunk(pages, values, **changes)], rows))


GOOD = data_page(3, 12, np.array([1, 2, 3], np.float32).tobytes())
COLUMN = one(shape=(None,))


def test_a_file_by_hand() -> None:
    assert_same(read(hand_made(GOOD, 3, 3), COLUMN), np.array([1, 2, 3], np.float32))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (hand_made(GOOD, 3, 2**31), "3 values are declared for 2147483648 rows"),
        (hand_made(GOOD, 3, 2**62), "3 values are declared for"),
        (hand_made(GOOD, 2**31, 2**31), "the file unpacks to 17179869184 bytes or more, the limit is 536870912"),
        (hand_made(GOOD, 2**63 - 1, 3), "the file unpacks to"),
        (hand_made(GOOD, 4, 4), "column 'x': 1 of its values are in no page"),
        (hand_made(GOOD, 2, 2), "column 'x': its pages hold more values than the footer declares"),
        (hand_made(GOOD, 3, -1), "3 values are declared for -1 rows"),
        (hand_made(GOOD, -1, -1), "-1 values are declared for -1 rows"),
        (hand_made(GOOD, 3, 3, start=-4), "its pages lie outside of the file"),
        (hand_made(GOOD, 3, 3, size=2**62), "its pages lie outside of the file"),
        (hand_made(GOOD, 3, 3, size=-1), "its pages lie outside of the file"),
        (hand_made(GOOD, 3, 3, start=2**63 - 1), "its pages lie outside of the file"),
        (hand_made(GOOD, 3, 3, size=20), "it declares 12 bytes in 12"),
        (hand_made(GOOD, 3, 3, more=(i64(11, 3),)), "its pages lie outside of the file"),
        (hand_made(GOOD, 3, 3, more=(i64(9, 4),)), "field 9 is there twice"),
        (hand_made(data_page(3, 2**31 - 1, bytes(20)), 3, 3, codec=6), "unpacks to 2147483647 bytes or more"),
        (hand_made(data_page(3, -1, bytes(12)), 3, 3), "it declares -1 bytes in 12"),
        (hand_made(data_page(3, 12, bytes(12), -1), 3, 3), "it declares 12 bytes in -1"),
        (hand_made(data_page(3, 12, bytes(12), 2**31 - 1), 3, 3), "it declares 12 bytes in 2147483647"),
        (hand_made(data_page(-3, 12, bytes(12)), 3, 3), "it declares -3 values in encoding 0"),
        (hand_made(data_page(3, 12, bytes(12), encoding=99), 3, 3), "it declares 3 values in encoding 99"),
        (hand_made(data_page(0, 0, b"") * 30_000, 3, 3), "hold more than 200000 values"),
        (hand_made(record(i32(1, 1), i32(2, 0), i32(3, 0)), 3, 3), "it has no header of its kind"),
        (hand_made(record(i64(1, 0), i32(2, 0), i32(3, 0)), 3, 3), "field 1 is missing"),
        (hand_made(b"\x15\x00" * 5, 3, 3), "the page at byte 4 cannot be read"),
        (hand_made(b"", 3, 3), "3 of its values are in no page"),
        (framed(GOOD, footer_of([], 3)), "a row group has 0 columns, the schema 1"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)] * 2, 3)), "a row group has 2 columns, the schema 1"),
        (framed(GOOD, footer_of([record(i64(2, 0))], 3)), "a column is encrypted or lies in another file"),
        (
            framed(GOOD, footer_of([record(binary(1, b"/etc/passwd"), i64(2, 0), (3, STRUCT, b"\0"))], 3)),
            "a column is encrypted or lies in another file",
        ),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, (20, 13, b"\x03"))), "field 20 has the unknown type 13"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, items(20, I32, []))), "a list is not where or what it should be"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, items(5, I32, []))), "a list is not where or what it should be"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, (40000, I32, b"\0"))), "a number is too large for its type"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, (30, I32, b"\xff" * 5 + b"\x01"))), "a number is too large"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, (30, I64, b"\xff" * 12 + b"\x01"))), "a number is too long"),
        (framed(GOOD, footer_of([chunk(GOOD, 3)], 3, (30, STRUCT, b"\x1c" * 30 + bytes(31)))), "is nested too deep"),
        (
            framed(GOOD, footer_of([chunk(GOOD, 3)], 3, items(5, STRUCT, [record(binary(1, b"ARROW:schema"))]))),
            "body is not an Arrow stream: it has no schema",
        ),
        (
            framed(
                GOOD,
                footer_of([chunk(GOOD, 3)], 3, items(5, STRUCT, [record(binary(1, b"ARROW:schema"), binary(2, b"%"))])),
            ),
            "the value of ARROW:schema is not base64",
        ),
        (
            framed(GOOD, record(i32(1, 1), items(2, STRUCT, [ROOT, LEAF]), i64(3, 7), items(4, STRUCT, []))),
            "the rows of its groups are not those of the file",
        ),
        (
            framed(
                GOOD, footer_of([chunk(GOOD, 3)], 3, elements=[ROOT, record(i32(1, 3), i32(3, 0), binary(4, b"t"))])
            ),
            "column 't' holds 96-bit times",
        ),
    ],
)
def test_headers_that_lie(body: bytes, words: str) -> None:
    """Checklist 84: sizes are checked before memory is taken."""
    start_s = time.monotonic()
    assert words in refusal(body, COLUMN).message
    assert time.monotonic() - start_s < 2


def test_fields_that_no_one_knows_are_skipped() -> None:
    more: tuple[Field, ...] = ((20, 3, b"\x07"), (21, 7, bytes(8)), (22, 1, b""), (23, STRUCT, record(i32(1, 1))))
    body = framed(GOOD, footer_of([chunk(GOOD, 3)], 3, *more, (100, I32, b"\x02")))
    assert_same(read(body, COLUMN), np.array([1, 2, 3], np.float32))


def test_many_headers() -> None:
    """A column chunk of three bytes takes pyarrow 650."""
    pairs = [record(binary(1, b""))] * 110_000
    for footer in (
        footer_of([record(i64(2, 0))] * 110_000, 0),
        footer_of([], 0, items(5, STRUCT, pairs)),
        footer_of([], 0, elements=[ROOT] + [LEAF] * 110_000),
        footer_of([], 0, (5, LIST, b"\xfc" + varint(2**31 - 1))),
    ):
        start_s = time.monotonic()
        message = refusal(framed(b"", footer)).message
        assert "hold more than 200000 values" in message
        assert time.monotonic() - start_s < 5


def test_an_arrow_schema_that_unfolds() -> None:
    import base64

    schema = base64.b64encode(shared_schema(20_000, 100_000))
    pair = record(binary(1, b"ARROW:schema"), binary(2, schema))
    body = framed(GOOD, footer_of([chunk(GOOD, 3)], 3, items(5, STRUCT, [pair])))
    assert "it refers to the same parts too often" in refusal(body, COLUMN).message


def test_one_long_string_in_every_row() -> None:
    column = pa.DictionaryArray.from_arrays(np.zeros(200_000, np.int32), pa.array(["a" * 100_000]))
    for store_schema in (True, False):
        body = written({"x": column}, compression="zstd", store_schema=store_schema)
        assert len(body) < 2000  # for 20 GB of text
        received = read(body, one("string", (None,)))
        assert received[0] is received[-1]


def test_rows_by_run_length() -> None:
    body = written({"x": np.zeros(1_000_000, np.float32)}, compression="zstd")
    assert len(body) < 10_000
    small = DecodeOptions({}, max_tensor_bytes=1_000_000)
    assert "the file unpacks to" in refusal(body, COLUMN, small).message
    nested = written({"x": pa.array([[0.0] * 500_000])}, compression="zstd")
    assert "the file unpacks to" in refusal(nested, one(shape=(None, None)), small).message


def test_tensors_over_the_limit_are_told_from_other_faults() -> None:
    """And known before a page is unpacked: here they do not even hold what they declare."""
    small = DecodeOptions({}, max_tensor_bytes=1000)
    assert type(refusal(hand_made(GOOD, 1000, 1000), COLUMN, small)) is TensorsTooLarge
    packed = hand_made(data_page(3, 2000, bytes(12)), 3, 3, codec=6)
    assert type(refusal(packed, COLUMN, small)) is TensorsTooLarge
    assert type(refusal(hand_made(GOOD, 4, 4), COLUMN, small)) is InvalidPayload


@pytest.mark.parametrize("dictionary", [True, False])
def test_strings_count_as_the_objects_they_become(dictionary: bool) -> None:
    """100 strings in a dictionary or on a plain page take 64 bytes each, their rows 8 bytes more."""
    words = pa.array([str(i) for i in range(100)])
    body = written({"x": words}, use_dictionary=dictionary)
    for limit in (7200, 7199):
        options = DecodeOptions({}, max_tensor_bytes=limit)
        if limit == 7200:
            assert len(decode(body, one("string", (None,)), options)["x"]) == 100
        else:
            assert "the file unpacks to 7200 bytes or more" in refusal(body, one("string", (None,)), options).message
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), words[:1])
    rows = decode(written({"x": column}), one("string", (None,)), DecodeOptions({}, max_tensor_bytes=8064))
    assert len(rows["x"]) == 1000


def test_records_without_values_are_not_written() -> None:
    """pyarrow would not read them back."""
    for array, signature in (
        (np.zeros((2, 0), np.float32), one(shape=(None, None))),
        (np.zeros((2, 3, 0), np.float32), one(shape=(None, 3, None))),
        (np.zeros(0, np.float32), one(shape=(None,), batch_axis=ABSENT)),
    ):
        with pytest.raises(NotAcceptable, match="cannot carry output 'y', whose records are empty"):
            encode({"y": array}, signature, ENCODE)
    table = parquet.read_table(io.BytesIO(encode({"y": np.zeros((0, 3), np.float32)}, one(shape=(None, 3)), ENCODE)))
    assert table.num_rows == 0


def test_hostile_files_in_little_memory() -> None:
    """pyarrow's own allocations do not show in tracemalloc: a process of its own has a limit for all there is."""
    program = textwrap.dedent(
        """
        import resource, struct
        import numpy as np, pyarrow as pa
        from byoc_server.codecs import arrow_stream, parquet
        from byoc_server.codecs.base import DecodeOptions
        from byoc_server.errors import InvalidPayload
        from tests.codecs import test_arrow_stream as a, test_parquet as p

        numbers, words = p.COLUMN, p.one("string", (None,))
        nulls = a.written({"x": pa.nulls(3)})
        zeros = np.zeros(30_000_000, np.float32)
        text = pa.DictionaryArray.from_arrays(np.zeros(5_000_000, np.int32), pa.array(["a" * 100_000]))
        bodies = [
            (parquet, p.hand_made(p.data_page(3, 2**31 - 1, bytes(20)), 3, 3, codec=6), numbers),
            (parquet, p.hand_made(p.GOOD, 2**31 - 1, 2**31 - 1), numbers),
            (parquet, p.written({"x": zeros}, compression="zstd"), numbers),
            (parquet, p.written({"x": text}, compression="zstd"), words),
            (parquet, p.framed(b"", p.footer_of([p.record(p.i64(2, 0))] * 1_000_000, 0)), numbers),
            (arrow_stream, a.written({"x": zeros}, compression="zstd"), numbers),
            (arrow_stream, nulls.replace(struct.pack("<q", 3), struct.pack("<q", 2**40)), numbers),
            (arrow_stream, a.shared_schema(200_000, 1_000_000), numbers),
        ]
        del zeros, text
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, taken + 300_000_000))
        for codec, body, signature in bodies:
            try:
                codec.decode(body, signature, DecodeOptions({}, max_tensor_bytes=64_000_000))
            except InvalidPayload as error:
                print(error.message)
            else:
                print("decoded")
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
    assert done.stdout.count("decoded") == 1, done.stdout  # five million places of one text


def test_nothing_ends_the_process() -> None:
    """pyarrow's metadata objects do, at a histogram of another length than the levels have."""
    levels = (16, STRUCT, record(items(2, I64, [zigzag(1)] * 9), items(3, I64, [zigzag(1)] * 9)))
    assert "cannot be read" in refusal(hand_made(GOOD, 3, 3, more=(levels,)), COLUMN).message


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_laws(signature: Signature) -> None:
    """Checklist 80 and 36: what is written reads back, and damage gives tensors or a refusal."""

    @LAWS
    @given(st.data())
    def law(data: st.DataObject) -> None:
        sent = data.draw(tensors(signature))
        body = bytearray(encode(sent, echo(signature), ENCODE))
        assert parquet.read_table(io.BytesIO(body)).column_names == [spec.name for spec in signature.inputs]
        for name, array in decode(bytes(body), signature, OPTIONS).items():
            assert_same(array, sent[name])
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        assert_tensors_or_refusal(codecs_by_media_type()[MEDIA_TYPE], bytes(body), signature, OPTIONS)

    law()


def test_the_other_name() -> None:
    assert codecs_by_media_type()["application/vnd.apache.parquet"].media_type == MEDIA_TYPE
    assert parquet_walk.check_file(written({"x": ["a"], "y": [1]}), 10_000) == [0]


def test_over_a_socket(tmp_path: Path) -> None:
    with running("--model", str(identity(tmp_path / "m.onnx", shape=("N", 4)))) as server:
        body = written({name: GRID[:, i] for i, name in enumerate("abcd")})
        answer = server.invoke(body, Content_Type="application/vnd.apache.parquet", Accept=MEDIA_TYPE)
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert parquet.read_table(io.BytesIO(answer.content)).column(0).to_pylist() == GRID.tolist()
        answer = server.invoke(body[:-1], Content_Type=MEDIA_TYPE)
        assert answer.status_code == 400
        assert "PAR1" in answer.json()["error"]["message"]
