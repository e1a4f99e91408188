"""Clients that close their connection while their request waits or runs."""

from __future__ import annotations

import contextlib
import io
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.faults.processes import SPLIT, core_pids, descriptors, wait_until_computing
from tests.onnx_models import identity
from tests.server_process import ServerProcess, post, read_answer, running, wait_for

LEAVING = 40
NPY = "application/x-npy"


def ask_and_stay(stack: contextlib.ExitStack, server: ServerProcess, body: bytes, count: int) -> list[socket.socket]:
    connections = [stack.enter_context(server.connect(timeout_s=60)) for _ in range(count)]
    for connection in connections:
        connection.sendall(post(body))
    return connections


def test_requests_whose_clients_left_do_not_run(busy_model: str) -> None:
    """Forty requests of ten minutes each wait behind one that runs; once their clients are gone, so are they."""
    with running("--model", busy_model, *SPLIT) as server, contextlib.ExitStack() as staying:
        assert server.invoke(b"[[0]]").status_code == 200
        before = descriptors(server)
        (stays,) = ask_and_stay(staying, server, b"[[3]]", 1)
        wait_until_computing(core_pids(server)[0])
        with contextlib.ExitStack() as leaving:
            ask_and_stay(leaving, server, b"[[600]]", LEAVING)
        with stays.makefile("rb") as stream:
            assert read_answer(stream).status == 200
        assert server.invoke(b"[[0]]").status_code == 200
        staying.close()
        wait_for(lambda: descriptors(server) <= before, "their connections are closed")
        assert server.stop() == 0


@pytest.mark.parametrize(
    "topology", [pytest.param(("--topology", "inline"), id="inline"), pytest.param(SPLIT, id="split")]
)
def test_clients_that_leave_a_batch_that_runs_take_nothing_from_their_neighbours(
    busy_model: str, topology: tuple[str, ...]
) -> None:
    with running("--model", busy_model, *topology) as server, contextlib.ExitStack() as staying:
        (first,) = ask_and_stay(staying, server, b"[[0.3]]", 1)
        with contextlib.ExitStack() as leaving:
            stay = []
            for _ in range(8):
                ask_and_stay(leaving, server, b"[[0.5]]", 1)
                stay += ask_and_stay(staying, server, b"[[0.5]]", 1)
            with first.makefile("rb") as stream:  # from here on they run
                assert read_answer(stream).status == 200
        for connection in stay:
            with connection.makefile("rb") as stream:
                answer = read_answer(stream)
                assert answer.status == 200
                assert answer.json() == {"predictions": [[0.5]]}
        assert server.stop() == 0


def test_large_requests_whose_clients_left_leave_no_memory_behind(tmp_path: Path) -> None:
    """Sixty of them are four times what may wait; were any of it lost, the server would refuse all that come later."""
    width = 150_000  # 600 KB a record
    model = str(identity(tmp_path / "model.onnx", shape=("N", width)))
    body = npy(np.arange(width, dtype=np.float32)[None])
    with running("--model", model, *SPLIT, "--max-queue-mib", "8") as server:
        for _ in range(60):
            with server.connect() as connection:
                connection.sendall(post(body, Content_Type=NPY, Accept=NPY))

        def invoke() -> bytes:
            answer = server.invoke(body, Content_Type=NPY, Accept=NPY)
            return answer.content if answer.status_code == 200 else b""

        wait_for(lambda: invoke() == body, "there is room again")
        for _ in range(20):
            assert invoke() == body
        assert server.stop() == 0


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
