"""The models whose inputs the fuzzed bodies are read for. The first byte of an input chooses one."""

from __future__ import annotations

import numpy as np

from byoc_server.types import STRING, BatchAxis, ImageSpec, Layout, Resize, Signature, TensorSpec

Shape = tuple[int | None, ...]


def _spec(
    name: str,
    dtype: str,
    shape: Shape,
    columns: tuple[str, ...] = (),
    image: ImageSpec | None = None,
    padding_value: float | None = None,
) -> TensorSpec:
    return TensorSpec(name, STRING if dtype == "string" else np.dtype(dtype), shape, columns, image, padding_value)


def _signature(*inputs: TensorSpec, batch_axis: BatchAxis = BatchAxis.DYNAMIC) -> Signature:
    """A model that gives its inputs back."""
    return Signature(inputs, inputs, batch_axis, inputs[0].shape[0] if batch_axis is BatchAxis.FIXED else None)


SIGNATURES: tuple[Signature, ...] = (
    _signature(_spec("x", "float32", (None, 4))),
    _signature(_spec("x", "float32", (None,))),
    _signature(_spec("x", "float64", (None, None))),
    _signature(_spec("x", "int8", (None, 2))),
    _signature(_spec("x", "uint64", (None,))),
    _signature(_spec("x", "bool", (None, 1))),
    _signature(_spec("x", "string", (None, 2))),
    _signature(_spec("x", "string", (None,))),
    _signature(_spec("x", "float16", (None, 2, 2))),
    _signature(_spec("x", "float32", (2, 2)), batch_axis=BatchAxis.ABSENT),
    _signature(_spec("x", "float32", ()), batch_axis=BatchAxis.ABSENT),
    _signature(_spec("x", "string", (None,)), batch_axis=BatchAxis.ABSENT),
    _signature(_spec("x", "float32", (4, 2)), batch_axis=BatchAxis.FIXED),
    _signature(_spec("a", "float32", (None, 2)), _spec("b", "string", (None,))),
    _signature(_spec("a", "float32", (None,)), _spec("b", "int64", (None, 1))),
    _signature(_spec("a", "float32", (2,)), _spec("b", "bool", ()), batch_axis=BatchAxis.ABSENT),
    _signature(_spec("x", "int64", (None, None), padding_value=0)),
    _signature(_spec("x", "float32", (None, 3), columns=("p", "q", "r"))),
    _signature(_spec("a", "float32", (None, 2), columns=("p", "q")), _spec("b", "string", (None,), columns=("r",))),
    _signature(_spec("x", "float32", (None, 3, 8, 8), image=ImageSpec(8, 8, resize=Resize.CROP, scale=1 / 255))),
    _signature(
        _spec("x", "uint8", (None, 8, 8, 3), image=ImageSpec(8, 8, "BGR", Layout.HWC, resize=Resize.PAD, fill=255))
    ),
    _signature(_spec("x", "float32", (None, 6, 5), image=ImageSpec(6, 5, "L", Layout.HW, mean=(0.5,), std=(0.25,)))),
    _signature(_spec("x", "int32", (None, None, None))),
)
"""New ones go to the end: the committed seeds count from the start."""
