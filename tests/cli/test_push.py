"""``byoc push`` against stand-ins: moto's server for AWS, recording scripts or a real podman, a real registry."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from byoc_server.cli.main import main
from byoc_server.cli.push import (
    Image,
    Pushed,
    PushUsageError,
    Repository,
    aws_error,
    image_tag,
    is_loopback,
    parse_repository,
    read_image,
    snippet,
)
from tests.server_process import alive, free_port, wait_for

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ACCOUNT = "123456789012"  # of moto
REGION = "eu-west-1"
HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
PASSWORD = f"{ACCOUNT}-auth-token"  # which moto gives out for every registry
DIGEST = "sha256:" + "0123456789abcdef" * 4


@dataclass
class Aws:
    """ECR and STS by moto, behind a filter.

    As other stand-ins for ECR do, it can name a registry on this machine as the address of its repositories. It can
    also give an error that moto has no way to cause. Of SageMaker's API, where moto knows old instance types only, it
    keeps what it was asked.
    """

    registry: str | None = None
    errors: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sagemaker: dict[str, Any] = field(default_factory=dict)
    moto: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    url: str = ""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        sts = "/sts/" in request.headers.get("Authorization", "")
        operation = "GetCallerIdentity" if sts else request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.calls.append(operation)
        if self.errors.get(operation):
            return error_answer(self.errors[operation].pop(0), sts)(environ, start)
        if "/sagemaker/" in request.headers.get("Authorization", ""):
            self.sagemaker[operation] = request.get_json(force=True)
            return Response("{}", content_type="application/x-amz-json-1.1")(environ, start)
        answer = Response.from_app(self.moto, environ)
        if self.registry:
            answer.set_data(answer.get_data().replace(HOST.encode(), self.registry.encode()))
        return answer(environ, start)

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name=REGION, endpoint_url=self.url)


def error_answer(code: str, sts: bool) -> Response:
    if sts:
        text = f"<ErrorResponse><Error><Code>{code}</Code><Message>as asked</Message></Error></ErrorResponse>"
        return Response(text, 403, content_type="text/xml")
    return Response(
        json.dumps({"__type": code, "message": "as\nasked."}), 400, content_type="application/x-amz-json-1.1"
    )


@pytest.fixture(scope="module")
def aws_server() -> Iterator[Aws]:
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
def aws(aws_server: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    """AWS with nothing in it, and this process' environment set to use it and nothing else."""
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
    handler = signal.getsignal(signal.SIGTERM)
    yield aws_server
    signal.signal(signal.SIGTERM, handler)


ENGINE_SCRIPT = """#!{python} -IS
import json, os, pathlib, signal, sys
arguments = sys.argv[1:]
call = {{"arguments": arguments, "stdin": sys.stdin.read() if arguments[0] == "login" else ""}}
if folder := os.environ.get("DOCKER_CONFIG"):
    call["folder"] = folder
    if os.path.exists(folder + "/contexts"):
        call["contexts"] = os.listdir(folder + "/contexts")
    if arguments[0] in ("login", "push"):
        call["config"] = json.loads(pathlib.Path(folder, "config.json").read_text())
        call["same"] = os.environ["REGISTRY_AUTH_FILE"] == folder + "/config.json"
call["pid"] = os.getpid()
with open({log!r}, "a") as log:
    log.write(json.dumps(call) + "\\n")
status, out, err = {answers!r}[arguments[0]]
if status is None:
    print("blocked", flush=True)
    signal.pause()
if "--digestfile" in arguments and not status:
    pathlib.Path(arguments[arguments.index("--digestfile") + 1]).write_text({digest!r})
print(out, end="", flush=True)
sys.stderr.write(err)
sys.exit(status)
"""

INSPECTED: dict[str, Any] = {"Architecture": "amd64", "Size": 245_000_000, "Config": {"Env": None, "Labels": None}}
Answer = tuple[int | None, str, str]


