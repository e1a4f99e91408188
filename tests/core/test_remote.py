"""A front and a core in one process, over real sockets and real shared memory."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from byoc_server.batching.policy import BatchBounds
from byoc_server.batching.profile import BatchProfile
from byoc_server.core import core_link, handshake, remote
from byoc_server.core import service as service_module
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.core.frame import Kind, frame
from byoc_server.core.handshake import HandshakeError, Meeting, open_meeting
from byoc_server.core.local import LocalClient
from byoc_server.core.remote import RemoteClient
from byoc_server.core.service import CoreService
from byoc_server.core.shared_memory import OwnMemory, PeerMemory
from byoc_server.core.tensor_channel import SHARED_FROM_BYTES
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import (
    ByocError,
    DeadlineExceeded,
    GpuUnavailable,
    InferenceFailed,
    ModelLoadError,
    NotReady,
    Overloaded,
    StartupError,
)
from byoc_server.models.adapter import Adapter
from byoc_server.models.model import Model, load_model
from byoc_server.types import Signature, Tensors
from tests.onnx_models import gather, identity

FAR_S = 1e12
MIB = 1024 * 1024
Main = Callable[["Split"], Coroutine[Any, Any, None]]


def adapt(signature: Signature) -> Adapter:
    return Adapter(signature, signature)


class Core:
    """One core process, as it were."""

    def __init__(self, meeting: Meeting, index: int, load: Callable[[], Model], queue_rows: int = 10**6) -> None:
        self.losses: list[str] = []
        self.failures: list[StartupError] = []
        self.client = LocalClient(load, queue_rows, 10**9, self.failures.append)
        self.service = CoreService(
            self.client, meeting.listeners[index], meeting.secret, 16 * MIB, 60.0, self.losses.append
        )
        self.stopped = asyncio.Event()
        self.task = asyncio.create_task(self.service.serve(self.stopped))

    async def die(self) -> None:
        """End without a word, as a process that is killed."""
        for task in (self.task, *self.service._fronts):
            task.cancel()
        await asyncio.wait([self.task])


class Split:
    """A front with its cores."""

    def __init__(
        self, load: Callable[[], Model], cores: int = 1, queue_rows: int = 10**6, *, ready_before: bool = False
    ) -> None:
        self.meeting = open_meeting(cores)
        self.load = load
        self.cores = [Core(self.meeting, index, load, queue_rows) for index in range(cores)]
        self.failures: list[StartupError] = []
        self.ready: list[bool] = []
        self.front = RemoteClient(
            self.meeting,
            16 * MIB,
            adapt,
            self.failures.append,
            lambda: self.ready.append(True),
            ready_before=ready_before,
        )
        self.front.start()

    @property
    def link(self) -> core_link.CoreLink:
        return self.front._links[0]

    @property
    def front_memory(self) -> OwnMemory:
        assert self.link._channel is not None
        return self.link._channel._own

    @property
    def core_memory(self) -> PeerMemory:
        assert self.link._channel is not None
        return self.link._channel._peer

    async def infer(self, tensors: Tensors, deadline_s: float = FAR_S) -> Tensors | ByocError:
        answer: asyncio.Future[Tensors | ByocError] = asyncio.get_running_loop().create_future()
        self.front.infer(tensors, len(next(iter(tensors.values()))), answer.set_result, deadline_s)
        return await asyncio.wait_for(answer, 30)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self.front.close()
        for core in self.cores:
            core.stopped.set()
        await asyncio.wait_for(asyncio.gather(*[core.task for core in self.cores], return_exceptions=True), 30)
        for core in self.cores:
            core.client.close()
        for listener in self.meeting.listeners:
            listener.close()
        for _ in range(3):  # the event loop ends connections in turns of its own
            await asyncio.sleep(0)


def run(load: Callable[[], Model], main: Main, cores: int = 1, queue_rows: int = 10**6) -> None:
    async def around() -> None:
        split = Split(load, cores, queue_rows)
        try:
            await asyncio.wait_for(split.front.settled(), 30)
            await main(split)
        finally:
            await split.end()

    asyncio.run(around())


@pytest.fixture
def identity_model(tmp_path: Path) -> Callable[[], Model]:
    return partial(load_model, identity(tmp_path / "m.onnx", shape=("N", "L")), EngineOptions(1), 0)


@pytest.fixture
def gather_model(tmp_path: Path) -> Callable[[], Model]:
    return partial(load_model, gather(tmp_path / "m.onnx"), EngineOptions(1), 0)


@pytest.mark.parametrize("length", [1, SHARED_FROM_BYTES // 4 - 16, SHARED_FROM_BYTES // 4, 300_000])
def test_small_and_large_tensors(identity_model: Callable[[], Model], length: int) -> None:
    """Large ones lie in shared memory, and every place is free again afterwards, at both ends."""

    async def main(split: Split) -> None:
        assert split.front.status == ModelStatus(ModelState.READY)
        assert split.ready == [True]
        assert split.front.adapter.signature.inputs[0].name == "x"
        for seed in range(5):
            sent = np.random.default_rng(seed).random((1, length)).astype(np.float32)
            outcome = await split.infer({"x": sent})
            assert isinstance(outcome, dict)
            assert outcome["y"].tobytes() == sent.tobytes()
            del outcome
        await split.until(lambda: len(split.front_memory) == 0)
        assert split.link.rows == 0

    run(identity_model, main)


def test_places_of_answers_are_free_again_when_they_have_been_read(identity_model: Callable[[], Model]) -> None:
    async def main(split: Split) -> None:
        outcomes = [await split.infer({"x": np.full((1, 100_000), i, np.float32)}) for i in range(3)]
        assert [outcome["y"][0, 5] for outcome in outcomes if isinstance(outcome, dict)] == [0, 1, 2]
        assert len(split.core_memory._in_use) == 3
        outcomes.clear()
        await split.until(lambda: not split.core_memory._in_use)
        for i in range(200):  # far more than the memory holds
            outcome = await split.infer({"x": np.full((1, 100_000), i, np.float32)})
            assert isinstance(outcome, dict)
            assert outcome["y"][0, 99_999] == i

    run(identity_model, main)


def test_many_requests_at_a_time_are_not_mixed_up(identity_model: Callable[[], Model]) -> None:
    async def main(split: Split) -> None:
        random = np.random.default_rng(0)
        sent: list[Tensors] = [
            {"x": np.full((int(random.integers(1, 4)), int(random.choice([1, 5, 9000]))), i, np.float32)}
            for i in range(600)
        ]
        outcomes = await asyncio.gather(*map(split.infer, sent))
        for tensors, outcome in zip(sent, outcomes, strict=True):
            assert isinstance(outcome, dict)
            assert outcome["y"].tolist() == tensors["x"].tolist()

    run(identity_model, main)


def test_strings(tmp_path: Path) -> None:
    model = partial(
        load_model, identity(tmp_path / "m.onnx", kind=TensorProto.STRING, shape=("N", 2)), EngineOptions(1), 0
    )

    async def main(split: Split) -> None:
        sent = np.array([["a", "ä" * 50_000], ["", "\U0001f600"]], object)
        outcome = await split.infer({"x": sent})
        assert isinstance(outcome, dict)
        assert outcome["y"].tolist() == sent.tolist()

    run(model, main)


def test_an_error_comes_with_what_caused_it(gather_model: Callable[[], Model]) -> None:
    """The log of the front process has the request's id; the reason must stand there as well."""

    async def main(split: Split) -> None:
        outcome = await split.infer({"i": np.array([[9]], np.int64)})
        assert isinstance(outcome, InferenceFailed)
        assert "Gather" in str(outcome.__cause__)
        assert isinstance(await split.infer({"i": np.array([[1]], np.int64)}), dict)

    run(gather_model, main)


