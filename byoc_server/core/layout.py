"""Tensors as bytes: a descriptor of their dtypes and shapes, and their data. Pure.

Names are not sent: both ends know the inputs and outputs of the model and their order. The descriptors of a busy server
are few, and both ends remember what they mean, so that a request costs one look into a dictionary.

Strings have no size that follows from a shape: theirs stands before them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from byoc_server.core.frame import ALIGNMENT_BYTES, FrameError
from byoc_server.core.free_list import UNIT_BYTES
from byoc_server.types import STRING, Array, Tensors

K = TypeVar("K")

_Sized = tuple[np.dtype[np.generic], tuple[int, ...], int]
"""Dtype, shape and size in bytes of a tensor."""

_DTYPES = (*map(np.dtype, ("?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d")), STRING)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_TENSOR = struct.Struct("<BBxxxxxx")
"""Code of the dtype, number of axes; the lengths of the axes follow, eight bytes each."""
_REMEMBERED = 256
"""How many descriptors are remembered; clients that send another shape each time get no more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a descriptor means.

    Attributes:
        descriptor: as it is sent.
        tensors: dtype, shape, and size in bytes (0 for strings), in the order of the names.
        nbytes: of the data together, each tensor filled up to eight bytes; ``None`` if there are strings.
        spread_bytes: the same with each tensor filled up to the unit of shared memory; 0 if there are strings, which
            cannot lie there.
        sole: dtype, shape and size of the one tensor of a model with one, unless it is of strings; else ``None``.
    """

    descriptor: bytes
    tensors: tuple[_Sized, ...]
    nbytes: int | None
    spread_bytes: int
    sole: _Sized | None


class TensorLayout:
    """The way from the tensors of a model to bytes and back.

    Args:
        names: of its inputs or outputs, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._sole = self._names[0] if len(self._names) == 1 else None
        self._by_shape: dict[object, Plan] = {}
        self._by_descriptor: dict[bytes, Plan] = {}

    def plan(self, tensors: Tensors) -> Plan:
        """How these tensors are sent.

        Raises:
            KeyError: one of the names is missing, or a dtype is none that a model can have.
        """
        if self._sole is not None:
            array = tensors[self._sole]
            key: object = (array.dtype, array.shape)
        else:
            key = tuple([(tensors[name].dtype, tensors[name].shape) for name in self._names])
        plan = self._by_shape.get(key)
        if plan is None:
            arrays = [tensors[name] for name in self._names]
            plan = _plan([(array.dtype, array.shape) for array in arrays])
            _remember(self._by_shape, key, plan)
        return plan

    def read_plan(self, descriptor: bytes) -> Plan:
        """What a descriptor means.

        Raises:
            FrameError: nothing.
        """
        plan = self._by_descriptor.get(descriptor)
        if plan is None:
            plan = _plan(_parse(descriptor, len(self._names)))
            _remember(self._by_descriptor, descriptor, plan)
        return plan

    def data(self, tensors: Tensors, plan: Plan) -> bytes:
        """The data of tensors, to be sent behind the descriptor of their plan."""
        if plan.sole is not None and plan.nbytes is not None:
            data = tensors[self._names[0]].tobytes()
            return data if len(data) == plan.nbytes else data + bytes(plan.nbytes - len(data))
        pieces: list[bytes] = []
        for name in self._names:
            array = tensors[name]
            data = _text_data(array) if array.dtype == STRING else array.tobytes()
            pieces += [data, bytes(-len(data) % ALIGNMENT_BYTES)]
        return b"".join(pieces)

    def data_of_each(self, stacked: Tensors, plan: Plan) -> list[bytes]:
        """The data of several requests, none of strings, whose tensors are stacked along axis 0.

        Args:
            stacked: of all of them.
            plan: of each of them.
        """
        columns = []
        for name, (_, _, nbytes) in zip(self._names, plan.tensors, strict=True):
            data, filling = stacked[name].tobytes(), bytes(-nbytes % ALIGNMENT_BYTES)
            columns.append([data[begin : begin + nbytes] + filling for begin in range(0, len(data), nbytes)])
        return columns[0] if len(columns) == 1 else [b"".join(pieces) for pieces in zip(*columns, strict=True)]

    def read_stacked(self, plan: Plan, count: int, buffer: bytes, begin: int, end: int) -> Tensors:
        """As ``read``, of tensors that all have a first axis and none is of strings: stacked along it."""
        assert plan.nbytes is not None
        if begin + count * plan.nbytes > end:
            raise FrameError("tensors that reach behind their frame")
        stacked: Tensors = {}
        for name, tensor in zip(self._names, plan.tensors, strict=True):
            shape = tensor[1]
            stacked[name] = _whole(tensor, count, plan.nbytes, buffer, begin).reshape(count * shape[0], *shape[1:])
            begin += _filled(tensor[2])
        return stacked

    def read(self, plan: Plan, count: int, buffer: bytes, begin: int, end: int) -> list[Tensors]:
        """The tensors of so many requests, whose data lie one behind the other: views of them but for strings.

        Raises:
            FrameError: the data do not fit the plan.
        """
        nbytes, sole = plan.nbytes, plan.sole
        if nbytes is None:
            return self._read_one_by_one(plan, count, buffer, begin, end)
        if begin + count * nbytes > end:
            raise FrameError("tensors that reach behind their frame")
        if sole is not None:
            name = self._names[0]
            if count == 1:
                return [{name: np.ndarray(sole[1], sole[0], buffer, begin)}]
            return [{name: array} for array in _views(sole, count, nbytes, buffer, begin)]
        columns = []
        for tensor in plan.tensors:
            columns.append(_views(tensor, count, nbytes, buffer, begin))
            begin += _filled(tensor[2])
        return [dict(zip(self._names, arrays, strict=True)) for arrays in zip(*columns, strict=True)]

    def _read_one_by_one(self, plan: Plan, count: int, buffer: bytes, begin: int, end: int) -> list[Tensors]:
        """As ``read``; of strings nobody knows where the next ones begin."""
        requests: list[Tensors] = []
        for _ in range(count):
            tensors: Tensors = {}
            for name, (dtype, shape, nbytes) in zip(self._names, plan.tensors, strict=True):
                if dtype == STRING:
                    tensors[name], begin = _read_text(shape, buffer, begin, end)
                    continue
                if begin + nbytes > end:
                    raise FrameError("tensors that reach behind their frame")
                tensors[name] = np.ndarray(shape, dtype, buffer, begin)
                begin += _filled(nbytes)
            requests.append(tensors)
        return requests

    def spread(self, tensors: Tensors, plan: Plan, memory: Array, begin: int) -> None:
        """Copy tensors (none of strings) into memory (bytes), each at a unit of its own."""
        for name, (dtype, shape, nbytes) in zip(self._names, plan.tensors, strict=True):
            np.ndarray(shape, dtype, memory, begin)[...] = tensors[name]
            begin += _units(nbytes)

    def spread_tensors(self, plan: Plan, memory: Array) -> Tensors:
        """The tensors that ``spread`` has put at the begin of this memory, as views of it.

        Raises:
            FrameError: it is too short for them.
        """
        if plan.nbytes is None or plan.spread_bytes > len(memory):
            raise FrameError("tensors that reach behind their place")
        begins = accumulate((_units(nbytes) for _, _, nbytes in plan.tensors), initial=0)
        return {
            name: memory[begin : begin + nbytes].view(dtype).reshape(shape)
            for name, (dtype, shape, nbytes), begin in zip(self._names, plan.tensors, begins, strict=False)
        }


