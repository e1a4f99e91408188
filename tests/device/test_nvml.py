"""Asking NVML, with every way it has to fail."""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from byoc_server.device.nvml import Gpu, NvmlReport, ineligible_gpu, read_nvml

T4 = Gpu("Tesla T4", 14, 16 * 1024**3, (7, 5))
H100 = Gpu("NVIDIA H100 80GB HBM3", 14, 80 * 1024**3, (9, 0), mig=True)


class NvmlError(Exception):
    """As pynvml's: a number, and a text that is looked up."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return {9: "Driver Not Loaded", 15: "GPU is lost", 18: "RM has detected an NVML/RM version mismatch."}.get(
            self.value, f"NVML Error with code {self.value}"
        )


@dataclass(frozen=True)
class Answer:
    """In place of a fault: what a function returns."""

    value: Any


Faults = Mapping[str | tuple[str, int], BaseException | Answer]


class FakeNvml:
    """Looks like the module pynvml.

    Args:
        gpus: the devices.
        faults: function, or function and number of the device -> what it raises or answers instead.
        missing: functions the module does not have.
    """

    def __init__(self, *gpus: Gpu, faults: Faults | None = None, missing: str = "") -> None:
        self.gpus = gpus
        self.faults = faults or {}
        self.missing = missing
        self.calls: list[str] = []
        self.open = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == self.missing:
            raise AttributeError(f"module 'pynvml' has no attribute '{name}'")

        def function(*args: int) -> Any:
            self.calls.append(name)
            fault = self.faults.get((name, args[0]) if args else name, self.faults.get(name))
            if isinstance(fault, BaseException):
                raise fault
            return fault.value if fault is not None else self.answer(name, *args)

        return function

    def answer(self, name: str, *args: int) -> Any:
        if name in ("nvmlInit", "nvmlShutdown"):
            self.open += 1 if name == "nvmlInit" else -1
            return None
        assert self.open == 1, f"{name} on a closed library"
        if name == "nvmlSystemGetDriverVersion":
            return "535.54.03"
        if name == "nvmlDeviceGetCount":
            return len(self.gpus)
        if name == "nvmlDeviceGetHandleByIndex":
            return args[0]
        gpu = self.gpus[args[0]]
        return {
            "nvmlDeviceGetName": gpu.name,
            "nvmlDeviceGetBrand": gpu.brand,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=gpu.memory_bytes, free=1, used=2),
            "nvmlDeviceGetCudaComputeCapability": gpu.compute_capability,
            "nvmlDeviceGetMigMode": [int(gpu.mig), 0],
        }[name]


def test_all_well() -> None:
    module = FakeNvml(T4, H100)
    assert read_nvml(module) == NvmlReport("535.54.03", (T4, H100))
    assert module.open == 0
    assert module.calls[-1] == "nvmlShutdown"


def test_never_asks_for_the_cuda_version() -> None:
    """That would load libcuda into this process, before it is decided which one."""
    module = FakeNvml(T4)
    read_nvml(module)
    assert not [name for name in module.calls if "CudaDriverVersion" in name]


@pytest.mark.parametrize(("code", "text"), [(9, "Driver Not Loaded"), (18, "version mismatch"), (4, "4"), (999, "999")])
def test_init_fails(code: int, text: str) -> None:
    module = FakeNvml(T4, faults={"nvmlInit": NvmlError(code)})
    report = read_nvml(module)
    assert (report.driver, report.gpus, report.error_code) == ("", (), code)
    assert text in report.error
    assert module.calls == ["nvmlInit"]


def test_errors_of_the_real_module() -> None:
    """Its error classes are made by the module itself, and look their text up in a library that is not there."""
    import pynvml  # type: ignore[import-untyped]  # it has no type information

    for code in (9, 12, 18, 4, 4711):
        report = read_nvml(FakeNvml(faults={"nvmlInit": pynvml.NVMLError(code)}))
        assert report.error_code == code
        assert report.error
    lost: Faults = {("nvmlDeviceGetName", 0): pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)}
    assert read_nvml(FakeNvml(T4, faults=lost)).error_code == 15


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_no_library() -> None:
    """The real module on a machine without NVML; and once more, because the module keeps state."""
    for _ in range(2):
        report = read_nvml()
        assert report == NvmlReport(error="NVML Shared Library Not Found", error_code=12)


def test_module_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    report = read_nvml()
    assert report.gpus == ()
    assert "pynvml" in report.error
    assert report.error_code == 0


def test_gpu_lost_in_the_middle() -> None:
    """What was read is kept, and the other GPU is listed whole."""
    lost = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode")
    module = FakeNvml(H100, T4, faults={(name, 0): NvmlError(15) for name in lost})
    report = read_nvml(module)
    assert report.gpus == (Gpu(H100.name, 14), T4)
    assert report.error == "nvmlDeviceGetMemoryInfo: GPU is lost"
    assert report.error_code == 15
    assert report.driver == "535.54.03"
    assert module.open == 0


def test_gpu_without_a_handle() -> None:
    report = read_nvml(FakeNvml(H100, T4, faults={("nvmlDeviceGetHandleByIndex", 0): NvmlError(4)}))
    assert report.gpus == (T4,)
    assert report.error_code == 4


def test_no_such_thing_is_no_error() -> None:
    """A T4 has no Multi-Instance GPU, and devices that share the machine's memory have none of their own."""
    faults: Faults = {
        "nvmlDeviceGetMigMode": NvmlError(3),
        "nvmlDeviceGetMemoryInfo": NvmlError(3),
    }
    assert read_nvml(FakeNvml(T4, faults=faults)) == NvmlReport("535.54.03", (Gpu("Tesla T4", 14, 0, (7, 5)),))


