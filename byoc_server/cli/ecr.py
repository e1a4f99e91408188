"""Amazon ECR: what a repository is called, where it is, and who may push to it.

*Where to push* is for ECR's API to say, which names the repository's address; no host name is put together here, so
that partitions and stand-ins for ECR need no rule of their own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from byoc_server.cli.push_errors import PushError, PushUsageError

_CONNECT_TIMEOUT_S = 10  # boto3 waits for a minute, five times

# Amazon ECR API reference, CreateRepository, repositoryName.
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
# Distribution reference grammar, `tag`.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# Amazon ECR user guide, "Making requests to Amazon ECR registries": the IPv4, FIPS and dual-stack addresses. The
# domains are those of the partitions in botocore 1.44.5, all named: the password must not go to a misspelt one.
_HOST = re.compile(
    r"(?P<account>\d{12})\."
    r"(?:dkr\.ecr|dkr\.ecr-fips|dkr-ecr)\."
    r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d)\."
    r"(?:amazonaws\.com|amazonaws\.com\.cn|amazonaws\.eu|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov"
    r"|on\.aws|on\.amazonwebservices\.com\.cn)"
)

# Advice -> the error codes of AWS and the exceptions of boto3 that it is for.
_CAUSES = {
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, pass --profile, or run `aws sso login`": (
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError"
    ),
    "`aws configure list-profiles` names those there are": "ProfileNotFound",
    "log in again (`aws sso login`) or fetch new temporary credentials": (
        "ExpiredToken ExpiredTokenException RequestExpired "
        "SSOTokenLoadError TokenRetrievalError UnauthorizedSSOTokenError"
    ),
    "check the access key and its secret, that the region is one of the same partition, and this machine's clock": (
        "IncompleteSignature InvalidClientTokenId InvalidSignatureException SignatureDoesNotMatch "
        "UnrecognizedClientException"
    ),
    "check the access key and the session token for line breaks": "HTTPClientError",
    "docs/push-to-ecr.md has the policy that is needed": "AccessDenied AccessDeniedException",
    "check the name of the region, and that this machine may reach AWS": (
        "ConnectTimeoutError EndpointConnectionError InvalidRegionError ProxyConnectionError SSLError"
    ),
    "check AWS_ENDPOINT_URL, which is a whole URL, and the other settings of boto3": "ValueError",
    "delete a repository that is no longer used, or ask for a higher quota": "LimitExceededException",
}
_ADVICE = {code: advice for advice, codes in _CAUSES.items() for code in codes.split()}


@dataclass(frozen=True, slots=True)
class Reference:
    """What REPOSITORY says; ``None`` where it leaves something open."""

    name: str
    tag: str | None = None
    host: str | None = None
    account: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that is there.

    Attributes:
        uri: its address without a tag, as SageMaker knows it.
        partition: of AWS, such as ``aws``.
        created: whether it was made just now.
    """

    uri: str
    partition: str
    created: bool


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the image is now: the object that ``--json`` prints."""

    uri: str
    digest_uri: str
    account: str
    region: str
    repository: str
    tag: str


@dataclass(frozen=True, slots=True)
class Registry:
    """The private registry of one account in one region.

    Each method raises ``PushError`` when AWS says no or cannot be reached.

    Attributes:
        account: 12 digits.
        region: such as ``eu-west-1``.
        client: of boto3, for ECR.
    """

    account: str
    region: str
    client: Any

    def repository(self, name: str, create: bool) -> Repository:
        """Look a repository up, or make it; another may make it at the same time."""
        with _aws_errors():
            try:
                return self._found(name)
            except self.client.exceptions.RepositoryNotFoundException:
                if not create:
                    raise PushError(
                        f"account {self.account} has no repository {name} in {self.region}; pass --create to make it, "
                        "or --region when it is elsewhere"
                    ) from None
            try:
                made = self.client.create_repository(
                    registryId=self.account,
                    repositoryName=name,
                    imageTagMutability="MUTABLE",
                    imageScanningConfiguration={"scanOnPush": True},
                )
            except self.client.exceptions.RepositoryAlreadyExistsException:
                return self._found(name)
        return _read_repository(made["repository"], created=True)

    def login(self) -> tuple[str, str]:
        """User and password, good for 12 hours.

        They come with a colon between, in base64 (Amazon ECR API reference, AuthorizationData).
        """
        with _aws_errors():
            answer = self.client.get_authorization_token()
        token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
        user, _, password = token.partition(":")
        return user, password

    def _found(self, name: str) -> Repository:
        answer = self.client.describe_repositories(registryId=self.account, repositoryNames=[name])
        return _read_repository(answer["repositories"][0], created=False)


def open_registry(profile: str | None, region: str | None, account: str | None) -> Registry:
    """Find credentials, region and account the way boto3 does.

    Args:
        profile: of the AWS configuration files; ``None``: of the environment, else the default one.
        region: ``None``: of the environment, else of the profile.
        account: ``None``: the one of the credentials, which STS is asked for.

    Raises:
        PushError: boto3 is not installed, there is no region, or AWS says no or cannot be reached.
    """
    try:
        import boto3  # noqa: PLC0415  # an extra that only this command needs
        from botocore.config import Config  # noqa: PLC0415  # comes with it
    except ImportError:
        raise PushError("boto3 is not installed: pip install 'byoc-server[push]'") from None
    config = Config(connect_timeout=_CONNECT_TIMEOUT_S)
    with _aws_errors():
        # botocore reads AWS_DEFAULT_REGION only; AWS_REGION is what the other SDKs and the AWS CLI call it.
        session = boto3.Session(profile_name=profile, region_name=region or os.environ.get("AWS_REGION") or None)
        if not session.region_name:
            raise PushError("no region: pass --region, set AWS_REGION, or give the profile one")
        account = account or session.client("sts", config=config).get_caller_identity()["Account"]
        return Registry(str(account), session.region_name, session.client("ecr", config=config))


def parse_reference(text: str) -> Reference:
    """Read ``NAME[:TAG]`` or ``ACCOUNT.dkr.ecr.REGION.DOMAIN/NAME[:TAG]``.

    What comes before the first slash is a host by the rule of docker's image names: it has a dot or a colon, or is
    ``localhost`` (Distribution reference grammar, `domain-name`, and its normalized form). A name that has a dot there,
    which ECR allows, needs the whole address.

    Raises:
        PushUsageError: it is neither.
    """
    first, slash, rest = text.partition("/")
    host = _HOST.fullmatch(first)
    if slash and not host and ("." in first or ":" in first or first == "localhost"):
        raise PushUsageError(
            f"{first} is not an ECR registry; expected ACCOUNT.dkr.ecr.REGION.amazonaws.com, "
            "or a name without a dot before its first slash"
        )
    name, colon, tag = (rest if host else text).partition(":")
    if not _NAME.fullmatch(name) or not 2 <= len(name) <= 256:
        raise PushUsageError(
            f"{text} is not an ECR repository; expected a name such as team/my-model, "
            "or ACCOUNT.dkr.ecr.REGION.amazonaws.com/team/my-model"
        )
    if colon:
        check_tag(tag)
    parts = host.groupdict() if host else {}
    return Reference(name, tag or None, first if host else None, parts.get("account"), parts.get("region"))


def check_tag(tag: str) -> str:
    """Return ``tag`` when it is one.

    Raises:
        PushUsageError: it is not.
    """
    if not _TAG.fullmatch(tag):
        raise PushUsageError(f"{tag!r} is not a tag; expected up to 128 letters, digits, dots, dashes and underscores")
    return tag


def aws_error(code: str, text: str) -> PushError:
    """One line for an error of boto3, with advice where the cause is known.

    Args:
        code: the error code of the service, or the name of the exception.
        text: the message, of any number of lines.
    """
    line = " ".join(text.split()).rstrip(".")
    line = re.sub("(Invalid header value).*", r"\1", line)  # the value is the session token, or holds the signature
    return PushError(f"{line}; {_ADVICE[code]}" if code in _ADVICE else line)


@contextlib.contextmanager
def _aws_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # see open_registry

    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        text = error.response["Error"].get("Message", "")
        raise aws_error(code, f"{error.operation_name} failed with {code}: {text}") from None
    except BotoCoreError as error:
        raise aws_error(type(error).__name__, str(error)) from None
    except ValueError as error:  # of botocore, for an endpoint or a number that is none
        raise aws_error("ValueError", str(error)) from None


def _read_repository(answer: Any, created: bool) -> Repository:
    return Repository(answer["repositoryUri"], answer["repositoryArn"].split(":")[1], created)
