"""ONNX Runtime on a GPU, as far as a CPU can play it: real sessions on the CPU that say they run elsewhere."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from byoc_server.device.gpu import look_for_gpus
from byoc_server.engines.base import EngineOptions
from byoc_server.engines.providers import CPU, CUDA, TENSORRT

ON_GPU = EngineOptions(threads=1, device="gpu")
HAS_GPU = CUDA in ort.get_available_providers() and look_for_gpus(Path("/"), os.environ).usable
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and onnxruntime-gpu")
RealSession = ort.InferenceSession


class CudaSession:
    """A session on the CPU that says it runs on a GPU, and keeps what it was opened with and what it was asked.

    It holds the caller to the rules of CUDA graphs: a graph is of one thread, and is replayed on the buffers that it
    was captured with.
    """

    def __init__(self, path: str, options: ort.SessionOptions, **arguments: Any) -> None:
        self.arguments = arguments
        self.runs: list[tuple[str, int | None]] = []
        self._session = RealSession(path, options, providers=[CPU])
        self._captured: dict[tuple[int, int], Any] = {}

    def get_providers(self) -> list[str]:
        return [name if isinstance(name, str) else name[0] for name in self.arguments["providers"]]

    def run(self, names: list[str], tensors: Any, options: ort.RunOptions) -> Any:
        self.runs.append(("run", self._graph(options)))
        assert self.runs[-1][1] in (None, -1), "an ordinary run would be captured, on addresses that do not last"
        return self._session.run(names, tensors, options)

    def run_with_iobinding(self, binding: Any, options: ort.RunOptions) -> None:
        graph = self._graph(options)
        self.runs.append(("run_with_iobinding", graph))
        if graph is not None:
            captured = self._captured.setdefault((threading.get_ident(), graph), binding)
            assert captured is binding, "a replay reads and writes the buffers of the capture"
        self._session.run_with_iobinding(binding, options)

    @property
    def captures(self) -> int:
        """How many graphs were captured, the same graph on two threads counting twice."""
        return len(self._captured)

    def _graph(self, options: ort.RunOptions) -> int | None:
        try:
            return int(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:  # not set
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class CudaBuild:
    """The installed ONNX Runtime as if it was built for CUDA and TensorRT.

    Attributes:
        calls: what is called of it, in order.
        sessions: those opened on the GPU.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.sessions: list[CudaSession] = []
        on_the_cpu = ort.OrtValue.ortvalue_from_shape_and_type

        def allocate(shape: Any, dtype: Any, device: str) -> Any:
            assert device == "cuda"
            return on_the_cpu(shape, dtype, "cpu")

        monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
        monkeypatch.setattr(ort, "preload_dlls", self._preload)
        monkeypatch.setattr(ort, "set_default_logger_severity", lambda level: self.calls.append(("severity", level)))
        monkeypatch.setattr(ort, "InferenceSession", self._open)
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", allocate)

    def _preload(self, **arguments: bool) -> None:
        self.calls.append(("preload", arguments))
        print("Failed to load libcurand.so.10: no such file")

    def _open(self, path: str, options: ort.SessionOptions, **arguments: Any) -> Any:
        if arguments["providers"] == [CPU]:
            return RealSession(path, options, **arguments)
        self.calls.append("session")
        session = CudaSession(path, options, **arguments)
        self.sessions.append(session)
        return session
