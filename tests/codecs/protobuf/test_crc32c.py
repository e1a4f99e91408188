"""CRC-32C: the published vectors, and slices of every length against the definition."""

from __future__ import annotations

import random

import numpy as np
import pytest

from byoc_server.codecs.protobuf.crc32c import masked_crc32c


def crcs(data: bytes, starts: list[int], ends: list[int]) -> list[int]:
    return [unmasked(crc) for crc in masked_crc32c(data, np.array(starts), np.array(ends)).tolist()]


def by_definition(data: bytes) -> int:
    """Bit by bit (RFC 3720, section 12.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unmasked(masked: int) -> int:
    """The inverse as TensorFlow has it in tensorflow/core/lib/hash/crc32c.h."""
    rotated = (masked - 0xA282EAD8) % 2**32
    return rotated >> 17 | rotated << 15 & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, appendix B.4; the CRCs there are given byte by byte
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_vectors(data: bytes, crc: int) -> None:
    assert by_definition(data) == crc
    assert crcs(data, [0], [len(data)]) == [crc]
    body = data * 200
    ends = [(i + 1) * len(data) for i in range(200)]
    assert set(crcs(body, [0, *ends[:-1]], ends)) == {crc}


def test_slices_of_all_lengths_in_one_call() -> None:
    source = random.Random(1)
    data = source.randbytes(30_000)
    starts, ends, position = [], [], 0
    for length in (0, 1, 3, 4, 5, 123, 124, 125, 127, 128, 129, 251, 252, 253, 1000, 5000, 20_000, 0, 7):
        starts.append(position)
        position += length
        ends.append(position)
        position += source.randrange(5)
    expected = [by_definition(data[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert crcs(data, starts, ends) == expected
    for start, end, crc in zip(starts, ends, expected, strict=True):
        assert crcs(data, [start], [end]) == [crc]


@pytest.mark.parametrize("size", [0, 8, 60, 124, 125, 300])
@pytest.mark.parametrize("gap", [0, 4, 16])
def test_equal_slices_at_equal_distances(size: int, gap: int) -> None:
    data = random.Random(2).randbytes((size + gap) * 100)
    starts = [i * (size + gap) for i in range(100)]
    ends = [start + size for start in starts]
    expected = [by_definition(data[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert crcs(data, starts, ends) == expected
