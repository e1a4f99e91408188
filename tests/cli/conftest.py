"""The surroundings of ``byoc push``; imports are inside for the tests of other commands, which need none of it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.push_stand_ins import Aws, Engines


@pytest.fixture
def signals() -> Iterator[None]:
    """Signal handlers as they were, in the end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def aws_server() -> Iterator[Aws]:
    import logging
    import threading

    from werkzeug.serving import make_server

    from tests.cli.push_stand_ins import Aws

    aws = Aws()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, aws, threaded=True)
    aws.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield aws
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def aws(aws_server: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signals: None) -> Aws:
    """AWS with nothing in it, and this process' environment set to use it and nothing else."""
    import requests

    from tests.cli.push_stand_ins import REGION

    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, text in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": aws_server.url,
        "AWS_REGION": REGION,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, text)
    requests.post(f"{aws_server.url}/moto-api/reset", timeout=10).raise_for_status()
    aws_server.registry = None
    aws_server.errors.clear()
    aws_server.calls.clear()
    aws_server.sagemaker.clear()
    return aws_server


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signals: None) -> Engines:
    """No engine yet, and none of the user's own."""
    from tests.cli.push_stand_ins import Engines

    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DOCKER_CONFIG", "DOCKER_CERT_PATH", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Engines(folder)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files go; must be empty in the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder
