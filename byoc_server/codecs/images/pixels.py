"""From the pixels of an image to the record a model takes: ``(pixel * scale - mean) / std``, laid out as it wants them.

A pixel has 256 values, so one table a channel holds what becomes of each: worked out once, in double precision, and
rounded once to the input's dtype. For an integer dtype that is to the nearest whole number, halves to the even one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np

from byoc_server.types import Array, ImageSpec, Layout

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def record_shape_of(image: ImageSpec) -> tuple[int, ...]:
    """The shape of the record that an image becomes."""
    size = (image.height, image.width)
    if image.layout is Layout.CHW:
        return (len(image.channels), *size)
    return (*size, len(image.channels)) if image.layout is Layout.HWC else size


@lru_cache(maxsize=64)
def value_table(image: ImageSpec, dtype: np.dtype[Any]) -> Array:
    """What becomes of each pixel value.

    Args:
        image: how pixels are normalised.
        dtype: of the input.

    Returns:
        Array of ``dtype``, shape (channels, 256), channels in the order of ``image.channels``.

    Raises:
        ValueError: the dtype holds no numbers, or some values are beyond its range.
    """
    if dtype.kind not in "fiu":
        raise ValueError("the input takes no numbers")
    pixels = np.arange(256, dtype=np.float64)
    rows = [(pixels * image.scale - m) / s for _, m, s in zip(image.channels, image.mean, image.std, strict=False)]
    values = np.stack(rows)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
    else:
        values, limits = np.rint(values), cast(Any, np.iinfo(dtype))
    low, high = float(values.min()), float(values.max())
    if not (float(limits.min) <= low and high <= float(limits.max)):
        raise ValueError(f"pixels become {low:g} to {high:g}, which is beyond the range of {dtype.name}")
    return values.astype(dtype)


def normalised(pixels: Pixels, image: ImageSpec, dtype: np.dtype[Any]) -> Array:
    """Turn pixels into a record.

    Args:
        pixels: shape (height, width, 3) as RGB, or (height, width) as grey.
        image: how they are normalised and laid out; of the size of ``pixels``.
        dtype: of the input.

    Returns:
        Array of ``dtype``, C-contiguous, shaped as ``record_shape_of`` says.

    Raises:
        ValueError: see ``value_table``.
    """
    table = value_table(image, dtype)
    record = np.empty(record_shape_of(image), dtype)
    planes: Any = record
    if image.layout is Layout.HWC:
        planes = record.transpose(2, 0, 1)
    elif image.layout is Layout.HW:
        planes = record[np.newaxis]
    for number, channel in enumerate(image.channels):
        plane = pixels if channel == "L" else pixels[..., "RGB".index(channel)]
        table[number].take(plane, out=planes[number], mode="wrap")  # no index is ever out of range
    return record


def padded(pixels: Pixels, image: ImageSpec) -> Pixels:
    """Put pixels of a smaller image in the middle of one of the size the model takes.

    Args:
        pixels: shape (h, w) or (h, w, 3), neither side over that of ``image``.
        image: size and filling.
    """
    height, width = pixels.shape[:2]
    canvas = np.full((image.height, image.width, *pixels.shape[2:]), image.fill, np.uint8)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas
