"""``byoc info MODEL``: the signature, and commands that work as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from byoc_server.cli.main import main
from byoc_server.cli.model_info import model_as_text
from byoc_server.codecs import base
from tests.onnx_models import gather, identity, save, two_inputs, value
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
    by_format = {example["format"]: example for example in facts["examples"]}
    assert by_format["application/octet-stream"]["command"] == ""
    assert "carries one input" in by_format["application/octet-stream"]["reason"]
    assert "No example" in model_as_text(facts)


def test_inputs_that_the_model_runs_on_are_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = info(capsys, gather(tmp_path / "gather.onnx"))
    assert facts["answer"] == '{"predictions":[[20.0]]}'


def looked_up(path: Path, table: list[float], offset: int) -> Path:
    """Input ``i``, int64 (N, 1): what stands at ``i + offset`` in a table; fails where nothing does."""
    constants = [
        numpy_helper.from_array(np.array(table, np.float32), "table"),
        numpy_helper.from_array(np.array(offset), "offset"),
    ]
    nodes = [helper.make_node("Add", ["i", "offset"], ["at"]), helper.make_node("Gather", ["table", "at"], ["y"])]
    inputs, outputs = [value("i", TensorProto.INT64, ("N", 1))], [value("y", TensorProto.FLOAT, ("N", 1))]
    return save(path, nodes, inputs, outputs, constants)


def test_ones_give_way_to_zeros(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert info(capsys, looked_up(tmp_path / "first.onnx", [7.0], 0))["answer"] == '{"predictions":[[7.0]]}'


def test_a_model_that_takes_no_made_up_inputs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its requests are shown all the same."""
    facts = info(capsys, looked_up(tmp_path / "far.onnx", [7.0], 100))
    assert facts["answer"].startswith("nothing to made-up inputs: ")
    text = model_as_text(facts)
    assert "speed" not in text
    assert '{"instances":[[0]]}' in text


def test_columns_and_padding(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    identity(tmp_path / "model.onnx", shape=("N", 2))
    (tmp_path / "byoc.toml").write_text("[inputs.x]\ncolumns = ['age', 'height']\n")
    assert "takes     x: float32[?, 2], columns age, height\n" in model_as_text(info(capsys, tmp_path))
    identity(tmp_path / "model.onnx", shape=("N", "length"))
    (tmp_path / "byoc.toml").write_text("[inputs.x]\npadding_value = 0\n")
    text = model_as_text(info(capsys, tmp_path))
    assert "takes     x: float32[?, ?], shorter records padded with 0" in text


def test_formats_that_are_not_installed_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the model takes images, of which a form would hold one."""
    monkeypatch.setattr(base, "_can_import", lambda module: module not in ("PIL", "pyarrow"))
    identity(tmp_path / "model.onnx", shape=("N", 3, 8, 8))
    (tmp_path / "byoc.toml").write_text("[inputs.x.image]\n")
    facts = info(capsys, tmp_path)
    text = model_as_text(facts)
    images = "image/jpeg, image/png, image/webp, application/x-image, multipart/form-data"
    assert f"{images}: needs byoc-server[image]" in text
    assert "application/x-parquet: needs byoc-server[arrow]" in text


def test_the_answer_is_in_the_format_of_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    identity(tmp_path / "model.onnx", shape=("N", 2))
    for media_type, answer in (("text/csv", "1.0,1.0\n"), ("application/x-npy", "136 bytes of application/x-npy")):
        (tmp_path / "byoc.toml").write_text(f"accept = '{media_type}'\n")
        assert info(capsys, tmp_path)["answer"] == answer


def test_a_setting_wins_over_the_format_of_the_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when serving; and an answer that the format cannot carry is no traceback."""
    identity(tmp_path / "model.onnx", TensorProto.STRING, ("N", 2))
    (tmp_path / "byoc.toml").write_text("accept = 'text/csv'\n")
    assert info(capsys, tmp_path)["accept"] == "text/csv"
    monkeypatch.setenv("BYOC_DEFAULT_ACCEPT", "application/octet-stream")
    facts = info(capsys, tmp_path)
    assert facts["accept"] == "application/octet-stream"
    assert facts["answer"].startswith("nothing in its default format: application/octet-stream carries one string")


def test_a_name_that_a_form_cannot_have(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    identity(tmp_path / "model.onnx", shape=("N", 2))
    (tmp_path / "byoc.toml").write_text("[inputs.x]\nname = 'a=b'\n")
    assert "multipart/form-data: curl would end the name 'a=b' at the equals sign" in model_as_text(
        info(capsys, tmp_path)
    )


def test_who_reads_only_the_beginning_sees_no_traceback(tmp_path: Path) -> None:
    """As ``byoc info MODEL | head`` does."""
    model = identity(tmp_path / "model.onnx", shape=("N", 2))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        command = [sys.executable, "-m", "byoc_server", "info", str(model)]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", str(tmp_path / "none.onnx")]) == 1
    assert "there is no model at" in capsys.readouterr().err


def run_all(facts: dict[str, Any], model: Path, port: int) -> dict[str, bytes]:
    """Format -> what a shell prints when it is given the command, with a server for the model at that port."""
    outputs = {}
    with running("--host", "127.0.0.1", "--model", str(model), port=port, environ={"BYOC_PORT": str(port)}) as server:
        for example in facts["examples"]:
            command = re.sub(r"\bcurl ", "curl -s -H 'Accept: application/json' ", example["command"])
            done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=30, check=True)
            if command:
                outputs[example["format"]] = done.stdout
        assert server.stop() == 0
    return outputs


@needs_curl
def test_a_model_that_takes_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every command sends a grey picture, which is 127 / 255 everywhere."""
    model, port = identity(tmp_path / "model.onnx", shape=("N", 3, 8, 8)), free_port()
    (tmp_path / "byoc.toml").write_text("[inputs.x]\nname = 'picture'\n[inputs.x.image]\nscale = 0.00392156862745098\n")
    monkeypatch.setenv("BYOC_PORT", str(port))
    facts = info(capsys, tmp_path)
    text = model_as_text(facts)
    assert "takes     picture: float32[?, 3, 8, 8], or an image file, resized to 8x8 RGB" in text
    outputs = run_all(facts, model, port)
    for name in ("image/jpeg", "image/png", "image/webp", "application/x-image", "multipart/form-data"):
        assert outputs[name].count(b"0.49803922") == 3 * 8 * 8, name


@needs_curl
@pytest.mark.parametrize("columns", [4, 20_000], ids=["small", "large"])
def test_the_commands_work_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int
) -> None:
    """Pasted into a shell, every one gets the same answer; large bodies come packed."""
    model, port = identity(tmp_path / "identity.onnx", shape=("N", columns)), free_port()
    monkeypatch.setenv("BYOC_PORT", str(port))
    facts = info(capsys, model)
    outputs = run_all(facts, model, port)
    assert ("text/libsvm" in outputs) == (columns == 4)  # the large one does not pack well
    assert len(outputs) >= 10
    for name, output in outputs.items():
        assert b"[" + b",".join([b"1.0"] * columns) + b"]" in output, name
