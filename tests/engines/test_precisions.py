"""Half precision and quantised models: on the CPU here, so that what differs on a GPU is the GPU alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper

from byoc_server.engines.base import EngineOptions
from byoc_server.engines.onnx import open_model
from tests.engines.fake_cuda import ON_GPU, CudaBuild, needs_gpu
from tests.onnx_models import save, value

ON_CPU = EngineOptions(threads=1, device="cpu")
WIDTH, OUTPUTS = 16, 4


def weights() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((WIDTH, OUTPUTS), dtype=np.float32) / np.float32(4)


def batch() -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-1, 1, (8, WIDTH)).astype(np.float32)


def half(path: Path) -> Path:
    """A dense layer of half precision, inputs and outputs included."""
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT16, ("N", WIDTH))],
        [value("y", TensorProto.FLOAT16, ("N", OUTPUTS))],
        [numpy_helper.from_array(weights().astype(np.float16), "w")],
    )


def quantised(path: Path) -> Path:
    """The same layer in the QDQ form of quantisers: int8 weights and activations, float32 inputs and outputs."""
    weight_scale = np.float32(np.abs(weights()).max() / 127)
    integers = np.clip(np.rint(weights() / weight_scale), -127, 127).astype(np.int8)
    constants = {"w": integers, "w_scale": np.array(weight_scale), "x_scale": np.array(1 / 127, np.float32)}
    constants["zero"] = np.array(0, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_quantised"]),
        helper.make_node("DequantizeLinear", ["x_quantised", "x_scale", "zero"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["w_real"]),
        helper.make_node("MatMul", ["x_real", "w_real"], ["y"]),
    ]
    return save(
        path,
        nodes,
        [value("x", TensorProto.FLOAT, ("N", WIDTH))],
        [value("y", TensorProto.FLOAT, ("N", OUTPUTS))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def check_half(path: Path, options: EngineOptions) -> None:
    engine = open_model(half(path), options)
    assert engine.inputs[0].dtype == np.float16
    for _ in range(3):
        output = engine.infer({"x": batch().astype(np.float16)})["y"]
        assert output.dtype == np.float16
        np.testing.assert_allclose(output.astype(np.float32), batch() @ weights(), atol=0.01)


def check_quantised(path: Path, options: EngineOptions) -> None:
    engine = open_model(quantised(path), options)
    for _ in range(3):
        output = engine.infer({"x": batch()})["y"]
        error = np.abs(np.asarray(output, np.float32) - batch() @ weights()).max()
        assert 1e-6 < error < 0.05  # of 8 bits, no more and no less


def test_half_precision(tmp_path: Path) -> None:
    check_half(tmp_path / "m.onnx", ON_CPU)


def test_a_quantised_model(tmp_path: Path) -> None:
    check_quantised(tmp_path / "m.onnx", ON_CPU)


@pytest.mark.parametrize("check", [check_half, check_quantised])
def test_both_on_buffers(tmp_path: Path, cuda_build: CudaBuild, check: Callable[[Path, EngineOptions], None]) -> None:
    check(tmp_path / "m.onnx", ON_GPU)
    assert [kind for kind, _ in cuda_build.sessions[0].runs] == ["run", "run_with_iobinding", "run_with_iobinding"]


@pytest.mark.gpu
@needs_gpu
def test_both_on_the_gpu(tmp_path: Path) -> None:
    check_half(tmp_path / "half.onnx", ON_GPU)
    check_quantised(tmp_path / "quantised.onnx", ON_GPU)
