"""byoc_server: a folder with an ONNX model becomes a SageMaker-compatible model server.

Importing the package is light: the public names load on first use, ONNX Runtime and Starlette not before a server
starts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from byoc_server.config import Settings
    from byoc_server.errors import ByocError
    from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec

__version__ = "0.1.0"

__all__ = ["BatchAxis", "ByocError", "Settings", "Signature", "TensorSpec", "Tensors"]

_HOMES = {
    "BatchAxis": "byoc_server.types",
    "ByocError": "byoc_server.errors",
    "Settings": "byoc_server.config",
    "Signature": "byoc_server.types",
    "TensorSpec": "byoc_server.types",
    "Tensors": "byoc_server.types",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
