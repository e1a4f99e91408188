"""ONNX Runtime, imported with its telemetry off. Nothing else imports it, and this only when a model is opened.

Since version 1.29 ONNX Runtime on Linux reports usage over the network unless ``ORT_DISABLE_TELEMETRY`` is set before
it is imported; a model server makes no connection nobody asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from byoc_server.engines.providers import Device
from byoc_server.errors import ModelLoadError
from byoc_server.types import STRING, TensorSpec

__all__ = [
    "DTYPES",
    "ERRORS_ONLY",
    "FATAL_ONLY",
    "engine_facts",
    "load_error",
    "ort",
    "session_options",
    "session_specs",
]

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

ERRORS_ONLY, FATAL_ONLY = 3, 4
"""Log severities. ONNX Runtime's warnings are about graphs, not about this run."""


def session_options(threads: int) -> ort.SessionOptions:
    """Options of every session.

    Args:
        threads: of one inference, the calling one included.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Threads that spin between two inferences take the CPU from decoding, and hide an idle server from autoscaling.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def run_options(graph: int | None = None) -> ort.RunOptions:
    """Options of a run. Each session has some of its own: new ones for every run cost a tenth of a small one.

    Args:
        graph: which CUDA graph it captures or replays; ``None`` for a session without.
    """
    options = ort.RunOptions()
    options.log_severity_level = FATAL_ONLY  # what is wrong with a run is raised; printed, it would break the log
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def session_specs(session: ort.InferenceSession) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a session.

    Raises:
        ModelLoadError: there are no inputs, or some input or output is no tensor.
    """
    inputs = tuple(_tensor_spec(node) for node in session.get_inputs())
    if not inputs:
        raise ModelLoadError("the model has no inputs")
    return inputs, tuple(_tensor_spec(node) for node in session.get_outputs())


def engine_facts(session: ort.InferenceSession, device: Device, threads: int) -> Mapping[str, object]:
    """What the start summary says of every session. See ``Engine.facts``."""
    return {
        "engine": f"onnxruntime {ort.__version__}",
        "device": device.value,
        "execution_providers": session.get_providers(),
        "threads": threads,
    }


def load_error(file_name: str, error: Exception) -> ModelLoadError:
    """What a failure to open a model is to the operator: the first line, which may be followed by a trace."""
    first_line = str(error).strip().partition("\n")[0]
    return ModelLoadError(f"ONNX Runtime cannot load {file_name}: {first_line}")


def _tensor_spec(node: ort.NodeArg) -> TensorSpec:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise ModelLoadError(
            f"{node.name!r} is a {node.type}; supported are {', '.join(DTYPES)}. "
            "A classifier from scikit-learn needs the export option zipmap=False"
        )
    return TensorSpec(node.name, dtype, tuple(d if isinstance(d, int) and d >= 0 else None for d in node.shape))
