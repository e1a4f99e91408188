"""``application/x-npz``: a zip archive of ``.npy`` files, as ``numpy.savez`` and ``numpy.savez_compressed`` write it.

A member is an input or output, ``NAME.npy`` for the one called NAME; if the model has one input, a sole member may have
any name. What ``scipy.sparse.save_npz`` writes is taken for a model with one input, which gets the dense matrix.

The archive is read here rather than by ``zipfile``: the data of a stored member is used where it lies in the body, and
every length is checked before anything is built on it. The central directory at the end is what counts (PKWARE
APPNOTE.TXT, version 6.3.10, sections 4.3 and 4.4); local headers have to agree with it, members must not share bytes.
Names are never paths: they are compared with the names of the inputs, and nothing is written anywhere.

Stored members are taken without a look at their CRC-32: it would cost more than all the rest, and the transport has
checksums of its own. Inflated ones are checked, as a damaged stream may well inflate.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions, EncodeOptions
from byoc_server.codecs.npy import file_header, read_array, storable
from byoc_server.codecs.values.conform import conform_array, convert, require_equal_rows, require_inputs
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, NotAcceptable, TensorsTooLarge
from byoc_server.types import STRING, STRING_BYTES, Array, Signature, Tensors, TensorSpec

# Records of an archive; x stands for a byte that does not matter here: versions, times, attributes.
_END = struct.Struct("<4s4H2IH")
"""Signature; number of this disk, of the directory's; entries on this disk, in all; size and place of the directory;
length of the comment, which is the rest of the body."""
_LOCATOR_64 = struct.Struct("<4s4xQ4x")
"""Signature; place of the next record. It stands right before the end record."""
_END_64 = struct.Struct("<4s20x4Q")
"""Signature; entries on this disk, in all; size and place of the directory."""
_ENTRY = struct.Struct("<4s4x2H4x3I3H8xI")
"""Signature; flags; method; CRC-32; packed and plain size; lengths of name, extra field and comment; place of the local
header."""
_LOCAL = struct.Struct("<4s2x2H8xI4x2H")
"""Signature; flags; method; packed size; lengths of name and extra field."""

_MAX_COMMENT_BYTES = 0xFFFF
_UNKNOWN_16, _UNKNOWN_32 = 0xFFFF, 0xFFFFFFFF
"""The value is in a zip64 record."""
_ZIP64_FIELD = 1
_ENCRYPTED = 0x2041
"""Flags of encryption: of the data, with the strong kind, of the directory."""
_SIZES_FOLLOW = 0x8
_UTF_8 = 0x800
_STORED, _DEFLATED = 0, 8
_NOT_BEFORE_1980 = 0x21
"""The first of January 1980 as a zip has it: no date, as answers are to depend on nothing but the tensors."""

_SUFFIX = ".npy"
_SPARE_MEMBERS = 8
"""How many members more than inputs are read: enough for a sparse matrix, and to name those that are not wanted."""
_SPARSE_NUMBER_BYTES = 24
"""What every number of a sparse matrix takes, at the most, on its way to the dense one."""
_PACKED_STEP_BYTES = 16 * 1024
_PLAIN_STEP_BYTES = 256 * 1024
"""A stream inflates in such steps: all at once its pieces would be held beside what they are joined to."""
_SPARSE_MEMBERS = {"format", "shape", "data"}


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of an archive: ``body[start:end]``."""

    name: str
    start: int
    end: int
    plain_bytes: int
    crc: int
    deflated: bool


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Read an archive with one member per input, or a sparse matrix. See ``Codec.decode``."""
    members = _read_directory(body, len(signature.inputs) + _SPARE_MEMBERS)
    inflated_bytes = sum([member.plain_bytes for member in members.values() if member.deflated])
    if inflated_bytes > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"the members of the archive inflate to {inflated_bytes} bytes, more than {options.max_tensor_bytes}",
            expected=f"at most {options.max_tensor_bytes} bytes",
            got=f"{inflated_bytes} bytes",
        )
    sole = signature.sole_input
    if sole is not None and len(members) == 1:
        members = dict.fromkeys([sole.name], *members.values())
    elif sole is not None and members.keys() >= _SPARSE_MEMBERS:
        arrays = {name: _read_member(body, member, empty=True) for name, member in members.items()}
        dense = _dense(arrays, sole, options.max_tensor_bytes)
        return {sole.name: conform_array(dense, sole, signature, "body")}
    else:
        require_inputs(list(members), signature, "body")
    left = options.max_tensor_bytes
    tensors = {}
    for spec in signature.inputs:
        array = _read_member(body, members[spec.name])
        left -= array.size * (STRING_BYTES if spec.dtype == STRING else spec.dtype.itemsize)
        if left < 0:
            _refuse_size(spec.name, options.max_tensor_bytes)
        tensors[spec.name] = conform_array(array, spec, signature, spec.name)
    return require_equal_rows(tensors, signature)


def _refuse_size(place: str, limit_bytes: int) -> NoReturn:
    raise TensorsTooLarge(
        f"{place}: the tensors of this request take more than {limit_bytes} bytes",
        field=place,
        expected=f"at most {limit_bytes} bytes",
    )


def _damaged(what: str, at: int) -> NoReturn:
    raise InvalidPayload(f"byte {at} of the .npz archive: {what}", field=f"byte {at}", expected="a zip archive")


def _read_directory(body: bytes, most: int) -> dict[str, _Member]:
    """Read and check the central directory, and the local header of each member.

    Returns:
        Members by name without ``.npy``, at least one.
    """
    count, at, directory_end = _find_directory(body)
    directory_start = at
    if not 0 < count <= most:
        raise InvalidPayload(
            f"the .npz archive has {count} members",
            expected=f"at least one, at most {most}",
            got=str(count),
        )
    members: dict[str, _Member] = {}
    spans = []
    for _ in range(count):
        if at + _ENTRY.size > directory_end:
            _damaged("the directory ends within an entry", at)
        signature, flags, method, crc, packed, plain, name_size, extra_size, comment_size, place = _ENTRY.unpack_from(
            body, at
        )
        name_start = at + _ENTRY.size
        extra_start = name_start + name_size
        following = extra_start + extra_size + comment_size
        if signature != b"PK\1\2" or following > directory_end:
            _damaged("not an entry of a directory", at)
        raw_name = body[name_start:extra_start]
        name = _member_name(raw_name, flags, at)
        if name in members:
            raise InvalidPayload(f"two members are called {shown(name)}", field=f"byte {at}", expected="one of a name")
        if _UNKNOWN_32 in (packed, plain, place):
            extra = body[extra_start : extra_start + extra_size]
            packed, plain, place = _zip64_sizes(extra, packed, plain, place, at)
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise InvalidPayload(
                f"member {shown(name)} is {'encrypted' if flags & _ENCRYPTED else f'packed by method {method}'}; "
                "only stored and deflated members are read",
                field=f"byte {at}",
                expected="stored (0) or deflated (8)",
                got="encrypted" if flags & _ENCRYPTED else f"method {method}",
            )
        start = _data_start(body, place, directory_start, (method, packed), raw_name)
        end = start + packed
        if end > directory_start or (method == _STORED and plain != packed):
            _damaged(f"the sizes of member {shown(name)} cannot be right: {packed} bytes packed, {plain} plain", at)
        members[name] = _Member(name, start, end, plain, crc, method == _DEFLATED)
        spans.append((place, end))
        at = following
    if at != directory_end:
        _damaged(f"the directory goes on for {directory_end - at} bytes after its last entry", at)
    if count > 1:
        spans.sort()
        for (_, end), (place, _) in itertools.pairwise(spans):
            if place < end:
                _damaged(f"two members overlap, one ends at byte {end}", place)
    return members


def _find_directory(body: bytes) -> tuple[int, int, int]:
    """Find the central directory: number of its entries, first byte, byte after the last."""
    end = body.rfind(b"PK\5\6", max(0, len(body) - _END.size - _MAX_COMMENT_BYTES))
    if end < 0 or end + _END.size > len(body):
        raise InvalidPayload(
            "body is not an .npz archive: it has no directory of a zip archive at its end",
            field=f"byte {len(body)}",
            expected="a zip archive",
            got=body[:4].hex(" ") or "nothing",
        )
    _, disk, directory_disk, count_here, count, size, start, comment_size = _END.unpack_from(body, end)
    if end + _END.size + comment_size != len(body):
        _damaged(f"the archive ends at byte {end + _END.size + comment_size}, the body has {len(body)} bytes", end)
    if count == _UNKNOWN_16 or _UNKNOWN_32 in (size, start):
        count, count_here, size, start = _find_directory_64(body, end)
    if disk or directory_disk or count_here != count:
        _damaged("it is one part of several", end)
    if start + size > end:
        _damaged(f"the directory claims bytes {start} to {start + size}", end)
    return count, start, start + size


def _find_directory_64(body: bytes, end: int) -> tuple[int, int, int, int]:
    locator = end - _LOCATOR_64.size
    if locator < 0 or body[locator : locator + 4] != b"PK\6\7":
        _damaged("the zip64 locator is missing", end)
    record = _LOCATOR_64.unpack_from(body, locator)[1]
    if record + _END_64.size > locator or body[record : record + 4] != b"PK\6\6":
        _damaged("the zip64 record is not where the locator says", locator)
    _, count_here, count, size, start = _END_64.unpack_from(body, record)
    return count, count_here, size, start


def _zip64_sizes(extra: bytes, packed: int, plain: int, place: int, at: int) -> tuple[int, int, int]:
    """Look up the sizes an entry leaves to its zip64 extra field (APPNOTE.TXT, section 4.5.3)."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == _ZIP64_FIELD:
            words = iter(struct.unpack_from(f"<{min(size, len(extra) - position) // 8}Q", extra, position))
            plain, packed, place = [
                next(words, _UNKNOWN_32) if value == _UNKNOWN_32 else value for value in (plain, packed, place)
            ]
            return packed, plain, place
        position += size
    _damaged("the zip64 field is missing", at)


