"""``application/x-npz``: archives of NumPy, SciPy and ``zipfile``, and archives that lie."""

from __future__ import annotations

import io
import pickle  # noqa: TID251  # to show that nothing here is unpickled
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.base import DecodeOptions, codecs_by_media_type
from byoc_server.codecs.npz import decode, encode
from byoc_server.errors import InvalidPayload, NotAcceptable
from byoc_server.types import BatchAxis, Signature
from tests.codecs.signatures import ABSENT, ENCODE, OPTIONS, assert_same, one, several, texts
from tests.codecs.test_roundtrip import LAWS, SIGNATURES, assert_tensors_or_refusal, echo, tensors
from tests.onnx_models import two_inputs
from tests.server_process import running

ENTRY = codecs_by_media_type()["application/x-npz"]
GRID = np.arange(8, dtype=np.float32).reshape(2, 4)
TWO = several(("a", "float32", (None, 2)), ("s", "string", (None,)))
MIB = 1024 * 1024


def saved(*arrays: Any, packed: Any = False, **named: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, *arrays, **named)
    return stream.getvalue()


def member(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
        archive.comment = comment
    return stream.getvalue()


class Unseekable(io.BytesIO):
    """Makes ``zipfile`` write sizes after the data."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, *_: int) -> int:
        raise OSError


FIELDS = {
    "local.signature": (0, "<4s"),
    "local.method": (8, "<H"),
    "local.packed": (18, "<I"),
    "local.name_size": (26, "<H"),
    "local.extra_size": (28, "<H"),
    "entry.signature": (0, "<4s"),
    "entry.flags": (8, "<H"),
    "entry.method": (10, "<H"),
    "entry.crc": (16, "<I"),
    "entry.packed": (20, "<I"),
    "entry.plain": (24, "<I"),
    "entry.name_size": (28, "<H"),
    "entry.extra_size": (30, "<H"),
    "entry.comment_size": (32, "<H"),
    "entry.place": (42, "<I"),
    "end.disk": (4, "<H"),
    "end.directory_disk": (6, "<H"),
    "end.here": (8, "<H"),
    "end.count": (10, "<H"),
    "end.size": (12, "<I"),
    "end.start": (16, "<I"),
    "end.comment": (20, "<H"),
}
"""Place of a field in its record (APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16)."""
SIGNATURES_OF_RECORDS = {"local": b"PK\3\4", "entry": b"PK\1\2", "end": b"PK\5\6"}


def forged(body: bytes, **fields: Any) -> bytes:
    """Overwrite fields of the last record of each kind."""
    forgery = bytearray(body)
    for name, value in fields.items():
        key = name.replace("__", ".")
        offset, layout = FIELDS[key]
        struct.pack_into(layout, forgery, body.rindex(SIGNATURES_OF_RECORDS[key.partition(".")[0]]) + offset, value)
    return bytes(forgery)


def read(body: bytes, signature: Signature, options: DecodeOptions = OPTIONS) -> Any:
    received = decode(body, signature, options)
    return received[signature.inputs[0].name] if signature.sole_input else received


def refusal(body: bytes, signature: Signature, options: DecodeOptions = OPTIONS) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        decode(body, signature, options)
    assert len(caught.value.message) < 400
    return caught.value


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("array", "signature", "expected"),
    [
        (GRID, one(), GRID),
        (GRID.astype(">f8"), one(), GRID),
        (np.asfortranarray(GRID), one(), GRID),
        (GRID[0], one(), GRID[:1]),
        (GRID.astype(np.float16), one("float16"), GRID.astype(np.float16)),
        (GRID, one("int8"), GRID.astype(np.int8)),
        (GRID, one(shape=(8, 4), batch_axis=BatchAxis.FIXED), GRID),
        (GRID, one(shape=(2, 4), batch_axis=ABSENT), GRID),
        (np.float32(3), one(shape=(), batch_axis=ABSENT), np.array(3, np.float32)),
        (np.array([True, False]), one("bool", (None,)), np.array([True, False])),
        (np.array(["a", "\u00e4\u20ac"]), one("string", (None,)), texts(["a", "\u00e4\u20ac"])),
        (np.array([b"a", b""]), one("string", (None,)), texts(["a", ""])),
    ],
)
def test_one_input(array: Any, signature: Signature, expected: Any, packed: bool) -> None:
    for body in (saved(x=array, packed=packed), saved(array, packed=packed), saved(**{"a/../b": array}, packed=packed)):
        received = read(body, signature)
        assert_same(received, expected)
        assert received.flags.c_contiguous
        assert received.flags.aligned


@pytest.mark.parametrize("packed", [False, True])
def test_several_inputs(packed: bool) -> None:
    received = read(saved(s=np.array(["x", "yy"]), a=np.array([[1, 2], [3, 4]]), packed=packed), TWO)
    assert list(received) == ["a", "s"]
    assert_same(received["a"], np.array([[1, 2], [3, 4]], np.float32))
    assert_same(received["s"], texts(["x", "yy"]))


@pytest.mark.parametrize("rest", [-130, -129, -128, -127, -1, 0, 1, 5, 300])
@pytest.mark.parametrize("steps", [1, 2, 32])
def test_sizes_around_the_steps_of_inflating(steps: int, rest: int) -> None:
    """Zeros, of which much may wait within the inflater; and what hardly gets smaller."""
    size = steps * 256 * 1024 + rest
    for array in (np.zeros(size, np.uint8), np.random.default_rng(0).integers(0, 250, size // 8, np.uint8)):
        assert_same(read(saved(x=array, packed=True), one("uint8", (None,))), array)


def test_names_of_all_kinds() -> None:
    names = ["\u00e4\u20ac", "model/dense:0", "../x", "x.npy", "x", ""]
    signature = several(*[(name, "int64", (None,)) for name in names])
    received = read(saved(**{name: [i] for i, name in enumerate(names)}), signature)
    assert {name: array.tolist() for name, array in received.items()} == {name: [i] for i, name in enumerate(names)}
    assert read(zipped(("x", member([1])), ("y", member([2]))), several(("x", "int8", (None,)), ("y", "int8", (None,))))


def test_stored_data_that_lies_aligned_is_not_copied() -> None:
    body = saved(images=GRID)  # with this name it does
    received = read(body, one())
    assert np.shares_memory(received, np.frombuffer(body, np.uint8))
    for length in range(1, 9):
        received = read(saved(**{"x" * length: GRID.astype(np.float64)}), one("float64"))
        assert received.flags.aligned
        assert_same(received, GRID.astype(np.float64))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_after_the_data(method: int) -> None:
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a.npy", member([[1, 2]]))
        archive.writestr("s.npy", member(["x"]))
    body = stream.getvalue()
    assert b"PK\7\x08" in body
    assert read(body, TWO)["s"].tolist() == ["x"]


@pytest.fixture
def zip64_body(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """All sizes, places and counts are in zip64 records."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", -1)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    body = zipped(("a.npy", member([[1, 2]])), ("s.npy", member(["x"])))
    assert body.count(b"PK\6\6") == body.count(b"PK\6\7") == 1
    return forged(body, end__count=0xFFFF, end__here=0xFFFF, end__size=0xFFFFFFFF, end__start=0xFFFFFFFF)


