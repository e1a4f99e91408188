"""Opening a session on the GPU, or failing with the reason.

When the CUDA provider cannot be had, ONNX Runtime 1.31 does one of three things. Its library does not load, because
CUDA, cuDNN or the driver is missing: two lines on stderr, and a session on the CPU. The driver refuses: an exception,
which the Python package prints on stdout before it tries again on the CPU. A run fails in the provider: likewise, in
the middle of serving. When the TensorRT provider does not load, it is an exception that leaves open why. None of these
may go unnoticed, nor write into the log in a format of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
from pathlib import Path

from byoc_server.engines import tensorrt
from byoc_server.engines.base import GpuOptions
from byoc_server.engines.gpu_failure import (
    explain_gpu_failure,
    explain_tensorrt_failure,
    is_gpu_failure,
    is_tensorrt_missing,
    lacks_profiles,
    why_no_graph,
)
from byoc_server.engines.onnx_runtime import ERRORS_ONLY, FATAL_ONLY, load_error, ort, session_options
from byoc_server.engines.providers import CPU, CUDA, TENSORRT, EngineBuild, check_gpu_options, gpu_providers
from byoc_server.errors import GpuUnavailable, ModelLoadError, StartupError

logger = logging.getLogger(__name__)

LIBRARIES = Path(ort.__file__).parent / "capi"
"""Where ONNX Runtime has the libraries of its providers."""


def open_on_gpu(path: Path, threads: int, gpu: GpuOptions) -> ort.InferenceSession:
    """Open a session whose first provider is the one that was asked for.

    Raises:
        GpuUnavailable: it cannot be had.
        ModelLoadError: the file is not a model ONNX Runtime can run, or the model cannot be captured as a CUDA graph.
        SettingsError: settings that do not go together, or a cache folder that cannot be written to.
    """
    check_gpu_options(gpu)
    _preload(gpu)
    if gpu.execution_provider == "cuda":
        return _open(path, threads, gpu, EngineBuild())
    build = tensorrt.plan_build(path, gpu)
    try:
        return _open(path, threads, gpu, build)
    except _LacksProfilesError:
        logger.info(
            "TensorRT runs only parts of the model, so an engine is built for every new batch size",
            extra={"event": "tensorrt_profiles"},
        )
        return _open(path, threads, gpu, EngineBuild(build.cache_folder))


class _LacksProfilesError(ModelLoadError):
    """The shapes of inputs that are not those of the model would have to be told."""


def _open(path: Path, threads: int, gpu: GpuOptions, build: EngineBuild) -> ort.InferenceSession:
    providers = gpu_providers(gpu, build)
    ort.set_default_logger_severity(FATAL_ONLY)  # what it has to say of the provider is found out below
    try:
        session = ort.InferenceSession(str(path), session_options(threads), providers=providers, enable_fallback=False)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise _explain(path, str(error)) or load_error(path.name, error) from error
    finally:
        ort.set_default_logger_severity(ERRORS_ONLY)
    obtained = session.get_providers()
    if gpu.execution_provider == "tensorrt" and TENSORRT not in obtained:
        raise GpuUnavailable(explain_tensorrt_failure(_linker_error("tensorrt")))
    if CUDA not in obtained or obtained[0] == CPU:
        raise GpuUnavailable(explain_gpu_failure(_linker_error("cuda")))
    return session


def _explain(path: Path, reported: str) -> StartupError | None:
    """What a failure to open a session is to the operator; ``None`` if it is about the model file."""
    if is_tensorrt_missing(reported):
        return GpuUnavailable(explain_tensorrt_failure(_linker_error("tensorrt") or reported.partition("&) ")[2]))
    if reason := why_no_graph(reported):
        return ModelLoadError(reason)
    if lacks_profiles(reported):
        return _LacksProfilesError(f"TensorRT cannot run all of {path.name}")
    if is_gpu_failure(reported):
        return GpuUnavailable(explain_gpu_failure(reported))
    return None


def _preload(gpu: GpuOptions) -> None:
    """Load the libraries that lie in Python packages, where the linker does not look."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # it prints what it cannot load
        ort.preload_dlls(cuda=True, cudnn=True)
    for line in printed.getvalue().splitlines():
        logger.debug("preload_dlls: %s", line)
    if gpu.execution_provider == "tensorrt":
        tensorrt.preload()


def _linker_error(provider: str) -> str:
    """Why the library of a provider does not load, in the linker's words; empty if it does load.

    Only for a provider that ONNX Runtime has already given up: the library needs to be loaded by ONNX Runtime first.
    """
    try:
        ctypes.CDLL(str(LIBRARIES / f"libonnxruntime_providers_{provider}.so"))
    except OSError as error:
        return str(error)
    return ""
