"""``byoc info``: what this machine or container offers, and what the server would make of it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from byoc_server import __version__
from byoc_server.config import Settings
from byoc_server.device.compat_package import CompatPackage
from byoc_server.device.cpu import usable_cores
from byoc_server.device.cuda_compat import misfit, outcome, provided_cuda
from byoc_server.device.nvml import Gpu
from byoc_server.device.probe import ProbeResult
from byoc_server.device.resolution import Resolution, resolve
from byoc_server.device.runtime import RuntimePackage
from byoc_server.device.survey import THIS_MACHINE, Sources
from byoc_server.device.version import CudaLevel
from byoc_server.engines.providers import Device, choose_device
from byoc_server.errors import GpuUnavailable
from byoc_server.server.worker import workers_for

_MIB = 1024 * 1024
_LABEL_WIDTH = 14


def collect(
    settings: Settings,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    sources: Sources = THIS_MACHINE,
) -> dict[str, Any]:
    """Look at everything. Takes as long as a probe of the GPU does.

    Returns:
        What ``byoc info --json`` prints.
    """
    resolution = resolve(settings, environ, root, sources)
    runtime = sources.runtime()
    providers = _providers() if runtime.name else []
    return {
        "byoc_server": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"usable_cores": usable_cores(root)},
        "gpu": _gpus(resolution),
        "driver": _driver(resolution),
        "cuda_compat": _compat(settings, resolution),
        "onnxruntime": _onnxruntime(resolution, runtime, providers),
        "device": _device(settings, resolution, providers),
        "processes": _processes(settings, environ, root),
    }


def as_json(facts: Mapping[str, Any]) -> str:
    """The facts as one JSON object."""
    return json.dumps(facts, indent=2)


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts for a person, a line a topic; what cannot be written in UTF-8 is escaped."""
    gpu, driver, compat, runtime = facts["gpu"], facts["driver"], facts["cuda_compat"], facts["onnxruntime"]
    lines = [
        ("byoc_server", f"{facts['byoc_server']}, Python {facts['python']}, {facts['platform']}"),
        ("CPU", f"{facts['cpu']['usable_cores']} usable cores"),
        ("GPU", "; ".join(map(_gpu_line, gpu["devices"])) or _no_gpu_line(gpu)),
        ("driver", f"{driver['version']} (from {driver['source']}), CUDA {driver['cuda'] or 'unknown'}")
        if driver["version"]
        else ("driver", "none" if not gpu["device_nodes"] else "version unknown"),
        *(("package", _package_line(package)) for package in compat["packages"]),
        ("cuda-compat", f"{compat['decision']}: {compat['reason']}"),
        *(("", f"note: {remark}") for remark in compat["remarks"]),
        *(("probe", f"{which}: {compat[key]}") for which, key in _PROBES if compat[key]),
        ("ONNX Runtime", _runtime_line(runtime)),
        ("runs on", facts["device"]["reason"] or facts["device"]["name"]),
        ("processes", facts["processes"]["text"]),
    ]
    text = "\n".join(f"{label:<{_LABEL_WIDTH}}{line}" for label, line in lines)
    return text.encode(errors="backslashreplace").decode()


_PROBES = (("host's libcuda", "probe_native"), ("package's libcuda", "probe_compat"))


def _gpus(resolution: Resolution) -> dict[str, Any]:
    facts = resolution.survey.facts
    return {
        "device_nodes": list(facts.presence.nodes),
        "platform": facts.presence.platform,
        "hidden": facts.presence.hidden,
        "devices": [_gpu(gpu) for gpu in facts.gpus],
        "nvml_error": resolution.survey.nvml.error,
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "memory_mib": gpu.memory_bytes // _MIB,
        "compute_capability": _dotted(gpu.compute_capability),
        "mig": gpu.mig,
    }


def _driver(resolution: Resolution) -> dict[str, str]:
    reading = resolution.survey.facts.driver
    version = reading.version
    return {
        "version": str(version or ""),
        "source": reading.source,
        "cuda": _dotted(version.cuda) if version is not None else "",
    }


def _compat(settings: Settings, resolution: Resolution) -> dict[str, Any]:
    facts, decision = resolution.survey.facts, resolution.decision
    return {
        "mode": settings.cuda_compat,
        "packages": [_package(package) for package in facts.packages],
        "decision": decision.verdict.value,
        "reason": decision.message,
        "remarks": [remark.message for remark in decision.remarks],
        "effective_libcuda": str(facts.effective.real) if facts.effective else "",
        "probe_native": _probe(resolution.native),
        "probe_compat": _probe(resolution.compat),
        "elapsed_ms": round(resolution.elapsed_s * 1000, 2),
    }