def test_zip64_archives(zip64_body: bytes) -> None:
    assert read(zip64_body, TWO)["s"].tolist() == ["x"]
    foreign = zip64_body.replace(b"\x01\x00\x18\x00", b"\x02\x00\x18\x00")
    assert "zip64 field is missing" in refusal(foreign, TWO).message
    for value in (0, 2**63, 2**64 - 1):
        for at in range(0, 24, 8):
            field = zip64_body.index(b"\x01\x00\x18\x00", zip64_body.index(b"PK\1\2")) + 4 + at
            forgery = zip64_body[:field] + struct.pack("<Q", value) + zip64_body[field + 8 :]
            if forgery != zip64_body:
                refusal(forgery, TWO)
        for at in (24, 32, 40, 48):
            field = zip64_body.index(b"PK\6\6") + at
            refusal(zip64_body[:field] + struct.pack("<Q", value) + zip64_body[field + 8 :], TWO)
        field = zip64_body.index(b"PK\6\7") + 8
        refused = refusal(zip64_body[:field] + struct.pack("<Q", value) + zip64_body[field + 8 :], TWO)
        assert "not where the locator says" in refused.message
    assert "locator is missing" in refusal(zip64_body.replace(b"PK\6\7", b"PK\6\x08"), TWO).message


def test_another_extra_field_may_come_first() -> None:
    """Archives of other writers keep times and owners there."""
    body = zipped(("x.npy", member(GRID)))
    directory, end = body.index(b"PK\1\2"), body.index(b"PK\5\6")
    size = len(member(GRID))
    extra = b"UT\5\0\3\0\0\0\0" + struct.pack("<2HQ", 1, 8, size)
    grown = forged(body, entry__extra_size=len(extra), entry__plain=0xFFFFFFFF, end__size=end - directory + len(extra))
    grown = grown[:end] + extra + grown[end:]
    assert_same(read(grown, one()), GRID)
    short = grown.replace(extra, extra[:11] + b"\xff" + extra[12:])
    assert_same(read(short, one()), GRID)  # a field cannot be longer than the room there is


