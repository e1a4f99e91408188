"""The engine and the images, built once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import onnx_models
from tests.container.engine import ROOT, Engine, find_engine

_NO_ENGINE = (
    "no container engine answers: neither `docker info` nor `podman info` succeeds, or not the one that "
    "CONTAINER_ENGINE names. THE IMAGES WERE NOT TESTED."
)
_without_engine: list[str] = []


@pytest.fixture(scope="session")
def engine() -> Engine:
    found = find_engine()
    if found is None:
        if os.environ.get("REQUIRE_CONTAINERS") == "true":
            pytest.fail(_NO_ENGINE)
        _without_engine.append(_NO_ENGINE)
        pytest.skip(_NO_ENGINE)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that the images were not tested."""
    if _without_engine:
        terminalreporter.section("containers", sep="!", red=True, bold=True)
        terminalreporter.line(_without_engine[0], red=True, bold=True)


@pytest.fixture(scope="session")
def cpu_image(engine: Engine) -> Iterator[str]:
    with engine.image(ROOT / "Dockerfile.cpu", arguments={"VERSION": "1.2.3"}) as image:
        yield image


@pytest.fixture(scope="session")
def gpu_image(engine: Engine) -> Iterator[str]:
    with engine.image(ROOT / "Dockerfile.gpu", arguments={"VERSION": "1.2.3"}) as image:
        yield image


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model with one input ``x``, float32 (N, 4), that answers with what it was given."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx_models.identity(folder / "model.onnx")
    return folder
