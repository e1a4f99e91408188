from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from byoc_server.engines.base import EngineOptions, engine_for
from byoc_server.engines.onnx import OnnxEngine, open_model
from byoc_server.engines.onnx_runtime import DTYPES
from byoc_server.engines.providers import CPU
from byoc_server.errors import ModelLoadError
from byoc_server.types import STRING
from tests.onnx_models import gather, identity, save, two_inputs, value

ONE_THREAD = EngineOptions(threads=1)

KINDS = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(int8)": TensorProto.INT8,
    "tensor(int16)": TensorProto.INT16,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int64)": TensorProto.INT64,
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(uint16)": TensorProto.UINT16,
    "tensor(uint32)": TensorProto.UINT32,
    "tensor(uint64)": TensorProto.UINT64,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(string)": TensorProto.STRING,
}


@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype_passes_through_unchanged(tmp_path: Path, kind: str) -> None:
    dtype = DTYPES[kind]
    engine = open_model(identity(tmp_path / "m.onnx", KINDS[kind], ("N", 2)), ONE_THREAD)
    assert (engine.inputs[0].dtype, engine.inputs[0].shape) == (dtype, (None, 2))
    values = np.array([["a", "ü"], ["", "z"]], object) if dtype == STRING else np.array([[0, 1], [1, 0]], dtype)
    output = engine.infer({"x": values})["y"]
    assert output.dtype == dtype
    np.testing.assert_array_equal(output, values)


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    engine = open_model(two_inputs(tmp_path / "m.onnx"), ONE_THREAD)
    outputs = engine.infer({"a": np.array([[3]], np.float32), "b": np.array([[1]], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"sum": [[4]], "difference": [[2]]}


def test_the_facts_name_version_device_provider_and_threads(tmp_path: Path) -> None:
    engine = open_model(identity(tmp_path / "m.onnx"), EngineOptions(threads=3))
    assert engine.facts["threads"] == 3
    assert engine.facts["device"] == "cpu"
    assert engine.facts["execution_providers"] == ["CPUExecutionProvider"]
    assert str(engine.facts["engine"]).startswith("onnxruntime ")


def test_external_weights_beside_the_model_are_found(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1024], np.arange(1024, dtype=np.float32).tobytes(), raw=True)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    inputs, outputs = [value("x", TensorProto.FLOAT, ("N", 1024))], [value("y", TensorProto.FLOAT, ("N", 1024))]
    path = save(tmp_path / "m.onnx", [node], inputs, outputs, [weights])
    onnx.save_model(onnx.load(str(path)), str(path), save_as_external_data=True, location="m.weights", size_threshold=0)
    assert (tmp_path / "m.weights").stat().st_size == 4096
    output = open_model(path, ONE_THREAD).infer({"x": np.ones((1, 1024), np.float32)})["y"]
    assert output[0, 1023] == 1024


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    """Checklist 13."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"^ONNX Runtime cannot load broken\.onnx: .+") as failure:
        open_model(path, ONE_THREAD)
    assert "\n" not in failure.value.message


def test_outputs_that_are_no_tensors_are_refused_with_advice(tmp_path: Path) -> None:
    labels = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )  # what scikit-learn's exporter adds by default
    info = helper.make_value_info(
        "y", helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, _scalar_type()))
    )
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph([labels], "test", [source], [info])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    path = tmp_path / "zipmap.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match="zipmap=False"):
        open_model(path, ONE_THREAD)


def _scalar_type() -> onnx.TypeProto:
    return helper.make_tensor_type_proto(TensorProto.FLOAT, [])


def test_a_model_without_inputs_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value_float=1.0)
    path = save(tmp_path / "m.onnx", [node], [], [value("y", TensorProto.FLOAT, ())], [])
    with pytest.raises(ModelLoadError, match="no inputs"):
        open_model(path, ONE_THREAD)


def test_a_closed_engine_has_let_go_of_its_session(tmp_path: Path) -> None:
    engine = open_model(identity(tmp_path / "m.onnx"), ONE_THREAD)
    engine.close()
    with pytest.raises(AttributeError):
        engine.infer({"x": np.zeros((1, 4), np.float32)})


def test_the_suffix_chooses_the_engine(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.ONNX")
    assert isinstance(engine_for(path)(path, ONE_THREAD), OnnxEngine)


def test_telemetry_is_off_before_onnx_runtime_is_imported() -> None:
    """Checklist 8: nothing is sent anywhere."""
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(("gpu_usable", "levels"), [(True, ["WARNING"]), (False, [])])
def test_a_gpu_left_unused_is_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gpu_usable: bool,
    levels: list[str],
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    engine = open_model(identity(tmp_path / "m.onnx"), EngineOptions(1, "auto", gpu_usable))
    assert engine.facts["device"] == "cpu"
    assert [record.levelname for record in caplog.records] == levels
    assert all("onnxruntime-gpu" in record.message for record in caplog.records)


def test_a_run_that_fails_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it has to say is raised; a line of its own would not be one of the log."""
    engine = open_model(gather(tmp_path / "m.onnx"), EngineOptions(1))
    with pytest.raises(Exception, match="out of data bounds"):
        engine.infer({"i": np.array([[9]], np.int64)})
    assert capfd.readouterr() == ("", "")