def test_a_request_out_of_time(identity_model: Callable[[], Model]) -> None:
    async def main(split: Split) -> None:
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}, 1.0), DeadlineExceeded)

    run(identity_model, main)


class Held:
    """A model whose inferences wait for a sign."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self.go = threading.Event()
        self.rows: list[int] = []
        self._load = load

    def load(self) -> Model:
        model = self._load()
        (run,) = model.infers

        def infer(tensors: Tensors) -> Tensors:
            self.rows.append(len(next(iter(tensors.values()))))
            assert self.go.wait(30)
            time.sleep(0.005)  # or the batcher would find it quick enough for the event loop
            return run(tensors)

        # without a cost model it runs on the worker thread
        return replace(model, infers=(infer,), profile=BatchProfile(), bounds=BatchBounds(4, 10**9))


def test_a_request_that_is_given_up_does_not_run(identity_model: Callable[[], Model]) -> None:
    held = Held(identity_model)

    async def main(split: Split) -> None:
        replies: list[Tensors | ByocError] = []
        one: Tensors = {"x": np.ones((1, 20_000), np.float32)}
        first = split.front.infer(one, 1, replies.append, FAR_S)
        await split.until(lambda: held.rows)
        second = split.front.infer(one, 1, replies.append, FAR_S)
        second()
        second()
        assert split.link.rows == 1
        first()
        third: Tensors = {"x": np.full((2, 20_000), 3, np.float32)}
        split.front.infer(third, 2, replies.append, FAR_S)
        held.go.set()
        await split.until(lambda: replies)
        assert held.rows == [1, 2]
        (outcome,) = replies
        assert isinstance(outcome, dict)
        assert outcome["y"][1, 7] == 3
        await split.until(lambda: len(split.front_memory) == 0)  # also the places of those that were given up

    run(held.load, main)


def test_a_refusal_of_the_core_reaches_the_client(identity_model: Callable[[], Model]) -> None:
    held = Held(identity_model)

    async def main(split: Split) -> None:
        replies: list[Tensors | ByocError] = []
        for _ in range(30):
            split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, replies.append, FAR_S)
        await split.until(lambda: any(isinstance(reply, Overloaded) for reply in replies))
        held.go.set()
        await split.until(lambda: len(replies) == 30)
        refused = [reply for reply in replies if isinstance(reply, Overloaded)]
        assert "records are waiting" in refused[0].message
        assert refused[0].retry_after_s >= 1
        assert len(refused) < 30

    run(held.load, main, queue_rows=10)


def test_shared_memory_that_is_full_refuses_at_once(identity_model: Callable[[], Model]) -> None:
    held = Held(identity_model)

    async def main(split: Split) -> None:
        replies: list[Tensors | ByocError] = []
        large: Tensors = {"x": np.ones((1, MIB), np.float32)}
        for _ in range(4):  # 4 MiB each, of 16
            split.front.infer(large, 1, replies.append, FAR_S)
        with pytest.raises(Overloaded, match="memory"):
            split.front.infer(large, 1, replies.append, FAR_S)
        held.go.set()
        await split.until(lambda: len(replies) == 4)
        assert all(isinstance(reply, dict) for reply in replies)

    run(held.load, main)


def test_answers_beyond_the_shared_memory_go_through_the_socket(identity_model: Callable[[], Model]) -> None:
    async def main(split: Split) -> None:
        outcomes = [await split.infer({"x": np.full((1, MIB), i, np.float32)}) for i in range(6)]
        assert [outcome["y"][0, MIB - 1] for outcome in outcomes if isinstance(outcome, dict)] == [0, 1, 2, 3, 4, 5]

    run(identity_model, main)


def _longer(items: list[Any], length: int) -> bool:
    return len(items) > length


def test_a_core_that_ends_is_replaced(identity_model: Callable[[], Model]) -> None:
    """Its requests get a prompt 503, the model is not ready, and then it is; nothing is left behind."""
    held = Held(identity_model)

    async def main(split: Split) -> None:
        for _ in range(3):
            held.go.clear()
            before = len(held.rows)
            replies: list[Tensors | ByocError] = []
            for _ in range(5):
                split.front.infer({"x": np.ones((1, 20_000), np.float32)}, 1, replies.append, FAR_S)
            await split.until(partial(_longer, held.rows, before))
            await split.cores[0].die()
            await split.until(partial(_longer, replies, 4))
            assert all(isinstance(reply, NotReady) for reply in replies)
            assert all("before it had an answer" in reply.message for reply in replies if isinstance(reply, NotReady))
            assert split.front.status.state is ModelState.LOADING
            assert "has ended" in split.front.status.reason
            with pytest.raises(NotReady):
                _ = split.front.adapter
            with pytest.raises(NotReady):
                split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, replies.append, FAR_S)
            held.go.set()
            split.cores[0] = Core(split.meeting, 0, held.load)
            await split.until(lambda: split.front.status.state is ModelState.READY)
            assert isinstance(await split.infer({"x": np.ones((1, 20_000), np.float32)}), dict)
        assert split.ready == [True]  # it was told once

    run(held.load, main)


def test_no_descriptor_and_no_memory_is_left_after_many_cores(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_link, "_RETRY_S", 0.0)

    def count() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:tensors")

    async def main(split: Split) -> None:
        kept: list[Tensors | ByocError] = []
        large: Tensors = {"x": np.ones((1, 50_000), np.float32)}

        async def once() -> None:
            for task in list(split.cores[0].service._fronts):
                split.front.infer(large, 1, kept.append, FAR_S)  # in flight when the connection ends
                for front in list(split.cores[0].service._told):
                    front.link.abort()
                await asyncio.wait_for(asyncio.wait([task]), 30)
            await split.until(lambda: split.front.status.state is not ModelState.READY)
            await split.until(lambda: split.front.status.state is ModelState.READY)
            assert isinstance(await split.infer(large), dict)
            kept.clear()

        await once()
        before = count()
        for _ in range(100):
            await once()
        assert count() == before

    run(identity_model, main)


def test_the_core_with_the_least_to_do_is_asked(identity_model: Callable[[], Model]) -> None:
    held = Held(identity_model)

    async def main(split: Split) -> None:
        replies: list[Tensors | ByocError] = []
        for _ in range(6):
            split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, replies.append, FAR_S)
        assert [link.rows for link in split.front._links] == [3, 3]
        await split.cores[0].die()
        await split.until(lambda: len(replies) == 3)
        assert split.front.status.state is ModelState.READY  # the other one serves on
        held.go.set()
        await split.until(lambda: len(replies) == 6)
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)

    run(held.load, main, cores=2)


def test_it_is_ready_when_all_cores_are(identity_model: Callable[[], Model]) -> None:
    """Once: a ping must not say 200 while half of the machine still loads."""
    gate = threading.Event()
    loads: list[int] = []

    def load() -> Model:
        loads.append(1)
        if len(loads) == 2:
            assert gate.wait(30)
        return identity_model()

    async def around() -> None:
        split = Split(load, 2)
        try:
            await split.until(lambda: any(link.status.state is ModelState.READY for link in split.front._links))
            assert split.front.status == ModelStatus(ModelState.LOADING, "the model is loading")
            assert split.ready == []
            gate.set()
            await asyncio.wait_for(split.front.settled(), 30)
            assert split.front.status.state is ModelState.READY
        finally:
            gate.set()
            await split.end()

    asyncio.run(around())


def test_a_core_without_a_gpu_says_why(identity_model: Callable[[], Model]) -> None:
    def load() -> Model:
        raise GpuUnavailable("libcuda.so.1 is not here")

    async def main(split: Split) -> None:
        assert split.front.status == ModelStatus(ModelState.FAILED, "libcuda.so.1 is not here", GpuUnavailable)
        with pytest.raises(GpuUnavailable, match=r"libcuda\.so\.1"):
            _ = split.front.adapter
        with pytest.raises(GpuUnavailable, match=r"libcuda\.so\.1"):
            split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, lambda _: None, FAR_S)
        assert split.cores[0].losses == []  # another process would find no GPU either

    run(load, main)


def test_a_gpu_that_is_lost_for_good_ends_the_core(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process can use it: what is spoiled is this one's context."""
    monkeypatch.setattr(service_module, "_TICK_S", 0.01)
    failing: list[bool] = []

    def load() -> Model:
        model = identity_model()
        (run,) = model.infers

        def infer(tensors: Tensors) -> Tensors:
            if failing:
                raise GpuUnavailable("CUDA failure 700")
            return run(tensors)

        return replace(model, infers=(infer,))

    async def main(split: Split) -> None:
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)
        failing.append(True)
        outcome = await split.infer({"x": np.ones((1, 1), np.float32)})
        assert isinstance(outcome, GpuUnavailable)
        await split.until(lambda: split.cores[0].losses)
        assert "CUDA failure 700" in split.cores[0].losses[0]

    run(load, main)


