"""Requests that stay stacked from the outputs of a batch to their answers: packed, sent, and answered as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.batching.collate import split, stack
from byoc_server.batching.entry import Reply, Together
from byoc_server.batching.policy import BatchBounds
from byoc_server.core.frame import Frame, FrameError
from byoc_server.core.layout import TensorLayout
from byoc_server.core.tensor_channel import SHARED_FROM_BYTES
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ByocError
from byoc_server.models.model import Model, load_model
from byoc_server.types import STRING, BatchAxis, Signature, Tensors, TensorSpec
from tests.core.test_remote import FAR_S, Split, run
from tests.core.test_tensor_channel import Pair
from tests.core.test_tensor_channel import run as run_pair
from tests.onnx_models import identity

DTYPES = ["bool", "int8", "float16", "float32", "int64"]
SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, 2)),),
    (TensorSpec("y", np.dtype(np.float32), (None, 3)), TensorSpec("z", np.dtype(np.int8), (None,))),
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_stacked_tensors_are_those_of_each_request(data: st.DataObject) -> None:
    """Packed together and read one by one, and the other way round, at any size, aligned or not."""
    names = ["a", "b"][: data.draw(st.integers(1, 2))]
    count, rows = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    parts: list[Tensors] = [{} for _ in range(count)]
    for name in names:
        shape = (rows, *data.draw(st.lists(st.integers(1, 3), max_size=2)))
        dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
        for part in parts:
            part[name] = rng.integers(0, 2, shape).astype(dtype)
    layout = TensorLayout(names)
    plan = layout.plan(parts[0])
    stacked = stack(parts)
    pieces = layout.data_of_each(stacked, plan)
    assert pieces == [layout.data(part, plan) for part in parts]
    buffer = b"12345678" + b"".join(pieces)
    read = layout.read_stacked(plan, count, buffer, 8, len(buffer))
    for name in names:
        assert read[name].dtype == stacked[name].dtype
        assert read[name].tolist() == stacked[name].tolist()
    with pytest.raises(FrameError, match="behind their frame"):
        layout.read_stacked(plan, count, buffer, 8, len(buffer) - 1)


def outputs(count: int, rows: int = 1, length: int = 3) -> Tensors:
    y = np.arange(count * rows * length, dtype=np.float32).reshape(count * rows, length)
    return {"y": y, "z": np.arange(count * rows, dtype=np.int8)}


def understand(pair: Pair, signature: Signature) -> None:
    for end in (pair.front, pair.core):
        end.channel.understand(signature)


def stacked_frames(pair: Pair) -> list[tuple[list[int], Tensors, int] | None]:
    return [pair.front.channel.receive_stacked(frame) for frame in pair.front.frames]


@pytest.mark.parametrize("rows", [1, 2])
def test_outputs_of_several_requests_make_one_frame(rows: int) -> None:
    async def main(pair: Pair) -> None:
        understand(pair, SIGNATURE)
        sent = outputs(3, rows)
        assert pair.core.channel.send_stacked([7, 8, 9], sent, rows)
        await pair.front.count(3)
        (received,) = stacked_frames(pair)
        assert received is not None
        numbers, tensors, rows_of_each = received
        assert (numbers, rows_of_each) == ([7, 8, 9], rows)
        assert {name: array.tolist() for name, array in tensors.items()} == {n: a.tolist() for n, a in sent.items()}

    run_pair(main)


def test_many_of_them_make_several_frames_behind_what_waits_already() -> None:
    async def main(pair: Pair) -> None:
        understand(pair, SIGNATURE)
        one = {name: array[:1] for name, array in outputs(1, length=2000).items()}
        assert pair.core.channel.send(one, 0)
        sent = outputs(20, length=2000)
        assert pair.core.channel.send_stacked(range(1, 21), sent, 1)
        await pair.front.count(21)
        assert [frame[6] for frame in pair.front.frames] == [8, 8, 5]
        assert [number for number, _, _ in pair.front.received] == list(range(21))
        first_numbers = [tensors["y"][0, 0] for _, _, tensors in pair.front.received]
        assert first_numbers == [0, *[2000 * i for i in range(20)]]

    run_pair(main)


@pytest.mark.parametrize(
    "stacked",
    [
        {"y": np.zeros((2, SHARED_FROM_BYTES // 4), np.float32), "z": np.zeros(2, np.int8)},
        {"y": np.zeros((2, 3), np.float32), "z": np.array(["a", "b"], STRING)},
        {"y": np.zeros((2, 0), np.float32), "z": np.zeros((2, 0), np.int8)},
    ],
    ids=["large", "strings", "nothing"],
)
def test_what_is_sent_one_by_one(stacked: Tensors) -> None:
    async def main(pair: Pair) -> None:
        understand(pair, SIGNATURE)
        assert not pair.core.channel.send_stacked([1, 2], stacked, 1)

    run_pair(main)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_what_is_received_one_by_one(large: bool, count: int, batched: bool) -> None:
    signature = replace(SIGNATURE, outputs=SIGNATURE.outputs[:1])
    if not batched:
        signature = replace(signature, batch_axis=BatchAxis.ABSENT)

    async def main(pair: Pair) -> None:
        understand(pair, signature)
        tensors: Tensors = {"y": np.zeros((1, SHARED_FROM_BYTES if large else 3), np.float32)}
        for number in range(count):
            assert pair.core.channel.send(tensors, number)
        await pair.front.count(count)
        stacked = [received is not None for received in stacked_frames(pair)]
        assert stacked == [count == 2 and batched and not large]

    run_pair(main)


class Front:
    """Requests of one turn, and what came back: each by itself, or together."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.alone: dict[float, Tensors | ByocError] = {}
        self.groups: list[dict[float, Tensors]] = []
        self._together: Together = self.answer_together

    def answer_together(self, replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        values = [cast_value(reply) for reply in replies]
        self.groups.append(dict(zip(values, split(outputs, counts), strict=True)))

    def ask(self, value: float, rows: int = 1, *, alone: bool = False) -> Callable[[], None]:
        tensors: Tensors = {"x": np.full((rows, 3), value, np.float32)}
        reply = partial(self.alone.__setitem__, value)
        together = None if alone else self._together
        return self._split.front.infer(tensors, rows, reply, FAR_S, together=together)

    async def answers(self, count: int) -> dict[float, Tensors | ByocError]:
        answered: dict[float, Tensors | ByocError] = {}
        async with asyncio.timeout(30):
            while len(answered) < count:
                await asyncio.sleep(0.001)
                answered = {**self.alone}
                for group in self.groups:
                    answered.update(group)
        return answered


def cast_value(reply: Reply) -> float:
    assert isinstance(reply, partial)
    value: float = reply.args[0]
    return value


@pytest.fixture
def model(tmp_path: Path) -> Callable[[], Model]:
    load = partial(load_model, identity(tmp_path / "m.onnx", shape=("N", 3)), EngineOptions(1), 0)
    return lambda: replace(load(), bounds=BatchBounds(64, 64))


@pytest.mark.parametrize("rows", [1, 2])
def test_requests_of_one_batch_are_answered_together(model: Callable[[], Model], rows: int) -> None:
    async def main(split: Split) -> None:
        front = Front(split)
        for value in range(16):
            front.ask(value, rows)
        answers = await front.answers(16)
        assert not front.alone
        assert len(front.groups) < 16
        for asked, own in answers.items():
            assert isinstance(own, dict)
            assert own["y"].tolist() == [[asked] * 3] * rows
        assert split.link.rows == 0
        assert not split.cores[0].service._told.copy().pop()._requests

    run(model, main)


def test_others_are_answered_one_by_one(model: Callable[[], Model]) -> None:
    """Requests of different sizes, some that nobody waits for any more, some that are answered alone."""

    async def main(split: Split) -> None:
        front = Front(split)
        for value in range(12):
            give_up = front.ask(value, 1 + value % 2 if value < 8 else 1, alone=value == 9)
            if value == 10:
                give_up()
        answers = await front.answers(11)
        assert sorted(answers) == [value for value in range(12) if value != 10]
        assert 9 in front.alone
        for asked, own in answers.items():
            assert isinstance(own, dict)
            assert {*own["y"].ravel().tolist()} == {asked}
        await split.until(lambda: split.link.rows == 0)

    run(model, main)


def test_outputs_that_cannot_be_stacked_go_one_by_one(
    model: Callable[[], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(split: Split) -> None:
        def fail(*arguments: object) -> bool:
            raise MemoryError

        (front_of_core,) = split.cores[0].service._told
        monkeypatch.setattr(front_of_core.channel, "send_stacked", fail)
        front = Front(split)
        for value in range(4):
            front.ask(value)
        answers = await front.answers(4)
        assert {value: own["y"][0, 0] for value, own in answers.items() if isinstance(own, dict)} == {
            value: value for value in range(4)
        }

    run(model, main)


def test_a_front_takes_apart_what_only_the_core_had_together(model: Callable[[], Model]) -> None:
    """Given up on the way back: the others get their own rows."""

    async def main(split: Split) -> None:
        front = Front(split)
        numbers = [front.ask(value) for value in range(4)]
        receive = split.link._on_frame
        link = split.link._link
        assert link is not None

        def give_up_and_receive(received: Frame) -> None:
            numbers[1]()  # just before the answers
            receive(received)

        link._on_frame = give_up_and_receive
        answers = await front.answers(3)
        assert sorted(answers) == [0, 2, 3]
        for asked, own in answers.items():
            assert isinstance(own, dict)
            assert own["y"].tolist() == [[asked] * 3]
        assert split.link.rows == 0

    run(model, main)


def test_a_way_to_answer_that_fails_does_not_end_the_connection(
    model: Callable[[], Model], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(replies: Sequence[Reply], outputs: Tensors, counts: Sequence[int]) -> None:
        raise ValueError("broken")

    async def main(split: Split) -> None:
        link = split.link._link
        for _ in range(4):
            tensors: Tensors = {"x": np.ones((1, 3), np.float32)}
            split.front.infer(tensors, 1, lambda _: None, FAR_S, together=broken)
        await split.until(lambda: "ValueError: broken" in caplog.text)
        assert isinstance(await split.infer({"x": np.ones((1, 3), np.float32)}), dict)
        assert split.link._link is link
        assert split.link.rows == 0

    run(model, main)
