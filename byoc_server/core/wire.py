"""What goes between front and core as JSON: the signature of the model, its state, and errors. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.errors import ByocError, GpuUnavailable, InferenceFailed, NotReady
from byoc_server.types import STRING, BatchAxis, Signature, TensorSpec


class CoreError(Exception):
    """What a core process has said of an error's cause: the exception itself stayed there."""


def write_signature(signature: Signature) -> dict[str, Any]:
    """The signature of a model itself, which has no columns, images or padding."""
    return {
        "inputs": [_write_spec(spec) for spec in signature.inputs],
        "outputs": [_write_spec(spec) for spec in signature.outputs],
        "batch_axis": signature.batch_axis.value,
        "batch_size": signature.batch_size,
    }


def read_signature(wire: dict[str, Any]) -> Signature:
    """The reverse of ``write_signature``."""
    return Signature(
        tuple(map(_read_spec, wire["inputs"])),
        tuple(map(_read_spec, wire["outputs"])),
        BatchAxis(wire["batch_axis"]),
        wire["batch_size"],
    )


def write_status(status: ModelStatus) -> dict[str, Any]:
    """State of a model, as its core process sees it."""
    return {"state": status.state.value, "reason": status.reason, "error": status.error.code}


def read_status(wire: dict[str, Any]) -> ModelStatus:
    """The reverse of ``write_status``."""
    error: type[NotReady | GpuUnavailable] = GpuUnavailable if wire["error"] == GpuUnavailable.code else NotReady
    return ModelStatus(ModelState(wire["state"]), wire["reason"], error)


def write_error(error: ByocError) -> bytes:
    """An error and, in one line, what caused it."""
    cause = error.__cause__
    return orjson.dumps(
        {
            "code": error.code,
            "message": error.message,
            "details": error.details,
            "cause": f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}" if cause else "",
        },
        default=str,
    )


def read_error(payload: bytes) -> ByocError:
    """The reverse of ``write_error``; the cause comes as a ``CoreError``."""
    wire = orjson.loads(payload.rstrip(b"\0"))
    error = _CLASSES.get(wire["code"], InferenceFailed)(wire["message"], **wire["details"])
    if wire["cause"]:
        error.__cause__ = CoreError(wire["cause"])
    return error


def _write_spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype_name, "shape": spec.shape}


def _read_spec(wire: dict[str, Any]) -> TensorSpec:
    dtype = STRING if wire["dtype"] == "string" else np.dtype(wire["dtype"])
    return TensorSpec(wire["name"], dtype, tuple(wire["shape"]))


def _classes(base: type[ByocError]) -> Iterator[type[ByocError]]:
    yield base
    for derived in base.__subclasses__():
        yield from _classes(derived)


_CLASSES = {error.code: error for error in _classes(ByocError)}
