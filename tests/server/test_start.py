"""How the server starts, and how it says that it cannot."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_models import busy, identity, rounds_per_second
from tests.server_process import SERVE, free_port, run_to_end, running, wait_for

SCRIPTS = Path(sys.executable).parent
AS_NOBODY = (
    sys.executable,
    "-c",
    # imported before root is given up, as another user may not be able to read the interpreter's own files
    "import os, sys, byoc_server.cli.main, byoc_server.server.entrypoint, byoc_server.server.serve,"
    "byoc_server.telemetry.logging, encodings.idna;"
    "byoc_server.cli.main.build_parser(); os.setuid(65534); sys.exit(byoc_server.cli.main.serve())",
)
ONE_OR_TWO = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    identity(folder / "model.onnx", shape=("N", 2))
    return folder


@pytest.mark.parametrize(
    "command",
    [SERVE, (str(SCRIPTS / "byoc"), "serve"), (str(SCRIPTS / "serve"),)],
    ids=["module", "byoc", "serve"],
)
def test_every_way_to_start_without_arguments_serves_the_demo_model(command: tuple[str, ...], tmp_path: Path) -> None:
    """Checklist 1, 2: no argument is needed, and the log says that the model is only a demo."""
    port = free_port()
    variables = {"BYOC_PORT": str(port), "BYOC_HOST": "127.0.0.1", "SAGEMAKER_BASE_DIR": str(tmp_path)}
    with running(command=command, port=port, environ=variables) as server:
        assert server.invoke('{"instances": [[5.1, 3.5, 1.4, 0.2]]}').status_code == 200
        (demo,) = server.events("demo_model")
        assert demo["level"] == "warning"
        assert "--model" in demo["message"]
        assert server.stop() == 0


def test_the_console_script_takes_arguments(model_folder: Path) -> None:
    """Checklist 1."""
    with running("--model", str(model_folder), command=(str(SCRIPTS / "serve"),)) as server:
        assert server.invoke("[[1, 2]]").json() == {"predictions": [[1.0, 2.0]]}
        assert server.events("demo_model") == []


def test_the_model_folder_of_sagemaker_is_found(model_folder: Path) -> None:
    """Checklist 15: SAGEMAKER_BASE_DIR replaces /opt/ml; unknown SAGEMAKER_ variables are ignored."""
    variables = {"SAGEMAKER_BASE_DIR": str(model_folder.parent), "SAGEMAKER_SOMETHING_NEW": "1"}
    with running(environ=variables) as server:
        assert server.invoke("[[1, 2]]").json() == {"predictions": [[1.0, 2.0]]}
        assert server.events("demo_model") == []


def test_the_port_of_the_platform_wins(model_folder: Path) -> None:
    """Checklist 4: SAGEMAKER_BIND_TO_PORT is stronger than BYOC_PORT; all interfaces by default."""
    port = free_port()
    variables = {"SAGEMAKER_BIND_TO_PORT": str(port), "BYOC_PORT": str(free_port())}
    with running("--model", str(model_folder), port=port, environ=variables) as server:
        (start,) = server.events("start")
        assert (start["host"], start["port"]) == ("0.0.0.0", port)


def test_the_start_summary_says_what_was_read(model_folder: Path) -> None:
    """Checklist 97."""
    with running("--model", str(model_folder), "--threads", "1") as server:
        (start,), (ready,) = server.events("start"), server.events("ready")
        assert start["port"] == server.port
        assert start["model"] == str(model_folder / "model.onnx")
        assert {"version", "python", "pid", "workers", "max_payload_mib", "request_timeout_s"} <= start.keys()
        assert ready["engine"].startswith("onnxruntime ")
        assert ready["execution_providers"] == ["CPUExecutionProvider"]
        assert ready["inputs"] == ["x: float32[?, 2]"]
        assert {"outputs", "batch_axis", "max_batch_size", "load_s", "threads"} <= ready.keys()


def test_it_listens_on_one_port_only(model_folder: Path) -> None:
    """Checklist 5."""
    with running("--model", str(model_folder), "--workers", "2") as server:
        pids = [server.process.pid, *server.worker_pids()]
        inodes = {
            os.readlink(link).removeprefix("socket:[").rstrip("]")
            for pid in pids
            for link in Path(f"/proc/{pid}/fd").iterdir()
            if os.readlink(link).startswith("socket:")
        }
        rows = [
            line.split()
            for table in ("tcp", "tcp6", "udp", "udp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        ]
        unconnected = {row[1].rpartition(":")[2] for row in rows if row[9] in inodes and row[3] in ("0A", "07")}
        assert unconnected == {f"{server.port:04X}"}


def refuses(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The one plain line on stderr says what is wrong; beside it there are only JSON lines."""
    assert result.returncode not in (0, None), result
    assert result.returncode > 0, f"ended by signal {-result.returncode}"
    assert result.stdout == ""
    plain = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1, result.stderr
    for word in words:
        assert word in plain[0]
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert {event["event"] for event in events} <= {"cuda_compat", "start", "process", "stop", "demo_model"}