def _member_name(raw: bytes, flags: int, at: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF_8 else "cp437")
    except UnicodeDecodeError:
        _damaged("the name of the member is not UTF-8", at)
    return name.removesuffix(_SUFFIX)


def _data_start(body: bytes, place: int, limit: int, entry: tuple[int, int], raw_name: bytes) -> int:
    """Check the local header at ``place`` against method, packed size and name in the directory."""
    if place + _LOCAL.size > limit:
        _damaged(f"member {shown(raw_name)} lies outside of the archive", place)
    signature, flags, method, packed, name_size, extra_size = _LOCAL.unpack_from(body, place)
    if signature != b"PK\3\4":
        _damaged(f"member {shown(raw_name)} does not begin here", place)
    name_start = place + _LOCAL.size
    name_end = name_start + name_size
    sizes_agree = packed in (entry[1], _UNKNOWN_32) or flags & _SIZES_FOLLOW
    if method != entry[0] or not sizes_agree or body[name_start:name_end] != raw_name:
        _damaged(f"the header of member {shown(raw_name)} is not what the directory says", place)
    end: int = name_end + extra_size
    return end


def _read_member(body: bytes, member: _Member, *, empty: bool = False) -> Array:
    """Read the array of a member, in place if it is stored.

    Raises:
        InvalidPayload: it does not inflate to what the directory says, or is no array file.
    """
    try:
        if not member.deflated:
            return read_array(body, member.start, member.end, empty=empty)
        return read_array(_inflate(body, member), empty=empty)
    except InvalidPayload as error:
        place = f"member {shown(member.name + _SUFFIX)}"
        details = cast(dict[str, str], error.details)
        raise InvalidPayload(
            f"{place}: {error.message}", **(details | {"field": f"{place}, {details['field']}"})
        ) from None


