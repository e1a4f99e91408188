"""``byoc push`` with a real podman and a real registry."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from byoc_server.cli.main import main
from tests.cli.push_stand_ins import PASSWORD, Aws, failure, make_repository
from tests.server_process import free_port, wait_for

# The password of moto's token for AWS, and another, by bcrypt with the least cost: the registry takes no other hash.
RIGHT = "$2b$05$H.GGgKaxyeyZsJWmyAq3C.BX6Ea3si83MyhIvVcH8vo2xrVED2ruq"
WRONG = "$2b$05$H.GGgKaxyeyZsJWmyAq3C.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@contextlib.contextmanager
def registry(folder: Path, password_hash: str) -> Iterator[str]:
    """A registry that wants a password; its ``HOST:PORT``."""
    address = f"127.0.0.1:{free_port()}"
    (folder / "htpasswd").write_text(f"AWS:{password_hash}\n")
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    (folder / "registry.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"]},  # variables that begin with REGISTRY_ are settings of the registry
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "registry.log").read_text()
            host, _, port = address.partition(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return True
            return False

        wait_for(answers, "the registry listens")
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def local_image(tmp_path: Path) -> Iterator[str]:
    """A tiny image of podman's with the mark of a GPU image."""
    for program in ("podman", "docker-registry"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (a Debian package of that name)")
    if subprocess.run(["podman", "info"], capture_output=True, check=False).returncode:
        pytest.skip("podman does not work on this machine: see `podman info`")
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("etc/hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    name = f"localhost/byoc-push-test-{os.getpid()}:v1"
    command = ["podman", "import", "--change", "ENV=NVIDIA_VISIBLE_DEVICES=all", str(archive), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    yield name
    subprocess.run(["podman", "rmi", "--force", done.stdout.strip()], capture_output=True, check=True)  # all its names


@pytest.mark.container
def test_a_real_push(
    aws: Aws,
    local_image: str,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Podman, a registry with a password, and ECR's API naming that registry."""
    own = tmp_path / "auth.json"
    own.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(own))
    with registry(tmp_path, RIGHT) as address:
        aws.registry = address
        assert requests.get(f"http://{address}/v2/", timeout=10).status_code == 401
        assert main(["push", local_image, "team/my-model", "--create", "--engine", "podman"]) == 0
        captured = capsys.readouterr()
        uri, digest_uri = captured.out.splitlines()[:2]
        assert uri == f"{address}/team/my-model:v1"
        assert "InferenceAmiVersion" in captured.out
        assert f"logged in to {address}" in captured.err
        assert PASSWORD not in captured.out + captured.err
        media_type = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = requests.get(
            f"http://{address}/v2/team/my-model/manifests/v1",
            headers={"Accept": media_type},
            auth=("AWS", PASSWORD),
            timeout=10,
        )
        assert manifest.headers["Content-Type"] == media_type
        assert digest_uri == f"{address}/team/my-model@{manifest.headers['Docker-Content-Digest']}"
        blob = f"http://{address}/v2/team/my-model/blobs/{manifest.json()['config']['digest']}"
        image = requests.get(blob, auth=("AWS", PASSWORD), timeout=10).json()
        assert "NVIDIA_VISIBLE_DEVICES=all" in image["config"]["Env"]
    assert own.read_text() == "{}"
    assert list(scratch.iterdir()) == []


@pytest.mark.container
def test_a_registry_that_refuses_the_password(
    aws: Aws, local_image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_repository(aws)
    with registry(tmp_path, WRONG) as address:
        aws.registry = address
        line = failure(capsys, local_image, "team/my-model", "--engine", "podman")
    assert line.startswith("podman login failed: Error: logging into")
    assert "invalid username/password" in line
