"""Saying why a GPU was not to be had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.engines.gpu_failure import (
    explain_gpu_failure,
    explain_tensorrt_failure,
    is_gpu_failure,
    is_out_of_memory,
    is_tensorrt_missing,
    lacks_profiles,
    why_no_graph,
)


def cuda_call(number: int, words: str, library: str = "CUDA") -> str:
    """An error as ONNX Runtime 1.31 words it when a call into CUDA fails."""
    return (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
        "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool "
        f"THRW = true] {library} failure {number}: {words} ; GPU=-1 ; hostname=ip-10-0-0-1 ; "
        "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
        "expr=cudaSetDevice(info_.device_id); \n\n"
    )


@pytest.mark.parametrize(
    ("number", "words", "advice"),
    [
        (2, "out of memory", "fewer --workers or a larger GPU"),
        (34, "CUDA driver is a stub library", "out of LD_LIBRARY_PATH"),
        (35, "CUDA driver version is insufficient for CUDA runtime version", "InferenceAmiVersion"),
        (36, "API call is not supported in the installed CUDA driver", "InferenceAmiVersion"),
        (100, "no CUDA-capable device is detected", "--gpus all"),
        (222, "the provided PTX was compiled with an unsupported toolchain.", "cuda-compat"),
        (802, "system not yet initialized", "restart the container"),
        (803, "system has unsupported display driver / cuda driver combination", "--cuda-compat off"),
        (804, "forward compatibility was attempted on non supported HW", "this kind of GPU"),
    ],
)
def test_an_error_of_cuda_comes_with_what_to_do(number: int, words: str, advice: str) -> None:
    reported = cuda_call(number, words)
    assert is_gpu_failure(reported)
    line = explain_gpu_failure(reported)
    assert f"CUDA failure {number} ({words}): " in line
    assert advice in line
    assert_presentable(line)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        (cuda_call(999, "unknown error"), "CUDA failure 999 (unknown error);"),
        (cuda_call(35, "CUDNN_STATUS", "CUDNN"), "CUDNN failure 35 (CUDNN_STATUS);"),  # the same number, another list
        (cuda_call(8, "no plan", "CUDNN_FE"), "CUDNN_FE failure 8 (no plan);"),
        (cuda_call(3, "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS"), "CUBLAS failure 3 (CUBLAS_STATUS_ALLOC_FAILED);"),
    ],
)
def test_an_error_nobody_foresaw_is_named(reported: str, name: str) -> None:
    assert is_gpu_failure(reported)
    line = explain_gpu_failure(reported)
    assert name in line
    assert "driver" not in line
    assert_presentable(line)


@pytest.mark.parametrize(
    ("reported", "library", "advice"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "libcuda.so.1", "--gpus all"),
        ("libcublasLt.so.13: cannot open shared object file: No such file or directory", "libcublasLt.so.13", "[cuda,"),
        ("libcudart.so.13: cannot open shared object file: No such file or directory", "libcudart.so.13", "[cuda,"),
        ("libcudnn.so.9: cannot open shared object file: No such file or directory", "libcudnn.so.9", "cudnn]"),
        (
            "/opt/x/capi/libonnxruntime_providers_cuda.so: cannot open shared object file: No such file or directory",
            "libonnxruntime_providers_cuda.so",
            "install onnxruntime-gpu in place of onnxruntime",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /opt/x/capi/libonnxruntime_providers_cuda.so with "
            "error: libcuda.so.1: cannot open shared object file: No such file or directory",
            "libcuda.so.1",
            "--gpus all",
        ),
    ],
)
def test_a_missing_library_comes_with_where_it_is_to_be_had(reported: str, library: str, advice: str) -> None:
    assert is_gpu_failure(reported)
    line = explain_gpu_failure(reported)
    assert f" {library} is not in this container" in line
    assert advice in line
    assert_presentable(line)


def test_a_driver_library_that_lacks_a_function_is_too_old() -> None:
    reported = "/opt/x/libonnxruntime_providers_cuda.so: undefined symbol: cuTensorMapEncodeTiled"
    assert is_gpu_failure(reported)
    line = explain_gpu_failure(reported)
    assert "no cuTensorMapEncodeTiled" in line
    assert "too old" in line
    assert_presentable(line)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ("", "does not say why"),
        (" \n", "does not say why"),
        ("/opt/", "does not say why"),
        ("/usr/lib/libcublas.so.13: file too short", "GPU: libcublas.so.13: file too short;"),
        ("/opt/x/libp.so: undefined symbol: cublasLtMatmul", "libp.so: undefined symbol: cublasLtMatmul;"),
        ("first line\nsecond line", "first line;"),
    ],
)
def test_anything_else_is_its_first_line(reported: str, words: str) -> None:
    assert not is_gpu_failure(reported)
    line = explain_gpu_failure(reported)
    assert words in line
    assert "second line" not in line
    assert_presentable(line)


@pytest.mark.parametrize(
    "reported",
    [
        "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from /tmp/broken.onnx failed:Protobuf parsing failed.",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Foo(1) node with name 'n'",
        "Unexpected failure 3: the model asks for opset 99",
    ],
)
def test_an_error_of_the_model_is_none_of_the_gpu(reported: str) -> None:
    assert not is_gpu_failure(reported)


@given(st.text() | st.text().map(lambda words: f"CUDA failure 1: {words}"))
def test_whatever_is_reported_makes_one_line(reported: str) -> None:
    line = explain_gpu_failure(reported)
    assert line.splitlines() == [line]
    assert line.endswith("; --device cpu does without a GPU")


def assert_presentable(line: str) -> None:
    """One line without a path or a host name, that says how to do without."""
    assert line.startswith("the model cannot run on the GPU: ")
    assert line.endswith("; --device cpu does without a GPU")
    for word in ("\n", "hostname", "ip-10-0-0-1", "onnxruntime_src", "/opt", "/usr", " ;", ";;", ": ;"):
        assert word not in line


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ("x.cc:1 CUDA failure 2: out of memory ; GPU=0", True),
        ("x.cc:1 CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
        ("CUBLAS failure 2: not memory at all ; GPU=0", False),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", False),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", True),
        ("something else", False),
    ],
)
def test_out_of_memory_is_told_from_what_lasts(reported: str, expected: bool) -> None:
    assert is_out_of_memory(reported) is expected


NO_TENSORRT = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void RegisterTensorRTPluginsAsCustomOps("
    "PySessionOptions&, const ProviderOptions&) Please install TensorRT libraries as mentioned in the GPU requirements "
    "page, make sure they're in the PATH or LD_LIBRARY_PATH, and that your GPU is supported.\n"
)
"""As ONNX Runtime 1.31 words it."""


def test_a_provider_of_tensorrt_that_does_not_load_is_told_from_the_rest() -> None:
    assert is_tensorrt_missing(NO_TENSORRT)
    assert not is_gpu_failure(NO_TENSORRT)
    assert not is_tensorrt_missing("CUDA failure 35: CUDA driver version is insufficient")


@pytest.mark.parametrize("library", ["libnvinfer.so.10", "libnvonnxparser.so.10"])
def test_a_missing_library_of_tensorrt_comes_with_where_it_is_to_be_had(library: str) -> None:
    line = explain_tensorrt_failure(f"{library}: cannot open shared object file: No such file or directory")
    assert line.startswith(
        f"the model cannot run with TensorRT: {library} is not in this container; install the Tensor"
    )
    assert line.endswith("; --execution-provider cuda does without TensorRT")


@pytest.mark.parametrize("library", ["libcublas.so.13", "libcudnn.so.9", "libcuda.so.1"])
def test_tensorrt_that_lacks_what_cuda_needs_too_is_no_reason_to_do_without_it(library: str) -> None:
    line = explain_tensorrt_failure(f"{library}: cannot open shared object file: No such file or directory")
    assert f" {library} is not in this container" in line
    assert_presentable(line)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        (
            "x.cc:1 This session cannot use the graph capture feature as requested by the user  as all compute graph "
            "nodes have not been partitioned to the CUDAExecutionProvider\n",
            "cuda_graphs: all compute graph nodes have not been partitioned to the CUDAExecutionProvider; --cuda-",
        ),
        (
            "This session cannot use the graph capture feature as requested by the user as the model has control flow "
            "nodes which can't be supported by CUDAExecutionProvider",
            "cuda_graphs: the model has control flow nodes which can't be supported by CUDAExecutionProvider; --cuda-",
        ),
        (
            cuda_call(900, "operation not permitted when stream is capturing"),
            "cuda_graphs: the model does what cannot be captured: operation not permitted when stream is capturing (",
        ),
        (cuda_call(700, "an illegal memory access was encountered"), ""),
        (cuda_call(900, "something else", "CUBLAS"), ""),
        ("Got invalid dimensions", ""),
    ],
)
def test_a_model_that_cannot_be_captured_is_told_why(reported: str, words: str) -> None:
    line = why_no_graph(reported)
    assert line.startswith(words)
    assert bool(line) == bool(words)
    assert len(line.splitlines()) <= 1


def test_shapes_that_only_onnx_runtime_can_name_are_told_from_other_failures() -> None:
    assert lacks_profiles("User needs to provide all the dynamic shape inputs with associated profiles if they want")
    assert not lacks_profiles("TensorRT EP failed to create engine from network for fused node: x")
