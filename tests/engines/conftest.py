"""Fixtures of the engine tests."""

from __future__ import annotations

import pytest

from tests.engines.fake_cuda import CudaBuild


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> CudaBuild:
    """Makes the installed ONNX Runtime look like one that was built for CUDA, on a machine with a GPU."""
    return CudaBuild(monkeypatch)
