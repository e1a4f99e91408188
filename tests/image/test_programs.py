"""The programs of image builds as plain programs; tests/container runs them where they belong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_server.image import requirements, sbom
from tests.server_process import free_port, running, wait_for

FOLDER = Path(sbom.__file__).parent
ROOT = FOLDER.parents[1]


def program(name: str, *arguments: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
    environ = {} if port is None else {"BYOC_PORT": str(port)}
    command = [sys.executable, "-IS", str(FOLDER / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environ)


def test_requirements_of_extras_and_of_the_build() -> None:
    listed = program("requirements.py", "cpu", "msgpack").stdout.split("\n")
    assert "numpy>=2.0" in listed
    assert any(name.startswith("onnxruntime>=") for name in listed)
    assert any(name.startswith("msgpack>=") for name in listed)
    assert program("requirements.py", "build").stdout.startswith("hatchling")


def test_an_unknown_extra_is_an_error() -> None:
    with pytest.raises(KeyError):
        requirements.requirements((ROOT / "pyproject.toml").read_text(), ["nonsense"])


def test_the_bill_tells_nothing_of_the_machine() -> None:
    package = {
        "metadata": {
            "name": "b",
            "version": "1",
            "license": "x" * 1000,
            "description": "long",
            "classifier": ["License :: OSI Approved", "Topic :: Software"],
        },
        "direct_url": {"url": "file:///home/someone"},
        "metadata_location": "/home/someone",
    }
    environment = dict.fromkeys(
        [
            "implementation_name",
            "platform_machine",
            "platform_python_implementation",
            "python_full_version",
            "python_version",
            "sys_platform",
            "platform_release",
        ],
        "x",
    )
    other = {"metadata": {"name": "A", "version": "2"}}
    report = {"version": "1", "pip_version": "26", "installed": [package, other], "environment": environment}
    bill = sbom.bill(report)
    assert [entry["metadata"]["name"] for entry in bill["installed"]] == ["A", "b"]
    assert bill["installed"][1]["metadata"] == {"name": "b", "version": "1", "classifier": ["License :: OSI Approved"]}
    assert "platform_release" not in bill["environment"]
    assert "someone" not in json.dumps(bill)


def test_the_health_check_follows_the_server() -> None:
    port = free_port()
    assert "no answer" in program("healthcheck.py", port=port).stderr
    with running(port=port, environ={"BYOC_PORT": str(port), "BYOC_HOST": "127.0.0.1"}):
        assert program("healthcheck.py", port=port).returncode == 0


def test_the_health_check_says_why() -> None:
    with running("--device", "gpu", ready=False) as server:
        wait_for(lambda: server.events("gpu_unavailable"), "the GPU is missed")
        done = program("healthcheck.py", port=server.port)
    assert done.returncode == 1
    assert "onnxruntime-gpu" in done.stderr


def test_license_files_are_found_where_metadata_is(tmp_path: Path) -> None:
    """Also below a folder, as version 2.4 of the metadata has them, and in either spelling."""
    (tmp_path / "licenses").mkdir()
    for name in ("licenses/LICENSE", "LICENCE.txt", "METADATA", "RECORD"):
        (tmp_path / name).write_text("")
    assert sbom.license_files(tmp_path) == ["LICENCE.txt", "licenses/LICENSE"]
