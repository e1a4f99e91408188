"""Runs of a session on buffers that are made once for every shape and used again: I/O binding.

A shape that comes for the first time runs the ordinary way, which tells the shapes of its outputs. When it comes again
it gets buffers: for each input page-locked memory and memory on the device, for each output page-locked memory, which
ONNX Runtime fills before the run returns. What is handed out is a copy, so the next run cannot overwrite it.

With CUDA graphs the outputs are on the device too, for a replay reads and writes the addresses it was captured with and
knows no others; each shape has a graph of its own, captured as soon as it has come. Captures may only happen in
warm-up: memory that any other thread allocates on the GPU meanwhile breaks them (CUDA Runtime API 13.0,
``cudaStreamCaptureModeGlobal``). Afterwards, shapes without a graph run the ordinary way.

What overlaps: the copies of one session with the computation of another, as each has a stream of its own and NumPy and
ONNX Runtime let go of the interpreter while they copy into and out of page-locked memory and compute. What does not:
the copies and the computation of one run, since ``run_with_iobinding`` returns when all is done, and the copy onto the
device, which holds on to the interpreter; from page-locked memory it is short.

Sources: ONNX Runtime 1.31, ``IOBinding`` and ``OrtValue`` of the Python API, and documentation of the CUDA execution
provider, section Using CUDA Graphs.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from byoc_server.engines.onnx_runtime import ort, run_options
from byoc_server.engines.page_locked import Empty
from byoc_server.types import STRING, Array, Tensors, TensorSpec

logger = logging.getLogger(__name__)

MOST_SHAPES = 16
"""With buffers at a time; the one that was not used for longest makes room."""
MOST_GRAPHS = 64
"""Captured graphs of one session. They stay: a graph that makes room could not come back while serving."""

_WITHOUT_GRAPH = -1
"""As ``gpu_graph_id``: neither capture nor replay in this run. 0 is ONNX Runtime's own."""

Shapes = tuple[tuple[int, ...], ...]


def undetermined_output(session: ort.InferenceSession) -> str:
    """The first output whose shape does not follow from those of the inputs, with the reason; empty if all do."""
    symbols = {length for node in session.get_inputs() for length in node.shape if isinstance(length, str)}
    for node in session.get_outputs():
        for axis, length in enumerate(node.shape):
            if not isinstance(length, int) and length not in symbols:
                return f"axis {axis} of output {node.name!r} is {length or 'open'}, which is no axis of an input"
    return ""


