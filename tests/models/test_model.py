import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from byoc_server.batching.policy import BatchBounds
from byoc_server.batching.profile import BatchProfile
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ModelLoadError
from byoc_server.models.model import batch_bounds, load_model
from byoc_server.models.repository import DEMO_MODEL
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec
from tests.onnx_models import identity, mlp


def signature(shape: tuple[int | None, ...], axis: BatchAxis = BatchAxis.DYNAMIC, size: int | None = None) -> Signature:
    specs = (TensorSpec("x", np.dtype(np.float32), shape),)
    return Signature(specs, specs, axis, size)


def test_a_model_is_ready_measured_and_describes_itself(tmp_path: Path) -> None:
    model = load_model(mlp(tmp_path / "m.onnx", [4, 8, 3]), EngineOptions(1), 0)
    assert model.signature.batch_axis is BatchAxis.DYNAMIC
    assert model.max_batch_size == model.profile.best_batch_size > 1
    assert model.facts["inputs"] == ["input: float32[?, 4]"]
    assert model.facts["rows_per_s"]
    assert model.infer({"input": np.zeros((5, 4), np.float32)})["probabilities"].shape == (5, 3)


def test_the_file_beside_a_model_is_what_clients_see(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text('[inputs.input]\nname = "features"\n')
    model = load_model(mlp(tmp_path / "m.onnx", [4, 8, 3]), EngineOptions(1), 8)
    assert model.facts["inputs"] == ["features: float32[?, 4]"]
    assert (model.facts["model_name"], model.facts["config"]) == ("m", str(tmp_path / "byoc.toml"))
    assert model.adapter.model_signature is model.signature
    assert "config" not in load_model(DEMO_MODEL, EngineOptions(1), 8).facts


def test_a_wrong_file_beside_it_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text("names = 3")
    with pytest.raises(ModelLoadError, match=r"byoc\.toml, line 1, names: there is no such key"):
        load_model(tmp_path / "missing.onnx", EngineOptions(1), 8)


def test_the_users_batch_size_is_taken_as_it_is(tmp_path: Path) -> None:
    assert load_model(identity(tmp_path / "m.onnx"), EngineOptions(1), 7).max_batch_size == 7


def test_a_model_without_a_batch_axis_never_batches(tmp_path: Path) -> None:
    model = load_model(identity(tmp_path / "m.onnx", TensorProto.FLOAT, (4,)), EngineOptions(1), 64)
    assert model.signature.batch_axis is BatchAxis.ABSENT
    assert model.max_batch_size == 1


def test_copies_of_a_model_give_the_same_answers_and_end_together(tmp_path: Path) -> None:
    model = load_model(mlp(tmp_path / "m.onnx", [4, 8, 3]), EngineOptions(1), 0, sessions=3)
    assert (len(model.engines), model.facts["sessions"]) == (3, 3)
    record: Tensors = {"input": np.ones((1, 4), np.float32)}
    first, *others = [infer(record)["probabilities"].tolist() for infer in model.infers]
    assert others == [first] * 2
    model.close()


OPEN = signature((None, None))
CLOSED = signature((None, 4))
MEASURED = BatchProfile(((1, 1.0), (8, 1.0)))


@pytest.mark.parametrize(
    ("of", "profile", "max_batch_size", "max_batch_tokens", "bounds"),
    [
        (CLOSED, MEASURED, 0, 0, BatchBounds(256, None)),
        (CLOSED, BatchProfile(((1, 1.0),), fits=4), 0, 0, BatchBounds(4, None)),
        (CLOSED, BatchProfile(((1, 1.0),), fits=4), 64, 0, BatchBounds(4, 4)),
        (CLOSED, MEASURED, 64, 512, BatchBounds(64, 64)),
        (OPEN, MEASURED, 0, 0, BatchBounds(256, None)),
        (OPEN, MEASURED, 0, 512, BatchBounds(256, 512)),
        (OPEN, MEASURED, 64, 512, BatchBounds(64, 512)),
        (OPEN, MEASURED, 64, 0, BatchBounds(64, sys.maxsize)),
        (signature((4, 2), BatchAxis.FIXED, 4), MEASURED, 0, 0, BatchBounds(4, 4)),
        (signature((4, 2), BatchAxis.FIXED, 4), MEASURED, 16, 0, BatchBounds(16, 16)),
        (signature((2,), BatchAxis.ABSENT), MEASURED, 64, 512, BatchBounds(1, None)),
    ],
)
def test_how_large_batches_get(
    of: Signature, profile: BatchProfile, max_batch_size: int, max_batch_tokens: int, bounds: BatchBounds
) -> None:
    assert batch_bounds(of, profile, max_batch_size, max_batch_tokens) == bounds


def test_the_demo_model_is_what_its_script_makes() -> None:
    """Trained anew, it gives the same answers; bytes may differ with the exporter's version."""
    from byoc_server.demo.make_iris import make

    path = DEMO_MODEL
    committed = load_model(path, EngineOptions(1), 8)
    assert path.stat().st_size < 4096
    flowers = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 2.8, 5.1, 1.5], [6.5, 3.0, 5.8, 2.2]], np.float32)
    outputs = committed.infer({"features": flowers})
    assert outputs["label"].tolist() == ["setosa", "versicolor", "virginica"]
    import onnxruntime

    label, probabilities = onnxruntime.InferenceSession(make()).run(None, {"features": flowers})
    assert label.tolist() == outputs["label"].tolist()
    np.testing.assert_allclose(probabilities, outputs["probabilities"].astype(np.float32), rtol=1e-3, atol=1e-6)
