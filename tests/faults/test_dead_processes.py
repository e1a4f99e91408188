"""Processes of the server that are killed or stand still, under load."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.processes import SPLIT, core_pids, front_pids, holders, wait_until_computing, zombies
from tests.load import Load, Outcome, under_load
from tests.server_process import PING, ServerProcess, alive, post, read_answer, running, wait_for

QUIET = ("--request-log", "off")
RECOVERY_TIMEOUT_S = 60.0


def numbered(number: int) -> bytes:
    """A request that can be told apart from the last million of them."""
    return post(b"[[%d, 1]]" % (number % 1_000_000))


def require_right(outcomes: list[Outcome]) -> None:
    """Each request has its own answer, or a refusal that says when to come back, or a lost connection."""
    for outcome in outcomes:
        if outcome.answer is None:
            continue
        if outcome.status == 503:
            assert int(outcome.answer.headers["retry-after"]) >= 1
        else:
            assert outcome.status == 200, outcome
            assert outcome.answer.json() == {"predictions": [[outcome.number % 1_000_000, 1.0]]}


def goes_on(load: Load, answers: int = 100) -> None:
    """Wait until so many more requests have been answered well."""
    enough = load.count(200) + answers
    wait_for(lambda: load.count(200) >= enough, f"{answers} more answers", RECOVERY_TIMEOUT_S)


def is_replaced(server: ServerProcess, pid: int) -> bool:
    """Whether another core is there in its place, and ready."""
    return bool(set(core_pids(server)) - {pid}) and server.ping().status_code == 200


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_killed_core_is_replaced_and_no_connection_is_lost(identity_model: str) -> None:
    """Its requests are refused at once, the fronts keep their connections, and nothing hangs."""
    with running("--model", identity_model, *SPLIT, *QUIET) as server, under_load(server.port, numbered) as load:
        goes_on(load)
        fronts, (core,) = front_pids(server), core_pids(server)
        os.kill(core, signal.SIGKILL)
        wait_for(lambda: is_replaced(server, core), "another core is ready", RECOVERY_TIMEOUT_S)
        replaced_s = time.monotonic()

        def served() -> set[int]:
            since = [outcome for outcome in list(load.outcomes) if outcome.sent_s > replaced_s]
            return {outcome.client for outcome in since if outcome.status == 200}

        wait_for(lambda: served() == set(load.ports), "every client is served again", RECOVERY_TIMEOUT_S)
        assert front_pids(server) == fronts
        assert len(core_pids(server)) == 1
        wait_for(lambda: not zombies(server), "the dead core is cleared away")
        load.end()
    require_right(load.outcomes)
    assert load.count(None) == 0, "connections were lost"


def test_without_a_core_pings_and_requests_are_refused_until_there_is_one(identity_model: str) -> None:
    """The supervisor is held still, so that there is no core for as long as the test looks."""
    with running("--model", identity_model, *SPLIT) as server, server.connect() as used, used.makefile("rb") as stream:
        used.sendall(numbered(1))
        assert read_answer(stream).status == 200
        with held(server.process.pid):
            os.kill(core_pids(server)[0], signal.SIGKILL)
            wait_for(lambda: server.ping().status_code == 503, "pings are refused")
            used.sendall(numbered(2))
            refused = read_answer(stream)
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) >= 1
            used.sendall(PING)
            assert read_answer(stream).status == 503
        wait_for(lambda: server.ping().status_code == 200, "another core is ready", RECOVERY_TIMEOUT_S)
        used.sendall(numbered(3))
        assert read_answer(stream).json() == {"predictions": [[3.0, 1.0]]}


def test_requests_that_run_when_their_core_dies_are_refused(busy_model: str) -> None:
    """Those in the batch and those behind it; they would else have waited for a minute."""
    with running("--model", busy_model, *SPLIT) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(4)]
        streams = [stack.enter_context(connection.makefile("rb")) for connection in connections]
        for connection in connections:
            connection.sendall(post(b"[[600]]"))
        (core,) = core_pids(server)
        wait_until_computing(core)
        os.kill(core, signal.SIGKILL)
        for stream in streams:
            answer = read_answer(stream)
            assert answer.status == 503
            assert "retry-after" in answer.headers
        wait_for(lambda: is_replaced(server, core), "another core is ready", RECOVERY_TIMEOUT_S)
        for connection, stream in zip(connections, streams, strict=True):
            connection.sendall(post(b"[[0]]"))
            assert read_answer(stream).status == 200


def test_a_killed_front_costs_only_its_own_connections(identity_model: str) -> None:
    """The other front's go on, and it is replaced."""
    two = (*SPLIT, "--workers", "2")
    with (
        running("--model", identity_model, *two, *QUIET) as server,
        under_load(server.port, numbered, clients=24) as load,
    ):
        goes_on(load, 500)
        fronts, cores = front_pids(server), core_pids(server)
        assert len(fronts) == 2

        def owned(pid: int) -> set[int]:
            return {client for client, port in load.ports.items() if pid in holders(server, port, fronts)}

        wait_for(lambda: sum(len(owned(pid)) for pid in fronts) == 24, "all connections are taken up")
        victim = max(fronts, key=lambda pid: len(owned(pid)))
        costs = owned(victim)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len({*front_pids(server)} - {victim}) == 2, "another front is there", RECOVERY_TIMEOUT_S)
        wait_for(lambda: load.count(None) == len(costs), "its connections are lost")
        if len(costs) < 24:
            goes_on(load)
        assert core_pids(server) == cores
        wait_for(lambda: not zombies(server), "the dead front is cleared away")
        assert server.invoke(b"[[7, 1]]").json() == {"predictions": [[7.0, 1.0]]}
    require_right(load.outcomes)
    assert {outcome.client for outcome in load.outcomes if outcome.answer is None} == costs