@dataclass
class Engines:
    """Scripts that stand for engines: the only programs on the PATH."""

    folder: Path

    def add(self, name: str, inspected: dict[str, Any] = INSPECTED, **answers: Answer) -> None:
        version = "podman version 4.3.1\n" if name == "podman" else "Docker version 28.2.2, build e6534b4\n"
        pushed = "" if name == "podman" else f"1: digest: {DIGEST} size: 423\n"
        every: dict[str, Answer] = {
            "info": (0, "Server Version: 1\n", ""),
            "version": (0, version, ""),
            "image": (0, json.dumps([inspected]), ""),
            "login": (0, "Login Succeeded\n", "WARNING! stored unencrypted\n"),
            "tag": (0, "", ""),
            "push": (0, f"The push refers to ...\n{pushed}", ""),
            **answers,
        }
        every["--version"] = every.pop("version")
        program = self.folder / name
        program.write_text(
            ENGINE_SCRIPT.format(python=sys.executable, log=str(self.log(name)), answers=every, digest=DIGEST)
        )
        program.chmod(0o755)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def calls(self, name: str) -> list[dict[str, Any]]:
        """What the script was called with, but for the questions of which engine there is."""
        text = self.log(name).read_text() if self.log(name).exists() else ""
        calls = [json.loads(line) for line in text.splitlines()]
        return [call for call in calls if call["arguments"][0] not in {"info", "--version"}]

    def commands(self, name: str) -> list[str]:
        return [" ".join(call["arguments"]) for call in self.calls(name)]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engines:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return Engines(folder)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files go; must be empty in the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def make_repository(aws: Aws, name: str = "team/my-model") -> None:
    aws.client("ecr").create_repository(repositoryName=name)
    aws.calls.clear()


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The error of ``byoc push ARGUMENTS``, which is the last line and the only one of its kind."""
    assert main(["push", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith("byoc push: error: ")] == lines[-1:]
    assert PASSWORD not in captured.err
    return lines[-1].removeprefix("byoc push: error: ")


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("my-model", Repository("my-model")),
        ("team/my-model:1.2", Repository("team/my-model", "1.2")),
        ("a.b_c__d--e/f", Repository("a.b_c__d--e/f")),
        (f"{HOST}/team/m", Repository("team/m", None, HOST, ACCOUNT, REGION)),
        (f"{HOST}/mm:v1", Repository("mm", "v1", HOST, ACCOUNT, REGION)),
    ],
)
def test_repositories(text: str, repository: Repository) -> None:
    assert parse_repository(text) == repository


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (f"{ACCOUNT}.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        (f"{ACCOUNT}.dkr-ecr.ap-southeast-2.on.aws", "ap-southeast-2"),
        (f"{ACCOUNT}.dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn", "cn-northwest-1"),
        (f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        (f"{ACCOUNT}.dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        (f"{ACCOUNT}.dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        (f"{ACCOUNT}.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
        (f"{ACCOUNT}.dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
    ],
)
def test_addresses_of_every_partition(host: str, region: str) -> None:
    assert parse_repository(f"{host}/mm") == Repository("mm", None, host, ACCOUNT, region)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an ECR repository"),
        ("m", "m is not an ECR repository"),
        ("My-Model", "is not an ECR repository"),
        ("a" * 257, "is not an ECR repository"),
        (f"https://{HOST}/mm", "https: is not an ECR registry"),
        (f"{HOST}/", "is not an ECR repository"),
        (f"{HOST}/mm@{DIGEST}", "is not an ECR repository"),
        ("localhost:5000/mm", "localhost:5000 is not an ECR registry"),
        ("mm:", "is not a tag"),
        ("mm:a/b", "mm:a is not an ECR registry"),
        ("mm:-a", "is not a tag"),
    ],
)
def test_what_is_no_repository(text: str, words: str) -> None:
    with pytest.raises(PushUsageError, match=words):
        parse_repository(text)


@pytest.mark.parametrize("domain", ["amazonaws.co", "amazonaws.com.example.org", "xamazonaws.com", "amazonaws_com"])
def test_a_misspelt_domain_is_no_registry(domain: str) -> None:
    """It would be given the password."""
    with pytest.raises(PushUsageError, match="is not an ECR registry"):
        parse_repository(f"{ACCOUNT}.dkr.ecr.{REGION}.{domain}/my-model")


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


def test_the_message_of_an_unknown_error_is_all_there_is_to_say() -> None:
    assert aws_error("KmsException", "An\n error.").message == "An error"


def pushed(repository: str = "team/my-model", tag: str = "1.2") -> Pushed:
    uri = f"{HOST}/{repository}"
    return Pushed(f"{uri}:{tag}", f"{uri}@{DIGEST}", ACCOUNT, REGION, repository, tag)


@pytest.mark.parametrize(
    ("image", "instance", "ami"),
    [
        (Image("amd64", 1, False, False), "ml.m7i.large", None),
        (Image("arm64", 1, False, False), "ml.c7g.large", None),
        (Image("amd64", 1, True, False), "ml.g6.xlarge", "al2023-ami-sagemaker-inference-gpu-4-1"),
    ],
)
def test_the_snippet_makes_an_endpoint(aws: Aws, image: Image, instance: str, ami: str | None) -> None:
    """As it is printed, once the role and the bucket are put in; names and values are those of SageMaker's API."""
    exec(snippet(pushed(), image, "aws"), {})
    model, config, endpoint = (
        aws.sagemaker[name] for name in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint")
    )
    assert model["PrimaryContainer"]["Image"] == f"{HOST}/team/my-model@{DIGEST}"
    assert model["ExecutionRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/YOUR-SAGEMAKER-ROLE"
    (variant,) = config["ProductionVariants"]
    assert (variant["ModelName"], variant["InstanceType"]) == (model["ModelName"], instance)
    assert variant.get("InferenceAmiVersion") == ami
    assert endpoint["EndpointConfigName"] == config["EndpointConfigName"]
    api = aws.client("sagemaker").meta.service_model
    assert instance in api.shape_for("ProductionVariantInstanceType").enum
    assert ami is None or ami in api.shape_for("ProductionVariantInferenceAmiVersion").enum
    for shape, text in [
        ("ModelName", model["ModelName"]),
        ("RoleArn", model["ExecutionRoleArn"]),
        ("ContainerImage", model["PrimaryContainer"]["Image"]),
        ("Url", model["PrimaryContainer"]["ModelDataUrl"]),
        ("EndpointConfigName", config["EndpointConfigName"]),
        ("EndpointName", endpoint["EndpointName"]),
    ]:
        limits = api.shape_for(shape).metadata
        assert re.fullmatch(limits["pattern"], text)
        assert len(text) <= limits["max"]


@pytest.mark.parametrize(
    ("repository", "tag", "name"),
    [("a.b_c", "latest", "a-b-c-latest"), ("team/x", "_1_", "x-1"), ("x" * 62, "1", "x" * 62)],
)
def test_names_in_the_snippet_are_what_sagemaker_takes(repository: str, tag: str, name: str) -> None:
    text = snippet(pushed(repository, tag), Image("amd64", 1, False, False), "aws-cn")
    assert f'ModelName="{name}"' in text
    assert "arn:aws-cn:iam::" in text


def test_push_with_docker(aws: Aws, engines: Engines, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker")
    engines.add("podman")
    assert main(["push", "byoc-server:cpu", "team/my-model"]) == 0
    captured = capsys.readouterr()
    uri, digest_uri, empty, *python = captured.out.splitlines()
    assert (uri, digest_uri, empty) == (f"{HOST}/team/my-model:cpu", f"{HOST}/team/my-model@{DIGEST}", "")
    assert f'        "Image": "{digest_uri}",' in python
    compile("\n".join(python), "snippet", "exec")
    assert captured.err.splitlines() == [
        "image byoc-server:cpu: 245 MB, amd64",
        f"account {ACCOUNT}, region {REGION}",
        "repository team/my-model found",
        f"logged in to {HOST}",
        f"pushing {uri}",
        "The push refers to ...",
        f"1: digest: {DIGEST} size: 423",
        f"pushed {DIGEST}",
    ]
    assert engines.commands("docker") == [
        "image inspect byoc-server:cpu",
        f"login --username AWS --password-stdin {HOST}",
        f"tag byoc-server:cpu {uri}",
        f"push {uri}",
    ]
    assert engines.calls("podman") == []
    assert aws.calls == ["GetCallerIdentity", "DescribeRepositories", "GetAuthorizationToken"]


def test_the_password_goes_to_the_engine_and_nowhere_else(
    aws: Aws, engines: Engines, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not on a command line, not in the output, not in the user's configuration, and not left in a folder."""
    make_repository(aws)
    engines.add("docker")
    own = Path(os.environ["HOME"], ".docker")
    (own / "contexts" / "meta").mkdir(parents=True)
    text = json.dumps({"credsStore": "osxkeychain", "currentContext": "colima", "auths": {"other": {"auth": "x"}}})
    (own / "config.json").write_text(text)
    assert main(["push", "m", "team/my-model"]) == 0
    captured = capsys.readouterr()
    assert PASSWORD not in captured.out + captured.err
    _, login, _, push = engines.calls("docker")
    assert login["stdin"] == PASSWORD
    assert PASSWORD not in str([login["arguments"], push])
    for call in login, push:  # docker reads the one, podman under the name of docker the other
        assert call["same"]
        assert Path(call["folder"]).parent == scratch
        assert call["config"] == {"auths": {HOST: {}}, "currentContext": "colima"}
        assert call["contexts"] == ["meta"]
    assert list(scratch.iterdir()) == []
    assert (own / "config.json").read_text() == text
    assert (own / "contexts" / "meta").is_dir()


def test_push_with_podman(aws: Aws, engines: Engines, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told to convert the OCI manifests that it builds, as SageMaker does not take them."""
    make_repository(aws)
    engines.add("docker", info=(1, "", "Cannot connect to the Docker daemon"))
    engines.add("podman")
    assert main(["push", "localhost/m:7", "team/my-model"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{HOST}/team/my-model@{DIGEST}"
    *_, login, _, push = engines.commands("podman")
    assert login == f"login --username AWS --password-stdin {HOST}"
    assert push.startswith("push --format v2s2 --digestfile ")
    assert push.endswith(f"/digest {HOST}/team/my-model:7")
    assert engines.calls("docker") == []
    assert list(scratch.iterdir()) == []


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
    assert line.startswith("no container engine: `docker info` gives no answer and podman is not on the PATH")


def test_an_engine_that_cannot_be_executed(engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    (engines.folder / "podman").write_text("#!/no/such/interpreter\n")
    (engines.folder / "podman").chmod(0o755)
    assert "No such file" in failure(capsys, "m", "team/my-model")


def test_json(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker")
    assert main(["push", "m:1", "team/my-model:2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "uri": f"{HOST}/team/my-model:2",
        "digest_uri": f"{HOST}/team/my-model@{DIGEST}",
        "account": ACCOUNT,
        "region": REGION,
        "repository": "team/my-model",
        "tag": "2",
    }


@pytest.mark.parametrize(
    ("arguments", "tag"),
    [
        (("m", "team/my-model"), "latest"),
        (("m:1", "team/my-model"), "1"),
        (("m:1", "team/my-model:2"), "2"),
        (("m:1", "team/my-model", "--tag", "3"), "3"),
        (("m:1", "team/my-model:3", "--tag", "3"), "3"),
    ],
)
def test_which_tag_it_gets(aws: Aws, engines: Engines, arguments: tuple[str, ...], tag: str) -> None:
    make_repository(aws)
    engines.add("docker")
    assert main(["push", *arguments]) == 0
    assert engines.commands("docker")[-1] == f"push {HOST}/team/my-model:{tag}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("m", "My-Model"), "is not an ECR repository"),
        (("m", "mm", "--tag", "a b"), "'a b' is not a tag"),
        (("m", "mm", "--tag", ""), "'' is not a tag"),
        (("m", "mm:1", "--tag", "2"), "the tag is 1 in REPOSITORY, but --tag says 2"),
        (("m", f"{HOST}/mm", "--region", "us-east-1"), "but --region says us-east-1; leave one out"),
    ],
)
def test_arguments_that_cannot_be_right(
    engines: Engines, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in failure(capsys, *arguments, code=2)


def test_a_whole_uri_says_account_region_and_entrance(
    aws: Aws, engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """STS is not asked. The push goes where the user says; what is printed is the address that SageMaker knows."""
    make_repository(aws)
    engines.add("docker")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    fips = HOST.replace("ecr", "ecr-fips")
    assert main(["push", "m", f"{fips}/team/my-model"]) == 0
    assert aws.calls == ["DescribeRepositories", "GetAuthorizationToken"]
    _, login, tag, push = engines.commands("docker")
    assert login.endswith(fips)
    assert tag.endswith(f"{fips}/team/my-model:latest")
    assert push.endswith(f"{fips}/team/my-model:latest")
    assert capsys.readouterr().out.startswith(f"{HOST}/team/my-model:latest\n")


@pytest.mark.parametrize(
    ("arguments", "environ", "region"),
    [
        ([], {"AWS_DEFAULT_REGION": "us-east-2"}, "us-east-2"),
        ([], {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-2"}, "us-east-1"),
        (["--profile", "work"], {}, "us-west-2"),
        (["--profile", "work"], {"AWS_REGION": ""}, "us-west-2"),
        (["--region", "eu-west-3", "--profile", "work"], {"AWS_REGION": "us-east-1"}, "eu-west-3"),
    ],
)
def test_where_the_region_comes_from(
    aws: Aws,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    environ: dict[str, str],
    region: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines.add("docker")
    monkeypatch.delenv("AWS_REGION")
    (tmp_path / "aws-config").write_text("[profile work]\nregion = us-west-2\naws_access_key_id = A\n")
    (tmp_path / "aws-credentials").write_text("[work]\naws_access_key_id = A\naws_secret_access_key = B\n")
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    assert main(["push", "m", "mm", "--create", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["region"] == region


def test_no_region(
    aws: Aws, engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.add("docker")
    monkeypatch.delenv("AWS_REGION")
    assert failure(capsys, "m", "mm") == "no region: pass --region, set AWS_REGION, or give the profile one"


def test_a_missing_repository_is_made_when_asked(
    aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.add("docker")
    line = failure(capsys, "m", "team/new")
    assert line == (
        f"account {ACCOUNT} has no repository team/new in {REGION}; pass --create to make it, "
        "or --region when it is elsewhere"
    )
    assert "CreateRepository" not in aws.calls
    assert main(["push", "m", "team/new", "--create"]) == 0
    assert "repository team/new created" in capsys.readouterr().err
    (made,) = aws.client("ecr").describe_repositories(repositoryNames=["team/new"])["repositories"]
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert made["imageTagMutability"] == "MUTABLE"


def test_a_repository_that_another_makes_first(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker")
    aws.errors["DescribeRepositories"] = ["RepositoryNotFoundException"]
    assert main(["push", "m", "team/my-model", "--create"]) == 0
    assert aws.calls.count("CreateRepository") == 1
    assert "repository team/my-model found" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("operation", "code", "words"),
    [
        ("GetCallerIdentity", "ExpiredToken", "log in again"),
        ("GetCallerIdentity", "InvalidClientTokenId", "check the access key"),
        ("DescribeRepositories", "AccessDeniedException", "docs/push-to-ecr.md has the policy"),
        ("CreateRepository", "LimitExceededException", "ask for a higher quota"),
        ("GetAuthorizationToken", "ExpiredTokenException", "log in again"),
        ("GetAuthorizationToken", "InvalidParameterException", "as asked"),
    ],
)
def test_errors_of_aws(
    aws: Aws, engines: Engines, operation: str, code: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.add("docker")
    aws.errors[operation] = [code]
    line = failure(capsys, "m", "team/my-model", "--create")
    assert line.startswith(f"{operation} failed with {code}: as asked")
    assert words in line
    assert [command.split()[0] for command in engines.commands("docker")] == ["image"]


def test_a_key_that_is_not_known(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    """In STS' own words: moto checks keys once it is told to."""
    engines.add("docker")
    requests.post(f"{aws.url}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    try:
        line = failure(capsys, "m", "mm")
    finally:
        requests.post(f"{aws.url}/moto-api/reset-auth", data=b"inf", timeout=10).raise_for_status()
    assert line.startswith("GetCallerIdentity failed with InvalidClientTokenId: ")
    assert "; check the access key and its secret" in line


def test_no_credentials(
    aws: Aws, engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.add("docker")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert failure(capsys, "m", "mm").startswith("Unable to locate credentials; set AWS_ACCESS_KEY_ID and")


def test_no_such_profile(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    engines.add("docker")
    line = failure(capsys, "m", "mm", "--profile", "nobody")
    assert line == "The config profile (nobody) could not be found; `aws configure list-profiles` names those there are"


def test_aws_out_of_reach(
    aws: Aws, engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.add("docker")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    line = failure(capsys, "m", "mm")
    assert line.startswith("Could not connect to the endpoint URL")
    assert line.endswith("check the name of the region, and that this machine may reach AWS")


def test_without_boto3(engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engines.add("docker")
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert failure(capsys, "m", "mm") == "boto3 is not installed: pip install 'byoc-server[push]'"


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


def test_what_sagemaker_may_not_like_is_said(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    descriptor = {"mediaType": "application/vnd.oci.image.index.v1+json"}
    engines.add("docker", {**INSPECTED, "Architecture": "arm64", "Descriptor": descriptor})
    assert main(["push", "m", "team/my-model"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "--platform linux/amd64" in notes[0]
    assert "--provenance=false" in notes[1]


def test_a_gpu_image(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker", {**INSPECTED, "Config": {"Env": ["NVIDIA_VISIBLE_DEVICES=all"]}})
    assert main(["push", "m", "team/my-model"]) == 0
    captured = capsys.readouterr()
    assert "amd64, GPU" in captured.err
    assert '"InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",' in captured.out


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "blocked"), (signal.SIGINT, 130, "byoc push: error: interrupted")],
)
def test_a_signal_during_the_upload(
    aws: Aws, engines: Engines, scratch: Path, number: signal.Signals, code: int, line: str
) -> None:
    """Neither the password nor the upload outlives the command."""
    make_repository(aws)
    engines.add("docker", push=(None, "", ""))
    command = [sys.executable, "-m", "byoc_server", "push", "m", "team/my-model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not lines or lines[-1] not in {"blocked\n", ""}:
            lines.append(process.stderr.readline())
        assert lines[-1] == "blocked\n", lines
        assert [path.name[:10] for path in scratch.iterdir()] == ["byoc-push-"]
        upload = engines.calls("docker")[-1]["pid"]
        process.send_signal(number)
        try:
            assert process.wait(20) == code
            assert not alive(upload)
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(upload, signal.SIGKILL)
        lines.append(process.stderr.read())
        assert "".join(lines).splitlines()[-1] == line
    assert list(scratch.iterdir()) == []


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