def _inflate(body: bytes, member: _Member) -> bytearray:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data, left, at = bytearray(member.plain_bytes), member.plain_bytes, member.start
    try:
        while at < member.end and left >= 0 and not inflater.eof:
            packed = body[at : min(at + _PACKED_STEP_BYTES, member.end)]
            at += len(packed)
            more = True
            while more and left >= 0:
                # a byte more than there should be, so that the stream can come to its end, or show that it goes on
                most = min(left + 1, _PLAIN_STEP_BYTES)
                part = inflater.decompress(packed, most)
                data[len(data) - left : len(data) - left + len(part)] = part
                left -= len(part)
                packed = inflater.unconsumed_tail
                more = bool(packed) or len(part) == most  # some may wait within, when all that came in is used up
    except zlib.error:
        raise InvalidPayload("it does not inflate", field="deflated data", expected="a deflate stream") from None
    whole = inflater.eof and not inflater.unused_data and at == member.end and not left
    if not whole or zlib.crc32(data) != member.crc:
        raise InvalidPayload(
            f"it does not inflate to the {member.plain_bytes} bytes of CRC-32 {member.crc:08x} it is said to have",
            field="deflated data",
            expected=f"{member.plain_bytes} bytes",
            got="another checksum" if whole else "fewer or more bytes",
        )
    return data


