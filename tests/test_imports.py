"""What importing the package costs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

HEAVY = [
    "onnxruntime",
    "onnx",
    "starlette",
    "uvicorn",
    "gunicorn",
    "orjson",
    "asyncio",
    "numpy.lib.format",
    "numpy.f2py",
]


def loaded_by(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def test_the_package_is_light() -> None:
    """Importing it loads neither ONNX Runtime nor a server, and of NumPy nothing that ``import numpy`` leaves out."""
    with_package, with_numpy = loaded_by("import byoc_server"), loaded_by("import numpy")
    assert not with_package & (set(HEAVY) - with_numpy)
    assert {name for name in with_package if name.startswith("numpy")} <= with_numpy | {
        "numpy.typing",
        "numpy._typing",
    } | {name for name in with_package if name.startswith("numpy._typing.")}


def test_codecs_load_on_first_use() -> None:
    loaded = loaded_by("import byoc_server.codecs.base, byoc_server.http.negotiation")
    assert not loaded & {f"byoc_server.codecs.{name}" for name in ("json", "jsonlines", "csv", "npy")}
    assert "onnxruntime" not in loaded


def test_every_public_name_is_there() -> None:
    import byoc_server

    for name in byoc_server.__all__:
        assert getattr(byoc_server, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = byoc_server.Nonsense


def test_the_version_is_that_of_the_distribution() -> None:
    import byoc_server

    assert importlib.metadata.version("byoc-server") == byoc_server.__version__


def test_help_does_not_pay_for_numpy() -> None:
    assert "numpy" not in loaded_by("import byoc_server.cli.main")
