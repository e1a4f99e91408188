"""``byoc push``: a local image goes to Amazon ECR, and the calls that put it on an endpoint are printed.

The flow, one line on stderr a step: the image is looked at, the account and the region are found, the repository is
looked up (or made), the engine logs in, tags and pushes. Only the result goes to stdout.

Two things are left to others on purpose. *Where to push*: ECR's API names the repository's address; no host name is
put together here, so that partitions and stand-ins for ECR need no rule of their own. Only a whole URI wins over it,
because its host may be another entrance to the same registry (FIPS, IPv6). *The upload*: the engine's own client does
it, with a configuration folder that lives as long as the command, so that the password of the registry (good for
12 hours) is neither on a command line nor left in the user's configuration or keychain.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from byoc_server.errors import ByocError

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

_NEW_LOGIN = "log in again (`aws sso login`) or fetch new temporary credentials"
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, pass --profile, or run `aws sso login`"
_KEY = "check the access key and its secret, that the region is one of the same partition, and this machine's clock"
_NETWORK = "check the name of the region, and that this machine may reach AWS"

_ADVICE = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "CredentialRetrievalError": _CREDENTIALS,
    "ProfileNotFound": "`aws configure list-profiles` names those there are",
    "ExpiredToken": _NEW_LOGIN,
    "ExpiredTokenException": _NEW_LOGIN,
    "RequestExpired": _NEW_LOGIN,
    "SSOTokenLoadError": _NEW_LOGIN,
    "TokenRetrievalError": _NEW_LOGIN,
    "UnauthorizedSSOTokenError": _NEW_LOGIN,
    "IncompleteSignature": _KEY,
    "InvalidClientTokenId": _KEY,
    "InvalidSignatureException": _KEY,
    "SignatureDoesNotMatch": _KEY,
    "UnrecognizedClientException": _KEY,
    "AccessDenied": "docs/push-to-ecr.md has the policy that is needed",
    "AccessDeniedException": "docs/push-to-ecr.md has the policy that is needed",
    "ConnectTimeoutError": _NETWORK,
    "EndpointConnectionError": _NETWORK,
    "InvalidRegionError": _NETWORK,
    "ProxyConnectionError": _NETWORK,
    "SSLError": _NETWORK,
    "LimitExceededException": "delete a repository that is no longer used, or ask for a higher quota",
}


class PushError(ByocError):
    """The image could not be pushed; the message says what to do."""

    code = "push_error"
    exit_code: ClassVar[int] = 1


class PushUsageError(PushError):
    """The arguments cannot be right, whatever the state of the engine and of AWS."""

    code = "push_usage_error"
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Repository:
    """What REPOSITORY says; ``None`` where it leaves something open."""

    name: str
    tag: str | None = None
    host: str | None = None
    account: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """What matters of a local image."""

    architecture: str
    size_bytes: int
    gpu: bool
    oci: bool


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
class Engine:
    """A container engine's command line client.

    Attributes:
        name: what the user calls it.
        program: its path.
        podman: whether it takes podman's flags; ``docker`` may be podman under another name.
    """

    name: str
    program: str
    podman: bool


def run(
    image: str,
    repository: str,
    *,
    tag: str | None,
    region: str | None,
    profile: str | None,
    create: bool,
    engine: str | None,
    as_json: bool,
) -> int:
    """Push, print the result, and return the exit code: 0, 1 when it failed, 2 when the arguments are wrong.

    Args:
        image: name or id of a local image.
        repository: name of an ECR repository or its URI, with or without a tag.
        tag: in the repository; ``None``: that of ``repository``, else that of ``image``, else ``latest``.
        region: ``None``: that of ``repository``, else of the environment, else of the profile.
        profile: of the AWS configuration files.
        create: make the repository when it is missing.
        engine: ``docker`` or ``podman``; ``None``: docker when its daemon answers, else podman.
        as_json: print one JSON object instead of addresses and Python.
    """
    # Without a handler the process would end at once and leave the folder with the password behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        pushed, text = _push(image, repository, tag, region, profile, create, engine)
    except PushError as error:
        print(f"byoc push: error: {error.message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # no room for the configuration folder, an engine that cannot be executed
        print(f"byoc push: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("byoc push: error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(json.dumps(asdict(pushed)) if as_json else f"{pushed.uri}\n{pushed.digest_uri}\n\n{text}")
    return 0


def parse_repository(text: str) -> Repository:
    """Read ``NAME[:TAG]`` or ``ACCOUNT.dkr.ecr.REGION.DOMAIN/NAME[:TAG]``.

    Raises:
        PushUsageError: it is neither.
    """
    first, _, rest = text.partition("/")
    host = _HOST.fullmatch(first)
    if (
        not host and rest and (":" in first or ".dkr" in first)
    ):  # else taken for the start of a name, which may have dots
        raise PushUsageError(f"{first} is not an ECR registry; expected ACCOUNT.dkr.ecr.REGION.amazonaws.com")
    name, colon, tag = (rest if host else text).partition(":")
    if not _NAME.fullmatch(name) or not 2 <= len(name) <= 256:
        raise PushUsageError(
            f"{text} is not an ECR repository; expected a name such as team/my-model, "
            "or ACCOUNT.dkr.ecr.REGION.amazonaws.com/team/my-model"
        )
    if colon:
        check_tag(tag)
    parts = host.groupdict() if host else {}
    return Repository(name, tag or None, first if host else None, parts.get("account"), parts.get("region"))


def check_tag(tag: str) -> str:
    """Return ``tag`` when it is one.

    Raises:
        PushUsageError: it is not.
    """
    if not _TAG.fullmatch(tag):
        raise PushUsageError(f"{tag!r} is not a tag; expected up to 128 letters, digits, dots, dashes and underscores")
    return tag


def image_tag(image: str) -> str | None:
    """The tag in the name of a local image; ``None`` for a name without one, and for an id or a digest."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag if tag and not digest and not name.startswith("sha256:") else None


