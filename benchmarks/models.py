"""The models that are served, built by code from a fixed seed, so that everybody measures the same ones.

``mlp``: a perceptron with ReLU layers and a softmax, in two sizes: one whose inference costs next to nothing, so that
what is left is the server, and one that gains much from batches. ``resnet50``: the layers of ResNet-50 (He et al.,
"Deep Residual Learning for Image Recognition", December 2015, table 1) with the batch normalisation folded into the
convolutions, as exporters do it. Its weights are random: it computes nonsense at the cost of the real one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

TINY_MLP = (16, 64, 64, 3)
"""Widths of the layers, from the input to the output."""
WIDE_MLP = (512, 2048, 2048, 1000)
IMAGE_PIXELS = 224
_RESNET50_STAGES = (3, 4, 6, 3)
_RESNET50_WIDTH = 64
_CLASSES = 1000
_OPSET, _IR_VERSION = 17, 8
_SEED = 0


class _Graph:
    """A graph under construction: nodes, and weights drawn in the order in which they are asked for."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def weights(self, shape: Sequence[int], deviation: float) -> str:
        """Normally distributed weights."""
        return self._constant((self._random.standard_normal(shape) * deviation).astype(np.float32))

    def zeros(self, length: int) -> str:
        """A bias that does nothing but be added."""
        return self._constant(np.zeros(length, np.float32))

    def save(self, path: Path, inputs: Sequence[int], output: str, outputs: int) -> None:
        """Write the model: ``input`` of shape (N, *inputs) to ``output`` of shape (N, outputs), float32."""
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *inputs])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", outputs])],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))

    def _constant(self, values: npt.NDArray[np.float32]) -> str:
        name = f"weights_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name


def mlp(path: Path, widths: Sequence[int]) -> Path:
    """A perceptron: ``input`` float32 (N, first width) to ``probabilities`` float32 (N, last width)."""
    graph = _Graph()
    last = "input"
    for number, (width, next_width) in enumerate(itertools.pairwise(widths)):
        if number:
            last = graph.node("Relu", [last])
        last = _dense(graph, last, width, next_width)
    graph.node("Softmax", [last], "probabilities", axis=-1)
    graph.save(path, widths[:1], "probabilities", widths[-1])
    return path


def resnet50(path: Path) -> Path:
    """ResNet-50: ``input`` float32 (N, 3, 224, 224) to ``logits`` float32 (N, 1000)."""
    return resnet(path, _RESNET50_STAGES, _RESNET50_WIDTH, IMAGE_PIXELS, _CLASSES)


def resnet(path: Path, stages: Sequence[int], width: int, pixels: int, classes: int) -> Path:
    """A residual network of bottleneck blocks.

    Args:
        path: the file to write.
        stages: blocks of each stage; from the second stage on the first block halves the image.
        width: channels behind the stem, and inside the blocks of the first stage; each stage doubles them.
        pixels: height and width of the image.
        classes: length of the output.
    """
    graph = _Graph()
    last = graph.node("Relu", [_convolution(graph, "input", 3, width, kernel=7, stride=2)])
    last = graph.node("MaxPool", [last], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = width
    for stage, blocks in enumerate(stages):
        inner = width * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            last = _bottleneck(graph, last, channels, inner, stride)
            channels = 4 * inner
    last = graph.node("Flatten", [graph.node("GlobalAveragePool", [last])])
    _dense(graph, last, channels, classes, "logits")
    graph.save(path, (3, pixels, pixels), "logits", classes)
    return path


def _bottleneck(graph: _Graph, source: str, channels: int, inner: int, stride: int) -> str:
    """1x1, 3x3 and 1x1 convolutions, added to the source, which a 1x1 convolution brings to the same shape."""
    last = graph.node("Relu", [_convolution(graph, source, channels, inner)])
    last = graph.node("Relu", [_convolution(graph, last, inner, inner, kernel=3, stride=stride)])
    last = _convolution(graph, last, inner, 4 * inner)
    if stride > 1 or channels != 4 * inner:
        source = _convolution(graph, source, channels, 4 * inner, stride=stride)
    return graph.node("Relu", [graph.node("Add", [last, source])])


def _convolution(graph: _Graph, source: str, channels: int, filters: int, kernel: int = 1, stride: int = 1) -> str:
    """A convolution with bias; weights scaled so that activations keep their size (He et al., February 2015)."""
    weights = graph.weights((filters, channels, kernel, kernel), (2 / (channels * kernel**2)) ** 0.5)
    return graph.node(
        "Conv",
        [source, weights, graph.zeros(filters)],
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[kernel // 2] * 4,
    )


def _dense(graph: _Graph, source: str, width: int, next_width: int, output: str = "") -> str:
    weights = graph.weights((width, next_width), (1 / width) ** 0.5)
    return graph.node("Gemm", [source, weights, graph.zeros(next_width)], output)
