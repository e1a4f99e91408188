"""ONNX Runtime on the CPU.

Importing this module imports ONNX Runtime, so nothing else imports it before a model is opened. Since version 1.29
ONNX Runtime on Linux reports usage over the network unless ``ORT_DISABLE_TELEMETRY`` is set before it is imported; a
model server makes no connection nobody asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ModelLoadError
from byoc_server.types import STRING, Tensors, TensorSpec

DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": STRING,
}
"""ONNX Runtime's name of a tensor type -> NumPy dtype."""

_ERRORS_ONLY = 3
"""Log severity: ONNX Runtime's warnings are about graphs, not about this run."""


def open_model(path: Path, options: EngineOptions) -> OnnxEngine:
    """Load an ONNX model.

    Raises:
        ModelLoadError: the file is not a model ONNX Runtime can run, or has inputs or outputs that are not tensors.
    """
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = _ERRORS_ONLY
    # Threads that spin between two inferences take the CPU from decoding, and hide an idle server from autoscaling.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise ModelLoadError(f"ONNX Runtime cannot load {path.name}: {_first_line(error)}") from error
    return OnnxEngine(session, options.threads)


class OnnxEngine:
    """One inference session. See ``Engine``."""

    def __init__(self, session: ort.InferenceSession, threads: int) -> None:
        self._session = session
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        if not self.inputs:
            raise ModelLoadError("the model has no inputs")
        self.facts: Mapping[str, object] = {
            "engine": f"onnxruntime {ort.__version__}",
            "execution_providers": session.get_providers(),
            "threads": threads,
        }
        self._output_names = [spec.name for spec in self.outputs]

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once. See ``Engine.infer``."""
        outputs = self._session.run(self._output_names, tensors)
        return dict(zip(self._output_names, outputs, strict=True))

    def close(self) -> None:
        """Drop the session, and with it its memory."""
        del self._session


def _spec(node: ort.NodeArg) -> TensorSpec:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise ModelLoadError(
            f"{node.name!r} is a {node.type}; supported are {', '.join(DTYPES)}. "
            "A classifier from scikit-learn needs the export option zipmap=False"
        )
    return TensorSpec(node.name, dtype, tuple(d if isinstance(d, int) and d >= 0 else None for d in node.shape))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
