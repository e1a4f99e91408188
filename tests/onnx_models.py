"""Tiny ONNX models, built on the fly."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto],
) -> Path:
    """Write a model with opset 17."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def value(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
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
    for i, (width, next_width) in enumerate(pairwise(widths)):
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


def gather(path: Path) -> Path:
    """Input ``i``, int64 (N, 1): looks it up in ``[10, 20, 30, 40]``; fails at run time on an index above 3."""
    table = numpy_helper.from_array(np.array([10, 20, 30, 40], np.float32), "table")
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    inputs, outputs = [value("i", TensorProto.INT64, ("N", 1))], [value("y", TensorProto.FLOAT, ("N", 1))]
    return save(path, [node], inputs, outputs, [table])


def busy(path: Path, rounds_per_s: float, idle_s: float = 0.002) -> Path:
    """A model that computes for as long as it is told: input ``x``, float32 (N, 1), output ``y`` with the same content.

    Args:
        path: where to write it.
        rounds_per_s: see ``rounds_per_second``.
        idle_s: seconds it computes when ``x`` is zero, which is what it is loaded and warmed up with. Else the
            largest ``x`` of the batch is the number of seconds.
    """
    size = 64
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "rotation"], ["next"]),
        ],
        "round",
        [value("i", TensorProto.INT64, ()), value("go", TensorProto.BOOL, ()), value("state", 1, (size, size))],
        [value("go_on", TensorProto.BOOL, ()), value("next", 1, (size, size))],
    )
    constants = {"zero": np.float32(0), "idle": np.float32(idle_s), "rate": np.float32(rounds_per_s)}
    initializers = [numpy_helper.from_array(np.array(number), name) for name, number in constants.items()]
    initializers += [numpy_helper.from_array(rotation, "rotation"), numpy_helper.from_array(rotation, "start")]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["longest"], keepdims=0),
        helper.make_node("Greater", ["longest", "zero"], ["told"]),
        helper.make_node("Where", ["told", "longest", "idle"], ["seconds"]),
        helper.make_node("Mul", ["seconds", "rate"], ["rounds"]),
        helper.make_node("Cast", ["rounds"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return save(path, nodes, [value("x", 1, ("N", 1))], [value("y", 1, ("N", 1))], initializers)


@cache
def rounds_per_second() -> float:
    """How many rounds of ``busy`` this machine computes in a second when nothing disturbs it.

    The best of several runs: measured while others compute, ``busy`` would take less time than it is told.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(busy(Path(folder) / "m.onnx", rounds_per_s=1.0)), options)
        rounds, fastest_s = 500.0, math.inf
        for _ in range(8):
            start_s = time.perf_counter()
            session.run(["y"], {"x": np.array([[rounds]], np.float32)})
            fastest_s = min(fastest_s, time.perf_counter() - start_s)
        return rounds / fastest_s


def encoder(path: Path, kind: int = TensorProto.FLOAT, *, masked: bool = True, token_types: bool = False) -> Path:
    """One attention of two heads over ``input_ids`` and ``attention_mask``, int64 (N, L); ids are below 100.

    Outputs: ``hidden`` (N, L, 8), ``pooled`` (N, 8) and ``attention`` (N, 2, L, L).

    Args:
        path: where to write it.
        kind: of the numbers inside, and of the outputs.
        masked: whether positions whose mask is 0 change nothing for the others.
        token_types: whether there is an input ``token_type_ids``, of one type.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "table": np.random.default_rng(0).standard_normal((100, 8)).astype(dtype),
        "types": np.ones((1, 8), dtype),
        "one": np.ones((), dtype),
        "penalty": np.array(-1e4 if masked else 0, dtype),
        "heads": np.array([0, 0, 2, 4]),
        "width": np.array([0, 0, 8]),
        "middle": np.array([1, 2]),
        "last": np.array([2]),
        "positions": np.array([1]),
    }
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["typed"]),
        helper.make_node("Add", ["words", "typed"] if token_types else ["words", "one"], ["embedded"]),
        helper.make_node("Reshape", ["embedded", "heads"], ["in_heads"]),
        helper.make_node("Transpose", ["in_heads"], ["queries"], perm=(0, 2, 1, 3)),
        helper.make_node("Transpose", ["in_heads"], ["keys"], perm=(0, 2, 3, 1)),
        helper.make_node("MatMul", ["queries", "keys"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=kind),
        helper.make_node("Sub", ["one", "mask"], ["absent"]),
        helper.make_node("Mul", ["absent", "penalty"], ["penalties"]),
        helper.make_node("Unsqueeze", ["penalties", "middle"], ["wide_penalties"]),
        helper.make_node("Add", ["scores", "wide_penalties"], ["masked_scores"]),
        helper.make_node("Softmax", ["masked_scores"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "queries"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["turned"], perm=(0, 2, 1, 3)),
        helper.make_node("Reshape", ["turned", "width"], ["hidden"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["tall_mask"]),
        helper.make_node("Mul", ["hidden", "tall_mask"], ["present"]),
        helper.make_node("ReduceSum", ["present", "positions"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "positions"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
    ]
    names = ["input_ids", "attention_mask", "token_type_ids"] if token_types else ["input_ids", "attention_mask"]
    if not token_types:
        del nodes[1]
    inputs = [value(name, TensorProto.INT64, ("N", "L")) for name in names]
    shapes: dict[str, Shape] = {"hidden": ("N", "L", 8), "pooled": ("N", 8), "attention": ("N", 2, "L", "L")}
    return save(path, nodes, inputs, [value(name, kind, shape) for name, shape in shapes.items()], initializers)
