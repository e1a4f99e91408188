"""Requests of the Open Inference Protocol, version 2, which KServe and Triton Inference Server speak.

::

    {"id": TEXT, "parameters": {...}, "inputs": [{"name", "shape", "datatype", "parameters": {...}, "data"}, ...],
     "outputs": [{"name", "parameters": {...}}, ...]}

An input may have ``binary_data_size`` among its parameters instead of ``data``. Its raw bytes then stand behind the
document, in the order of the inputs, without gaps (Triton Inference Server, "Binary Tensor Data Extension"). A request
asks for such answers by ``binary_data`` among the parameters of an output, or for all outputs by ``binary_data_output``
among its own. Nothing said means JSON.

Other parameters are hints for a scheduler that is not here, and ignored; those that ask for another answer are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from byoc_server.codecs.base import DecodeOptions, Envelope, Enveloped
from byoc_server.codecs.open_inference.data import DATATYPE_NAMES, DATATYPES, data_from_bytes, data_from_json
from byoc_server.codecs.values.conform import (
    conform_array,
    convert,
    fits,
    require_equal_rows,
    require_inputs,
    shape_text,
)
from byoc_server.codecs.values.walk import shown
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import STRING, STRING_BYTES, Array, Signature, Tensors, TensorSpec

REQUEST = "an inference request: an object with 'inputs', a list of {'name', 'shape', 'datatype', 'data'}"
"""The form of a request in words."""

_MARKS = frozenset({"name", "datatype"})
"""Keys that tell an input from a record."""
_MAX_RANK = 32
_UNSUPPORTED = ("classification", "shared_memory_region")
"""Parameters of tensors that belong to other extensions and change where the data is or what it is."""

_Object = Mapping[str, object]


def is_request(document: object, signature: Signature) -> bool:
    """Whether a JSON document is of this form, and not one of the many others with a key ``inputs``."""
    if type(document) is not dict:
        return False
    inputs = document.get("inputs")
    first = inputs[0] if type(inputs) is list and inputs else None
    if type(first) is not dict or not _MARKS.issubset(first):
        return False
    columns = {column for spec in signature.inputs for column in spec.columns}
    return not _MARKS.issubset(signature.input_by_name) and not _MARKS.issubset(columns)


@dataclass(frozen=True, slots=True)
class _Input:
    """One input as a request declares it.

    Attributes:
        spec: the input of the model.
        place: how error messages call it.
        dtype: of its data.
        shape: of its data.
        fits: whether that is a shape the input takes as it is.
        size: of its raw data; ``None`` if the data is in the JSON.
        offset: of its raw data behind the JSON.
        values: its data in the JSON.
    """

    spec: TensorSpec
    place: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fits: bool
    size: int | None
    offset: int
    values: object


@dataclass(frozen=True, slots=True)
class Request:
    """A request but for its raw data.

    Attributes:
        inputs: in the order of the model.
        raw_bytes: size of all raw data.
        tensor_bytes: what the tensors will take at the most.
        envelope: what it says about its answer.
    """

    inputs: tuple[_Input, ...]
    raw_bytes: int
    tensor_bytes: int
    envelope: Envelope


def parse_request(document: object, signature: Signature) -> Request:
    """Check everything about a request that does not depend on its data.

    Args:
        document: as the JSON parser returned it.
        signature: of the model.

    Raises:
        InvalidPayload: it is no such request, or does not fit the model; the message names the place.
    """
    request = _object(document, "body")
    envelope = _envelope(request, signature)
    items = [_object(item, f"inputs[{i}]") for i, item in enumerate(_list(request.get("inputs"), "inputs"))]
    names = _names(items, "inputs")
    require_inputs(names, signature, "inputs")
    inputs: dict[str, _Input] = {}
    raw_bytes = tensor_bytes = 0
    for i, (name, item) in enumerate(zip(names, items, strict=True)):
        place, spec = f"inputs[{i}]", signature.input_by_name[name]
        dtype = _dtype(item.get("datatype"), f"{place}.datatype")
        shape = _shape(item.get("shape"), f"{place}.shape")
        size = _raw_size(item, place, dtype, shape)
        full_shape = (None, *signature.record_shapes[name]) if signature.batched else spec.shape
        inputs[name] = _Input(spec, place, dtype, shape, fits(shape, full_shape), size, raw_bytes, item.get("data"))
        raw_bytes += size or 0
        element_bytes = STRING_BYTES if spec.dtype == STRING else max(spec.dtype.itemsize, dtype.itemsize)
        tensor_bytes += math.prod(shape) * element_bytes
    return Request(tuple([inputs[spec.name] for spec in signature.inputs]), raw_bytes, tensor_bytes, envelope)


def read_request(
    request: Request, signature: Signature, options: DecodeOptions, body: bytes = b"", start: int = 0
) -> Enveloped:
    """Make tensors of the data of a request.

    Args:
        request: as parsed for this signature.
        signature: of the model.
        options: see ``DecodeOptions``.
        body: holds the raw data.
        start: first byte of the raw data, which goes on to the end of ``body``.

    Raises:
        InvalidPayload: the data is not what the request declares, or does not convert.
    """
    left = len(body) - start
    if left != request.raw_bytes:
        raise _other_size(request, start, left)
    if request.tensor_bytes > options.max_tensor_bytes:
        raise TensorsTooLarge(
            f"the tensors of this request take {request.tensor_bytes} bytes, more than {options.max_tensor_bytes}",
            expected=f"at most {options.max_tensor_bytes} bytes",
            got=f"{request.tensor_bytes} bytes",
        )
    tensors: Tensors = {}
    for item in request.inputs:
        if item.size is None:
            declared = TensorSpec(item.spec.name, item.dtype, ())
            array = data_from_json(item.values, declared, item.shape, f"{item.place}.data")
        else:
            array = data_from_bytes(body, start + item.offset, item.size, item.dtype, item.shape)
        tensors[item.spec.name] = _fitted(array, item, signature)
    return Enveloped(require_equal_rows(tensors, signature), request.envelope)


def decode_request(document: object, signature: Signature, options: DecodeOptions) -> Enveloped:
    """Turn a request that has all data in its JSON into tensors. See ``parse_request`` and ``read_request``."""
    return read_request(parse_request(document, signature), signature, options)


def _other_size(request: Request, start: int, left: int) -> InvalidPayload:
    """Why the raw data cannot be that of the inputs."""
    for item in sorted(request.inputs, key=lambda item: item.offset):
        if item.size is not None and item.offset + item.size > left:
            field = f"{item.place}.parameters.binary_data_size"
            expected, got = f"{item.size} bytes", f"{max(0, left - item.offset)} bytes"
            return InvalidPayload(
                f"{field}: expected {expected} behind the JSON, got {got}", field=field, expected=expected, got=got
            )
    at, rest = start + request.raw_bytes, left - request.raw_bytes
    return InvalidPayload(
        f"byte {at}: the binary data of the inputs ends here, {rest} bytes before the body does",
        field=f"byte {at}",
        expected="the end of the body",
        got=f"{rest} more bytes",
    )


def _raw_size(item: _Object, place: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> int | None:
    """How many raw bytes an input has; ``None`` if its data is in the JSON."""
    size = _parameters(item, place).get("binary_data_size")
    if size is None:
        return None
    field = f"{place}.parameters.binary_data_size"
    if type(size) is not int or not 0 <= size < 2**63:
        raise _unexpected(field, "a number of bytes", size)
    if "data" in item:
        raise InvalidPayload(f"{field}: there is 'data' as well", field=field, expected="one of them")
    if dtype != STRING and size != math.prod(shape) * dtype.itemsize:
        expected = f"{math.prod(shape) * dtype.itemsize} bytes"
        raise InvalidPayload(
            f"{field}: {DATATYPE_NAMES[dtype]} of shape {shape_text(shape)} takes {expected}, got {size}",
            field=field,
            expected=expected,
            got=f"{size} bytes",
        )
    return size


def _fitted(array: Array, item: _Input, signature: Signature) -> Array:
    spec = item.spec
    converted = array if array.dtype == spec.dtype else convert(array, spec.dtype)
    if converted is None:
        field, datatype = f"{item.place}.datatype", DATATYPE_NAMES[array.dtype]
        raise InvalidPayload(
            f"{field}: {datatype} does not convert to {spec.dtype_name} without changing values",
            field=field,
            expected=DATATYPE_NAMES[spec.dtype],
            got=datatype,
        )
    return converted if item.fits else conform_array(converted, spec, signature, f"{item.place}.shape")


def _dtype(value: object, field: str) -> np.dtype[np.generic]:
    dtype = DATATYPES.get(value) if type(value) is str else None
    if dtype is None:
        hint = "; send FP32" if value == "BF16" else ""
        raise _unexpected(field, f"one of {', '.join(DATATYPES)}{hint}", value)
    return dtype


def _shape(value: object, field: str) -> tuple[int, ...]:
    """A shape of at least one element."""
    dims = _list(value, field)
    if len(dims) > _MAX_RANK:
        raise _unexpected(field, f"{_MAX_RANK} axes or fewer", value)
    for i, length in enumerate(dims):
        if type(length) is not int or not 0 < length < 2**63:
            raise _unexpected(f"{field}[{i}]", "a positive whole number", length)
    shape = tuple(cast(list[int], dims))
    if math.prod(shape) >= 2**63:
        raise InvalidPayload(f"{field}: there cannot be so many elements", field=field)
    return shape


def _envelope(request: _Object, signature: Signature) -> Envelope:
    """What a request says about its answer."""
    known = [spec.name for spec in signature.outputs]
    request_id = request.get("id")
    if request_id is not None and type(request_id) is not str:
        raise _unexpected("id", "a string", request_id)
    for_all = _flag(_parameters(request, ""), "binary_data_output", "")
    binary = {} if for_all is None else dict.fromkeys(known, for_all)
    wanted = request.get("outputs")
    outputs = [] if wanted is None else _list(wanted, "outputs")
    items = [_object(item, f"outputs[{i}]") for i, item in enumerate(outputs)]
    names = _names(items, "outputs")
    for i, (name, item) in enumerate(zip(names, items, strict=True)):
        place = f"outputs[{i}]"
        if name not in known:
            raise _unexpected(f"{place}.name", f"one of the model's outputs, {', '.join(map(repr, known))}", name)
        flag = _flag(_parameters(item, place), "binary_data", place)
        if flag is not None:
            binary[name] = flag
    return Envelope(request_id, tuple(names), binary)


def _names(items: Sequence[_Object], root: str) -> list[str]:
    """Names of inputs or outputs, none of them twice."""
    names: list[str] = []
    seen: set[str] = set()
    for i, item in enumerate(items):
        name = item.get("name")
        if type(name) is not str:
            raise _unexpected(f"{root}[{i}].name", "a string", name)
        if name in seen:
            raise InvalidPayload(f"{root}[{i}].name: {shown(name)} is there twice", field=f"{root}[{i}].name")
        seen.add(name)
        names.append(name)
    return names


def _parameters(item: _Object, place: str) -> _Object:
    """Parameters of a tensor at ``place``, or of the request if that is empty."""
    value = item.get("parameters")
    if value is None:
        return {}
    root = f"{place}.parameters" if place else "parameters"
    parameters = _object(value, root)
    for name in _UNSUPPORTED if place else ():
        if name in parameters:
            raise InvalidPayload(f"{root}.{name} is not supported here", field=f"{root}.{name}", expected="no such key")
    return parameters


def _flag(parameters: _Object, name: str, place: str) -> bool | None:
    value = parameters.get(name)
    if value is None or type(value) is bool:
        return value
    raise _unexpected(f"{place}.parameters.{name}" if place else f"parameters.{name}", "true or false", value)


def _object(value: object, field: str) -> _Object:
    if type(value) is dict:
        return value
    raise _unexpected(field, REQUEST if field == "body" else "an object", value)


def _list(value: object, field: str) -> list[object]:
    if type(value) is list:
        return value
    raise _unexpected(field, "a list", value)


def _unexpected(field: str, expected: str, value: object) -> InvalidPayload:
    got = "nothing" if value is None else shown(value)
    return InvalidPayload(f"{field}: expected {expected}, got {got}", field=field, expected=expected, got=got)
