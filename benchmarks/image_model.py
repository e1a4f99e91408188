"""A model of images as bytes, in single or half precision, made out of one that takes float32.

The client then sends what a picture is made of, which is the same for every precision, and a quarter of the bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_INPUT = "input"


def of_bytes(path: Path, *, half: bool = False) -> Path:
    """Change a model in place: ``input`` becomes uint8 and is divided by 255; its one output stays float32.

    Args:
        path: one input ``input`` and weights of float32, no other constants.
        half: whether weights and everything between become float16.
    """
    model = onnx.load(str(path))
    graph = model.graph
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    if half:
        for weights in graph.initializer:
            weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), weights.name))
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    output = graph.output[0].name
    for node in graph.node:
        node.input[:] = ["pixels" if name == _INPUT else name for name in node.input]
        node.output[:] = ["answer" if name == output else name for name in node.output]
    graph.initializer.append(helper.make_tensor("scale", kind, [], [1 / 255]))
    graph.node.insert(0, helper.make_node("Cast", [_INPUT], ["values"], to=kind))
    graph.node.insert(1, helper.make_node("Mul", ["values", "scale"], ["pixels"]))
    graph.node.append(helper.make_node("Cast", ["answer"], [output], to=TensorProto.FLOAT))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