def test_a_comment_is_skipped() -> None:
    assert_same(read(zipped(("x.npy", member(GRID)), comment=b"made by hand" * 1000), one()), GRID)


GOOD = zipped(("a.npy", member([[1, 2]])), ("s.npy", member(["x"])))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body is not an .npz archive: it has no directory of a zip archive at its end"),
        (b"PK\5\6", "no directory"),
        (member(GRID), "no directory"),
        (GOOD[:-1], "no directory"),
        (GOOD[:-22], "no directory"),
        (GOOD + b"\0", f"the archive ends at byte {len(GOOD)}, the body has {len(GOOD) + 1} bytes"),
        (GOOD + b"\0" * 70000, "no directory"),
        (b"\0" + GOOD, "not an entry of a directory"),
        (GOOD[1:], "claims bytes"),
        (zipped(), "has 0 members"),
        (forged(GOOD, end__count=1, end__here=1), "the directory goes on for 51 bytes after its last entry"),
        (forged(GOOD, end__count=3, end__here=3), "the directory ends within an entry"),
        (forged(GOOD, end__count=3), "one part of several"),
        (forged(GOOD, end__disk=1), "one part of several"),
        (forged(GOOD, end__directory_disk=1), "one part of several"),
        (forged(GOOD, end__count=65535), "the zip64 locator is missing"),
        (forged(GOOD, end__count=60000, end__here=60000), "has 60000 members"),
        (forged(GOOD, end__size=2**32 - 2), "claims bytes"),
        (forged(GOOD, end__size=60), "directory ends within an entry"),
        (forged(GOOD, end__size=97), "not an entry of a directory"),
        (forged(GOOD, end__start=0), "not an entry of a directory"),
        (forged(GOOD, end__comment=7), "the archive ends at byte"),
        (forged(GOOD, entry__signature=b"PK\1\3"), "not an entry of a directory"),
        (forged(GOOD, entry__name_size=6), "not an entry of a directory"),
        (forged(GOOD, entry__name_size=4), "the header of member b's.np' is not what the directory says"),
        (forged(GOOD, entry__name_size=65535), "not an entry of a directory"),
        (forged(GOOD, entry__extra_size=1), "not an entry of a directory"),
        (forged(GOOD, entry__comment_size=1), "not an entry of a directory"),
        (forged(GOOD, entry__packed=2**32 - 2), "the header of member b's.npy' is not what the directory says"),
        (forged(GOOD, entry__packed=2**31, local__packed=2**31), "the sizes of member 's' cannot be right"),
        (forged(GOOD, entry__plain=5), "the sizes of member 's' cannot be right"),
        (forged(GOOD, entry__plain=2**32 - 1), "the zip64 field is missing"),
        (forged(GOOD, entry__packed=1, entry__plain=1), "the header of member"),
        (forged(GOOD, entry__place=2**32 - 2), "lies outside of the archive"),
        (forged(GOOD, entry__place=1), "does not begin here"),
        (forged(GOOD, entry__place=0), "the header of member"),
        (forged(GOOD, local__signature=b"PK\3\5"), "does not begin here"),
        (forged(GOOD, local__method=8), "is not what the directory says"),
        (forged(GOOD, local__packed=1), "is not what the directory says"),
        (forged(GOOD, local__name_size=4), "is not what the directory says"),
        (forged(GOOD, local__name_size=65535), "is not what the directory says"),
        (forged(GOOD, local__extra_size=65535), "cannot be right"),
        (forged(GOOD, local__extra_size=1), "cannot be right"),
        (forged(GOOD, entry__flags=1), "member 's' is encrypted; only stored and deflated members are read"),
        (forged(GOOD, entry__flags=0x40), "encrypted"),
        (forged(GOOD, entry__flags=0x2000), "encrypted"),
        (forged(GOOD, entry__method=12), "packed by method 12"),
        (forged(GOOD, entry__method=8, local__method=8), "member 's.npy': it does not inflate"),
        (GOOD.replace(b"s.npy", b"\xff.npy").replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\0\x08"), "UTF-8"),
    ],
)
def test_archives_that_lie(body: bytes, words: str) -> None:
    """Checklist 84: lengths are checked before they are used."""
    error = refusal(body, TWO)
    assert words in error.message
    assert set(error.details) & {"field", "expected"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a.npy", "a"), ("a", "a")])
def test_names_that_come_twice(names: tuple[str, str]) -> None:
    body = zipped((names[0], member([[1, 2]])), (names[1], member([[3, 4]])))
    assert refusal(body, TWO).message == "two members are called 'a'"


def test_members_that_overlap() -> None:
    """Two members over the same bytes are how a small archive becomes a large one."""
    inner = zipped(("s.npy", member(["x"])))
    inner = inner[: inner.index(b"PK\1\2")]
    body = zipped(("a.npy", inner), ("s.npy", member(["x"])))
    body = forged(body, entry__place=body.index(b"PK\3\4", 4))
    assert "two members overlap" in refusal(body, TWO).message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (saved(a=[[1, 2]]), "body: missing 's'; the model's inputs are a: float32[?, 2], s: string[?]"),
        (saved(a=[[1, 2]], s=["x"], t=[1], u=[1]), "body: unknown 't', 'u'"),
        (saved([[1, 2]], ["x"]), "body: missing 'a', 's'; unknown 'arr_0', 'arr_1'"),
        (saved(a=[[1, 2, 3]], s=["x"]), "a: expected shape [?, 2], got [1, 3]"),
        (saved(a=[["1", "2"]], s=["x"]), "a: dtype str32 does not convert to float32"),
        (saved(a=[[1, 2]], s=[1]), "s: dtype int64 does not convert to string"),
        (saved(a=[[1, 2]], s=["x", "y"]), "input 'a' has 1 records but input 's' has 2"),
        (saved(a=np.zeros((0, 2)), s=["x"]), "member 'a.npy': the .npy header declares shape [0, 2]"),
        (saved(a=np.zeros(1, [("x", "f4")]), s=["x"]), "a: dtype void32 does not convert"),
        (zipped(("a.npy", b"1,2"), ("s.npy", member(["x"]))), "member 'a.npy': this is not an .npy file"),
        (zipped(("a.npy", member([[1, 2]])[:-1]), ("s.npy", member(["x"]))), "16 bytes; the file has 15"),
        (zipped(("a.npy", member([[1, 2]])[:7]), ("s.npy", member(["x"]))), "not an .npy file of version 1 or 2"),
        (saved(**{f"x{i}": [1] for i in range(11)}), "the .npz archive has 11 members"),
    ],
)
def test_members_that_do_not_fit(body: bytes, words: str) -> None:
    error = refusal(body, TWO)
    assert words in error.message
    if error.message.startswith("member"):
        assert error.details["field"].startswith("member 'a.npy', byte ")  # type: ignore[attr-defined]  # it is a str


