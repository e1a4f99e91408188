"""``byoc push`` from end to end, against stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_server.cli.main import main
from tests.cli.push_stand_ins import (
    ACCOUNT,
    DIGEST,
    HOST,
    INSPECTED,
    PASSWORD,
    REGION,
    Aws,
    Engines,
    failure,
    make_repository,
)
from tests.server_process import alive


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
        (("m", "evil.com/mm", "--create"), "evil.com is not an ECR registry"),
        (("--", "--format=x", "team/x"), "--format=x is not an image"),
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


def test_what_sagemaker_may_not_like_is_said(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    descriptor = {"mediaType": "application/vnd.oci.image.index.v1+json"}
    engines.add("docker", {**INSPECTED, "Descriptor": descriptor})
    assert main(["push", "m", "team/my-model"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "--provenance=false" in note


def test_a_gpu_image(aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(aws)
    engines.add("docker", {**INSPECTED, "Config": {"Env": ["NVIDIA_VISIBLE_DEVICES=all"]}})
    assert main(["push", "m", "team/my-model"]) == 0
    captured = capsys.readouterr()
    assert "amd64, GPU" in captured.err
    assert '"InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",' in captured.out


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGHUP, 129, "blocked"),
        (signal.SIGINT, 130, "byoc push: error: interrupted"),
        (signal.SIGQUIT, 131, "blocked"),
        (signal.SIGTERM, 143, "blocked"),
    ],
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


def test_one_signal_is_enough(engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    """A second one must not stop what the first one has begun."""
    failure(capsys, "m", "team/my-model")
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGHUP)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.raise_signal(number)


def test_nohup_goes_on_without_its_terminal(engines: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    failure(capsys, "m", "team/my-model")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
