"""byoc_server: a folder with an ONNX model becomes a SageMaker-compatible model server.

Importing the package is light: neither ONNX Runtime nor Starlette is loaded before a server starts.
"""

from byoc_server.config import Settings
from byoc_server.errors import ByocError
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec

__all__ = ["BatchAxis", "ByocError", "Settings", "Signature", "TensorSpec", "Tensors"]
