"""Why a GPU was not to be had, in words that say what to do. Pure.

ONNX Runtime takes an execution provider for a wish: where it cannot be had, the session runs on the CPU, and the reason
is a line on stderr. A GPU is paid for by the hour, so here it is a demand, and the reason has to reach the person who
can do something about it. What is read here are the words of ONNX Runtime and of the dynamic linker.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

INSTALL_GPU = "install onnxruntime-gpu in place of onnxruntime (byoc-server[gpu])"
WITHOUT_GPU = "--device cpu does without a GPU"
WITHOUT_TENSORRT = "--execution-provider cuda does without TensorRT"
WITHOUT_GRAPHS = "--cuda-graphs false does without"
_INSTALL_CUDA = "install onnxruntime-gpu[cuda,cudnn] (byoc-server[gpu]), or take an image with CUDA and cuDNN"
_INSTALL_TENSORRT = (
    "install the TensorRT of that version (tensorrt-cu12 or tensorrt-cu13, as the CUDA of onnxruntime-gpu), or take an "
    "image with it"
)
_NEWER_DRIVER = (
    "the host's NVIDIA driver is too old for the CUDA libraries here; take a host with a newer one (on SageMaker: a "
    "newer InferenceAmiVersion), or put the cuda-compat package that fits these libraries into the image"
)
_WRONG_COMPAT = (
    "set --cuda-compat off and take a host whose own driver is new enough (on SageMaker: a newer InferenceAmiVersion), "
    "or install a version of the package that fits"
)

_OUT_OF_MEMORY = 2
_CUDA_ADVICE: Mapping[int, str] = {
    _OUT_OF_MEMORY: "the model does not fit into what is free of the GPU's memory; use fewer --workers or a larger GPU",
    34: "a stub of libcuda.so.1 was loaded, which is only for linking; take its folder out of LD_LIBRARY_PATH",
    35: _NEWER_DRIVER,
    36: _NEWER_DRIVER,
    100: "the driver library is here but no GPU; use an instance with an NVIDIA GPU, start the container with "
    "--gpus all, and see that CUDA_VISIBLE_DEVICES does not hide it",
    222: _NEWER_DRIVER,
    802: "the GPUs of this host are still being set up (its fabric manager is not ready); restart the container",
    803: "libcuda.so.1 comes from the image, mostly from its cuda-compat package, and does not fit the host's driver; "
    + _WRONG_COMPAT,
    804: f"the cuda-compat package does not support this kind of GPU; {_WRONG_COMPAT}",
}
"""CUDA error code -> what it means for a container and what to do. Source of the codes: CUDA Runtime API 13.0,
``cudaError_t``."""
_CAPTURE_ERRORS = range(900, 909)
"""``cudaErrorStreamCaptureUnsupported`` to ``cudaErrorCapturedEvent`` and their like: same source."""

_CODE = re.compile(r"\b(CU[A-Z_]*|NCCL) failure (-?\d+): ([^;\n]*)")
"""How ONNX Runtime reports an error of CUDA or one of its libraries; what follows the semicolon is about its source."""
_NO_MEMORY_FOR = re.compile(r"ALLOC(ATION)?_FAILED")
"""In the names that cuBLAS and cuDNN give to their errors."""
_MISSING_LIBRARY = re.compile(r"([\w.+-]+): cannot open shared object file")
_MISSING_SYMBOL = re.compile(r"undefined symbol: (cu[A-Z]\w*)")
"""The linker's words (glibc 2.31 to 2.41). Functions of the driver library are in camel case, ``cublas...`` is not."""
_OF_TENSORRT = ("libnvinfer", "libnvonnxparser")
_NO_TENSORRT = "Please install TensorRT libraries"
"""What ONNX Runtime 1.31 says when its TensorRT provider does not load, whatever the reason."""
_NO_GRAPH = re.compile(r"cannot use the graph capture feature as requested by the user\s+as ([^\n]*)")
_NOT_PROFILED = "User needs to provide all the dynamic shape inputs with associated profiles"
_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s/]+/)*")
_LONGEST = 300


