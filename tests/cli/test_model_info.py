"""``byoc info MODEL``: the signature, and commands that work as they are printed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from byoc_server.cli.main import main
from byoc_server.cli.model_info import model_as_text
from tests.onnx_models import gather, identity, two_inputs
from tests.server_process import free_port, running

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")


def info(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert main(["info", str(path), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_text_is_a_line_a_topic_and_a_command_a_format(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = identity(tmp_path / "identity.onnx", shape=("N", 2))
    assert main(["info", str(model)]) == 0
    output = capsys.readouterr().out
    assert "takes     x: float32[?, 2]" in output
    assert "run as one batch" in output
    assert "# text/csv\ncurl localhost:8080/invocations -H 'Content-Type: text/csv' --data-binary 1.0,1.0\n" in output
    assert '{"predictions":[[1.0,1.0]]}' in output


def test_what_a_format_cannot_carry_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = info(capsys, two_inputs(tmp_path / "two.onnx"))
    by_type = {example["media_type"]: example for example in facts["examples"]}
    assert by_type["application/octet-stream"]["command"] == ""
    assert "carries one input" in by_type["application/octet-stream"]["reason"]
    assert "No example" in model_as_text(facts)


def test_inputs_that_the_model_runs_on_are_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = info(capsys, gather(tmp_path / "gather.onnx"))
    assert facts["answer"] == '{"predictions":[[20.0]]}'


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", str(tmp_path / "none.onnx")]) == 1
    assert "there is no model at" in capsys.readouterr().err


@needs_curl
@pytest.mark.parametrize("columns", [4, 20_000], ids=["small", "large"])
def test_the_commands_work_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    """Pasted into a shell, every one gets the same answer; large bodies come packed."""
    model, port = identity(tmp_path / "identity.onnx", shape=("N", columns)), free_port()
    monkeypatch.setenv("BYOC_PORT", str(port))
    facts = info(capsys, model)
    commands = {example["media_type"]: example["command"] for example in facts["examples"] if example["command"]}
    assert ("text/libsvm" in commands) == (columns == 4)  # the large one does not pack well
    assert len(commands) >= 10
    with running("--host", "127.0.0.1", "--model", str(model), port=port, environ={"BYOC_PORT": str(port)}) as server:
        for media_type, command in commands.items():
            command = re.sub(r"\bcurl ", "curl -s -H 'Accept: application/json' ", command)
            done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=30, check=True)
            assert done.stdout == b'{"predictions":[[' + b",".join([b"1.0"] * columns) + b"]]}", media_type
        assert server.stop() == 0
