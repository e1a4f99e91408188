"""The values that cross layer borders: tensors and the signature of a model.

A leaf: every other module may import it, it imports only NumPy.

Two shapes are told apart throughout:

* the *graph shape* of a tensor, as the model file declares it, dynamic axes as ``None``;
* the *record shape*: what one record of a payload has, i.e. the graph shape without the batch axis.

Inside the server a batched model always sees ``Tensors`` whose arrays have a leading record axis N, also when the
graph has its batch axis fixed to some size; ``BatchAxis`` says how the two are brought together.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
"""An array of any dtype; strings are held as ``object`` arrays of ``str``."""

Tensors = dict[str, Array]
"""Arrays by tensor name. All arrays of a batched model share the length N of axis 0."""

STRING = np.dtype(object)
"""The dtype that stands for strings inside the server (ONNX Runtime hands strings over as object arrays)."""


class BatchAxis(enum.Enum):
    """How the first axis of a model's tensors relates to the records of a payload."""

    DYNAMIC = "dynamic"
    """Axis 0 is the batch and takes any length: records of several requests run as one batch."""
    FIXED = "fixed"
    """Axis 0 is the batch, of one fixed size: records run in chunks of that size, the last one padded."""
    ABSENT = "absent"
    """There is no batch axis: a request is one run, its arrays have exactly the graph shape."""


class Layout(enum.Enum):
    """Where the colour channels of an image tensor stand."""

    CHW = "CHW"
    """Channels, height, width: one plane a channel."""
    HWC = "HWC"
    """Height, width, channels: the values of one pixel side by side."""
    HW = "HW"
    """Height, width: one channel, without an axis of its own."""


class Resize(enum.Enum):
    """How an image of another shape comes to the size a model takes."""

    STRETCH = "stretch"
    """To just that size; what was square may not be afterwards."""
    CROP = "crop"
    """Until it covers that size; the middle is kept."""
    PAD = "pad"
    """Until it fits into that size; the rest is filled."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How an image file becomes one record of an input: decode, resize, then ``(pixel * scale - mean) / std``.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: ``RGB``, ``BGR`` or ``L`` (grey).
        layout: see ``Layout``.
        resize: see ``Resize``.
        resize_to: length in pixels that the shorter side gets before ``Resize.CROP`` cuts the middle out, no less than
            ``height`` and ``width``; ``None`` = just enough to cover the size.
        fill: value of pixels, 0 to 255, beside an image in ``Resize.PAD``.
        scale: factor of every pixel value, which is 0 to 255.
        mean: subtracted after scaling, one number a channel in the order of ``channels``.
        std: divides last, one number a channel.
        shrink_on_load: whether a JPEG may be decoded at a half, a quarter or an eighth of its size, where that is still
            as large as needed: about twice as fast, but its pixels are not those of the whole image made smaller.
    """

    height: int
    width: int
    channels: str = "RGB"
    layout: Layout = Layout.CHW
    resize: Resize = Resize.STRETCH
    resize_to: int | None = None
    fill: int = 0
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    shrink_on_load: bool = False


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and graph shape of one input or output, and what clients may send for it beside tensors.

    Attributes:
        name: as the model file spells it, or as ``byoc.toml`` renames it.
        dtype: NumPy dtype; ``object`` for strings.
        shape: graph shape, ``None`` for a dynamic axis.
        columns: names of the columns or keys that together are one record of this input, in order; empty if it has
            none but its own name.
        image: how image files become records of this input; ``None`` if they cannot.
        padding_value: fills records that are shorter than the longest of their request along an open axis; ``None`` if
            they all must have the same length.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]
    columns: tuple[str, ...] = ()
    image: ImageSpec | None = None
    padding_value: float | str | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype in words a client understands: ``float32``, ``int64``, ``string``."""
        return "string" if self.dtype == STRING else self.dtype.name

    def describe(self) -> str:
        """One short phrase for logs and error messages, e.g. ``features: float32[?, 4]``."""
        return f"{self.name}: {self.dtype_name}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def tensor_bytes(tensors: Tensors) -> int:
    """Size of all arrays together, in bytes; strings count as short ones."""
    size = 0
    for array in tensors.values():
        size += array.size * STRING_BYTES if array.dtype.hasobject else array.nbytes
    return size


STRING_BYTES = 64
"""Of a short ``str`` and the reference to it."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one model and how its batch axis works.

    Attributes:
        inputs: at least one, in the order of the graph.
        outputs: at least one, in the order of the graph.
        batch_axis: see ``BatchAxis``.
        batch_size: the fixed length of axis 0 when ``batch_axis`` is ``FIXED``, else ``None``.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_axis: BatchAxis = BatchAxis.DYNAMIC
    batch_size: int | None = None

    @cached_property
    def batched(self) -> bool:
        """Whether arrays have a leading record axis."""
        return self.batch_axis is not BatchAxis.ABSENT

    @cached_property
    def sole_input(self) -> TensorSpec | None:
        """The input of a model that has just one, else ``None``."""
        return self.inputs[0] if len(self.inputs) == 1 else None

    @cached_property
    def input_by_name(self) -> Mapping[str, TensorSpec]:
        """Inputs by name."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def record_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """Input name -> shape of one record: the graph shape, without axis 0 when that is the batch."""
        return {spec.name: spec.shape[1:] if self.batched else spec.shape for spec in self.inputs}

    @cached_property
    def record_shape_is_fixed(self) -> bool:
        """Whether every record of every request has the same shapes, so that any two can share a batch."""
        return all(None not in shape for shape in self.record_shapes.values())

    @cached_property
    def has_columns(self) -> bool:
        """Whether any input is made up of columns with names of their own."""
        return any(spec.columns for spec in self.inputs)

    @cached_property
    def answer_record_bytes(self) -> int:
        """Bytes that the answer to one record takes at least: open axes count as one long, a string as 64 bytes."""
        shapes = [spec.shape[1:] if self.batched else spec.shape for spec in self.outputs]
        sizes = [STRING_BYTES if spec.dtype == STRING else spec.dtype.itemsize for spec in self.outputs]
        lengths = [math.prod(1 if d is None else d for d in shape) for shape in shapes]
        return sum(length * size for length, size in zip(lengths, sizes, strict=True))