def is_gpu_failure(reported: str) -> bool:
    """Whether an error of ONNX Runtime is about the GPU or its libraries, and not about the model."""
    return any(pattern.search(reported) for pattern in (_CODE, _MISSING_LIBRARY, _MISSING_SYMBOL))


def is_out_of_memory(reported: str) -> bool:
    """Whether the GPU only had too little memory for this run; any other failure spoils its context."""
    code = _CODE.search(reported)
    if code is None:
        return False
    return (code[1], int(code[2])) == ("CUDA", _OUT_OF_MEMORY) or _NO_MEMORY_FOR.search(code[3]) is not None


def is_tensorrt_missing(reported: str) -> bool:
    """Whether ONNX Runtime could not load its TensorRT provider."""
    return _NO_TENSORRT in reported


def lacks_profiles(reported: str) -> bool:
    """Whether TensorRT can run only parts of the model, whose inputs are not those of the model.

    The shapes of those would have to be told too, and their names are known to ONNX Runtime alone.
    """
    return _NOT_PROFILED in reported


def why_no_graph(reported: str) -> str:
    """Why the model cannot be replayed as a CUDA graph, in a line; empty if that is not what was reported."""
    if refused := _NO_GRAPH.search(reported):
        return f"cuda_graphs: {textwrap.shorten(refused[1], _LONGEST)}; {WITHOUT_GRAPHS}"
    code = _CODE.search(reported)
    if code is not None and code[1] == "CUDA" and int(code[2]) in _CAPTURE_ERRORS:
        words = textwrap.shorten(code[3], _LONGEST)
        return f"cuda_graphs: the model does what cannot be captured: {words} (CUDA {code[2]}); {WITHOUT_GRAPHS}"
    return ""


def explain_gpu_failure(reported: str) -> str:
    """Say in one line what is wrong and what to do.

    Args:
        reported: ONNX Runtime's or the dynamic linker's own words; empty if there are none.

    Returns:
        A line without the paths and the host name that ``reported`` may hold.
    """
    return f"the model cannot run on the GPU: {_explain(reported)}; {WITHOUT_GPU}"


def explain_tensorrt_failure(reported: str) -> str:
    """Say in one line why TensorRT, which was asked for, is not to be had. See ``explain_gpu_failure``."""
    missing = _MISSING_LIBRARY.search(reported)
    if missing and not missing[1].startswith((*_OF_TENSORRT, "libonnxruntime")):
        return explain_gpu_failure(reported)  # CUDA alone would not fare better
    return f"the model cannot run with TensorRT: {_explain(reported)}; {WITHOUT_TENSORRT}"


def _explain(reported: str) -> str:
    if code := _CODE.search(reported):
        library, number, words = code[1], int(code[2]), textwrap.shorten(code[3], _LONGEST)
        name = f"{library} failure {number} ({words})"
        return f"{name}: {_CUDA_ADVICE[number]}" if library == "CUDA" and number in _CUDA_ADVICE else name
    if missing := _MISSING_LIBRARY.search(reported):
        return f"{missing[1]} is not in this container; {_how_to_get(missing[1])}"
    if symbol := _MISSING_SYMBOL.search(reported):
        return f"the driver library has no {symbol[1]}: {_NEWER_DRIVER}"
    first_line = _FOLDERS.sub("", reported.strip().partition("\n")[0])
    return textwrap.shorten(first_line, _LONGEST) or (
        f"ONNX Runtime left it unused and does not say why; {_INSTALL_CUDA}, and see that the driver fits"
    )


def _how_to_get(library: str) -> str:
    if library.startswith("libcuda.so"):  # part of the driver, which the container toolkit brings in from the host
        return "use an instance with an NVIDIA GPU, and start the container with --gpus all"
    if library.startswith("libonnxruntime"):
        return INSTALL_GPU
    if library.startswith(_OF_TENSORRT):
        return _INSTALL_TENSORRT
    return _INSTALL_CUDA
