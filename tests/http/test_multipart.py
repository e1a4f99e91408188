"""Forms over a socket, as ``curl`` and ``requests`` send them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.onnx_models import two_inputs
from tests.server_process import ServerProcess, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running("--model", str(two_inputs(tmp_path_factory.mktemp("model") / "m.onnx"))) as process:
        yield process


def post(server: ServerProcess, files: Any, **headers: str) -> requests.Response:
    return server.session.post(f"{server.url}/invocations", files=files, headers=headers, timeout=60)


def test_requests(server: ServerProcess) -> None:
    """Fields, files with a type and without; answers come in the default format or the one asked for."""
    sums = {"predictions": [{"sum": [5.0], "difference": [1.0]}, {"sum": [7.0], "difference": [1.0]}]}
    column = np.array([[2], [3]], np.float32)
    for second in ((None, "[2, 3]"), ("b.csv", "2\n3", "text/csv"), ("b", column.tobytes())):
        answer = post(server, {"a": (None, "[3, 4]"), "b": second})
        assert (answer.status_code, answer.json()) == (200, sums)
    answer = post(server, [("a", (None, "3")), ("b", (None, "[2, 3]")), ("a", (None, "4"))], Accept="text/csv")
    assert (answer.status_code, answer.text) == (200, "5.0,1.0\n7.0,1.0\n")


def test_large_forms(server: ServerProcess) -> None:
    column = np.arange(200_000, dtype=np.float32).reshape(-1, 1)
    files = {"a": ("a", column.tobytes()), "b": (None, str([0] * len(column)))}
    answer = post(server, files, Accept="application/x-npz")
    assert answer.status_code == 200
    assert len(answer.content) > 2 * column.nbytes


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: ServerProcess, tmp_path: Path) -> None:
    """What it does not know the type of it sends as application/octet-stream."""
    np.save(tmp_path / "a.npy", np.array([[1], [2]]))
    (tmp_path / "b.bin").write_bytes(np.array([5, 6], "<f4").tobytes())
    (tmp_path / "b.csv").write_text("5\n6\n")
    for b in ("=[5, 6]", "=@b.bin", "=@b.csv;type=text/csv", "=<b.csv;type=text/csv", "=5"):
        twice = ["-F", "b=6"] if b == "=5" else []
        command = ["curl", "-sS", "-F", "a=@a.npy", "-F", f"b{b}", *twice, f"{server.url}/invocations"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert '"sum":[6.0]' in done.stdout, done
        assert '"sum":[8.0]' in done.stdout


def test_refusals(server: ServerProcess) -> None:
    """Then the next request is served."""
    refused = post(server, {"a": (None, "[1]")})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("body: missing 'b'; the model's inputs are a: float32[?, 1]")
    refused = post(server, {"a": (None, "[1]"), "b": ("b.pdf", "1", "application/pdf")})
    assert refused.status_code == 415
    assert "part 'b': Content-Type 'application/pdf' is not supported" in refused.text
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="\u00e4"',
    ):
        refused = server.invoke(b"--b--", Content_Type=content_type.encode("latin-1"))  # type: ignore[arg-type]  # bytes go as they are
        assert refused.status_code == 415
    assert server.invoke(b"--b\r\n", Content_Type="multipart/form-data; boundary=b").status_code == 400
    assert post(server, {"a": (None, "[1]"), "b": (None, "[1]")}).status_code == 200
