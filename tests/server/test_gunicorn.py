"""Several worker processes under one parent."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.onnx_models import busy, identity, rounds_per_second
from tests.server_process import ServerProcess, alive, running, wait_for

TWO = ("--workers", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(identity(tmp_path_factory.mktemp("models") / "model.onnx", shape=("N", 2)))


def fresh_status(server: ServerProcess, path: str = "/ping", data: str = "[[1, 2]]") -> int:
    """The status over a connection of its own, which any worker may take."""
    if path == "/ping":
        return requests.get(server.url + path, timeout=10).status_code
    return requests.post(server.url + path, data=data, timeout=10).status_code


def test_a_killed_worker_is_replaced_while_the_others_serve(model: str) -> None:
    """Checklist 12, 24: requests of the other worker go on, pings stay 200, and the dead one is replaced."""
    with running("--model", model, *TWO) as server:
        first = server.worker_pids()
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: not alive(first[0]), "the worker is gone")
        end_s = time.monotonic() + 15
        while len(server.events("ready")) < 3 and time.monotonic() < end_s:
            assert fresh_status(server) == 200
            assert fresh_status(server, "/invocations") == 200
        wait_for(lambda: len(server.events("ready")) == 3, "a third worker is ready")
        now = server.worker_pids()
        assert len(now) == 2
        assert first[1] in now
        assert "SIGKILL" in server.log
        assert server.stop() == 0
        assert not [pid for pid in (*first, *now) if alive(pid)]


def test_a_killed_worker_costs_only_its_own_requests(model: str) -> None:
    """Checklist 24: a client that retries on a new connection never gets an error status."""
    stop = threading.Event()
    statuses: set[int] = set()

    def client(server: ServerProcess) -> None:
        while not stop.is_set():
            try:
                statuses.add(fresh_status(server, "/invocations"))
            except requests.ConnectionError:
                continue

    with running("--model", model, *TWO, "--request-log", "off") as server:
        threads = [threading.Thread(target=client, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: len(server.events("ready")) == 3, "a third worker is ready")
        stop.set()
        for thread in threads:
            thread.join(20)
    assert statuses == {200}


def test_no_worker_outlives_a_killed_parent(model: str) -> None:
    """Checklist 12."""
    with running("--model", model, *TWO) as server:
        workers = server.worker_pids()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        wait_for(lambda: not any(alive(pid) for pid in workers), "the workers are gone")


def test_repeated_deaths_end_the_server(model: str) -> None:
    """Checklist 14: rather gone than half alive, with one line that says why."""
    with running("--model", model, *TWO) as server:
        killed: set[int] = set()

        def ended() -> bool:
            for pid in server.worker_pids():
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            return server.process.poll() is not None

        try:
            wait_for(ended, "the server has ended", 60)
        except FileNotFoundError:  # it ended while its children were looked up
            server.process.wait(10)
        assert server.process.returncode == 1
        reason = server.log.splitlines()[-1]
        assert reason.startswith("byoc serve: error: processes died 5 times")
        assert "--workers" in reason
        assert "Traceback" not in server.log
        assert not [pid for pid in killed if alive(pid)]


def test_an_end_while_a_replacement_still_loads(tmp_path: Path) -> None:
    """Checklist 11: it does not wait for the load, and the model it loads never serves half ready."""
    model = busy(tmp_path / "model.onnx", rounds_per_second(), idle_s=0.01)
    with running("--model", str(model), *TWO) as server:
        busy(tmp_path / "slow.onnx", rounds_per_second(), idle_s=600).replace(model)
        victim = server.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len({*server.worker_pids()} - {victim}) == 2, "a replacement has begun")
        time.sleep(1)
        for _ in range(10):
            assert fresh_status(server) == 200
            assert fresh_status(server, "/invocations", "[[0]]") == 200
        start_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start_s < 12
        assert "Traceback" not in server.log


def test_nothing_is_written_to_any_folder(model: str, tmp_path: Path) -> None:
    """Checklist 10: no socket, no heartbeat file; HOME stays empty and a missing TMPDIR does not matter."""
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HOME": str(home), "TMPDIR": "/nowhere", "XDG_RUNTIME_DIR": str(home)}
    with running("--model", model, *TWO, environ=variables) as server:
        assert server.invoke("[[1, 2]]").status_code == 200
        for pid in (server.process.pid, *server.worker_pids()):
            opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            files = [
                name for name in opened if name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/memfd:"))
            ]
            assert {name for name in files if name != str(server.log_path)} <= {model}
        assert list(home.rglob("*")) == []
        assert server.stop() == 0
    assert list(home.rglob("*")) == []


def test_log_lines_of_several_workers_stay_whole(model: str) -> None:
    """Checklist 94: one event a line, also when workers write at once."""
    with running("--model", model, *TWO) as server:

        def client(name: int) -> None:
            with requests.Session() as session:
                for i in range(100):
                    session.post(
                        f"{server.url}/invocations",
                        data="[[1, 2]]",
                        headers={"X-Amzn-SageMaker-Inference-Id": f"{name}-{i}"},
                        timeout=20,
                    )

        threads = [threading.Thread(target=client, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert server.stop() == 0
        ids = [line["id"] for line in server.events("request")]
        assert sorted(ids) == sorted(f"{name}-{i}" for name in range(6) for i in range(100))
        assert all(line.startswith("{") for line in server.log.splitlines())
