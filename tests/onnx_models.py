"""Tiny ONNX models, built on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def save(
    path: Path, nodes: list[object], inputs: list[object], outputs: list[object], initializers: list[object]
) -> Path:
    """Write a model with opset 17."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def value(name: str, kind: int, shape: Shape) -> object:
    """Declare one input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def identity(path: Path, kind: int = TensorProto.FLOAT, shape: Shape = ("N", 4)) -> Path:
    """One input ``x``, one output ``y`` with the same content."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], [value("x", kind, shape)], [value("y", kind, shape)], [])


def two_inputs(path: Path) -> Path:
    """Inputs ``a`` and ``b``, float32 (N, 1), outputs ``sum`` and ``difference``."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    names = ["a", "b"], ["sum", "difference"]
    inputs, outputs = ([value(n, TensorProto.FLOAT, ("N", 1)) for n in group] for group in names)
    return save(path, nodes, inputs, outputs, [])


def mlp(path: Path, widths: Sequence[int]) -> Path:
    """A perceptron with ReLU layers and a softmax: input ``input``, output ``probabilities``, seeded weights."""
    random = np.random.default_rng(0)
    nodes, initializers, last = [], [], "input"
    for i, (width, next_width) in enumerate(zip(widths, widths[1:], strict=False)):
        weights = (random.standard_normal((width, next_width)) / np.sqrt(width)).astype(np.float32)
        initializers += [
            numpy_helper.from_array(weights, f"w{i}"),
            numpy_helper.from_array(np.zeros(next_width, np.float32), f"b{i}"),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"g{i}"]))
        last = f"g{i}"
        if i < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
            last = f"r{i}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=-1))
    inputs = [value("input", TensorProto.FLOAT, ("N", widths[0]))]
    outputs = [value("probabilities", TensorProto.FLOAT, ("N", widths[-1]))]
    return save(path, nodes, inputs, outputs, initializers)
