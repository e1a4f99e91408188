from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from byoc_server.core.client import ModelState
from byoc_server.core.local import LocalClient
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ByocError, GpuUnavailable, ModelLoadError, NotReady, StartupError
from byoc_server.models.model import Model, load_model
from byoc_server.types import Tensors
from tests.onnx_models import identity


def client(load: Callable[[], Model], failures: list[StartupError] | None = None) -> LocalClient:
    return LocalClient(load, 100, 10**6, (failures if failures is not None else []).append)


def state(local: LocalClient) -> ModelState:
    return local.status.state


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return identity(tmp_path / "m.onnx")


def test_it_is_not_ready_until_the_model_is_loaded(model_path: Path) -> None:
    """Checklist 22."""
    gate = threading.Event()

    def load() -> Model:
        assert gate.wait(10)
        return load_model(model_path, EngineOptions(1), 0)

    async def main() -> None:
        local = client(load)
        local.start()
        assert state(local) is ModelState.LOADING
        assert "loading" in local.status.reason
        with pytest.raises(NotReady):
            _ = local.adapter
        with pytest.raises(NotReady):
            local.infer({}, 1, lambda outcome: None, 1e12)
        gate.set()
        await local.settled()
        assert state(local) is ModelState.READY
        answer: asyncio.Future[Tensors | ByocError] = asyncio.get_running_loop().create_future()
        local.infer({"x": np.ones((1, 4), np.float32)}, 1, answer.set_result, 1e12)
        outcome = await asyncio.wait_for(answer, 10)
        assert isinstance(outcome, dict)
        assert outcome["y"].tolist() == [[1, 1, 1, 1]]
        assert local.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "message"),
    [(ModelLoadError("no such op"), "no such op"), (MemoryError("2 GB"), "cannot be loaded: MemoryError: 2 GB")],
)
def test_a_load_that_fails_is_told_in_one_line(error: Exception, message: str) -> None:
    """Checklist 13."""
    failures: list[StartupError] = []

    def load() -> Model:
        raise error

    async def main() -> None:
        local = client(load, failures)
        local.start()
        await asyncio.wait_for(local.settled(), 10)
        assert state(local) is ModelState.FAILED
        assert local.status.reason == "the model could not be loaded"
        assert local.close()

    asyncio.run(main())
    assert [message in failure.message for failure in failures] == [True]


def test_a_missing_gpu_is_the_answer_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[StartupError] = []

    def load() -> Model:
        raise GpuUnavailable("libcuda.so.1 is not here; start the container with --gpus all")

    async def main() -> None:
        local = client(load, failures)
        local.start()
        await asyncio.wait_for(local.settled(), 10)
        assert state(local) is ModelState.FAILED
        with pytest.raises(GpuUnavailable, match=r"libcuda\.so\.1 is not here") as first:
            _ = local.adapter
        with pytest.raises(GpuUnavailable, match="--gpus all") as second:
            local.infer({}, 1, lambda outcome: None, 1e12)
        assert first.value is not second.value  # or it would gather the traces of all requests
        assert local.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert failures == []
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (line.levelname, getattr(line, "event", None)) == ("ERROR", "gpu_unavailable")
    assert "--gpus all" in line.message


@pytest.mark.parametrize("lasting", [True, False])
def test_a_gpu_that_is_lost_while_serving(model_path: Path, lasting: bool, caplog: pytest.LogCaptureFixture) -> None:
    """After a lasting failure nothing will work, and a ping has to say so; too large a batch passes."""

    def fail(_: Tensors) -> Tensors:
        raise GpuUnavailable("CUDA failure 700", lasting=lasting)

    def load() -> Model:
        return dataclasses.replace(load_model(model_path, EngineOptions(1), 0), infer=fail)

    async def main() -> None:
        local = client(load)
        local.start()
        await asyncio.wait_for(local.settled(), 10)
        for _ in range(2):
            answer: asyncio.Future[Tensors | ByocError] = asyncio.get_running_loop().create_future()
            try:
                local.infer({"x": np.ones((1, 4), np.float32)}, 1, answer.set_result, 1e12)
            except GpuUnavailable:
                assert lasting
                break
            assert isinstance(await asyncio.wait_for(answer, 10), GpuUnavailable)
            await asyncio.sleep(0)
        assert state(local) is (ModelState.FAILED if lasting else ModelState.READY)
        local.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert len([r for r in caplog.records if getattr(r, "event", "") == "gpu_unavailable"]) == int(lasting)


def test_closing_does_not_wait_for_a_load_that_hangs(model_path: Path) -> None:
    gate = threading.Event()

    def load() -> Model:
        gate.wait(10)
        return load_model(model_path, EngineOptions(1), 0)

    async def main() -> None:
        local = client(load)
        local.start()
        assert not local.close()

    asyncio.run(main())
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(10)
            assert not thread.is_alive()