def test_a_sole_member_with_too_many_or_strange_names() -> None:
    assert "unknown 'y'" in refusal(saved(x=GRID, y=GRID), one()).message
    assert "does not convert" in refusal(saved(x=np.array([0.5])), one("int64", (None,))).message
    assert "does not convert" in refusal(saved(x=np.array([np.nan])), one("int64", (None,))).message
    assert "does not convert" in refusal(saved(x=np.array([1e39])), one(shape=(None,))).message


class _Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the body was unpickled",))


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_unpickled(packed: bool) -> None:
    """Checklist 46."""
    body = saved(x=np.array([_Bomb()], dtype=object), packed=packed)
    assert refusal(body, one("string", (None,))).message.startswith(
        "member 'x.npy': the array holds pickled objects, which are never loaded"
    )
    assert "not an .npy file" in refusal(zipped(("x.pkl", pickle.dumps(_Bomb()))), one()).message


DEFLATED = zipped(("x.npy", member(GRID)), method=zipfile.ZIP_DEFLATED)
PLAIN_BYTES = len(member(GRID))


@pytest.mark.parametrize(
    "body",
    [
        forged(DEFLATED, entry__plain=PLAIN_BYTES - 1),
        forged(DEFLATED, entry__plain=PLAIN_BYTES + 1),
        forged(DEFLATED, entry__plain=0),
        forged(DEFLATED, entry__crc=1),
        DEFLATED.replace(DEFLATED[40:44], b"\xff\xff\xff\xff", 1),
    ],
)
def test_deflated_members_that_lie(body: bytes) -> None:
    error = refusal(body, one())
    assert error.message.startswith("member 'x.npy': it does not inflate")
    assert error.details["field"] == "member 'x.npy', deflated data"


