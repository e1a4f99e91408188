"""CRC-32C of many slices of one body at once, as TFRecord files carry it (RFC 3720, section 12.1 and appendix B.4).

A CRC is linear over bits, and a register of zero stays zero while zeros pass through it. So the slices are cut into
blocks of one size, padded in front with zeros; all blocks go through the register side by side, a word at a time;
what comes out is moved on by the number of zeros that follow the block in its slice, and XORed together. The start
value of all ones is a fixed word of four bytes in front of each slice, which brings the register from zero to there.

Moving on by 1, 2, 4, ... blocks is a linear map each, kept as a table for each byte of the register.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with the bits reversed (RFC 3720, section 12.1)."""
_TO_ALL_ONES = bytes.fromhex("54641f64")
"""Brings the register from 0 to 0xFFFFFFFF."""
_BLOCK_BYTES = 128
_LANES = 8192
"""Blocks that go through the register side by side: the tables and their words stay in the processor's cache."""
_SHORT_BYTES = 2048
"""Up to here in all the plain loop over bytes is quicker: 0.1 us a byte, where NumPy takes 0.2 ms to get going."""
_MASK_DELTA = 0xA282EAD8

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


def masked_crc32c(data: bytes, starts: I64, ends: I64) -> U32:
    """CRC of each slice ``data[start:end]``, shape (N,), masked as TFRecord stores it.

    The mask is a rotation by 15 bits and a constant (TensorFlow, "TFRecord and tf.train.Example", TFRecords format
    details). The work is proportional to the bytes of all slices plus a block for each of them.

    Args:
        data: holds the slices.
        starts: of the slices, shape (N,), one or more, ascending.
        ends: of the slices, shape (N,), all within ``data``.
    """
    if (ends - starts).sum() <= _SHORT_BYTES:
        slices = zip(starts.tolist(), ends.tolist(), strict=True)
        crc = np.array([_plain(data[start:end]) for start, end in slices], np.uint32)
    else:
        crc = _of_blocks(*_blocks(data, starts, ends))
    rotated: U32 = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return rotated + np.uint32(_MASK_DELTA)


def _plain(data: bytes) -> int:
    table = _byte_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _blocks(data: bytes, starts: I64, ends: I64) -> tuple[U32, I64]:
    """All slices as rows of words, and how many rows each slice takes."""
    lengths = ends - starts + len(_TO_ALL_ONES)
    width = min(_BLOCK_BYTES, 1 << int(lengths.max() - 1).bit_length())
    rows = -(-lengths // width)
    padded = bytearray(int(rows.sum()) * width)
    stops = np.cumsum(rows) * width
    if (np.diff(lengths) == 0).all() and (np.diff(starts, 2) == 0).all():
        # As most bodies are: records of one length. NumPy copies them all in one go.
        start, size, count = int(starts[0]), int(ends[0] - starts[0]), len(starts)
        table = np.frombuffer(padded, np.uint8).reshape(count, -1)
        table[:, -size - len(_TO_ALL_ONES) :][:, : len(_TO_ALL_ONES)] = list(_TO_ALL_ONES)
        stride = int(starts[1]) - start if count > 1 else size
        table[:, table.shape[1] - size :] = as_strided(
            np.frombuffer(data, np.uint8, offset=start), (count, size), (stride, 1), writeable=False
        )
    else:
        for start, end, stop in zip(starts.tolist(), ends.tolist(), stops.tolist(), strict=True):
            padded[stop - (end - start) - len(_TO_ALL_ONES) : stop] = _TO_ALL_ONES + data[start:end]
    return np.frombuffer(padded, "<u4").reshape(-1, width // 4), rows


def _of_blocks(words: U32, rows: I64) -> U32:
    low, high = _word_tables()
    crc = np.zeros(len(words), np.uint32)
    for first in range(0, len(words), _LANES):
        register = crc[first : first + _LANES]
        for word in np.ascontiguousarray(words[first : first + _LANES].T):
            register ^= word
            register[:] = low[register & 0xFFFF] ^ high[register >> 16]
    stops = np.cumsum(rows)
    behind = np.repeat(stops, rows) - np.arange(len(words)) - 1  # blocks that follow in the same slice
    zeros = words.shape[1] * 4
    while behind.any():
        odd = np.flatnonzero(behind & 1)
        crc[odd] = _moved_on(crc[odd], zeros)
        zeros *= 2
        behind >>= 1
    return np.bitwise_xor.reduceat(crc, stops - rows) ^ np.uint32(0xFFFFFFFF)


def _moved_on(registers: U32, zeros: int) -> U32:
    """The registers after so many zero bytes."""
    tables = _tables(zeros)
    moved: U32 = tables[0][registers & 255]
    for number in (1, 2, 3):
        moved ^= tables[number][(registers >> 8 * number) & 255]
    return moved


@cache
def _tables(zeros: int) -> tuple[U32, U32, U32, U32]:
    """What ``zeros`` zero bytes make of a register, for each value of each of its bytes."""
    bits = _after_zeros(zeros)
    return _sums(bits[:8]), _sums(bits[8:16]), _sums(bits[16:24]), _sums(bits[24:])


@cache
def _after_zeros(zeros: int) -> U32:
    """What ``zeros`` zero bytes, a power of two, make of each bit of a register; of other registers it is the sum."""
    if zeros > 1:
        return _moved_on(_after_zeros(zeros // 2), zeros // 2)
    bits: U32 = np.uint32(1) << np.arange(32, dtype=np.uint32)
    one = np.uint32(1)
    for _ in range(8):
        bits = (bits >> one) ^ (bits & one) * np.uint32(_POLYNOMIAL)
    return bits


def _sums(images: U32) -> U32:
    """XOR of every choice of ``images``, by the number whose bits choose."""
    table = np.zeros(1, np.uint32)
    for image in images:
        table = np.concatenate([table, table ^ image])
    return table


@cache
def _word_tables() -> tuple[U32, U32]:
    """What four zero bytes make of the lower and of the upper half of a register."""
    bits = _after_zeros(4)
    return _sums(bits[:16]), _sums(bits[16:])


@cache
def _byte_table() -> list[int]:
    table: list[int] = _tables(1)[0].tolist()
    return table