def read_image(inspected: Mapping[str, Any]) -> Image:
    """Read one element of the answer of ``image inspect``, of docker or podman.

    An image is made for a GPU when it asks NVIDIA's container runtime for one by ``NVIDIA_VISIBLE_DEVICES`` (NVIDIA
    Container Toolkit, "Docker specialized configurations": empty, ``void`` and ``none`` ask for none), or carries one
    of the labels of NVIDIA's base images.
    """
    config = inspected.get("Config") or {}
    environ = dict(variable.partition("=")[::2] for variable in config.get("Env") or ())
    labels = config.get("Labels") or {}
    return Image(
        architecture=inspected.get("Architecture") or "amd64",
        size_bytes=inspected.get("Size") or 0,
        gpu=environ.get("NVIDIA_VISIBLE_DEVICES", "") not in {"", "void", "none"}
        or any(label.startswith("com.nvidia.") for label in labels),
        # Only docker's containerd store has a descriptor, and only it pushes manifests as they were built.
        oci=str((inspected.get("Descriptor") or {}).get("mediaType")).startswith("application/vnd.oci."),
    )


def snippet(pushed: Pushed, image: Image, partition: str) -> str:
    """Python that makes a SageMaker endpoint of the pushed image; role and model data are left to be filled in.

    The names follow the API's patterns for ``ModelName`` and ``InferenceAmiVersion`` (SageMaker API reference,
    CreateModel and ProductionVariant). A GPU image is built for CUDA 13, which the default AMIs cannot run.

    Args:
        pushed: where the image is.
        image: what it is made for.
        partition: of the account, such as ``aws``.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{pushed.repository.rpartition('/')[2]}-{pushed.tag}")[:63].strip("-")
    if image.gpu:
        instance, ami = "ml.g6.xlarge", '            "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",\n'
    else:
        instance, ami = "ml.c7g.large" if image.architecture == "arm64" else "ml.m7i.large", ""
    return f'''import boto3

sagemaker = boto3.client("sagemaker", region_name="{pushed.region}")
sagemaker.create_model(
    ModelName="{name}",
    ExecutionRoleArn="arn:{partition}:iam::{pushed.account}:role/YOUR-SAGEMAKER-ROLE",
    PrimaryContainer={{
        "Image": "{pushed.digest_uri}",
        "ModelDataUrl": "s3://YOUR-BUCKET/model.tar.gz",  # leave out when the model is in the image
    }},
)
sagemaker.create_endpoint_config(
    EndpointConfigName="{name}",
    ProductionVariants=[
        {{
            "VariantName": "AllTraffic",
            "ModelName": "{name}",
            "InstanceType": "{instance}",
{ami}            "InitialInstanceCount": 1,
        }}
    ],
)
sagemaker.create_endpoint(EndpointName="{name}", EndpointConfigName="{name}")'''


def aws_error(code: str, text: str) -> PushError:
    """One line for an error of boto3, with advice where the cause is known.

    Args:
        code: the error code of the service, or the name of the exception.
        text: the message, of any number of lines.
    """
    line = " ".join(text.split()).rstrip(".")
    return PushError(f"{line}; {_ADVICE[code]}" if code in _ADVICE else line)


def is_loopback(host: str) -> bool:
    """Whether docker, and so this command with podman, speaks plain HTTP to the registry ``HOST[:PORT]``."""
    return host.partition(":")[0] in {"localhost", "127.0.0.1"}


def _push(
    image: str,
    repository: str,
    tag: str | None,
    region: str | None,
    profile: str | None,
    create: bool,
    engine_name: str | None,
) -> tuple[Pushed, str]:
    target = parse_repository(repository)
    tag = _one("tag", "--tag", None if tag is None else check_tag(tag), target.tag) or image_tag(image) or "latest"
    region = _one("region", "--region", region, target.region)
    engine = _find_engine(engine_name)
    local = _inspect(engine, image)
    session = _session(profile, region)
    with _aws_errors():
        account = target.account or session.client("sts", config=_aws_config()).get_caller_identity()["Account"]
    _say(f"account {account}, region {session.region_name}")
    with _aws_errors():
        ecr = session.client("ecr", config=_aws_config())
        found = _repository(ecr, account, target.name, session.region_name, create)
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    host = target.host or found["repositoryUri"].partition("/")[0]
    digest = _upload(engine, image, host, f"{target.name}:{tag}", token)
    uri = found["repositoryUri"]
    pushed = Pushed(f"{uri}:{tag}", f"{uri}@{digest}", account, session.region_name, target.name, tag)
    _say(f"pushed {digest}")
    return pushed, snippet(pushed, local, found["repositoryArn"].split(":")[1])


def _one(what: str, flag: str, given: str | None, in_uri: str | None) -> str | None:
    if given and in_uri and given != in_uri:
        raise PushUsageError(f"the {what} is {in_uri} in REPOSITORY, but {flag} says {given}; leave one out")
    return given or in_uri


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _find_engine(name: str | None) -> Engine:
    for candidate in (name,) if name else ("docker", "podman"):
        program = shutil.which(candidate)
        # An installed docker client says nothing about a daemon; podman has none.
        if program and (name or candidate == "podman" or _call(program, "info").returncode == 0):
            podman = candidate == "podman" or "podman" in _call(program, "--version").stdout.lower()
            return Engine(candidate, program, podman)
    if name:
        raise PushError(f"{name} is not on the PATH; install it, or choose the other engine with --engine")
    raise PushError(
        "no container engine: `docker info` gives no answer and podman is not on the PATH; start or install one"
    )


def _inspect(engine: Engine, image: str) -> Image:
    done = _call(engine.program, "image", "inspect", image)
    if done.returncode:
        raise PushError(
            f"{engine.name} has no image {image} ({_last_line(done.stderr)}); build it first, "
            f"see `{engine.name} images`, or choose the other engine with --engine"
        )
    local = read_image(json.loads(done.stdout)[0])
    _say(f"image {image}: {local.size_bytes / 1e6:.0f} MB, {local.architecture}{', GPU' if local.gpu else ''}")
    if local.architecture != "amd64":
        _say(f"note: most instance types need an image for amd64: {engine.name} build --platform linux/amd64")
    if local.oci:
        _say(
            "note: SageMaker's CreateModel may refuse the OCI manifest of this image: "
            f"{engine.name} buildx build --provenance=false --output type=docker"
        )
    return local


def _session(profile: str | None, region: str | None) -> Any:
    try:
        import boto3  # noqa: PLC0415  # an extra that only this command needs
    except ImportError:
        raise PushError("boto3 is not installed: pip install 'byoc-server[push]'") from None
    with _aws_errors():
        # botocore reads AWS_DEFAULT_REGION only; AWS_REGION is what the other SDKs and the AWS CLI call it.
        session = boto3.Session(profile_name=profile, region_name=region or os.environ.get("AWS_REGION") or None)
    if not session.region_name:
        raise PushError("no region: pass --region, set AWS_REGION, or give the profile one")
    return session


def _aws_config() -> Any:
    from botocore.config import Config  # noqa: PLC0415  # see _session

    return Config(connect_timeout=_CONNECT_TIMEOUT_S)


@contextlib.contextmanager
def _aws_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # see _session

    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        text = error.response["Error"].get("Message", "")
        raise aws_error(code, f"{error.operation_name} failed with {code}: {text}") from None
    except BotoCoreError as error:
        raise aws_error(type(error).__name__, str(error)) from None


def _repository(ecr: Any, account: str, name: str, region: str, create: bool) -> Mapping[str, str]:
    """Look the repository up, or make it; another may make it at the same time."""

    def describe() -> Any:
        return ecr.describe_repositories(registryId=account, repositoryNames=[name])["repositories"][0]

    try:
        found = describe()
        _say(f"repository {name} found")
    except ecr.exceptions.RepositoryNotFoundException:
        if not create:
            raise PushError(
                f"account {account} has no repository {name} in {region}; pass --create to make it, "
                "or --region when it is elsewhere"
            ) from None
        try:
            found = ecr.create_repository(
                registryId=account,
                repositoryName=name,
                imageTagMutability="MUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )["repository"]
            _say(f"repository {name} created: images are scanned on push, tags can be moved")
        except ecr.exceptions.RepositoryAlreadyExistsException:
            found = describe()
            _say(f"repository {name} found")
    return found  # type: ignore[no-any-return]  # boto3 has no types


def _upload(engine: Engine, image: str, host: str, reference: str, token: str) -> str:
    """Log in, tag and push; return the digest of the pushed manifest.

    Args:
        engine: has the image.
        image: local name.
        host: the registry, ``HOST[:PORT]``.
        reference: ``NAME:TAG`` in the registry.
        token: ECR's authorization token: user and password with a colon between, in base64 (Amazon ECR API
            reference, AuthorizationData).
    """
    user, _, password = base64.b64decode(token).decode().partition(":")
    remote = f"{host}/{reference}"
    plain = ["--tls-verify=false"] if engine.podman and is_loopback(host) else []
    with tempfile.TemporaryDirectory(prefix="byoc-push-") as folder:
        environ = _private_config(Path(folder), host)
        login = ["login", "--username", user, "--password-stdin", *plain, host]
        _done(engine, "login", _call(engine.program, *login, environ=environ, text=password))
        _say(f"logged in to {host}")
        _done(engine, "tag", _call(engine.program, "tag", image, remote))
        _say(f"pushing {remote}")
        if not engine.podman:
            output = _stream([engine.program, "push", remote], environ)
            _done(engine, "push", output)
            digests = re.findall(r"digest: (sha256:[0-9a-f]{64})", output.stdout)
            if not digests:
                raise PushError(f"pushed, but {engine.name} did not tell the digest: {_last_line(output.stdout)}")
            return str(digests[-1])
        # SageMaker's CreateModel refuses OCI manifests, which podman builds unless told otherwise.
        digest_file = Path(folder, "digest")
        flags = ["--format", "v2s2", "--digestfile", str(digest_file), *plain]
        _done(engine, "push", _stream([engine.program, "push", *flags, remote], environ))
        return digest_file.read_text().strip()


def _private_config(folder: Path, host: str) -> dict[str, str]:
    """Write an engine's client configuration into ``folder`` and return the environment that selects it.

    Docker's and podman's have the same form. The user's choice of a docker context is kept, or docker would talk to
    another daemon. The entry for ``host`` keeps ``docker login`` from putting the password into the keychain, which it
    does with a configuration that has no entry at all (docker CLI 28, cli/config, LoadDefaultConfigFile).
    """
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    config: dict[str, Any] = {"auths": {host: {}}}
    with contextlib.suppress(OSError, ValueError):
        config["currentContext"] = json.loads((own / "config.json").read_text()).get("currentContext", "")
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    (folder / "contexts").symlink_to((own / "contexts").absolute())
    return {**os.environ, "DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(path)}


def _call(
    program: str, *arguments: str, environ: Mapping[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environ,
        check=False,
    )


def _stream(command: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command, pass its output on to stderr line by line, and keep it."""
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environ,
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                _say(line.rstrip())
        except BaseException:
            process.kill()  # leaving the with statement would wait for the end of the upload
            raise
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines), "")


def _done(engine: Engine, step: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise PushError(f"{engine.name} {step} failed: {_last_line(done.stdout + done.stderr)}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
