"""Names of repositories, and what AWS answers; by moto's server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import requests

from byoc_server.cli.ecr import Reference, aws_error, parse_reference
from byoc_server.cli.main import main
from byoc_server.cli.push_errors import PushUsageError
from tests.cli.push_stand_ins import ACCOUNT, DIGEST, HOST, REGION, Aws, Engines, failure, make_repository
from tests.server_process import free_port


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("my-model", Reference("my-model")),
        ("team/my-model:1.2", Reference("team/my-model", "1.2")),
        ("my.model", Reference("my.model")),
        ("f/a.b_c__d--e", Reference("f/a.b_c__d--e")),
        (f"{HOST}/team/m", Reference("team/m", None, HOST, ACCOUNT, REGION)),
        (f"{HOST}/mm:v1", Reference("mm", "v1", HOST, ACCOUNT, REGION)),
    ],
)
def test_repositories(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


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
    assert parse_reference(f"{host}/mm") == Reference("mm", None, host, ACCOUNT, region)


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
        ("localhost/mm", "localhost is not an ECR registry"),
        ("evil.com/mm", "evil.com is not an ECR registry; expected ACCOUNT.dkr.ecr.REGION"),
        ("my.team/mm", "or a name without a dot before its first slash"),
        ("mm:", "is not a tag"),
        ("mm:a/b", "mm:a is not an ECR registry"),
        ("mm:-a", "is not a tag"),
    ],
)
def test_what_is_no_repository(text: str, words: str) -> None:
    with pytest.raises(PushUsageError, match=words):
        parse_reference(text)


@pytest.mark.parametrize("domain", ["amazonaws.co", "amazonaws.com.example.org", "xamazonaws.com", "amazonaws_com"])
def test_a_misspelt_domain_is_no_registry(domain: str) -> None:
    """It would be given the password."""
    with pytest.raises(PushUsageError, match="is not an ECR registry"):
        parse_reference(f"{ACCOUNT}.dkr.ecr.{REGION}.{domain}/my-model")


def test_the_message_of_an_unknown_error_is_all_there_is_to_say() -> None:
    assert aws_error("KmsException", "An\n error.").message == "An error"


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
    ("endpoint", "words"),
    [
        ("localhost:4566", "Invalid endpoint: localhost:4566; check AWS_ENDPOINT_URL"),
        ("http://localhost:99999", "Port out of range 0-65535; check AWS_ENDPOINT_URL"),
    ],
)
def test_an_endpoint_that_is_no_url(
    aws: Aws,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines.add("docker")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert failure(capsys, "m", "mm").startswith(words)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_line_break_in_the_credentials(
    aws: Aws, engines: Engines, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The HTTP client quotes the header that it refuses: the signature of the request, or the session token."""
    engines.add("docker")
    monkeypatch.setenv(name, "first\nsecond")
    line = failure(capsys, "m", "mm")
    assert line.endswith("Invalid header value; check the access key and the session token for line breaks")


def test_an_unusable_region_is_not_blamed_on_the_endpoint(
    aws: Aws, engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    """To botocore it is a ``ValueError`` as well."""
    engines.add("docker")
    assert failure(capsys, "m", "mm", "--region", "a b").endswith(
        "check the name of the region, and that this machine may reach AWS"
    )