@ONE_OR_TWO
def test_a_broken_model_is_refused(workers: str, tmp_path: Path) -> None:
    """Checklist 13: also when several workers fail at once."""
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    result = run_to_end("--model", str(tmp_path), "--workers", workers, "--port", str(free_port()))
    refuses(result, "broken.onnx", "cannot load")


def test_many_workers_with_a_broken_model_leave_nothing_behind(tmp_path: Path) -> None:
    """Checklist 12, 13."""
    (tmp_path / "broken.onnx").write_bytes(b"")
    port = free_port()
    refuses(run_to_end("--model", str(tmp_path), "--workers", "4", "--port", str(port)), "broken.onnx")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@ONE_OR_TWO
def test_a_port_in_use_is_refused(workers: str, model_folder: Path) -> None:
    """Checklist 13."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        refuses(run_to_end("--model", str(model_folder), "--port", port, "--workers", workers), port, "--port")


def test_a_folder_without_a_model_is_refused_and_not_replaced_by_the_demo(tmp_path: Path) -> None:
    """Checklist 13."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.joblib").write_bytes(b"x")
    refuses(run_to_end(environ={"SAGEMAKER_BASE_DIR": str(tmp_path)}), ".onnx", "model.joblib")
    refuses(run_to_end("--model", str(tmp_path / "model")), ".onnx", "model.joblib")


def test_an_ambiguous_folder_is_refused(tmp_path: Path) -> None:
    """Checklist 13."""
    for name in "ab":
        identity(tmp_path / f"{name}.onnx")
    refuses(run_to_end("--model", str(tmp_path)), "a.onnx", "b.onnx", "or name its file")


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--model", "/nowhere/at/all"], {}, ["/nowhere/at/all", "name an .onnx file"]),
        (["--model", "/etc/hostname"], {}, ["/etc/hostname", ".onnx"]),
        (["--port", "99999"], {}, ["--port=99999", "0 to 65535"]),
        ([], {"BYOC_WORKERS": "many"}, ["BYOC_WORKERS=many", "whole number"]),
        ([], {"BYOC_MAX_BATCHSIZE": "4"}, ["BYOC_MAX_BATCHSIZE", "did you mean BYOC_MAX_BATCH_SIZE?"]),
        ([], {"SAGEMAKER_BIND_TO_PORT": "http"}, ["SAGEMAKER_BIND_TO_PORT=http"]),
        ([], {"SAGEMAKER_MULTI_MODEL": "true"}, ["SAGEMAKER_MULTI_MODEL", "not supported"]),
        (["--max-batchsize", "4"], {}, ["--max-batchsize", "did you mean --max-batch-size?"]),
        (["--host", "no.such.host.invalid"], {}, ["no.such.host.invalid", "--host"]),
        (["--workers", "2", "--request-log", "some"], {}, ["--request-log=some", "all, errors, off"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], variables: dict[str, str], words: list[str], model_folder: Path
) -> None:
    """Checklist 13: a non-zero status and one line that says what to do."""
    if "--model" not in arguments:
        variables = {"BYOC_MODEL": str(model_folder), **variables}
    refuses(run_to_end(*arguments, environ=variables), *words)


def test_a_model_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    """Checklist 13: a truncated file."""
    whole = identity(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    refuses(run_to_end("--model", str(tmp_path / "cut"), "--port", str(free_port())), "model.onnx")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a server as another user")
def test_an_unreadable_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checklist 7, 13."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # the other user cannot write what would be measured
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        locked = Path(base) / "model"
        locked.mkdir(mode=0o700)
        identity(locked / "model.onnx")
        ended = run_to_end("--model", str(locked), "--port", str(free_port()), command=AS_NOBODY)
        refuses(ended, str(locked), "Permission denied")


@ONE_OR_TWO
def test_pings_wait_for_the_model(workers: str, tmp_path: Path) -> None:
    """Checklist 21, 22, 27: connections are taken at once, pings get 503 and the reason until all workers are ready."""
    model = busy(tmp_path / "model.onnx", rounds_per_second(), idle_s=0.04)
    with running("--model", str(model), "--workers", workers, ready=False) as server:
        wait_for(lambda: server.events("start"), "it listens")
        with server.connect(timeout_s=1.0):
            pass
        loading = server.ping()
        assert loading.status_code == 503
        assert loading.json()["error"]["code"] == "not_ready"
        assert "loading" in loading.json()["error"]["message"]
        assert int(loading.headers["retry-after"]) >= 1
        invocation = server.invoke("[[1]]")
        assert invocation.status_code == 503
        assert invocation.json()["error"]["code"] == "not_ready"
        server.wait_until_ready()
        assert len(server.events("ready")) == int(workers)
        for _ in range(20):  # new connections, which go to any worker
            with server.connect() as connection:
                connection.sendall(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_second_server_can_take_over_the_port(model_folder: Path) -> None:
    """Checklist 18: a restart needs no clean-up and does not wait for old connections."""
    with running("--model", str(model_folder)) as first:
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        with running("--model", str(model_folder), "--port", str(first.port), port=first.port) as second:
            assert second.invoke(np.array([[1, 2]]).tolist().__repr__()).status_code == 200
