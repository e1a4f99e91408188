"""From loose values to arrays that fit an input exactly, or an error that names the place.

Text formats hand over nested lists and scalars, binary ones arrays of some other dtype. Two steps, so that a good
body costs little and a bad one gets a good message:

1. let NumPy build the array and convert it if no value can change its meaning by that;
2. only where that fails, walk the values one by one: either the walk finds the culprit, or it was a value NumPy does
   not take at once (``null`` for a missing float, ``"NaN"``), and the walk builds the array.

What may convert: integers to floats; floats to integers only if integral; booleans to 0 and 1; ``null``, ``"NaN"``,
``"Infinity"`` and ``"-Infinity"`` to floats. Never a text to a number otherwise, never a number to a string, and never
a value beyond the range of the input's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from byoc_server.codecs.values.walk import Label, shown, walk_records
from byoc_server.errors import InvalidPayload
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_NUMBERS = {int, float, bool}
_MAX_RANK = 32
"""NumPy converts no arrays of more axes, though it makes them."""


def records_to_array(
    values: Sequence[object], spec: TensorSpec, record_shape: tuple[int | None, ...], label: Label
) -> Array:
    """Stack record values into one array.

    Args:
        values: one value per record: nested lists of ``record_shape``, or a scalar for shape ``()`` or ``(1,)``.
        spec: the input they are for.
        record_shape: shape of one record; a ``None`` axis takes any length, the same for all records.
        label: names a record in error messages.

    Returns:
        Array of ``spec.dtype``, shape (N, *record_shape), C-contiguous.

    Raises:
        InvalidPayload: wrong nesting, length, type or range; no records at all.
    """
    if not values:
        raise InvalidPayload(f"no records for input {spec.name!r}", expected="at least one record", got="none")
    loose = _loose_array(values, spec.dtype)
    array = None if loose is None else convert(loose, spec.dtype)
    if array is not None:
        if record_shape == (1,) and array.ndim == 1:
            return array.reshape(-1, 1)
        if fits(array.shape[1:], record_shape):
            return array
    return walk_records(values, spec, record_shape, label)


def _loose_array(values: Sequence[object], dtype: np.dtype[np.generic]) -> Array | None:
    """Let NumPy build an array of a dtype near to ``dtype``; ``None`` if it cannot, or if the values need a walk.

    The types of the values are looked at first: beside one long text NumPy would give every number that much room.
    """
    try:
        array = np.array(values, dtype=object)
        if array.ndim > _MAX_RANK:
            return None
        if dtype == STRING:
            return array
        leaves = array.ravel().tolist()
        types = set(map(type, leaves))
        if types <= _NUMBERS:
            return np.array(leaves).reshape(array.shape)
        if dtype.kind == "f" and types <= {*_NUMBERS, type(None)}:
            return np.array(leaves, dtype=np.float64).reshape(array.shape)  # None becomes NaN
    except (ValueError, OverflowError):  # ragged in a way NumPy refuses, or an integer beyond float64
        pass
    return None


def convert(array: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """Convert to ``dtype`` where every value keeps its meaning; ``None`` where one would not.

    Byte order and memory layout are made native, aligned and C-contiguous on the way. What is so already is not copied,
    and stays read-only if it was.
    """
    kind = array.dtype.kind
    if array.dtype == dtype and kind in "fiu" and array.flags.c_contiguous and array.flags.aligned:
        return array  # the commonest case, at a fifth of the cost
    if dtype == STRING:
        if kind in "US":
            return _texts(array)
        return array if kind == "O" and set(map(type, array.ravel().tolist())) <= {str} else None
    if kind == "b":
        # bytes from outside may hold other values than 0 and 1; the comparison makes a scalar of an array without axes
        array = np.asarray(array.view(np.uint8) != 0)
    if dtype.kind == "f":
        if kind not in "fiub":
            return None
        try:
            with np.errstate(over="raise", invalid="ignore"):  # a signalling NaN is only a NaN
                return _laid_out(array, dtype)
        except FloatingPointError:
            return None
    if dtype.kind == "b":
        keeps = kind == "b" or (kind in "iu" and bool(((array == 0) | (array == 1)).all()))
    else:
        keeps = kind == "b" or (kind in "iuf" and _fits_integer(array, dtype))
    return _laid_out(array, dtype) if keeps else None


def _laid_out(array: Array, dtype: np.dtype[np.generic]) -> Array:
    array = np.asarray(array, dtype, order="C")
    return array if array.flags.aligned else array.copy()


def first_misfit(array: Array, dtype: np.dtype[np.generic]) -> int:
    """Find the first value, counted as if the array were flat, for which ``convert`` gives ``None``.

    Args:
        array: does not convert as a whole.
        dtype: the target.
    """
    flat, low, high = array.ravel(), 0, array.size
    while high - low > 1:  # a part of an array converts if each value of it does
        middle = (low + high) // 2
        if convert(flat[low:middle], dtype) is None:
            high = middle
        else:
            low = middle
    return low


def _texts(array: Array) -> Array | None:
    """Strings of a fixed width, as UTF-32 or UTF-8, as ``str``; ``None`` if a character is none of Unicode's."""
    if array.dtype.kind == "U":
        points = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).view(np.uint32)
        if ((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))).any():
            return None
        return array.astype(object)
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [item.decode() for item in cast(list[bytes], array.ravel().tolist())]
    except UnicodeDecodeError:
        return None
    return texts.reshape(array.shape)


