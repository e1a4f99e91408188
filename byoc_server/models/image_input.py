"""How image files become records of an input: what ``byoc.toml`` says, and what the graph's shape says without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from byoc_server.codecs.images.pixels import value_table
from byoc_server.errors import ModelLoadError
from byoc_server.models.model_config import ImageConfig
from byoc_server.types import STRING, ImageSpec, Layout, Resize, TensorSpec

Refusal = Callable[[str, str], ModelLoadError]
"""Key of the table, empty for the table itself, and what is wrong with it -> the error."""

_AXES: Mapping[Layout, tuple[int | None, int, int]] = {
    Layout.CHW: (0, 1, 2),
    Layout.HWC: (2, 0, 1),
    Layout.HW: (None, 0, 1),
}
"""Layout -> axis of the channels, if they have one, of the height and of the width."""
_CHANNEL_COUNTS = (1, 3)


def image_spec(
    config: ImageConfig, spec: TensorSpec, record_shape: tuple[int | None, ...], refusal: Refusal
) -> ImageSpec:
    """Complete ``[inputs.NAME.image]`` from the shape of the input.

    Args:
        config: the table.
        spec: the input, with the dtype that clients send.
        record_shape: of the input.
        refusal: makes the error.

    Raises:
        ModelLoadError: an image cannot be a record of this input, or not in this way.
    """
    if spec.dtype == STRING or spec.dtype.kind == "b" or len(record_shape) not in (2, 3):
        raise refusal("", f"an image has 2 or 3 axes of numbers; the input is {spec.describe()}")
    layout = config.layout or _layout(record_shape, spec, refusal)
    channel_axis, height_axis, width_axis = _AXES[layout]
    if len(record_shape) != len(layout.value):
        raise refusal("layout", f"{layout.value} has {len(layout.value)} axes; the input is {spec.describe()}")
    channels = config.channels or _channels(None if channel_axis is None else record_shape[channel_axis], layout)
    count = 1 if channel_axis is None else record_shape[channel_axis]
    if count not in (None, len(channels)):
        at_fault = "channels" if config.channels else "layout"
        raise refusal(at_fault, f"{layout.value} with {channels} has {len(channels)} channels; {_graph(spec, count)}")
    height = _side("height", config.height, record_shape[height_axis], spec, refusal)
    width = _side("width", config.width, record_shape[width_axis], spec, refusal)
    resize = config.resize or Resize.STRETCH
    _check_resize(config, resize, height, width, refusal)
    image = ImageSpec(
        height,
        width,
        channels,
        layout,
        resize,
        config.resize_to,
        config.fill or 0,
        1.0 if config.scale is None else config.scale,
        _per_channel("mean", config.mean or (0.0,), channels, refusal),
        _per_channel("std", config.std or (1.0,), channels, refusal),
        config.shrink_on_load or False,
    )
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # then they are beyond the range
            value_table(image, spec.dtype)
    except ValueError as error:
        raise refusal("", str(error)) from None
    return image


def _layout(record_shape: tuple[int | None, ...], spec: TensorSpec, refusal: Refusal) -> Layout:
    if len(record_shape) == 2:
        return Layout.HW
    found = [
        layout for layout in (Layout.CHW, Layout.HWC) if record_shape[cast(int, _AXES[layout][0])] in _CHANNEL_COUNTS
    ]
    if len(found) != 1:
        raise refusal("", f"say by `layout` whether it is CHW or HWC; the shape of {spec.describe()} does not")
    return found[0]


def _channels(count: int | None, layout: Layout) -> str:
    return "L" if count == 1 or layout is Layout.HW else "RGB"


def _graph(spec: TensorSpec, length: object) -> str:
    return f"the graph has {length}, as the input is {spec.describe()}"


def _side(key: str, configured: int | None, declared: int | None, spec: TensorSpec, refusal: Refusal) -> int:
    if configured is None and declared is None:
        raise refusal("", f"say the {key} of images in pixels by `{key}`; it is open in {spec.describe()}")
    if configured is not None and declared not in (None, configured):
        raise refusal(key, f"expected {declared}, got {configured}; {_graph(spec, declared)}")
    return cast(int, declared if configured is None else configured)


def _check_resize(config: ImageConfig, resize: Resize, height: int, width: int, refusal: Refusal) -> None:
    if config.resize_to is not None and resize is not Resize.CROP:
        raise refusal("resize_to", 'it goes with resize = "crop" alone')
    if config.resize_to is not None and config.resize_to < max(height, width):
        raise refusal(
            "resize_to", f"expected {max(height, width)} or more, got {config.resize_to}: the middle is cut out"
        )
    if config.fill is not None and resize is not Resize.PAD:
        raise refusal("fill", 'it goes with resize = "pad" alone')


def _per_channel(key: str, numbers: tuple[float, ...], channels: str, refusal: Refusal) -> tuple[float, ...]:
    if len(numbers) == 1:
        return numbers * len(channels)
    if len(numbers) != len(channels):
        raise refusal(key, f"expected one number, or one for each channel of {channels}, got {len(numbers)}")
    return numbers
