"""Requests of different lengths, from the client to the engine and back."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from byoc_server.batching.policy import BatchBounds
from byoc_server.core.local import LocalClient
from byoc_server.engines.base import EngineOptions
from byoc_server.errors import ByocError
from byoc_server.models.model import Model, load_model
from byoc_server.types import Tensors
from tests.onnx_models import encoder

LENGTHS = (17, 24, 20, 17)


def records(length: int) -> Tensors:
    ids = np.random.default_rng(length).integers(1, 100, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize(
    ("pad_lengths", "shapes"), [(True, [(4, 24)]), (False, [(2, 17), (1, 24), (1, 20)])], ids=["padded", "not padded"]
)
def test_requests_that_meet_in_one_turn(tmp_path: Path, pad_lengths: bool, shapes: list[tuple[int, int]]) -> None:
    ran: list[tuple[int, ...]] = []

    def load() -> Model:
        model = load_model(encoder(tmp_path / "m.onnx"), EngineOptions(1), 0, pad_lengths=pad_lengths)
        infer = model.infer

        def watched(tensors: Tensors) -> Tensors:
            ran.append(tensors["input_ids"].shape)
            return infer(tensors)

        # whatever was measured, there is room for all in one batch
        return dataclasses.replace(model, infers=[watched], bounds=BatchBounds(100, 10_000))

    async def main() -> None:
        local = LocalClient(load, 100, 10**6, lambda error: None)
        local.start()
        await local.settled()
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Tensors | ByocError]] = [loop.create_future() for _ in LENGTHS]
        for length, answer in zip(LENGTHS, answers, strict=True):
            local.infer(records(length), 1, answer.set_result, 1e12)
        outcomes = await asyncio.wait_for(asyncio.gather(*answers), 60)
        for length, outcome in zip(LENGTHS, outcomes, strict=True):
            assert isinstance(outcome, dict)
            assert outcome["hidden"].shape == (1, length, 8)
            assert outcome["attention"].shape == (1, 2, length, length)
        assert local.close()

    asyncio.run(main())
    assert sorted(ran) == sorted(shapes)