def test_function_missing_in_the_driver() -> None:
    report = read_nvml(FakeNvml(T4, faults={"nvmlDeviceGetMigMode": NvmlError(13)}))
    assert report.gpus == (T4,)
    assert report.error_code == 13


def test_function_missing_in_the_module() -> None:
    report = read_nvml(FakeNvml(T4, missing="nvmlDeviceGetBrand"))
    assert report.gpus == (Gpu("Tesla T4", 0, T4.memory_bytes, (7, 5)),)
    assert "nvmlDeviceGetBrand" in report.error
    assert report.error_code == 0


def test_the_first_error_is_reported() -> None:
    faults: Faults = {
        "nvmlSystemGetDriverVersion": NvmlError(999),
        "nvmlDeviceGetName": NvmlError(15),
    }
    report = read_nvml(FakeNvml(T4, faults=faults))
    assert report.driver == ""
    assert report.error_code == 999
    assert report.error.startswith("nvmlSystemGetDriverVersion")


def test_bytes() -> None:
    """As the bindings gave them once."""
    faults: Faults = {
        "nvmlSystemGetDriverVersion": Answer(b"470.57.02\0\n"),
        "nvmlDeviceGetName": Answer(b"Tesla \xff T4"),
    }
    report = read_nvml(FakeNvml(T4, faults=faults))
    assert report.driver == "470.57.02"
    assert report.gpus[0].name == "Tesla � T4"
    assert report.error == ""


@pytest.mark.parametrize("count", [-1, 10**9, None, "2", 1.5])
def test_absurd_count(count: object) -> None:
    report = read_nvml(FakeNvml(T4, faults={"nvmlDeviceGetCount": Answer(count)}))
    assert report.gpus == ()
    assert report.driver == "535.54.03"
    assert report.error == f"nvmlDeviceGetCount: {count!r} makes no sense"


class Unprintable:
    """An answer that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("function", "value", "gpu"),
    [
        ("nvmlDeviceGetName", None, Gpu("", 14, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetName", Unprintable(), Gpu("", 14, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetBrand", "GeForce", Gpu(T4.name, 0, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetBrand", -3, Gpu(T4.name, 0, T4.memory_bytes, (7, 5))),
        ("nvmlDeviceGetMemoryInfo", None, Gpu(T4.name, 14, 0, (7, 5))),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=2**64 - 1), Gpu(T4.name, 14, 0, (7, 5))),
        ("nvmlDeviceGetCudaComputeCapability", (7,), Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetCudaComputeCapability", (-1, -1), Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetCudaComputeCapability", 7.5, Gpu(T4.name, 14, T4.memory_bytes)),
        ("nvmlDeviceGetMigMode", None, T4),
        ("nvmlDeviceGetMigMode", ["on", "on"], T4),
    ],
)
def test_absurd_values(function: str, value: object, gpu: Gpu) -> None:
    """What makes no sense counts as not told."""
    report = read_nvml(FakeNvml(T4, faults={function: Answer(value)}))
    assert report.gpus == (gpu,)
    assert report.error.startswith(f"{function}: ")
    assert report.error_code == 0


def test_long_names_are_cut() -> None:
    assert len(read_nvml(FakeNvml(Gpu("x" * 10**6, 14))).gpus[0].name) == 200


class Speechless(NvmlError):
    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_an_error_without_a_text() -> None:
    report = read_nvml(FakeNvml(faults={"nvmlInit": Speechless(7)}))
    assert report.error == "Speechless"
    assert report.error_code == 7


def test_an_error_with_an_odd_number() -> None:
    class OddError(Exception):
        value = "18"

    assert read_nvml(FakeNvml(faults={"nvmlInit": OddError("odd")})) == NvmlReport(error="odd")


def test_shutdown_fails() -> None:
    """Everything is known by then."""
    assert read_nvml(FakeNvml(T4, faults={"nvmlShutdown": NvmlError(999)})) == NvmlReport("535.54.03", (T4,))


def test_shut_down_even_when_interrupted() -> None:
    module = FakeNvml(T4, faults={"nvmlDeviceGetName": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        read_nvml(module)
    assert module.open == 0


@pytest.mark.parametrize("brand", [5, 6, 15, 16])
def test_ineligible_by_brand(brand: int) -> None:
    gpu = Gpu("a product", brand)
    assert ineligible_gpu([T4, gpu, H100]) is gpu


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090", "GEFORCE GTX 1650", "NVIDIA TITAN V", "Titan RTX", "NVIDIA TITAN Xp"]
)
def test_ineligible_by_name(name: str) -> None:
    """Only when NVML does not know the brand."""
    assert ineligible_gpu([Gpu(name, 0)]) == Gpu(name, 0)
    assert ineligible_gpu([Gpu(name, 14)]) is None


@pytest.mark.parametrize("brand", [0, 1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 18, 4711])
def test_eligible(brand: int) -> None:
    assert ineligible_gpu([Gpu("NVIDIA A10G", brand)]) is None


def test_no_gpu_is_ineligible() -> None:
    assert ineligible_gpu([]) is None
