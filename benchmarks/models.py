"""The models that are served, built by code from a fixed seed, so that everybody measures the same ones.

``mlp``: a perceptron with ReLU layers and a softmax, in two sizes: one whose inference costs next to nothing, so that
what is left is the server, and one that gains much from batches. ``resnet50``: the layers of ResNet-50 (He et al.,
"Deep Residual Learning for Image Recognition", December 2015, table 1) with the batch normalisation folded into the
convolutions, as exporters do it. ``encoder``: the layers of BERT (Devlin et al., "BERT: Pre-training of Deep
Bidirectional Transformers", October 2018), here as sentence embeddings have them: 6 layers, 384 wide, and the mean over
the positions behind them. The weights of all are random: they compute nonsense at the cost of the real ones.
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
_ENCODER_LAYERS, _ENCODER_WIDTH, _ENCODER_HEADS = 6, 384, 12
_ENCODER_WORDS, _ENCODER_POSITIONS = 30_000, 512
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

    def numbers(self, *numbers: float, dtype: npt.DTypeLike = np.int64) -> str:
        """A constant vector: a shape, axes, indices."""
        return self._constant(np.array(numbers, dtype))

    def save(self, path: Path, inputs: Sequence[int], output: str, outputs: int) -> None:
        """Write the model: ``input`` of shape (N, *inputs) to ``output`` of shape (N, outputs), float32."""
        self.save_inputs(
            path, [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *inputs])], output, outputs
        )

    def save_inputs(self, path: Path, inputs: Sequence[onnx.ValueInfoProto], output: str, outputs: int) -> None:
        """Write the model: any inputs to ``output`` of shape (N, outputs), float32."""
        made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", outputs])]
        graph = helper.make_graph(self._nodes, path.stem, inputs, made, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))

    def _constant(self, values: npt.NDArray[Any]) -> str:
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


def encoder6(path: Path) -> Path:
    """The encoder of sentence embeddings: 6 layers, 384 wide, 12 heads, up to 512 positions."""
    return encoder(path, _ENCODER_LAYERS, _ENCODER_WIDTH, _ENCODER_HEADS, _ENCODER_WORDS, _ENCODER_POSITIONS)


def encoder(path: Path, layers: int, width: int, heads: int, words: int, positions: int) -> Path:
    """An encoder: ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 (N, L), to ``embedding``.

    ``embedding``, float32 (N, width), is the mean over the positions whose mask is 1. Positions whose mask is 0 change
    nothing.

    Args:
        path: the file to write.
        layers: of attention and two dense ones each.
        width: of a position; a multiple of ``heads``.
        heads: of the attention.
        words: valid ids are below.
        positions: most in one record.
    """
    graph = _Graph()
    mask = graph.node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
    absent = graph.node("Sub", [graph.numbers(1, dtype=np.float32), mask])
    # a large number, as exporters take it: infinity makes NaN of a record without any position
    penalty = graph.node("Mul", [absent, graph.numbers(-1e4, dtype=np.float32)])
    penalty = graph.node("Unsqueeze", [penalty, graph.numbers(1, 2)])
    last = graph.node("Gather", [graph.weights((words, width), 1.0), "input_ids"])
    last = graph.node("Add", [last, graph.node("Gather", [graph.weights((2, width), 1.0), "token_type_ids"])])
    length = graph.node("Shape", ["input_ids"], start=1, end=2)
    zero = graph.numbers(0)
    places = graph.node("Slice", [graph.weights((positions, width), 1.0), zero, length, zero])
    last = _normalised(graph, graph.node("Add", [last, places]), width)
    for _ in range(layers):
        attended = _attention(graph, last, penalty, width, heads)
        last = _normalised(graph, graph.node("Add", [last, attended]), width)
        inner = _gelu(graph, _projection(graph, last, width, 4 * width))
        last = _normalised(graph, graph.node("Add", [last, _projection(graph, inner, 4 * width, width)]), width)
    mask = graph.node("Unsqueeze", [mask, graph.numbers(2)])
    total = graph.node("ReduceSum", [graph.node("Mul", [last, mask]), graph.numbers(1)], keepdims=0)
    graph.node("Div", [total, graph.node("ReduceSum", [mask, graph.numbers(1)], keepdims=0)], "embedding")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in names]
    graph.save_inputs(path, inputs, "embedding", width)
    return path


def _attention(graph: _Graph, source: str, penalty: str, width: int, heads: int) -> str:
    """Every position looks at all others of its record whose mask is 1."""
    split = graph.numbers(0, 0, heads, width // heads)

    def heads_of(order: Sequence[int]) -> str:
        projected = graph.node("Reshape", [_projection(graph, source, width, width), split])
        return graph.node("Transpose", [projected], perm=order)

    queries, keys, values = heads_of((0, 2, 1, 3)), heads_of((0, 2, 3, 1)), heads_of((0, 2, 1, 3))
    scale = graph.numbers((width // heads) ** -0.5, dtype=np.float32)
    scores = graph.node("Mul", [graph.node("MatMul", [queries, keys]), scale])
    shares = graph.node("Softmax", [graph.node("Add", [scores, penalty])], axis=-1)
    mixed = graph.node("Transpose", [graph.node("MatMul", [shares, values])], perm=(0, 2, 1, 3))
    return _projection(graph, graph.node("Reshape", [mixed, graph.numbers(0, 0, width)]), width, width)


def _projection(graph: _Graph, source: str, width: int, next_width: int) -> str:
    product = graph.node("MatMul", [source, graph.weights((width, next_width), (1 / width) ** 0.5)])
    return graph.node("Add", [product, graph.zeros(next_width)])


def _gelu(graph: _Graph, source: str) -> str:
    """``x * (1 + erf(x / sqrt(2))) / 2``, spelled as exporters do (Hendrycks and Gimpel, June 2016)."""
    root, one, half = (graph.numbers(number, dtype=np.float32) for number in (2**0.5, 1, 0.5))
    erf = graph.node("Erf", [graph.node("Div", [source, root])])
    return graph.node("Mul", [graph.node("Mul", [source, graph.node("Add", [erf, one])]), half])


def _normalised(graph: _Graph, source: str, width: int) -> str:
    scale = graph.numbers(*[1] * width, dtype=np.float32)
    return graph.node("LayerNormalization", [source, scale, graph.zeros(width)], axis=-1)


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
