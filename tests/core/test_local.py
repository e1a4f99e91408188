from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from byoc_server.batching.batcher import Batcher
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import DeviceScheduler
from byoc_server.batching.policy import QueueLimits
from byoc_server.batching.profile import BatchProfile
from byoc_server.batching.worker_thread import WorkerThread
from byoc_server.core.client import ModelState
from byoc_server.core.local import LocalClient
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ByocError, GpuUnavailable, ModelLoadError, NotReady, StartupError
from byoc_server.models.model import Model, load_model
from byoc_server.types import Tensors
from tests.onnx_models import identity, mlp


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
            _ = local.load_s
        assert local.running_s == 0.0
        with pytest.raises(NotReady):
            local.infer({}, 1, lambda outcome: None, 1e12)
        gate.set()
        await local.settled()
        assert state(local) is ModelState.READY
        assert local.load_s > 0
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
        return dataclasses.replace(load_model(model_path, EngineOptions(1), 0), infers=[fail])

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


def test_copies_of_the_model_run_side_by_side(model_path: Path) -> None:
    """And end together; a request is held back for others if told so, urgent ones too."""
    both = threading.Barrier(2, timeout=20)

    def meet(tensors: Tensors) -> Tensors:
        both.wait()
        return {"y": tensors["x"]}

    def load() -> Model:
        model = load_model(model_path, EngineOptions(1), 4, sessions=2)
        return dataclasses.replace(model, infers=[meet, meet], profile=BatchProfile(((1, 1.0),)))

    async def main() -> None:
        local = LocalClient(load, 100, 10**6, lambda error: None, max_queue_delay_s=0.001)
        local.start()
        await asyncio.wait_for(local.settled(), 20)
        answers = []
        for urgent in (False, True):
            answer: asyncio.Future[Tensors | ByocError] = asyncio.get_running_loop().create_future()
            local.infer({"x": np.ones((4, 4), np.float32)}, 4, answer.set_result, 1e12, urgent=urgent)
            answers.append(answer)
        for answer in answers:
            assert isinstance(await asyncio.wait_for(answer, 20), dict)
        assert local.running_s == 0.0
        assert local.close()

    asyncio.run(main())


def test_two_models_share_one_device(tmp_path: Path) -> None:
    """With two copies each, on two lanes; every request gets what its own model makes of its own records."""
    loaded = {
        "same": load_model(identity(tmp_path / "same.onnx"), EngineOptions(1), 8, sessions=2),
        "odds": load_model(mlp(tmp_path / "odds.onnx", [4, 64, 3]), EngineOptions(1), 8, sessions=2),
    }
    random = np.random.default_rng(0)
    requests = [random.standard_normal((1 + number % 11, 4)).astype(np.float32) for number in range(200)]
    input_names = {"same": "x", "odds": "input"}

    async def main() -> None:
        workers = [WorkerThread(f"inference_{number}") for number in range(2)]
        device = DeviceScheduler(workers)
        batchers = {
            name: Batcher(
                model.infers,
                model.collation,
                QueueLimits(10**6, 10**9),
                model.bounds,
                CostModel(((1, 0.01), (8, 0.01))),  # what runs on the event loop would not share anything
                device,
            )
            for name, model in loaded.items()
        }
        answers = []
        for records in requests:
            for name, batcher in batchers.items():
                answer: asyncio.Future[Tensors | ByocError] = asyncio.get_running_loop().create_future()
                batcher.submit({input_names[name]: records}, len(records), answer.set_result, 1e12)
                answers.append((name, records, answer))
        for name, records, answer in answers:
            outcome = await asyncio.wait_for(answer, 60)
            assert isinstance(outcome, dict)
            (output,) = outcome.values()
            (alone,) = loaded[name].infer({input_names[name]: records}).values()
            assert np.allclose(output.astype(np.float64), alone.astype(np.float64), rtol=1e-4, atol=1e-6)
        assert all(batcher.idle for batcher in batchers.values())
        for worker in workers:
            worker.close(wait=True)

    asyncio.run(main())
    for model in loaded.values():
        model.close()