def _dense(arrays: Mapping[str, Array], spec: TensorSpec, limit_bytes: int) -> Array:
    """Fill in a sparse matrix as SciPy saves it: layouts ``csr``, ``csc`` and ``coo``.

    Returns:
        Array of ``spec.dtype``, of the shape the matrix declares.
    """
    if spec.dtype == STRING:
        raise InvalidPayload("a sparse matrix holds numbers, the model takes strings", expected="an array of strings")
    shape = _integers(arrays, "shape")
    if len(shape) != 2 or shape.min() < 1:
        _refuse_sparse("shape", "two lengths of at least 1", shown(shape.tolist()))
    lengths = rows, columns = int(shape[0]), int(shape[1])
    data = arrays["data"]
    size = rows * columns
    numbers_bytes = sum([array.size for array in arrays.values()]) * _SPARSE_NUMBER_BYTES
    if size * spec.dtype.itemsize + numbers_bytes > limit_bytes:
        _refuse_size("body", limit_bytes)
    layout = convert(arrays["format"], STRING)
    match None if layout is None or layout.size != 1 else layout.item():
        case "csr":
            places = (_expanded(arrays, rows), _integers(arrays, "indices"))
        case "csc":
            places = (_integers(arrays, "indices"), _expanded(arrays, columns))
        case "coo":
            places = (_integers(arrays, "row"), _integers(arrays, "col"))
        case _:
            _refuse_sparse("format", "csr, csc or coo", "another one")
    values = convert(data, spec.dtype)
    if values is None:
        _refuse_sparse("data", f"values that convert to {spec.dtype_name}", data.dtype.name)
    if data.ndim != 1 or any(len(numbers) != len(data) for numbers in places):
        _refuse_sparse("data", "a row and a column for every value", " and ".join(str(len(p)) for p in places))
    for numbers, length, axis in zip(places, lengths, ("row", "column"), strict=True):
        beyond = (numbers < 0) | (numbers >= length)
        if beyond.any():
            entry = int(beyond.argmax())
            _refuse_sparse(f"entry {entry}", f"a {axis} from 0 to {length - 1}", str(numbers[entry]))
    flat = places[0] * columns + places[1]
    ordered = np.sort(flat)
    repeated = ordered[1:] == ordered[:-1]
    if repeated.any():
        row, column = divmod(int(ordered[repeated.argmax()]), columns)
        _refuse_sparse(f"row {row}, column {column}", "one value (sum_duplicates() makes it so)", "more than one")
    dense = np.zeros(size, spec.dtype)
    dense[flat] = values
    return dense.reshape(lengths)


def _expanded(arrays: Mapping[str, Array], length: int) -> Any:
    """The number of the row (or column) of every entry, from where each of ``length`` rows begins and the last ends."""
    bounds = _integers(arrays, "indptr")
    if (
        len(bounds) != length + 1
        or bounds[0] != 0
        or bounds[-1] != arrays["data"].size
        or (bounds[1:] < bounds[:-1]).any()
    ):
        _refuse_sparse("indptr", f"{length + 1} numbers from 0 up to the number of values", f"{len(bounds)} numbers")
    return np.repeat(np.arange(length), np.diff(bounds))


def _integers(arrays: Mapping[str, Array], name: str) -> Any:
    """A member of whole numbers, shape (n,), as int64."""
    array = arrays.get(name)
    numbers = None if array is None or array.dtype.kind not in "iu" else convert(array, np.dtype(np.int64))
    if numbers is None or numbers.ndim != 1:
        _refuse_sparse(
            name, "a list of whole numbers", "nothing" if array is None else f"an array of {array.dtype.name}"
        )
    return numbers


def _refuse_sparse(place: str, expected: str, got: str) -> NoReturn:
    raise InvalidPayload(
        f"{place} of the sparse matrix: expected {expected}, got {got}", field=place, expected=expected, got=got
    )


def encode(tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes:
    """Write an archive with one stored member per output. See ``Codec.encode``."""
    parts: list[bytes] = []
    directory: list[bytes] = []
    arrays = {spec.name: storable(tensors[spec.name]) for spec in signature.outputs}
    if sum([array.nbytes for array in arrays.values()]) > _UNKNOWN_32 // 2:
        raise NotAcceptable("application/x-npz cannot carry outputs of so many bytes", accepted=["application/json"])
    place = 0
    for output, array in arrays.items():
        header, data = file_header(array), array.tobytes()
        name = (output + _SUFFIX).encode()
        size, crc = len(header) + len(data), zlib.crc32(data, zlib.crc32(header))
        # version 2.0, flags, method, time, date, checksum, sizes, lengths of name and extra field
        common = struct.pack("<5H3I2H", 20, _UTF_8, _STORED, 0, _NOT_BEFORE_1980, crc, size, size, len(name), 0)
        parts += (b"PK\3\4", common, name, header, data)
        directory += (b"PK\1\2\x14\0", common, struct.pack("<3H2I", 0, 0, 0, 0, place), name)
        place += _LOCAL.size + len(name) + size
    entries = b"".join(directory)
    count = len(arrays)
    return b"".join([*parts, entries, _END.pack(b"PK\5\6", 0, 0, count, count, len(entries), place, 0)])