def test_a_batch_that_never_ends_ends_the_core(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_TICK_S", 0.01)
    held = Held(identity_model)

    async def main(split: Split) -> None:
        split.cores[0].service._longest_run_s = 0.05
        split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, lambda _: None, FAR_S)
        await split.until(lambda: split.cores[0].losses)
        assert "has been running" in split.cores[0].losses[0]
        held.go.set()

    run(held.load, main)


def test_a_tensor_larger_than_the_shared_memory_goes_through_the_socket(identity_model: Callable[[], Model]) -> None:
    """It would never have a place there."""

    async def main(split: Split) -> None:
        sent = np.arange(5 * MIB, dtype=np.float32)[None]  # 20 MiB, of 16
        outcome = await split.infer({"x": sent})
        assert isinstance(outcome, dict)
        assert outcome["y"].tobytes() == sent.tobytes()

    run(identity_model, main)


def test_a_front_that_comes_later_is_ready_with_any_core(identity_model: Callable[[], Model]) -> None:
    """As those are that were there before; and it does not wait for a core that is not there."""

    def load() -> Model:
        if loads:
            raise GpuUnavailable("this one is broken")
        loads.append(1)
        return identity_model()

    loads: list[int] = []

    async def around() -> None:
        split = Split(load, 2, ready_before=True)
        try:
            await split.until(lambda: split.ready)
            assert split.front.status == ModelStatus(ModelState.READY)
            assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)
        finally:
            await split.end()

    asyncio.run(around())