def test_a_deflate_stream_that_ends_too_early_or_too_late() -> None:
    start = struct.unpack_from("<I", DEFLATED, DEFLATED.index(b"PK\5\6") + 16)[0]
    packed = start - len(DEFLATED[:30] + b"x.npy")
    longer = forged(
        DEFLATED[:start] + b"\0" + DEFLATED[start:],
        entry__packed=packed + 1,
        local__packed=packed + 1,
        end__start=start + 1,
    )
    assert "it does not inflate to the" in refusal(longer, one()).message
    shorter = forged(DEFLATED, entry__packed=packed - 1, local__packed=packed - 1)
    assert "it does not inflate to the" in refusal(shorter, one()).message


def peak_bytes(body: bytes, signature: Signature, limit_bytes: int) -> int:
    refusal(body, signature, DecodeOptions({}, limit_bytes))  # imports and caches are not what is measured
    tracemalloc.start()
    try:
        refusal(body, signature, DecodeOptions({}, limit_bytes))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_takes_no_memory() -> None:
    packer = zlib.compressobj(9, wbits=-15)
    zeros = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    assert len(zeros) < 70_000
    body = zipped(("x.npy", zeros))
    honest = forged(body, entry__plain=64 * MIB, entry__method=8, local__method=8)
    assert "inflate to 67108864 bytes, more than 1048576" in refusal(honest, one(), DecodeOptions({}, MIB)).message
    assert peak_bytes(honest, one(), MIB) < MIB
    liar = forged(honest, entry__plain=MIB)
    assert "it does not inflate to the 1048576 bytes" in refusal(liar, one(), DecodeOptions({}, MIB)).message
    assert peak_bytes(liar, one(), MIB) < 4 * MIB