@pytest.mark.slow
def test_a_core_that_stands_still_is_replaced(identity_model: str) -> None:
    """Its clients are refused long before their time is over, and so are pings."""
    with running("--model", identity_model, *SPLIT, *QUIET) as server, under_load(server.port, numbered) as load:
        goes_on(load)
        (core,) = core_pids(server)
        with held(core):
            wait_for(lambda: load.count(503) >= 8, "requests are refused", 40)
            wait_for(lambda: server.ping().status_code == 503, "pings are refused", 40)
            wait_for(lambda: is_replaced(server, core), "another core is ready", 180)
        goes_on(load)
        assert not alive(core)
        load.end()
    require_right(load.outcomes)
    assert load.count(None) == 0


def test_cores_that_die_again_and_again_end_the_server(identity_model: str) -> None:
    """Rather gone than half alive: a code that is not zero, a line that says why, and no process left."""
    with running("--model", identity_model, *SPLIT) as server:
        seen: set[int] = {*front_pids(server), *core_pids(server)}

        def ended() -> bool:
            for pid in set(core_pids(server)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                seen.add(pid)
            return server.process.poll() is not None

        wait_for(ended, "the server has ended", 120)
        assert server.process.returncode == 1
        reason = server.log.splitlines()[-1]
        assert reason.startswith("byoc serve: error: ")
        assert "died 5 times" in reason
        assert "Traceback" not in server.log
        assert not [pid for pid in seen if alive(pid)]


def test_no_process_outlives_a_killed_master(busy_model: str) -> None:
    """Neither a front nor a core, also not one in the middle of a long batch, which gets the time of a drain."""
    drain = ("--drain-timeout-s", "0.5")
    with running("--model", busy_model, *SPLIT, *drain) as server, server.connect() as slow:
        pids = [*front_pids(server), *core_pids(server)]
        assert len(pids) == 2
        slow.sendall(post(b"[[600]]"))
        wait_until_computing(pids[1])
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        wait_for(lambda: not any(alive(pid) for pid in pids), "all processes are gone", 40)


TOPOLOGIES = [pytest.param(("--topology", "inline"), id="inline"), pytest.param(SPLIT, id="split")]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_sigterm_under_full_load_loses_no_request(busy_model: str, topology: tuple[str, ...]) -> None:
    """What had been sent before the signal is answered, however long its way through the queue was."""

    def request(number: int) -> bytes:
        return post(b"[[%g]]" % (0.01 + number % 4 / 100))

    with (
        running("--model", busy_model, *topology, *QUIET) as server,
        under_load(server.port, request, clients=48) as load,
    ):
        goes_on(load, 200)
        pids = [*front_pids(server), *core_pids(server)]
        signalled_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0, server.log
        assert "Traceback" not in server.log
    in_time = [outcome for outcome in load.outcomes if outcome.sent_s < signalled_s]
    assert {outcome.status for outcome in in_time} == {200}
    assert sum(outcome.ended_s > signalled_s for outcome in in_time) > 0
    assert {outcome.status for outcome in load.outcomes} <= {200, None}
    assert not [pid for pid in pids if alive(pid)]