class BoundRuns:
    """Runs one session, from one thread at a time.

    Args:
        session: all its inputs and outputs are numeric tensors, and no output is undetermined.
        inputs: of the session.
        outputs: of the session.
        empty: makes buffers on the host.
        graphs: whether the session captures CUDA graphs.
        device: where the session's tensors are, as ``OrtValue`` names it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        empty: Empty,
        *,
        graphs: bool,
        device: str = "cuda",
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._empty = empty
        self._graphs = graphs
        self._device = device
        self._output_names = [spec.name for spec in outputs]
        self._plain_options = run_options(_WITHOUT_GRAPH if graphs else None)
        self._met: OrderedDict[Shapes, Shapes] = OrderedDict()
        self._buffers: OrderedDict[Shapes, _Buffers] = OrderedDict()
        self._graphs_begun = 0
        self._sealed = False

    def run(self, tensors: Tensors) -> Tensors:
        """Run once.

        Raises:
            Exception: what ONNX Runtime raises.
        """
        shapes: Shapes = tuple([tensors[spec.name].shape for spec in self._inputs])
        buffers = self._buffers.get(shapes)
        if buffers is not None:
            self._buffers.move_to_end(shapes)
            return buffers.run(tensors)
        output_shapes = self._met.pop(shapes, None)
        if output_shapes is not None:
            return self._run_bound(tensors, shapes, output_shapes)
        arrays = self._session.run(self._output_names, tensors, self._plain_options)
        output_shapes = tuple([array.shape for array in arrays])
        if self._can_bind(shapes, output_shapes):
            if self._graphs:  # at once: who warms up need not know how often it takes
                return self._run_bound(tensors, shapes, output_shapes)
            self._met[shapes] = output_shapes
            if len(self._met) > MOST_SHAPES:
                self._met.popitem(last=False)
        return dict(zip(self._output_names, arrays, strict=True))

    def warmed_up(self) -> None:
        """Capture nothing from now on."""
        if self._graphs:
            self._sealed = True
            count = len(self._buffers)
            logger.info("%d shapes of a batch are replayed as CUDA graphs", count, extra={"event": "cuda_graphs"})

    def close(self) -> None:
        """Give all buffers back."""
        self._buffers.clear()

    def _can_bind(self, shapes: Shapes, output_shapes: Shapes) -> bool:
        """Whether the outputs are what the model declares, which may leave out even the number of axes."""
        if self._graphs and (self._sealed or len(self._buffers) == MOST_GRAPHS):
            return False
        if any(0 in shape for shape in (*shapes, *output_shapes)):
            return False
        return all(len(shape) == len(spec.shape) for spec, shape in zip(self._outputs, output_shapes, strict=True))

    def _run_bound(self, tensors: Tensors, shapes: Shapes, output_shapes: Shapes) -> Tensors:
        buffers = self._bind(shapes, output_shapes)
        outputs = buffers.run(tensors)
        self._buffers[shapes] = buffers  # not if the run failed, and with it perhaps the capture
        return outputs

    def _bind(self, shapes: Shapes, output_shapes: Shapes) -> _Buffers:
        graph = None
        if self._graphs:
            self._graphs_begun += 1
            graph = self._graphs_begun
        elif len(self._buffers) == MOST_SHAPES:
            self._buffers.popitem(last=False)  # before the new ones are allocated
        inputs = {spec.name: (shape, spec.dtype) for spec, shape in zip(self._inputs, shapes, strict=True)}
        outputs = {spec.name: (shape, spec.dtype) for spec, shape in zip(self._outputs, output_shapes, strict=True)}
        return _Buffers(self._session, inputs, outputs, self._empty, self._device, graph)


class _Buffers:
    """Buffers for the tensors of one shape, bound to a session.

    Args:
        session: to bind them to.
        inputs: name -> shape and dtype.
        outputs: likewise.
        empty: makes buffers on the host.
        device: where the session's tensors are.
        graph: number of the CUDA graph; ``None`` = none.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, tuple[Sequence[int], np.dtype[np.generic]]],
        outputs: Mapping[str, tuple[Sequence[int], np.dtype[np.generic]]],
        empty: Empty,
        device: str,
        graph: int | None,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = run_options(graph)
        self._inputs: list[tuple[str, Array, ort.OrtValue]] = []
        for name, (shape, dtype) in inputs.items():
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device)
            self._binding.bind_ortvalue_input(name, value)
            self._inputs.append((name, empty(shape, dtype), value))
        self._outputs: list[tuple[str, ort.OrtValue]] = []
        for name, (shape, dtype) in outputs.items():
            if graph is None:
                value = ort.OrtValue.ortvalue_from_numpy(empty(shape, dtype))  # on that very memory
            else:
                value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device)
            self._binding.bind_ortvalue_output(name, value)
            self._outputs.append((name, value))

    def run(self, tensors: Tensors) -> Tensors:
        """Run once, on inputs of just these shapes."""
        for name, array, value in self._inputs:
            np.copyto(array, tensors[name])
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: _own(value.numpy()) for name, value in self._outputs}


def all_numeric(specs: Sequence[TensorSpec]) -> bool:
    """Whether none holds strings, which stay on the host."""
    return all(spec.dtype != STRING for spec in specs)


def _own(array: Array) -> Array:
    """Memory of the device has been copied to get here; that of the host is the buffer itself."""
    return array if array.flags.owndata else array.copy()
