"""Container engines: recording scripts for their clients."""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from byoc_server.cli import container_engine
from byoc_server.cli.container_engine import Engine, Image, find_engine, image_tag, is_loopback, read_image
from byoc_server.cli.main import main
from byoc_server.cli.push_errors import PushError
from tests.cli.push_stand_ins import DIGEST, HOST, INSPECTED, Answer, Aws, Engines, failure, make_repository


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("m", None),
        ("m:1", "1"),
        ("team/m:1.2-x", "1.2-x"),
        ("localhost:5000/m", None),
        ("localhost:5000/m:1", "1"),
        ("67459c1f192b", None),
        (DIGEST, None),
        (f"m@{DIGEST}", None),
    ],
)
def test_the_tag_of_an_image(image: str, tag: str | None) -> None:
    assert image_tag(image) == tag


@pytest.mark.parametrize(
    ("config", "gpu"),
    [
        (None, False),
        ({}, False),
        ({"Env": ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all"]}, True),
        ({"Env": ["NVIDIA_VISIBLE_DEVICES="]}, False),
        ({"Env": ["NVIDIA_VISIBLE_DEVICES=void"]}, False),
        ({"Env": ["NVIDIA_VISIBLE_DEVICES=none"]}, False),
        ({"Env": None, "Labels": {"com.nvidia.cudnn.version": "9"}}, True),
        ({"Labels": {"maintainer": "someone"}}, False),
    ],
)
def test_what_a_gpu_image_is(config: dict[str, Any] | None, gpu: bool) -> None:
    assert read_image({"Architecture": "amd64", "Size": 1, "Config": config}) == Image("amd64", 1, gpu, False)


@pytest.mark.parametrize(
    ("descriptor", "oci"),
    [
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, True),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}, False),
        (None, False),
    ],
)
def test_which_image_keeps_its_oci_manifest(descriptor: dict[str, str] | None, oci: bool) -> None:
    assert read_image({"Descriptor": descriptor}) == Image("amd64", 0, False, oci)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1:5000", True), ("localhost", True), (HOST, False), ("127.0.0.1.example.org", False)],
)
def test_which_registry_speaks_plain_http(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_podman_under_the_name_of_docker(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker", version=(0, "podman version 4.3.1\n", "Emulate Docker CLI using podman."))
    assert main(["push", "m", "team/my-model"]) == 0
    assert "--digestfile" in engines.commands("docker")[-1]
    assert capsys.readouterr().out.splitlines()[1].endswith(DIGEST)


def test_a_named_engine_is_not_doubted(aws: Aws, engines: Engines) -> None:
    """Whoever names an engine gets its own words when it does not work."""
    make_repository(aws)
    engines.add("docker", info=(1, "", ""))
    engines.add("podman")
    assert main(["push", "m", "team/my-model", "--engine", "docker"]) == 0
    assert len(engines.calls("docker")) == 4
    assert engines.calls("podman") == []


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_an_engine_that_is_not_there(engines: Engines, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "m", "team/my-model", "--engine", name)
    assert line.startswith(f"{name} is not on the PATH; install it")


@pytest.mark.parametrize("installed", [False, True])
def test_no_engine_at_all(engines: Engines, installed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if installed:
        engines.add("docker", info=(1, "", "Cannot connect"))
    line = failure(capsys, "m", "team/my-model")
    assert line.startswith("no container engine: `docker info` fails and podman is not on the PATH")


def test_an_engine_that_cannot_be_executed(engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    (engines.folder / "podman").write_text("#!/no/such/interpreter\n")
    (engines.folder / "podman").chmod(0o755)
    assert "No such file" in failure(capsys, "m", "team/my-model")


@pytest.mark.parametrize(
    ("step", "answer", "line"),
    [
        (
            "image",
            (1, "[]\n", "Error response from daemon: No such image: m\n"),
            "docker has no image m (Error response from daemon: No such image: m); build it first, "
            "see `docker images`, or choose the other engine with --engine",
        ),
        ("login", (1, "", "first\n401 Unauthorized\n\n"), "docker login failed: 401 Unauthorized"),
        ("tag", (1, "", "invalid reference format\n"), "docker tag failed: invalid reference format"),
        ("push", (1, "Preparing\n", "tag is immutable\n"), "docker push failed: tag is immutable"),
        ("push", (1, "", ""), "docker push failed: it said nothing"),
        ("push", (0, "done\n", ""), "pushed, but docker did not tell the digest: done"),
    ],
)
def test_an_engine_that_fails(
    aws: Aws,
    engines: Engines,
    scratch: Path,
    step: str,
    answer: Answer,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_repository(aws)
    engines.add("docker", INSPECTED, **{step: answer})
    assert failure(capsys, "m", "team/my-model") == line
    assert engines.commands("docker")[-1].startswith(step)
    assert list(scratch.iterdir()) == []


def test_no_room_for_the_configuration(
    aws: Aws, engines: Engines, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_repository(aws)
    engines.add("docker")
    scratch.rmdir()
    assert "No such file" in failure(capsys, "m", "team/my-model")


def docker() -> Engine:
    program = shutil.which("docker")
    assert program is not None
    return Engine("docker", program, podman=False)


def log_in() -> None:
    with docker().logged_in(HOST, "AWS", "password"):
        pass


@pytest.mark.parametrize(
    ("step", "use"),
    [
        ("info", lambda: find_engine(None)),
        ("image", lambda: docker().inspect("m")),
        ("login", log_in),
        ("tag", lambda: docker().tag("m", f"{HOST}/mm:1")),
    ],
)
def test_an_engine_that_hangs(
    engines: Engines, scratch: Path, monkeypatch: pytest.MonkeyPatch, step: str, use: Callable[[], object]
) -> None:
    engines.add("docker", INSPECTED, **{step: (None, "", "")})
    monkeypatch.setattr(container_engine, "_CALL_TIMEOUT_S", 0.25)
    with pytest.raises(PushError) as caught:
        use()
    assert caught.value.message == (
        f"`docker {step}` gave no answer in 0.25 s; see that docker works and has a network, "
        "or choose the other engine with --engine"
    )
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "home/.docker"),
        ({"DOCKER_CONFIG": "other"}, "other"),
        ({"DOCKER_CERT_PATH": ""}, "home/.docker"),
        ({"DOCKER_CERT_PATH": "certificates", "DOCKER_CONFIG": "other"}, "certificates"),
    ],
)
def test_where_docker_finds_its_certificates(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], folder: str
) -> None:
    """By default they lie beside the configuration, of which a login has one of its own."""
    engines.add("docker")
    for name, path in environ.items():
        monkeypatch.setenv(name, path and str(tmp_path / path))
    log_in()
    (login,) = engines.calls("docker")
    assert login["certificates"] == str(tmp_path / folder)


def test_a_user_without_a_home(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user is often a number that no file knows."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    engines.add("docker")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    log_in()
    (login,) = engines.calls("docker")
    assert login["config"] == {"auths": {HOST: {}}}