def _plan(tensors: Sequence[tuple[np.dtype[np.generic], tuple[int, ...]]]) -> Plan:
    descriptor = b"".join(
        [_TENSOR.pack(_CODES[dtype], len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) for dtype, shape in tensors]
    )
    sizes = [0 if dtype == STRING else math.prod(shape) * dtype.itemsize for dtype, shape in tensors]
    fixed = all(dtype != STRING for dtype, _ in tensors)
    sized = tuple([(dtype, shape, size) for (dtype, shape), size in zip(tensors, sizes, strict=True)])
    return Plan(
        descriptor,
        sized,
        sum(map(_filled, sizes)) if fixed else None,
        sum(map(_units, sizes)) if fixed else 0,
        sized[0] if fixed and len(sized) == 1 else None,
    )


def _parse(descriptor: bytes, count: int) -> list[tuple[np.dtype[np.generic], tuple[int, ...]]]:
    tensors = []
    begin = 0
    try:
        for _ in range(count):
            code, axes = _TENSOR.unpack_from(descriptor, begin)
            shape = struct.unpack_from(f"<{axes}Q", descriptor, begin + _TENSOR.size)
            tensors.append((_DTYPES[code], shape))
            begin += _TENSOR.size + ALIGNMENT_BYTES * axes
    except (IndexError, struct.error) as error:
        raise FrameError("a descriptor that describes nothing") from error
    if begin != len(descriptor):
        raise FrameError("a descriptor of another model")
    return tensors


def _views(tensor: _Sized, count: int, stride: int, buffer: bytes, begin: int) -> Sequence[Array]:
    """So many arrays in a buffer, each so many bytes behind the one before. One array over all of them is cut up."""
    whole = _whole(tensor, count, stride, buffer, begin)
    return list(whole) if tensor[1] else [whole[index, ...] for index in range(count)]


def _whole(tensor: _Sized, count: int, stride: int, buffer: bytes, begin: int) -> Array:
    """One array over so many in a buffer, each so many bytes behind the one before, with an axis more."""
    dtype, shape, _ = tensor
    strides = [stride]
    step = dtype.itemsize * math.prod(shape)
    for length in shape:
        step //= max(length, 1)
        strides.append(step)
    return np.ndarray((count, *shape), dtype, buffer, begin, strides)


def _filled(nbytes: int) -> int:
    return nbytes + -nbytes % ALIGNMENT_BYTES


def _units(nbytes: int) -> int:
    return nbytes + -nbytes % UNIT_BYTES


def _remember(known: dict[K, Plan], key: K, plan: Plan) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = plan


def _text_data(array: Array) -> bytes:
    """Strings: size of all that follows, the length of each in bytes, then all in UTF-8, single surrogates included."""
    texts = [str(text).encode("utf-8", "surrogatepass") for text in array.ravel().tolist()]
    data = b"".join([struct.pack(f"<{len(texts)}Q", *map(len, texts)), *texts])
    return struct.pack("<Q", len(data)) + data


def _read_text(shape: tuple[int, ...], buffer: bytes, begin: int, end: int) -> tuple[Array, int]:
    count = math.prod(shape)
    first = begin + ALIGNMENT_BYTES * (1 + count)
    if first > end:
        raise FrameError("strings that reach behind their frame")
    (nbytes,) = struct.unpack_from("<Q", buffer, begin)
    lengths = struct.unpack_from(f"<{count}Q", buffer, begin + ALIGNMENT_BYTES)
    if nbytes != ALIGNMENT_BYTES * count + sum(lengths) or begin + ALIGNMENT_BYTES + nbytes > end:
        raise FrameError("strings that reach behind their frame")
    array = np.empty(count, object)
    for index, length in enumerate(lengths):
        array[index] = buffer[first : first + length].decode("utf-8", "surrogatepass")
        first += length
    return array.reshape(shape), first + -first % ALIGNMENT_BYTES
