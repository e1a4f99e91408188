"""What ``byoc push`` meets in tests: moto's server for AWS, and recording scripts for container engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.wrappers import Request, Response

from byoc_server.cli.main import main

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


def make_repository(aws: Aws, name: str = "team/my-model") -> None:
    aws.client("ecr").create_repository(repositoryName=name)
    aws.calls.clear()


ENGINE_SCRIPT = """#!{python} -IS
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
call = {{"arguments": arguments, "stdin": sys.stdin.read() if arguments[0] == "login" else ""}}
if folder := os.environ.get("DOCKER_CONFIG"):
    call["folder"] = folder
    call["certificates"] = os.environ["DOCKER_CERT_PATH"]
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
    time.sleep(60)
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


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The error of ``byoc push ARGUMENTS``, which is the last line and the only one of its kind."""
    assert main(["push", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith("byoc push: error: ")] == lines[-1:]
    assert PASSWORD not in captured.err
    return lines[-1].removeprefix("byoc push: error: ")
