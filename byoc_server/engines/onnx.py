"""A model of the ONNX format, run by ONNX Runtime on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from byoc_server.engines.base import Engine, EngineOptions
from byoc_server.engines.gpu_engine import GpuEngine
from byoc_server.engines.gpu_session import open_on_gpu
from byoc_server.engines.one_thread import OneThread
from byoc_server.engines.onnx_runtime import engine_facts, load_error, ort, run_options, session_options, session_specs
from byoc_server.engines.providers import CPU, Device, choose_device
from byoc_server.types import Tensors

logger = logging.getLogger(__name__)


def built_in_providers() -> list[str]:
    """Execution providers the installed ONNX Runtime was built with; which is not what works here."""
    return list(ort.get_available_providers())


def open_model(path: Path, options: EngineOptions) -> Engine:
    """Load an ONNX model.

    Raises:
        ModelLoadError: the file is not a model ONNX Runtime can run, or not in the way the settings want, or has
            inputs or outputs that are not tensors.
        GpuUnavailable: it is to run on a GPU and cannot.
        SettingsError: settings for the GPU that do not go together.
    """
    choice = choose_device(options.device, options.gpu_usable, built_in_providers(), options.gpu.execution_provider)
    if choice.advice:
        logger.warning(choice.advice, extra={"event": "gpu_unused"})
    if choice.device is Device.CPU:
        return OnnxEngine(_open_on_cpu(path, options.threads), options.threads)
    engine = GpuEngine(open_on_gpu(path, options.threads, options.gpu), options.threads, options.gpu)
    return OneThread(engine) if options.gpu.cuda_graphs else engine


def _open_on_cpu(path: Path, threads: int) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), session_options(threads), providers=[CPU])
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise load_error(path.name, error) from error


class OnnxEngine:
    """One inference session on the CPU. See ``Engine``."""

    fixed_shapes = False

    def __init__(self, session: ort.InferenceSession, threads: int) -> None:
        self._session = session
        self._run_options = run_options()
        self.inputs, self.outputs = session_specs(session)
        self.facts: Mapping[str, object] = engine_facts(session, Device.CPU, threads)
        self._output_names = [spec.name for spec in self.outputs]

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once. See ``Engine.infer``."""
        outputs = self._session.run(self._output_names, tensors, self._run_options)
        return dict(zip(self._output_names, outputs, strict=True))

    def warmed_up(self) -> None:
        """Any shape is as good as another."""

    def close(self) -> None:
        """Drop the session, and with it its memory."""
        del self._session
