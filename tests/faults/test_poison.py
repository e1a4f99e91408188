"""Models that do harm on one request in a batch: that one gets its error, its neighbours their answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import models
from tests.faults.processes import SPLIT, core_pids
from tests.load import ask_all
from tests.onnx_models import gather
from tests.server_process import SERVE, Answer, post, running, wait_for

_LIMIT_KIB = 12 * 2**20
_LIMITED = ("bash", "-c", f'ulimit -v {_LIMIT_KIB} && exec "$@"', "limited", *SERVE)
"""The server with 12 GiB of address space, so that what a model takes without end is not the machine's."""


@dataclass(frozen=True)
class Case:
    """A model, what does it harm, and what comes of it.

    Attributes:
        build: writes the model.
        poison: record that does harm.
        good: records that do none.
        right: what a good record gives.
        status: of the answer to the poison.
        answer: to the poison, where it is an answer.
        command: what starts the server.
    """

    build: Callable[[Path], Path]
    poison: float
    good: Callable[[int], int]
    right: Callable[[int], float]
    status: int = 500
    answer: object = None
    command: tuple[str, ...] = field(default=SERVE)


CASES = {
    "raises": Case(gather, 9, lambda i: i % 4, lambda i: 10.0 * (i % 4 + 1)),
    "gives too few rows": Case(models.drops_negative, -1, lambda i: i, float),
    "gives NaN": Case(models.nan_below_zero, -1, lambda i: i, float, 200, {"predictions": [[None]]}),
    "allocates without end": Case(
        lambda path: models.allocates(path, gib_at_1=1 / 1000), 64_000, lambda i: i % 4, lambda i: i % 4,
        command=_LIMITED,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = CASES[request.param]
    return chosen


@pytest.mark.parametrize(
    "topology", [pytest.param(("--topology", "inline"), id="inline"), pytest.param(SPLIT, id="split")]
)
def test_a_poisonous_request_harms_no_neighbour(case: Case, topology: tuple[str, ...], tmp_path: Path) -> None:
    """One request in ten is poison; every other one has the right answer, and the processes stay the same."""
    is_poison = [random.Random(number).random() < 0.1 for number in range(300)]
    bodies = [[[case.poison]] if poison else [[case.good(i)]] for i, poison in enumerate(is_poison)]
    model = str(case.build(tmp_path / "model.onnx"))
    with running("--model", model, *topology, command=case.command) as server:
        before = core_pids(server)
        answers = ask_all(server.port, [post(json.dumps(body).encode()) for body in bodies], connections=16)
        assert core_pids(server) == before
        assert server.ping().status_code == 200
        assert server.stop() == 0
    for i, (answer, poison) in enumerate(zip(answers, is_poison, strict=True)):
        assert answer is not None
        if poison:
            require_harmed(answer, case)
        else:
            assert answer.status == 200, answer
            assert answer.json() == {"predictions": [[case.right(i)]]}


def require_harmed(answer: Answer, case: Case) -> None:
    assert answer.status == case.status, answer
    if case.answer is None:
        assert answer.json()["error"]["code"] == "inference_failed"
    else:
        assert answer.json() == case.answer


def test_a_model_that_hangs_is_replaced(busy_model: str) -> None:
    """The request that made it hang is refused when its time is over, and after a while others are served again."""
    with running("--model", busy_model, *SPLIT, "--request-timeout-s", "2") as server:
        (core,) = core_pids(server)
        answers = ask_all(server.port, [post(b"[[100000]]")], connections=1)
        assert answers[0] is not None
        assert answers[0].status == 503
        wait_for(lambda: server.invoke(b"[[0]]").status_code == 200, "others are served again", 120)
        assert core_pids(server) != [core]
        assert server.ping().status_code == 200
