"""What NVML, the driver's own management library, tells of the GPUs.

With a driver in trouble NVML may crash, or hang inside a call, where no signal handler of Python gets to run. So it is
asked in a throw-away process (``nvml_child.py``, which calls ``ask_nvml``), and whatever comes of that is a report.

Everything asked here is about the kernel driver and the devices. NVML's functions for the CUDA version are not used:
they load ``libcuda``, before it is settled which one that should be (NVML API reference, "System Queries").
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_INELIGIBLE_BRANDS = frozenset({5, 6, 15, 16})
"""GeForce, Titan, GeForce RTX and Titan RTX. Forward compatibility is for data-center GPUs (NVIDIA guide "CUDA
Compatibility"), and NVIDIA's CUDA images leave out these four brands (``NVIDIA_REQUIRE_CUDA`` of 12.8 and later). A
list of the eligible would not do: a T4 calls itself Tesla or NVIDIA, depending on the driver."""
_INELIGIBLE_NAMES = ("geforce", "titan")
_UNKNOWN_BRAND = 0

_NOT_SUPPORTED = 3
"""``NVML_ERROR_NOT_SUPPORTED``: the device has no such thing, as a T4 has no Multi-Instance GPU."""
_MAX_GPUS = 128
_MAX_TEXT_CHARACTERS = 200

_CHILD = Path(__file__).with_name("nvml_child.py")
_TIMEOUT_S = 10.0  # the first call on a cold host, without the persistence daemon, takes seconds
_MAX_ANSWER_BYTES = 64 * 1024  # a GPU takes some 120

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One visible GPU.

    Attributes:
        name: product name.
        brand: NVML's brand number (``nvmlBrandType_t``).
        memory_bytes: of the device; 0 when NVML does not say.
        compute_capability: major and minor; ``None`` when NVML does not say.
        mig: partitioned into instances (Multi-Instance GPU).
    """

    name: str
    brand: int
    memory_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    mig: bool = False


@dataclass(frozen=True, slots=True)
class NvmlReport:
    """One look through NVML.

    Attributes:
        driver: version of the driver as NVML writes it; empty when it does not say.
        gpus: the visible GPUs.
        error: in a few words why NVML, or a part of what was asked, could not be had; empty if all went well.
        error_code: NVML's number of that error; 0 if none.
    """

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    error_code: int = 0


def read_nvml(timeout_s: float = _TIMEOUT_S) -> NvmlReport:
    """Ask NVML in a process of its own. It never raises: what cannot be had is told by ``error``.

    The child finds modules where this process does, and the library as this process would: by the same environment,
    where ``LD_LIBRARY_PATH`` may point to it (WSL, GKE).

    Args:
        timeout_s: seconds after which the child is killed.
    """
    from byoc_server.device import child_process  # noqa: PLC0415  # slow to import, and seldom needed

    command = [sys.executable, "-I", "-S", str(_CHILD), *sys.path]
    try:
        child = child_process.run_child(command, timeout_s, _MAX_ANSWER_BYTES)
    except child_process.ChildTimeoutError:
        return NvmlReport(error=f"timeout after {timeout_s:g} s")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a path
        return NvmlReport(error=f"cannot start a process: {error}")
    if child.failure:
        return NvmlReport(error=child.failure)
    try:
        return _report(child_process.parse_line(child.output))
    except (ValueError, TypeError):
        return NvmlReport(error=f"unexpected answer: {child.output[:100]!r}")


def ask_nvml(module: Any = None) -> NvmlReport:
    """Ask NVML for the driver and the GPUs, in this process. It never raises.

    Args:
        module: has the functions of ``pynvml``, which is imported if it is ``None``.
    """
    try:
        if module is None:
            import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415  # slow, and it has no type information

            module = pynvml
        module.nvmlInit()
    except Exception as error:
        return NvmlReport(error=_describe(error), error_code=_code(error))
    inquiry = _Inquiry(module)
    try:
        driver = inquiry.ask("", _text, "nvmlSystemGetDriverVersion")
        return NvmlReport(driver, inquiry.gpus(), inquiry.error, inquiry.error_code)
    finally:
        inquiry.ask(None, _anything, "nvmlShutdown")


def ineligible_gpu(gpus: Iterable[Gpu]) -> Gpu | None:
    """The first GPU that is not eligible for forward compatibility; by its name, where NVML does not know the brand."""
    for gpu in gpus:
        named = gpu.brand == _UNKNOWN_BRAND and any(name in gpu.name.lower() for name in _INELIGIBLE_NAMES)
        if named or gpu.brand in _INELIGIBLE_BRANDS:
            return gpu
    return None


class _Inquiry:
    """Questions to an initialised NVML. Every one may fail, and the others are asked all the same.

    Attributes:
        error: the first failure in a few words.
        error_code: its number.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.error = ""
        self.error_code = 0

    def ask(self, default: T, read: Callable[[Any], T], function: str, *args: Any) -> T:
        """What ``read`` makes of the answer; the default if there is none, or one that makes no sense."""
        try:
            return read(getattr(self._module, function)(*args))
        except (
            Exception
        ) as error:  # a device can be lost, an old driver lack the function: the server starts all the same
            if not self.error and _code(error) != _NOT_SUPPORTED:
                self.error, self.error_code = f"{function}: {_describe(error)}", _code(error)
            return default

    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs that have a handle."""
        count = self.ask(0, _count, "nvmlDeviceGetCount")
        handles = [self.ask(None, _anything, "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        return tuple(self._gpu(handle) for handle in handles if handle is not None)

    def _gpu(self, handle: Any) -> Gpu:
        return Gpu(
            name=self.ask("", _text, "nvmlDeviceGetName", handle),
            brand=self.ask(_UNKNOWN_BRAND, _number, "nvmlDeviceGetBrand", handle),
            memory_bytes=self.ask(0, _total_memory, "nvmlDeviceGetMemoryInfo", handle),
            compute_capability=self.ask(None, _capability, "nvmlDeviceGetCudaComputeCapability", handle),
            mig=self.ask(False, _mig_mode, "nvmlDeviceGetMigMode", handle),
        )


def _report(values: Any) -> NvmlReport:
    """The report that a child has sent. Raises ValueError or TypeError for anything else."""
    match values:
        case {"driver": str(driver), "gpus": list(gpus), "error": str(error), "error_code": code} if len(values) == 4:
            return NvmlReport(driver, tuple(_gpu(gpu) for gpu in gpus), error, _number(code))
    raise ValueError("no report")


def _gpu(values: Any) -> Gpu:
    match values:
        case {
            "name": str(name),
            "brand": brand,
            "memory_bytes": memory,
            "compute_capability": capability,
            "mig": bool(mig),
        } if len(values) == 5:
            known = None if capability is None else _capability(capability)
            return Gpu(name, _number(brand), _number(memory), known, mig)
    raise ValueError("no GPU")


def _anything(answer: Any) -> Any:
    return answer


def _text(answer: Any) -> str:
    if isinstance(answer, bytes):  # from bindings of before Python 3
        answer = answer.decode(errors="replace")
    if not isinstance(answer, str):
        raise ValueError(f"{answer!r} is no text")
    return answer.strip("\0 \t\r\n")[:_MAX_TEXT_CHARACTERS]


def _number(answer: Any, limit: int = 2**63) -> int:
    if type(answer) is not int or not 0 <= answer < limit:
        raise ValueError(f"{answer!r} makes no sense")
    return answer


def _count(answer: Any) -> int:
    return _number(answer, _MAX_GPUS + 1)


def _total_memory(answer: Any) -> int:
    return _number(answer.total)


def _capability(answer: Any) -> tuple[int, int]:
    major, minor = answer
    return _number(major), _number(minor)


def _mig_mode(answer: Any) -> bool:
    current, _pending = answer
    return _number(current) == 1


def _code(error: Exception) -> int:
    """NVML's number; 0 for an exception that is not NVML's."""
    code = getattr(error, "value", 0)
    return code if isinstance(code, int) else 0


def _describe(error: Exception) -> str:
    """The message; NVML's errors look theirs up in the library, which may fail in turn."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return (text or type(error).__name__)[:_MAX_TEXT_CHARACTERS]