def test_a_bomb_of_small_elements_takes_no_memory() -> None:
    """Bytes that become eight each, and strings, count as what they become."""
    flags = saved(x=np.ones(MIB, np.bool_), packed=True)
    assert "take more than 2097152 bytes" in refusal(flags, one("float64", (None,)), DecodeOptions({}, 2 * MIB)).message
    assert peak_bytes(flags, one("float64", (None,)), 2 * MIB) < 5 * MIB
    words = saved(x=np.full(MIB // 2, b"ab"), packed=True)
    assert peak_bytes(words, one("string", (None,)), 2 * MIB) < 5 * MIB
    assert len(read(saved(x=np.ones(MIB, np.bool_)), one("float64", (None,)), DecodeOptions({}, 8 * MIB))) == MIB


def test_a_long_directory_is_not_walked() -> None:
    body = zipped(*[(f"{i}.npy", b"") for i in range(20_000)])
    assert "the .npz archive has 20000 members" in refusal(body, TWO).message


MATRIX = np.array([[0, 0, 3, 0], [4, 0, 0, 5]], np.float32)


def sparse(layout: str, packed: bool = True, kind: str = "matrix") -> bytes:
    stream = io.BytesIO()
    matrix = getattr(scipy.sparse, f"{layout}_{kind}")(MATRIX)
    scipy.sparse.save_npz(stream, matrix, compressed=packed)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_sparse_matrices(layout: str, packed: bool, kind: str) -> None:
    for dtype in ("float32", "float16", "int64"):
        assert_same(read(sparse(layout, packed, kind), one(dtype)), MATRIX.astype(dtype))
    assert_same(read(sparse(layout, packed, kind), one(shape=(2, 4), batch_axis=ABSENT)), MATRIX)


def test_a_sparse_matrix_without_entries() -> None:
    stream = io.BytesIO()
    scipy.sparse.save_npz(stream, scipy.sparse.csr_matrix((2, 4), dtype=np.float32))
    assert_same(read(stream.getvalue(), one()), np.zeros((2, 4), np.float32))


def test_inputs_that_are_called_like_the_parts_of_a_sparse_matrix() -> None:
    names = ("format", "shape", "data")
    signature = several(*[(name, "int64", (None,)) for name in names])
    assert list(read(saved(**{name: [1] for name in names}), signature)) == list(names)


CSR: dict[str, Any] = {
    "format": b"csr",
    "shape": [2, 4],
    "data": np.array([3, 4, 5], np.float32),
    "indices": [2, 0, 3],
    "indptr": [0, 1, 3],
}
COO: dict[str, Any] = {"format": "coo", "shape": [2, 4], "data": [3.0, 4, 5], "row": [0, 1, 1], "col": [2, 0, 3]}


def test_the_members_of_a_sparse_matrix() -> None:
    assert_same(read(saved(**CSR), one()), MATRIX)
    assert_same(read(saved(**COO), one()), MATRIX)
    assert_same(read(saved(**CSR | {"indices": np.array([2, 0, 3], np.uint16)}), one()), MATRIX)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (CSR | {"format": b"bsr"}, "format of the sparse matrix: expected csr, csc or coo"),
        (CSR | {"format": [b"csr", b"csr"]}, "format of"),
        (CSR | {"format": 1}, "format of"),
        (CSR | {"format": np.array([0x110000], "<u4").view("<U1")}, "format of"),
        (CSR | {"shape": [2]}, "shape of the sparse matrix: expected two lengths of at least 1"),
        (CSR | {"shape": [2, 0]}, "shape of"),
        (CSR | {"shape": [-2, -4]}, "shape of"),
        (CSR | {"shape": [2.0, 4.0]}, "shape of the sparse matrix: expected a list of whole numbers"),
        (CSR | {"shape": np.array([2**64 - 1, 4], np.uint64)}, "shape of"),
        (CSR | {"shape": [2**62, 2**62]}, "take more than"),
        (CSR | {"shape": [2**40, 1]}, "take more than"),
        (CSR | {"shape": [2, 5]}, "body: expected shape [?, 4], got [2, 5]"),
        (CSR | {"shape": [3, 4]}, "indptr of the sparse matrix: expected 4 numbers"),
        (CSR | {"indptr": [1, 2, 3]}, "indptr of"),
        (CSR | {"indptr": [0, 4, 3]}, "indptr of"),
        (CSR | {"indptr": [0, -1, 3]}, "indptr of"),
        (CSR | {"indptr": [0, 1, 2]}, "indptr of"),
        (CSR | {"indptr": [0, 2**63 - 1, -(2**63)]}, "indptr of"),
        (CSR | {"indptr": [[0, 1, 3]]}, "indptr of"),
        (CSR | {"indices": [2, 0]}, "data of the sparse matrix: expected a row and a column for every value"),
        (CSR | {"indices": [2, 0, 4]}, "entry 2 of the sparse matrix: expected a column from 0 to 3, got 4"),
        (CSR | {"indices": [2, -1, 3]}, "entry 1 of the sparse matrix: expected a column from 0 to 3, got -1"),
        (CSR | {"indices": [2, 2**62, 3]}, "entry 1"),
        (CSR | {"indices": [2, 3, 3]}, "row 1, column 3 of the sparse matrix: expected one value"),
        (CSR | {"indices": [2.0, 3.0, 3.0]}, "indices of"),
        (CSR | {"data": np.zeros((3, 1, 1))}, "data of"),
        (CSR | {"data": ["a", "b", "c"]}, "data of the sparse matrix: expected values that convert to float32"),
        (CSR | {"data": [1e39, 0, 0]}, "data of"),
        (COO | {"row": [0, 2, 1]}, "entry 1 of the sparse matrix: expected a row from 0 to 1, got 2"),
        ({name: part for name, part in COO.items() if name != "col"}, "col of the sparse matrix: expected a list of"),
    ],
)
def test_sparse_matrices_that_lie(parts: dict[str, Any], words: str) -> None:
    for packed in (False, True):
        assert words in refusal(saved(**parts, packed=packed), one()).message


