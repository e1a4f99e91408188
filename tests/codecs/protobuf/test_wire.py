"""The wire format: numbers and fields against Google's library, and what is none."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.protobuf.wire import (
    FIXED32,
    LENGTH,
    VARINT,
    Packed,
    WireError,
    count_varints,
    decode_varints,
    encode_varint,
    encode_varints,
    field,
    fields,
    has_long_varint,
    read_repeated,
    read_texts,
    read_varint,
)
from tests.codecs.protobuf_oracle import Record

LAWS = settings(deadline=None, max_examples=100, derandomize=True)
u64 = (
    st.integers(0, 2**64 - 1)
    | st.integers(0, 300)
    | st.sampled_from([2 ** (7 * i) - j for i in range(1, 10) for j in (0, 1)])
)


def packed(data: bytes) -> Packed:
    return Packed(b"xy" + data + b"z", 2, 2 + len(data))


@LAWS
@given(st.lists(u64, max_size=50))
def test_varints_read_back(numbers: list[int]) -> None:
    data, sizes = encode_varints(np.array(numbers, np.uint64))
    assert data == b"".join(map(encode_varint, numbers))
    assert sizes.tolist() == [len(encode_varint(n)) for n in numbers]
    assert decode_varints(packed(data)).tolist() == numbers
    assert list(packed(data).small()) == numbers
    assert count_varints(packed(data)) == len(numbers)
    assert not has_long_varint(data)
    message = Record()
    message.features["a"].int32_tensor.keys.extend(numbers)
    assert not numbers or data in message.SerializeToString()


def test_many_varints_are_decoded_in_blocks() -> None:
    numbers = (
        np.random.default_rng(0).integers(0, 2**63, 50_000, dtype=np.uint64) >> np.arange(50_000, dtype=np.uint64) % 64
    )
    assert decode_varints(packed(encode_varints(numbers)[0])).tolist() == numbers.tolist()


def test_varints_longer_than_they_need_to_be() -> None:
    assert decode_varints(packed(b"\x80\x00\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00\x05")).tolist() == [0, 1, 5]
    assert read_varint(b"\x81\x80\x00", 0, 3) == (1, 3)


@pytest.mark.parametrize("data", [b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x00", b"\xff" * 200])
def test_varints_beyond_64_bits(data: bytes) -> None:
    assert has_long_varint(b"\x01" + data)
    with pytest.raises(WireError, match="more than 64 bits"):
        read_varint(data, 0, len(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80", "cut off"),
        (b"\x08", "cut off"),
        (b"\x08\x80", "cut off"),
        (b"\x0a", "cut off"),
        (b"\x0a\x01", "a field of 1 bytes where 0 are left"),
        (b"\x0a" + encode_varint(2**63), "a field of 9223372036854775808 bytes where 0 are left"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "a field of 18446744073709551615 bytes"),
        (b"\x0d\x00\x00\x00", "a field of 4 bytes where 3 are left"),
        (b"\x09", "a field of 8 bytes where 0 are left"),
        (b"\x02\x00", "whose number is none"),
        (encode_varint(2**32) + b"\x00", "whose number is none"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\xff" * 11, "more than 64 bits"),
    ],
)
def test_what_is_not_a_message(data: bytes, words: str) -> None:
    prefix = field(1, b"abc")
    with pytest.raises(WireError, match=words) as caught:
        list(fields(prefix + data + b"\x00" * 9, 0, len(prefix + data)))
    assert len(prefix) <= caught.value.offset <= len(prefix + data)


def test_a_field_stays_within_its_message() -> None:
    body = b"\x0a\x05abcdefgh"
    assert list(fields(body, 0, 7)) == [(1, LENGTH, 2, 7)]
    with pytest.raises(WireError, match="a field of 5 bytes where 4 are left"):
        list(fields(body, 0, 6))


def test_repeated_numbers_packed_or_not() -> None:
    ones = np.array([1, 2, 3, 4, 5], "<f4").tobytes()
    mixed = field(1, ones[:8]) + b"\x0d" + ones[8:12] + field(9, b"?") + field(1, b"") + field(1, ones[12:])
    body = b"head" + mixed + b"tail"
    found = read_repeated(body, 4, 4 + len(mixed), {1: FIXED32, 2: VARINT})
    assert list(found) == [1]
    assert found[1].tobytes() == ones
    (whole,) = read_repeated(body, 4, 4 + 10, {1: FIXED32}).values()
    assert whole.data is body
    numbers = b"\x10\x05" + field(2, b"\x06\x87\x01") + b"\x10\x08"
    assert decode_varints(read_repeated(numbers, 0, len(numbers), {2: VARINT})[2]).tolist() == [5, 6, 135, 8]


@pytest.mark.parametrize(
    "data",
    [
        field(1, b"\x00" * 5),
        b"\x08\x01",
        b"\x09" + bytes(8),
        field(2, b"\x01\x80"),
        field(2, b"\xff" * 10 + b"\x01"),
        b"\x15" + bytes(4),
    ],
)
def test_values_that_are_none(data: bytes) -> None:
    with pytest.raises(WireError):
        read_repeated(data, 0, len(data), {1: FIXED32, 2: VARINT})


def test_texts() -> None:
    body = field(1, b"a") + field(2, b"skipped") + field(1, b"") + field(1, "\u00e4".encode())
    assert read_texts(body, 0, len(body)) == ["a", "", "\u00e4"]
    for wrong in (b"\x08\x01", field(1, b"a\xff")):
        with pytest.raises(WireError):
            read_texts(wrong, 0, len(wrong))


@LAWS
@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    position = 0
    with contextlib.suppress(WireError):
        for number, _, start, end in fields(data, 0, len(data)):
            assert number > 0
            assert position < start <= end <= len(data)
            position = end
