"""The slow walk over the values of a request, one by one: explains what is wrong, or builds what NumPy would not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Array, TensorSpec

Label = Callable[[int], str]
"""Record number -> how an error message calls that record, e.g. ``instances[3]`` or ``line 4``."""

_FLOAT_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_SHOWN_CHARACTERS = 40


def walk_records(
    values: Sequence[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label
) -> Array:
    """Build the array of all records. See ``conform.records_to_array``.

    Raises:
        InvalidPayload: naming the first value that does not fit.
    """
    dims: list[int | None] = list(record_shape)
    leaves: list[object] = []
    for number, value in enumerate(values):
        if record_shape == (1,) and not isinstance(value, list):
            value = [value]
        _walk(value, 0, dims, spec, label(number), leaves)
    shape = (len(values), *(d or 0 for d in dims))
    array = np.empty(len(leaves), dtype=spec.dtype)
    array[:] = leaves
    return array.reshape(shape)


def _walk(value: object, axis: int, dims: list[int | None], spec: TensorSpec, path: str, leaves: list[object]) -> None:
    """Append the leaves of ``value`` in order; learn the length of open axes from the first record."""
    if axis == len(dims):
        leaves.append(checked_leaf(value, spec, path))
        return
    items = require_list(value, axis, dims, spec, path)
    dims[axis] = len(items)
    for index, item in enumerate(items):
        _walk(item, axis + 1, dims, spec, f"{path}[{index}]", leaves)


def require_list(value: object, axis: int, dims: Sequence[int | None], spec: TensorSpec, path: str) -> list[object]:
    """Return a value that stands for axis ``axis`` of a record, if it is a list of the right length.

    Raises:
        InvalidPayload: naming it by ``path``.
    """
    expected = dims[axis]
    if not isinstance(value, list):
        wanted = "a list of" if expected is None else f"a list of {expected}"
        raise _mismatch(spec, path, f"{wanted} {_noun(spec, axis, dims)}", shown(value))
    if expected is not None and len(value) != expected:
        raise _mismatch(spec, path, f"{expected} {_noun(spec, axis, dims)}", str(len(value)))
    return value


def _noun(spec: TensorSpec, axis: int, dims: Sequence[int | None]) -> str:
    if axis + 1 < len(dims):
        return "lists"
    return "strings" if spec.dtype == STRING else "values"


def _mismatch(spec: TensorSpec, path: str, expected: str, got: str) -> InvalidPayload:
    return InvalidPayload(
        f"{path}: expected {expected} for input {spec.name!r}, got {got}", field=path, expected=expected, got=got
    )


def checked_leaf(value: object, spec: TensorSpec, path: str) -> object:
    """Return one value as the input's dtype takes it.

    Raises:
        InvalidPayload: wrong type, or beyond the range of the dtype.
    """
    kind = spec.dtype.kind
    if spec.dtype == STRING:
        if isinstance(value, str):
            return value
        raise _mismatch(spec, path, "a string", shown(value))
    if kind == "f":
        return _float_leaf(value, spec, path)
    if kind == "b":
        # true and false are equal to these, and an array compares by its elements
        if not isinstance(value, np.ndarray) and value in (0, 1):
            return bool(value)
        raise _mismatch(spec, path, "true or false", shown(value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    info = np.iinfo(cast(Any, spec.dtype))
    if isinstance(value, int) and info.min <= value <= info.max:
        return value
    raise _mismatch(spec, path, f"a whole number from {info.min} to {info.max}", shown(value))


def _float_leaf(value: object, spec: TensorSpec, path: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str) and value in _FLOAT_WORDS:
        return _FLOAT_WORDS[value]
    if not isinstance(value, int | float):
        raise _mismatch(spec, path, f"a number ({spec.dtype_name})", shown(value))
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    # An infinity in a list of numbers is the sender's; one that appears by conversion is an overflow.
    if abs(number) > _largest(spec.dtype) and value not in (float("inf"), float("-inf")):
        with np.errstate(over="ignore"):
            overflown = np.isinf(spec.dtype.type(number))
        if overflown:
            raise _mismatch(spec, path, f"a number within the range of {spec.dtype_name}", shown(value))
    return number


@cache
def _largest(dtype: np.dtype[np.generic]) -> float:
    """Largest finite number of a float dtype; what is a little larger may still be rounded to it."""
    return float(np.finfo(cast(Any, dtype)).max)


def shown(value: object) -> str:
    """A value as an error message may show it: short, and a container only by its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
