"""What TensorRT needs beside its options: its libraries, the shapes to build for, a place to keep what it builds."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from byoc_server.engines.base import GpuOptions
from byoc_server.engines.onnx_runtime import load_error, ort, session_options
from byoc_server.engines.providers import CPU, EngineBuild
from byoc_server.errors import SettingsError

logger = logging.getLogger(__name__)

_PACKAGE = "tensorrt_libs"
"""Where the packages of TensorRT 10 for Python (``tensorrt-cu12``, ``tensorrt-cu13``) have its libraries."""
_LIBRARIES = ("libnvinfer.so.*", "libnvonnxparser.so.*")
"""What the provider's library is linked to, each behind what it needs itself (ONNX Runtime 1.31)."""
_NOT_IN_NAMES = (",", ":")
"""They part names and shapes in the options."""


def preload() -> None:
    """Load the libraries of the Python package, if it is installed: the linker does not look there."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for pattern in _LIBRARIES:
            for path in sorted(Path(folder).glob(pattern)):
                try:
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                except OSError as error:
                    logger.debug("%s does not load: %s", path.name, error)


def plan_build(path: Path, gpu: GpuOptions) -> EngineBuild:
    """Find out what TensorRT is to be told.

    Raises:
        ModelLoadError: the file is not a model ONNX Runtime can run.
        SettingsError: the cache folder cannot be made or written to.
    """
    folder = cache_folder(Path(gpu.tensorrt_cache_dir), path) if gpu.tensorrt_cache_dir else ""
    return EngineBuild(folder, largest_batch(_inputs(path), gpu.largest_batch_rows))


def largest_batch(inputs: Sequence[tuple[str, Sequence[int | str | None]]], rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the largest batch; empty where they cannot be known, or cannot be written down.

    Args:
        inputs: name and declared shape of each.
        rows: of the largest batch.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, declared in inputs:
        lengths = [length for length in declared[1:] if isinstance(length, int)]
        if not declared or len(lengths) < len(declared) - 1 or any(mark in name for mark in _NOT_IN_NAMES):
            return {}
        if isinstance(declared[0], int):  # no axis is open, and there is nothing to tell
            return {}
        shapes[name] = (rows, *lengths)
    return shapes


def cache_folder(cache: Path, model: Path) -> str:
    """A folder for the engines of just this model and ONNX Runtime, made if it is not there.

    ONNX Runtime knows an engine again by the names and the structure of the graph. A model that was trained once more
    has the same ones and other weights, and would be answered with the old. So the content of all files beside the
    model counts, where its weights may be.

    Raises:
        SettingsError: it cannot be made or written to.
    """
    digest = hashlib.sha256(ort.__version__.encode())
    for file in sorted(file for file in model.parent.iterdir() if file.is_file()):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    folder = cache / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # also root may not write to what is mounted read-only
    except OSError as error:
        raise SettingsError(f"tensorrt_cache_dir={cache}: cannot write there: {error.strerror}") from error
    return str(folder)


def _inputs(path: Path) -> list[tuple[str, Sequence[int | str | None]]]:
    """Names and declared shapes of the inputs, from a session that is not optimised and not kept."""
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=[CPU])
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        raise load_error(path.name, error) from error
    return [(node.name, node.shape) for node in session.get_inputs()]