def test_sparse_matrices_for_other_models() -> None:
    assert "the model takes strings" in refusal(saved(**CSR), one("string")).message
    assert "unknown 'format', 'shape', 'data'" in refusal(saved(**CSR), TWO).message


def test_a_sparse_matrix_cannot_grow_without_bound() -> None:
    few = saved(**CSR | {"shape": [2, 10**6]})
    assert "take more than 1048576 bytes" in refusal(few, one(shape=(None, None)), DecodeOptions({}, MIB)).message
    assert peak_bytes(few, one(shape=(None, None)), MIB) < MIB
    many = {"indptr": np.zeros(MIB + 1, np.int8), "shape": [MIB, 1], "data": np.zeros(0), "indices": np.zeros(0, "i4")}
    body = saved(**CSR | many, packed=True)
    assert peak_bytes(body, one("int8", (None, 1)), 4 * MIB) < 5 * MIB


@pytest.mark.parametrize(
    ("signature", "array"),
    [
        (one(), GRID),
        (one("float16", (None,)), np.array([0.1, np.nan, np.inf], np.float16)),
        (one("uint64", (None,)), np.array([2**64 - 1], np.uint64)),
        (one("bool", (None, 1)), np.array([[True], [False]])),
        (one(shape=(None, 2, 2)), GRID.reshape(2, 2, 2).transpose(0, 2, 1)),
        (one(shape=(), batch_axis=ABSENT), np.array(1.5, np.float32)),
    ],
)
def test_one_output(signature: Signature, array: Any) -> None:
    """Checklist 80."""
    body = encode({"y": array}, signature, ENCODE)
    expected = np.ascontiguousarray(array).reshape(array.shape)
    assert_same(np.load(io.BytesIO(body), allow_pickle=False)["y"], expected)
    assert_same(read(body, signature), expected)