def test_nobody_is_waited_for_longer_than_a_second(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.01)
    gate = threading.Event()

    def load() -> Model:
        assert gate.wait(30)
        return identity_model()

    async def around() -> None:
        split = Split(load)
        try:
            await asyncio.wait_for(split.front.settled(), 20)
            assert split.front.status.state is ModelState.LOADING
        finally:
            gate.set()
            await split.end()

    asyncio.run(around())


def test_who_has_not_introduced_itself_does_not_keep_a_core_from_its_end(identity_model: Callable[[], Model]) -> None:
    async def main(split: Split) -> None:
        service = split.cores[0].service
        stranger = await handshake.connect(split.meeting.addresses[0])
        await split.until(lambda: len(service._fronts) == 2)
        split.front.close()
        split.cores[0].stopped.set()
        await split.until(lambda: split.cores[0].task.done())
        stranger.close()

    run(identity_model, main)


def test_an_adapter_that_cannot_be_built_is_a_failure_to_start(identity_model: Callable[[], Model]) -> None:
    def fail(_: Signature) -> Adapter:
        raise ModelLoadError("byoc.toml has changed")

    async def around() -> None:
        split = Split(identity_model)
        split.front._build_adapter = fail
        try:
            await split.until(lambda: split.failures)
            assert split.front.status.state is not ModelState.READY
            assert split.ready == []
        finally:
            await split.end()

    asyncio.run(around())


