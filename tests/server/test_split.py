"""The split topology through the real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import mlp
from tests.onnx_models import identity
from tests.server_process import SERVE, ServerProcess, alive, running, wait_for

SPLIT = ("--topology", "split")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(mlp(tmp_path_factory.mktemp("models") / "model.onnx", (16, 8, 3)))


def processes(server: ServerProcess) -> list[tuple[str, int]]:
    return [(line["role"], line["index"]) for line in server.events("process")]


def test_both_topologies_answer_the_same(model: str) -> None:
    """Also to what is wrong, and in every format."""
    bodies = [
        ("application/json", json.dumps({"instances": [[i / 7 for i in range(16)]] * 3}).encode()),
        ("application/json", b'{"instances": [[1, 2]]}'),
        ("text/csv", ",".join(map(str, range(16))).encode()),
        ("text/plain", b"?"),
        ("application/octet-stream", np.arange(32_000 * 16, dtype=np.float32).tobytes()),
    ]
    answers = []
    for flags in ((), SPLIT, (*SPLIT, "--workers", "2", "--core-processes", "2")):
        with running("--model", model, "--threads", "1", "--max-batch-size", "8", *flags) as server:
            given = [server.invoke(body, Content_Type=kind) for kind, body in bodies]
            answers.append([(answer.status_code, answer.headers["Content-Type"], answer.content) for answer in given])
            assert server.stop() == 0
    assert answers[0] == answers[1] == answers[2]
    assert [status for status, _, _ in answers[0]] == [200, 400, 200, 415, 200]


def test_who_is_who(model: str) -> None:
    with running("--model", model, *SPLIT, "--workers", "2", "--core-processes", "2") as server:
        assert sorted(processes(server)) == [("core", 0), ("core", 1), ("front", 0), ("front", 1)]
        pids = {line["pid"] for line in server.events("process")}
        assert pids == set(server.worker_pids())
        (start,) = server.events("start")
        assert (start["topology"], start["fronts"], start["cores"]) == ("split", 2, 2)
        assert server.stop() == 0
        assert not [pid for pid in pids if alive(pid)]


def test_a_front_has_no_model(model: str) -> None:
    """It decodes and encodes; ONNX Runtime is not even in its memory."""
    with running("--model", model, *SPLIT) as server:
        assert server.invoke(json.dumps([[0] * 16]), Content_Type="application/json").status_code == 200
        for line in server.events("process"):
            has_runtime = "onnxruntime" in Path(f"/proc/{line['pid']}/maps").read_text()
            assert has_runtime == (line["role"] == "core")


def test_a_core_does_not_hold_the_listening_socket(model: str) -> None:
    """Or clients would be connected to a server whose fronts are gone."""
    with running("--model", model, *SPLIT) as server:
        port = f":{server.port:04X} 00000000:0000 0A"
        inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if port in line}
        assert len(inodes) == 1
        for line in server.events("process"):
            folder = Path(f"/proc/{line['pid']}/fd")
            links = {os.readlink(folder / name) for name in os.listdir(folder)}
            assert (f"socket:[{inodes.copy().pop()}]" in links) == (line["role"] == "front")


def test_a_model_that_does_not_load_ends_the_server(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    command = [*SERVE, "--model", str(broken), "--port", "0", *SPLIT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "cannot load model.onnx" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2])
def test_signals_that_would_change_the_processes_are_ignored(model: str, number: int) -> None:
    with running("--model", model, *SPLIT) as server:
        before = server.worker_pids()
        server.process.send_signal(number)
        wait_for(lambda: "ignored" in server.log, "the signal has been taken")
        assert server.worker_pids() == before
        assert server.invoke(json.dumps([[0] * 16]), Content_Type="application/json").status_code == 200
        assert server.stop() == 0


def test_labels_and_names_of_a_byoc_toml(tmp_path: Path) -> None:
    """What it says is done by the front; the core knows the model alone."""
    identity(tmp_path / "model.onnx", shape=("N", 2))
    (tmp_path / "byoc.toml").write_text('[inputs.x]\nname = "pair"\n')
    with running("--model", str(tmp_path), *SPLIT) as server:
        answer = server.invoke('{"instances": [{"pair": [1, 2]}]}', Content_Type="application/json")
        assert answer.json() == {"predictions": [[1, 2]]}
