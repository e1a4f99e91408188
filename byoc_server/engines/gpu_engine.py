"""A model on the GPU: which way it runs there, and what its failures mean."""

from __future__ import annotations

from collections.abc import Mapping

from byoc_server.engines.base import GpuOptions
from byoc_server.engines.bound_runs import BoundRuns, all_numeric, undetermined_output
from byoc_server.engines.gpu_failure import (
    WITHOUT_GRAPHS,
    explain_gpu_failure,
    is_gpu_failure,
    is_out_of_memory,
    why_no_graph,
)
from byoc_server.engines.onnx_runtime import engine_facts, ort, run_options, session_specs
from byoc_server.engines.page_locked import page_locked_arrays
from byoc_server.engines.providers import Device
from byoc_server.errors import GpuUnavailable, ModelLoadError
from byoc_server.types import Tensors


class GpuEngine:
    """One inference session on a GPU. See ``Engine``.

    Args:
        session: opened for the GPU.
        threads: of one inference on the CPU, for the facts.
        gpu: what the session was opened with.
        device: where its tensors are, as ``OrtValue`` names it.

    Raises:
        ModelLoadError: a CUDA graph is wanted of a model whose outputs have no fixed shape or hold strings.
    """

    def __init__(self, session: ort.InferenceSession, threads: int, gpu: GpuOptions, device: str = "cuda") -> None:
        self.inputs, self.outputs = session_specs(session)
        self.fixed_shapes = gpu.cuda_graphs or gpu.execution_provider == "tensorrt"
        self.facts: Mapping[str, object] = {
            **engine_facts(session, Device.GPU, threads),
            "cuda_graphs": gpu.cuda_graphs,
        }
        self._session = session
        self._run_options = run_options()
        self._output_names = [spec.name for spec in self.outputs]
        obstacle = undetermined_output(session)
        if not obstacle and not all_numeric((*self.inputs, *self.outputs)):
            obstacle = "it takes or returns strings"
        if obstacle and gpu.cuda_graphs:
            raise ModelLoadError(f"cuda_graphs: the model cannot be replayed: {obstacle}; {WITHOUT_GRAPHS}")
        self._bound: BoundRuns | None = None
        if not obstacle:
            self._bound = BoundRuns(
                session, self.inputs, self.outputs, page_locked_arrays(), graphs=gpu.cuda_graphs, device=device
            )

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once. See ``Engine.infer``.

        Raises:
            GpuUnavailable: CUDA itself failed, such as for a GPU that this build has no code for; in warm-up also if
                the model cannot be captured as a CUDA graph.
        """
        try:
            if self._bound is not None:
                return self._bound.run(tensors)
            outputs = self._session.run(self._output_names, tensors, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
            reported = str(error)
            if reason := why_no_graph(reported):
                raise GpuUnavailable(reason) from error
            if is_gpu_failure(reported):
                raise GpuUnavailable(explain_gpu_failure(reported), lasting=not is_out_of_memory(reported)) from error
            raise
        return dict(zip(self._output_names, outputs, strict=True))

    def warmed_up(self) -> None:
        """No graph is captured from now on."""
        if self._bound is not None:
            self._bound.warmed_up()

    def close(self) -> None:
        """Drop the buffers and the session, and with them their memory."""
        if self._bound is not None:
            self._bound.close()
        self._bound = None
        del self._session