def test_a_reply_that_fails_keeps_nobody_from_theirs(
    identity_model: Callable[[], Model], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    async def main(split: Split) -> None:
        split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, fail, FAR_S)
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)

    run(identity_model, main)
    assert "a reply failed" in caplog.text


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff" * 64, frame(Kind.FREE, number=64), frame(Kind.OUTPUTS), frame(Kind.ERROR, b"no JSON")],
    ids=["no frame", "a place that is not in use", "outputs of nobody", "an error that cannot be read"],
)
def test_nonsense_ends_the_connection_and_not_the_server(
    identity_model: Callable[[], Model], caplog: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    async def main(split: Split) -> None:
        (front,) = split.cores[0].service._told
        ended = split.link._link
        front.link.send(nonsense)
        await split.until(lambda: "nonsense" in caplog.text)
        await split.until(lambda: split.link._link not in (None, ended))
        await split.until(lambda: split.front.status.state is ModelState.READY)
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)

    run(identity_model, main)


def test_a_core_that_takes_nothing_is_sent_no_more(identity_model: Callable[[], Model]) -> None:
    """What it does not take would wait in this process' memory."""

    async def main(split: Split) -> None:
        link = split.link._link
        assert link is not None
        link.pause_writing()  # as the transport does when as much waits as may
        with pytest.raises(Overloaded, match="keep up"):
            split.front.infer({"x": np.ones((1, 1), np.float32)}, 1, lambda _: None, FAR_S)
        link.resume_writing()
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)

    run(identity_model, main)


@pytest.mark.parametrize("outputs", [{}, {"y": np.zeros((1, 1), np.complex64)}], ids=["missing", "of no known dtype"])
def test_outputs_that_cannot_be_sent(identity_model: Callable[[], Model], outputs: Tensors) -> None:
    def load() -> Model:
        return replace(identity_model(), infers=(lambda _: outputs,))

    async def main(split: Split) -> None:
        outcome = await split.infer({"x": np.ones((1, 1), np.float32)})
        assert isinstance(outcome, InferenceFailed)
        assert "KeyError" in str(outcome.__cause__)

    run(load, main)


def test_a_stranger_at_the_other_end_is_left_and_the_core_found(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a failure that nobody has thought of."""
    failures: list[Exception] = [HandshakeError("a stranger"), ZeroDivisionError()]
    connect = handshake.connect

    async def fail_at_first(address: bytes) -> socket.socket:
        if failures:
            raise failures.pop()
        return await connect(address)

    monkeypatch.setattr(core_link, "connect", fail_at_first)

    async def main(split: Split) -> None:
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)
        assert failures == []

    run(identity_model, main)


def test_who_connects_without_a_word_is_not_waited_for(
    identity_model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(split: Split) -> None:
        stranger = await handshake.connect(split.meeting.addresses[0])
        service = split.cores[0].service
        await split.until(lambda: len(service._fronts) == 2)
        stranger.close()
        await split.until(lambda: len(service._fronts) == 1)
        assert isinstance(await split.infer({"x": np.ones((1, 1), np.float32)}), dict)

    run(identity_model, main)
