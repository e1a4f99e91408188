"""Models that do harm when one input value tells them to, and else give every record back as it came.

All of them take ``x`` float32 (N, 1) and give ``y``. They are loaded and warmed up with zeros, which harm nobody.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_models import save, value

_FLOAT_BYTES = 4


def drops_negative(path: Path) -> Path:
    """Gives fewer rows than it got: ``y`` has those of ``x`` that are not negative."""
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    column = numpy_helper.from_array(np.array([-1], np.int64), "column")
    nodes = [
        helper.make_node("Reshape", ["x", "column"], ["flat"]),
        helper.make_node("GreaterOrEqual", ["flat", "zero"], ["kept"]),
        helper.make_node("Compress", ["x", "kept"], ["y"], axis=0),
    ]
    return save(path, nodes, *_in_and_out(), [zero, column])


def nan_below_zero(path: Path) -> Path:
    """NaN for a record below zero, which has no root."""
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    nodes = [
        helper.make_node("Sqrt", ["x"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return save(path, nodes, *_in_and_out(), [zero])


def allocates(path: Path, gib_at_1: float) -> Path:
    """Takes memory as it is told: so many GiB times the largest ``x`` of the batch."""
    elements = gib_at_1 * 2**30 / _FLOAT_BYTES
    initializers = [
        numpy_helper.from_array(np.array([elements], np.float32), "elements_at_1"),
        numpy_helper.from_array(np.array([1], np.float32), "one"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "elements_at_1"], ["told"]),
        helper.make_node("Max", ["told", "one"], ["elements"]),
        helper.make_node("Cast", ["elements"], ["size"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["size"], ["taken"]),
        helper.make_node("ReduceSum", ["taken"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return save(path, nodes, *_in_and_out(), initializers)


def _in_and_out() -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    return [value("x", TensorProto.FLOAT, ("N", 1))], [value("y", TensorProto.FLOAT, ("N", 1))]
