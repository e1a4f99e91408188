"""More than the server can do. How much it still does meanwhile is measured by ``benchmarks/bench_overload.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.processes import process_tree, resident_bytes
from tests.faults.processes import SPLIT
from tests.load import under_load
from tests.onnx_models import busy, rounds_per_second
from tests.server_process import post, running, wait_for

_CLIENTS = 120
_BATCH_S = 0.05
_MORE_MEMORY_BYTES = 200 * 1024 * 1024


@pytest.mark.parametrize(
    "topology", [pytest.param(("--topology", "inline"), id="inline"), pytest.param(SPLIT, id="split")]
)
def test_what_cannot_be_done_in_time_is_refused_and_the_rest_is_done(topology: tuple[str, ...], tmp_path: Path) -> None:
    """120 clients at a model that does 20 requests a second, each of which may take one second."""
    model = str(busy(tmp_path / "model.onnx", rounds_per_second(), idle_s=_BATCH_S))
    flags = ("--max-batch-size", "1", "--request-timeout-s", "1", "--request-log", "off")
    with running("--model", model, *topology, *flags) as server:
        before_bytes = sum(map(resident_bytes, process_tree(server.process.pid)))

        def request(number: int) -> bytes:
            return post(b"[[-%d]]" % (number + 1))  # below zero it takes as long as at the start

        with under_load(server.port, request, _CLIENTS) as load:
            wait_for(lambda: load.count(200) >= 20 and load.count(503) >= 200, "both kinds of answers", 60)
            memory_bytes = sum(map(resident_bytes, process_tree(server.process.pid)))
        assert server.invoke(b"[[-5]]").json() == {"predictions": [[-5.0]]}
        assert server.ping().status_code == 200
        assert server.stop() == 0
    assert set(load.statuses()) == {200, 503}
    for outcome in load.outcomes:
        assert outcome.answer is not None
        if outcome.status == 503:
            assert int(outcome.answer.headers["retry-after"]) >= 1
        else:
            assert outcome.answer.json() == {"predictions": [[-1.0 - outcome.number]]}
        assert outcome.ended_s - outcome.sent_s < 21, "it waited longer than its time"
    assert memory_bytes < before_bytes + _MORE_MEMORY_BYTES
