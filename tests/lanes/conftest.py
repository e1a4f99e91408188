"""One server a lane, for all tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest

from tests.onnx_models import gather
from tests.server_process import LANES, ServerProcess, running


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Input ``i``, int64 (N, 1), is looked up in 10, 20, 30, 40; it fails at a number above 3."""
    return str(gather(tmp_path_factory.mktemp("models") / "gather.onnx"))


@contextlib.contextmanager
def servers(model: str, *flags: str) -> Iterator[Mapping[str, ServerProcess]]:
    """Lane -> a server that has it."""
    with contextlib.ExitStack() as stack:
        arguments = ("--model", model, "--max-payload-mib", "1", "--threads", "1", *flags)
        started = {
            lane: stack.enter_context(running(*arguments, *flags_of_lane, ready=False))
            for lane, flags_of_lane in LANES.items()
        }
        for server in started.values():
            server.wait_until_ready()
            server.session.close()
        yield started
        for server in started.values():
            assert server.stop() == 0
            signs = ("Traceback", "never retrieved", "never awaited", "Exception")
            lines = [line for line in server.log.splitlines() if any(sign in line for sign in signs)]
            assert [line for line in lines if "InferenceFailed" not in line] == []


@pytest.fixture(scope="package")
def inline(model: str) -> Iterator[Mapping[str, ServerProcess]]:
    """One process a server."""
    with servers(model, "--topology", "inline") as started:
        yield started


@pytest.fixture(scope="package")
def split(model: str) -> Iterator[Mapping[str, ServerProcess]]:
    """A front and a core."""
    with servers(model, "--topology", "split", "--workers", "1", "--core-processes", "1") as started:
        yield started
