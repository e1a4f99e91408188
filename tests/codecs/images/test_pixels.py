"""What becomes of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from byoc_server.codecs.images.pixels import normalised, padded, record_shape_of, value_table
from byoc_server.types import ImageSpec, Layout, Resize
from tests.codecs.signatures import assert_same

RGB = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
GREY = np.array([[0, 128, 255]], np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("channels", "layout", "shape"),
    [
        ("RGB", Layout.CHW, (3, 2, 4)),
        ("RGB", Layout.HWC, (2, 4, 3)),
        ("L", Layout.CHW, (1, 2, 4)),
        ("L", Layout.HWC, (2, 4, 1)),
        ("L", Layout.HW, (2, 4)),
    ],
)
def test_shapes(channels: str, layout: Layout, shape: tuple[int, ...]) -> None:
    image = ImageSpec(2, 4, channels, layout)
    assert record_shape_of(image) == shape
    record = normalised(RGB if channels == "RGB" else RGB[..., 0], image, np.dtype("float32"))
    assert record.shape == shape
    assert record.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", [Layout.CHW, Layout.HWC])
def test_normalisation(dtype: str, channels: str, layout: Layout) -> None:
    """Mean and deviation are in the order of the channels that the model takes."""
    image = ImageSpec(2, 4, channels, layout, scale=1 / 255, mean=MEAN, std=STD)
    ordered = RGB if channels == "RGB" else RGB[..., ::-1]
    expected: Any = (ordered / 255 - np.array(MEAN)) / np.array(STD)
    expected = expected if layout is Layout.HWC else expected.transpose(2, 0, 1)
    record: Any = normalised(RGB, image, np.dtype(dtype))
    np.testing.assert_allclose(record, expected.astype(dtype), rtol=1e-6, atol=1e-7, strict=True)


def test_pixels_as_they_are() -> None:
    assert_same(normalised(RGB, ImageSpec(2, 4, "RGB", Layout.HWC), np.dtype("uint8")), RGB)
    assert_same(
        normalised(RGB, ImageSpec(2, 4, "BGR"), np.dtype("int32")), RGB[..., ::-1].transpose(2, 0, 1).astype("i4")
    )


def test_integers_are_rounded_halves_to_even() -> None:
    halves = ImageSpec(1, 3, "L", Layout.HW, scale=0.5, mean=(64.0,))
    assert value_table(halves, np.dtype("int8"))[0, :6].tolist() == [-64, -64, -63, -62, -62, -62]
    assert_same(normalised(GREY, halves, np.dtype("int8")), np.array([[-64, 0, 64]], np.int8))


@pytest.mark.parametrize(
    ("dtype", "scale", "mean", "words"),
    [
        ("int8", 1.0, 0.0, "pixels become 0 to 255, which is beyond the range of int8"),
        ("uint8", 1.0, 1.0, "pixels become -1 to 254, which is beyond the range of uint8"),
        ("float16", 1000.0, 0.0, "pixels become 0 to 255000, which is beyond the range of float16"),
        ("float32", float("nan"), 0.0, "beyond the range of float32"),
        ("bool", 1.0, 0.0, "the input takes no numbers"),
        ("object", 1.0, 0.0, "the input takes no numbers"),
    ],
)
def test_values_beyond_the_dtype(dtype: str, scale: float, mean: float, words: str) -> None:
    image = ImageSpec(1, 3, "L", Layout.HW, scale=scale, mean=(mean,))
    with pytest.raises(ValueError, match=words):
        normalised(GREY, image, np.dtype(dtype))


@pytest.mark.parametrize(("size", "top", "left"), [((2, 4), 1, 0), ((5, 1), 0, 1), ((1, 1), 2, 1)])
def test_padding(size: tuple[int, int], top: int, left: int) -> None:
    image = ImageSpec(5, 4, resize=Resize.PAD, fill=7)
    pixels = np.full((*size, 3), 9, np.uint8)
    canvas = padded(pixels, image)
    assert canvas.shape == (5, 4, 3)
    assert (canvas[top : top + size[0], left : left + size[1]] == 9).all()
    assert (canvas == 9).sum() == pixels.size
    assert set(np.unique(canvas)) <= {7, 9}
    assert_same(padded(GREY[:, :2], ImageSpec(1, 4, "L", fill=3)), np.array([[3, 0, 128, 3]], np.uint8))
