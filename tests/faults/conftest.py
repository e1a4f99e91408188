"""Models that the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.onnx_models import busy, identity, rounds_per_second


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="package")
def identity_model(folder: Path) -> str:
    """``x`` float32 (N, 2) comes back."""
    return str(identity(folder / "identity.onnx", shape=("N", 2)))


@pytest.fixture(scope="package")
def busy_model(folder: Path) -> str:
    """``x`` float32 (N, 1) comes back after so many seconds as the largest of its numbers says."""
    return str(busy(folder / "busy.onnx", rounds_per_second()))