def _fits_integer(array: Array, dtype: np.dtype[np.generic]) -> bool:
    if array.size == 0 or (array.dtype == dtype):
        return True
    numbers = cast(Any, array)
    info = np.iinfo(cast(Any, dtype))
    low, high = numbers.min(), numbers.max()
    if array.dtype.kind == "f":
        low, high = float(low), float(high)
        # A float64 holds integers exactly only below 2^53, smaller floats below less; from there on the sender's number
        # may have been another one.
        exact = min(info.max, 2 ** (np.finfo(cast(Any, array.dtype)).nmant + 1) - 1)
        return max(info.min, -exact) <= low and high <= exact and bool((numbers == np.floor(numbers)).all())
    return int(low) >= info.min and int(high) <= info.max


def fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether ``shape`` is an instance of ``expected``, in which ``None`` stands for any length."""
    return shape == expected or (
        len(shape) == len(expected) and all(e is None or e == s for s, e in zip(shape, expected, strict=True))
    )


def one_or_many(value: object, record_shape: tuple[int | None, ...], root: str) -> tuple[Sequence[object], Label]:
    """Tell whether ``value`` is one record or a list of records, by its depth.

    Returns:
        The records, and the label that names them below ``root``.
    """
    if value == []:
        return [], lambda i: root
    depth = _depth(value, len(record_shape) + 1)
    rank = len(record_shape) - (record_shape == (1,))  # [1, 2] are two records of a one-column input
    if isinstance(value, list) and depth > rank:
        return value, lambda i: f"{root}[{i}]"
    return [value], lambda i: root


def _depth(value: object, most: int) -> int:
    depth = 0
    while isinstance(value, list) and depth < most:
        depth += 1
        value = value[0] if value else None
    return depth


def conform_array(array: Array, spec: TensorSpec, signature: Signature, field: str) -> Array:
    """Fit an array that came with a dtype and shape of its own to an input.

    Args:
        array: of at least one element, any dtype and byte order, with or without the record axis if there is one.
        spec: the input it is for.
        signature: of the model.
        field: how error messages call it.

    Raises:
        InvalidPayload: a dtype that does not convert, or a shape that does not fit.
    """
    converted = convert(array, spec.dtype)
    if converted is None:
        raise InvalidPayload(
            f"{field}: dtype {array.dtype.name} does not convert to {spec.dtype_name} without changing values",
            field=field,
            expected=spec.dtype_name,
            got=array.dtype.name,
        )
    record_shape = signature.record_shapes[spec.name]
    if not signature.batched:
        if fits(converted.shape, record_shape):
            return converted
    elif converted.ndim > 0 and fits(converted.shape[1:], record_shape):
        return converted
    elif fits(converted.shape, record_shape):
        return converted[np.newaxis]
    elif record_shape == (1,) and converted.ndim == 1:
        return converted.reshape(-1, 1)
    expected = shape_text(spec.shape)
    raise InvalidPayload(
        f"{field}: expected shape {expected}, got {shape_text(array.shape)}",
        field=field,
        expected=expected,
        got=shape_text(array.shape),
    )


def require_equal_rows(tensors: Tensors, signature: Signature) -> Tensors:
    """Return ``tensors`` if all have the same number of records.

    Raises:
        InvalidPayload: naming two inputs that differ.
    """
    if signature.batched and len(tensors) > 1:
        counts = {name: len(array) for name, array in tensors.items()}
        (first, rows), *others = counts.items()
        for name, count in others:
            if count != rows:
                raise InvalidPayload(
                    f"input {first!r} has {rows} records but input {name!r} has {count}",
                    field=name,
                    expected=f"{rows} records",
                    got=f"{count} records",
                )
    return tensors


def require_inputs(names: Sequence[str], signature: Signature, field: str, wanted: Sequence[str] | None = None) -> None:
    """Check that ``names`` are just the inputs of the model.

    Args:
        names: that came.
        signature: of the model.
        field: how error messages call the place.
        wanted: what the names are to be; the names of the inputs if it is not given.

    Raises:
        InvalidPayload: listing what is missing, what is unknown, and the inputs there are.
    """
    known = dict.fromkeys(signature.input_by_name if wanted is None else wanted)
    given = set(names)
    missing = [name for name in known if name not in given]
    unknown = [name for name in names if name not in known]
    if not missing and not unknown:
        return
    faults = []
    if missing:
        faults.append(f"missing {', '.join(map(repr, missing))}")
    if unknown:
        faults.append(f"unknown {', '.join(shown(name) for name in unknown[:5])}")
    expected = ", ".join(_described(spec) for spec in signature.inputs)
    prefix = f"{field}: " if field else ""
    raise InvalidPayload(
        f"{prefix}{'; '.join(faults)}; the model's inputs are {expected}",
        field=field or None,
        expected=expected,
        got=", ".join(shown(name) for name in names[:20]) or "nothing",
    )


def _described(spec: TensorSpec) -> str:
    columns = f" (columns {', '.join(map(repr, spec.columns))})" if spec.columns else ""
    return spec.describe() + columns


def shape_text(shape: tuple[int | None, ...]) -> str:
    """``(None, 4)`` as ``[?, 4]``."""
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
