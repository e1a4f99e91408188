"""``byoc push``: a local image goes to Amazon ECR, and the calls that put it on an endpoint are printed.

The flow, one line on stderr a step: the image is looked at, the account and the region are found, the repository is
looked up (or made), the engine logs in, tags and pushes. Only the result goes to stdout.

The push goes where ECR's API says that the repository is. Only a whole URI wins over it, because its host may be
another entrance to the same registry (FIPS, IPv6).
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from types import FrameType

from byoc_server.cli.container_engine import find_engine, image_tag
from byoc_server.cli.ecr import Pushed, check_tag, open_registry, parse_reference
from byoc_server.cli.endpoint_snippet import snippet
from byoc_server.cli.push_errors import PushError, PushUsageError

_END_SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)


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
    for number in _END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has asked to go on without the terminal
            signal.signal(number, _end)
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


def _end(number: int, _: FrameType | None) -> None:
    """Leave through Python: a process that ends at once leaves the folder with the password behind."""
    for each in _END_SIGNALS:  # a terminal that closes may send two; the second would stop the removal of the folder
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _push(
    image: str,
    repository: str,
    tag: str | None,
    region: str | None,
    profile: str | None,
    create: bool,
    engine_name: str | None,
) -> tuple[Pushed, str]:
    if image.startswith("-"):
        raise PushUsageError(f"{image} is not an image; the engine would take it for a flag")
    target = parse_reference(repository)
    tag = _one("tag", "--tag", None if tag is None else check_tag(tag), target.tag) or image_tag(image) or "latest"
    region = _one("region", "--region", region, target.region)
    engine = find_engine(engine_name)
    local = engine.inspect(image)
    _say(f"image {image}: {local.size_bytes / 1e6:.0f} MB, {local.architecture}{', GPU' if local.gpu else ''}")
    if local.oci:
        _say(
            "note: SageMaker's CreateModel may refuse the OCI manifest of this image: "
            f"{engine.name} buildx build --provenance=false --output type=docker"
        )
    registry = open_registry(profile, region, target.account)
    _say(f"account {registry.account}, region {registry.region}")
    found = registry.repository(target.name, create)
    made = "created: images are scanned on push, tags can be moved"
    _say(f"repository {target.name} {made if found.created else 'found'}")
    host = target.host or found.uri.partition("/")[0]
    remote = f"{host}/{target.name}:{tag}"
    with engine.logged_in(host, *registry.login()) as environ:
        _say(f"logged in to {host}")
        engine.tag(image, remote)
        _say(f"pushing {remote}")
        digest = engine.push(remote, environ)
    _say(f"pushed {digest}")
    pushed = Pushed(f"{found.uri}:{tag}", f"{found.uri}@{digest}", registry.account, registry.region, target.name, tag)
    return pushed, snippet(pushed, local, found.partition)


def _one(what: str, flag: str, given: str | None, in_uri: str | None) -> str | None:
    if given and in_uri and given != in_uri:
        raise PushUsageError(f"the {what} is {in_uri} in REPOSITORY, but {flag} says {given}; leave one out")
    return given or in_uri


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
