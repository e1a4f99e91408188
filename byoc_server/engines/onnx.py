"""ONNX Runtime, on the CPU or on an NVIDIA GPU.

Importing this module imports ONNX Runtime, so nothing else imports it before a model is opened. Since version 1.29
ONNX Runtime on Linux reports usage over the network unless ``ORT_DISABLE_TELEMETRY`` is set before it is imported; a
model server makes no connection nobody asked for.

When the CUDA provider cannot be had, ONNX Runtime 1.31 does one of three things. Its library does not load, because
CUDA, cuDNN or the driver is missing: two lines on stderr, and a session on the CPU. The driver refuses: an exception,
which the Python package prints on stdout before it tries again on the CPU. A run fails in the provider: likewise, in
the middle of serving. None of these may go unnoticed, nor write into the log in a format of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from byoc_server.engines.base import EngineOptions
from byoc_server.engines.providers import (
    CUDA,
    Device,
    choose_device,
    explain_gpu_failure,
    is_gpu_failure,
    is_out_of_memory,
    provider_options,
)
from byoc_server.errors import GpuUnavailable, ModelLoadError
from byoc_server.types import STRING, Tensors, TensorSpec

logger = logging.getLogger(__name__)

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

_ERRORS_ONLY, _FATAL_ONLY = 3, 4
"""Log severities. ONNX Runtime's warnings are about graphs, not about this run."""

_CUDA_LIBRARY = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"


def built_in_providers() -> list[str]:
    """Execution providers the installed ONNX Runtime was built with; which is not what works here."""
    return list(ort.get_available_providers())


def open_model(path: Path, options: EngineOptions) -> OnnxEngine:
    """Load an ONNX model.

    Raises:
        ModelLoadError: the file is not a model ONNX Runtime can run, or has inputs or outputs that are not tensors.
        GpuUnavailable: it is to run on a GPU and cannot.
    """
    choice = choose_device(options.device, options.gpu_usable, built_in_providers())
    if choice.advice:
        logger.warning(choice.advice, extra={"event": "gpu_unused"})
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = _ERRORS_ONLY
    # Threads that spin between two inferences take the CPU from decoding, and hide an idle server from autoscaling.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    open_session = _open_on_gpu if choice.device is Device.GPU else _open_on_cpu
    return OnnxEngine(open_session(path, session_options), options.threads, choice.device)


def _open_on_cpu(path: Path, session_options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), session_options, providers=provider_options(Device.CPU))
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise _not_loaded(path, error) from error


def _open_on_gpu(path: Path, session_options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a session whose first provider is CUDA, or fail with the reason."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # it prints what it cannot load
        ort.preload_dlls(cuda=True, cudnn=True)
    for line in printed.getvalue().splitlines():
        logger.debug("preload_dlls: %s", line)
    ort.set_default_logger_severity(_FATAL_ONLY)  # what it has to say of the provider is found out below
    try:
        session = ort.InferenceSession(
            str(path), session_options, providers=provider_options(Device.GPU), enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        if is_gpu_failure(str(error)):
            raise GpuUnavailable(explain_gpu_failure(str(error))) from error
        raise _not_loaded(path, error) from error
    finally:
        ort.set_default_logger_severity(_ERRORS_ONLY)
    if session.get_providers()[0] != CUDA:
        raise GpuUnavailable(explain_gpu_failure(_linker_error(_CUDA_LIBRARY)))
    return session


def _linker_error(library: Path) -> str:
    """Why a library does not load, in the linker's words; empty if it does load.

    Only for a provider that ONNX Runtime has already given up: the library needs to be loaded by ONNX Runtime first.
    """
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def _not_loaded(path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"ONNX Runtime cannot load {path.name}: {_first_line(error)}")


class OnnxEngine:
    """One inference session. See ``Engine``."""

    def __init__(self, session: ort.InferenceSession, threads: int, device: Device) -> None:
        self._session = session
        self._device = device
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        if not self.inputs:
            raise ModelLoadError("the model has no inputs")
        self.facts: Mapping[str, object] = {
            "engine": f"onnxruntime {ort.__version__}",
            "device": device.value,
            "execution_providers": session.get_providers(),
            "threads": threads,
        }
        self._output_names = [spec.name for spec in self.outputs]

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once. See ``Engine.infer``.

        Raises:
            GpuUnavailable: CUDA itself failed, such as for a GPU that this build has no code for.
        """
        try:
            outputs = self._session.run(self._output_names, tensors)
        except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
            reported = str(error)
            if self._device is Device.GPU and is_gpu_failure(reported):
                raise GpuUnavailable(explain_gpu_failure(reported), lasting=not is_out_of_memory(reported)) from error
            raise
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