def test_several_outputs_of_any_names_and_lengths() -> None:
    names = ["\u00e4\u20ac", "model/dense:0", "x.npy", "x"]
    signature = several(*[(name, "string", (None,)) for name in names])
    sent = {name: texts(["\U0001f600"] * i) for i, name in enumerate(names)}
    body = encode(sent, signature, ENCODE)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [name + ".npy" for name in names]
    loaded = np.load(io.BytesIO(body), allow_pickle=False)
    assert {name: loaded[name + ".npy"].tolist() for name in names} == {k: v.tolist() for k, v in sent.items()}


def test_outputs_that_npz_cannot_carry() -> None:
    with pytest.raises(NotAcceptable, match="zero character"):
        encode({"y": texts(["a\0"])}, one("string", (None,)), ENCODE)
    with pytest.raises(NotAcceptable, match="so many bytes"):
        encode({"y": np.broadcast_to(np.float32(0), (2**29 + 1, 1))}, one(shape=(None, 1)), ENCODE)


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: " ".join(i.describe() for i in s.inputs))
def test_what_is_written_reads_back(signature: Signature) -> None:
    @LAWS
    @given(tensors(signature), st.booleans())
    def law(sent: Any, packed: bool) -> None:
        for body in (
            encode(sent, echo(signature), ENCODE),
            saved(**{k: plain(v) for k, v in sent.items()}, packed=packed),
        ):
            received = decode(body, signature, OPTIONS)
            for name, array in sent.items():
                assert_same(received[name], array)

    law()


def plain(array: Any) -> Any:
    return array.astype(np.str_) if array.dtype == object else array


@settings(LAWS, max_examples=400)
@given(st.data())
def test_damaged_archives(data: st.DataObject) -> None:
    """Checklist 36 and 41: tensors that fit, or a refusal, whatever is wrong with the archive."""
    signature = data.draw(st.sampled_from(SIGNATURES))
    sent = {name: plain(array) for name, array in data.draw(tensors(signature)).items()}
    body = bytearray(saved(**sent, packed=data.draw(st.booleans())))
    near = [i + j for mark in (b"PK\1\2", b"PK\5\6", b"PK\3\4") for i in [body.rindex(mark)] for j in range(30)]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1) | st.sampled_from([i for i in near if i < len(body)]))
        body[at] = data.draw(st.integers(0, 255))
    start, cut = data.draw(st.sampled_from([0, 0, 0, 1])), data.draw(st.sampled_from([0, 0, 0, 1, 30]))
    assert_tensors_or_refusal(ENTRY, bytes(body[start : len(body) - cut]), signature, DecodeOptions({}, 10_000))


numbers = st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63 - 1, -(2**63)])
lists = st.lists(numbers, max_size=4) | st.lists(st.floats(), max_size=3) | st.text("csr", max_size=3) | numbers


@LAWS
@given(st.dictionaries(st.sampled_from(sorted({*CSR, *COO})), lists), st.sampled_from([CSR, COO]))
def test_any_sparse_matrix(parts: dict[str, Any], rest: dict[str, Any]) -> None:
    for signature in (one(), one("int8", (None, None)), one("bool", (2, 4), ABSENT)):
        assert_tensors_or_refusal(ENTRY, saved(**rest | parts), signature, DecodeOptions({}, 10_000))


def test_over_a_socket(tmp_path: Path) -> None:
    named = {"content_type": "application/x-npz", "accept": "application/x-npz"}
    with running("--model", str(two_inputs(tmp_path / "model.onnx"))) as server:
        for rows in (1, 5000):  # on the event loop, and on a thread
            a, b = np.arange(rows, dtype=np.float32).reshape(-1, 1), np.full((rows, 1), 2, np.float32)
            for packed in (False, True):
                answer = server.invoke(saved(a=a, b=b, packed=packed), **named)
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "application/x-npz"
                loaded = np.load(io.BytesIO(answer.content), allow_pickle=False)
                assert_same(loaded["sum"], a + b)
                assert_same(loaded["difference"], a - b)
        refused = server.invoke(saved(a=[[1]]), **named)
        assert refused.status_code == 400
        assert "missing 'b'" in refused.json()["error"]["message"]