def _package(package: CompatPackage) -> dict[str, Any]:
    return {
        "folder": str(package.folder),
        "version": str(package.version or ""),
        "cuda": _dotted(package.cuda),
        "driver_branches": sorted(package.note.branches) if package.note else [],
        "defect": package.defect.value if package.defect else "",
    }


def _onnxruntime(resolution: Resolution, runtime: RuntimePackage, providers: list[str]) -> dict[str, Any]:
    facts = resolution.survey.facts
    unfit = misfit(resolution.decision, facts)
    known = unfit is not None or (
        runtime.cuda_major is not None
        and facts.presence.usable
        and provided_cuda(resolution.decision, facts) is not None
    )
    return {
        "package": runtime.name,
        "version": runtime.version,
        "cuda_major": runtime.cuda_major,
        "cuda_packages": dict(runtime.libraries),
        "built_in_providers": providers,
        "fits_driver": unfit is None if known else None,
        "remedy": unfit.message if unfit else "",
    }


def _device(settings: Settings, resolution: Resolution, providers: list[str]) -> dict[str, str]:
    """Where a model would run, as far as can be told without one."""
    usable = resolution.survey.facts.presence.usable
    try:
        choice = choose_device(settings.device, usable, providers, settings.execution_provider)
    except GpuUnavailable as error:
        return {"setting": settings.device, "name": "", "reason": error.message}
    unfit = misfit(resolution.decision, resolution.survey.facts)
    if choice.device is Device.GPU and unfit is not None:
        return {"setting": settings.device, "name": "", "reason": "nothing: the GPU will not work, see above"}
    return {"setting": settings.device, "name": choice.device.value, "reason": choice.advice}


def _processes(settings: Settings, environ: Mapping[str, str], root: Path) -> dict[str, Any]:
    workers = workers_for(settings, environ, root)
    return {
        "topology": workers.topology.value,
        "fronts": workers.fronts,
        "cores": workers.cores,
        "threads": workers.threads,
        "reason": workers.reason,
        "text": workers.text,
    }


def _providers() -> list[str]:
    """What the installed ONNX Runtime was built with; imports it, with its telemetry off as the engine has it."""
    from byoc_server.engines.onnx import built_in_providers  # noqa: PLC0415  # takes a tenth of a second

    return built_in_providers()


def _probe(result: ProbeResult | None) -> str:
    if result is None:
        return ""
    devices = "" if result.devices is None else f", {result.devices} devices"
    cuda = f", CUDA {_dotted(result.cuda)}" if result.cuda else ""
    return f"{outcome(result)}{cuda}{devices}, {result.elapsed_s:.1f} s"


def _dotted(level: CudaLevel | None) -> str:
    return ".".join(map(str, level)) if level else ""


def _gpu_line(gpu: Mapping[str, Any]) -> str:
    mig = ", MIG" if gpu["mig"] else ""
    return f"{gpu['name']}, {gpu['memory_mib']} MiB, compute capability {gpu['compute_capability'] or 'unknown'}{mig}"


def _no_gpu_line(gpu: Mapping[str, Any]) -> str:
    if not gpu["device_nodes"]:
        return "none"
    return f"{', '.join(gpu['device_nodes'])}; NVML: {gpu['nvml_error'] or 'lists no GPU'}"


def _package_line(package: Mapping[str, Any]) -> str:
    if package["defect"]:
        return f"{package['folder']}: {package['defect']}"
    branches = ", ".join(map(str, package["driver_branches"])) or "unlisted"
    cuda = package["cuda"] or "unknown"
    return f"{package['version']} in {package['folder']}, CUDA {cuda}, for driver branches {branches}"


def _runtime_line(runtime: Mapping[str, Any]) -> str:
    if not runtime["package"]:
        return "not installed"
    cuda = f", for CUDA {runtime['cuda_major']}" if runtime["cuda_major"] else ""
    libraries = "".join(f", {name} {version}" for name, version in runtime["cuda_packages"].items())
    fits = {True: ", fits the driver", False: f"; {runtime['remedy']}", None: ""}[runtime["fits_driver"]]
    providers = ", ".join(runtime["built_in_providers"])
    return f"{runtime['package']} {runtime['version']}{cuda}{libraries}, built with {providers}{fits}"
