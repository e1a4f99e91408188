"""Docker or podman, by the command line client: the image is looked at, tagged and pushed.

A login writes the password of the registry into a configuration folder that lives as long as the login is needed: it
is neither on a command line nor left in the user's configuration or keychain. Every call but the push is bounded in
time, as the client of a daemon that hangs waits for it without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byoc_server.cli.push_errors import PushError

_CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Image:
    """What matters of a local image.

    Attributes:
        architecture: as in the image's configuration, such as ``amd64``.
        size_bytes: on this machine.
        gpu: whether it is made for an NVIDIA GPU.
        oci: whether it would be pushed with an OCI manifest.
    """

    architecture: str
    size_bytes: int
    gpu: bool
    oci: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine's command line client.

    Each method raises ``PushError`` when the client fails, or gives no answer in 30 seconds; the push may take longer.

    Attributes:
        name: what the user calls it.
        program: its path.
        podman: whether it takes podman's flags; ``docker`` may be podman under another name.
    """

    name: str
    program: str
    podman: bool

    def inspect(self, image: str) -> Image:
        """Look at a local image."""
        done = _call(self.program, "image", "inspect", image)
        if done.returncode:
            raise PushError(
                f"{self.name} has no image {image} ({_last_line(done.stderr)}); build it first, "
                f"see `{self.name} images`, or choose the other engine with --engine"
            )
        return read_image(json.loads(done.stdout)[0])

    @contextlib.contextmanager
    def logged_in(self, host: str, user: str, password: str) -> Iterator[Mapping[str, str]]:
        """Log in to a registry for the time of the ``with`` statement; gives the environment that selects the login.

        Args:
            host: the registry, ``HOST[:PORT]``.
            user: its user.
            password: goes through a pipe.
        """
        with tempfile.TemporaryDirectory(prefix="byoc-push-") as folder:
            environ = _private_config(Path(folder), host)
            login = ["login", "--username", user, "--password-stdin", *self._tls(host), host]
            self._check("login", _call(self.program, *login, environ=environ, text=password))
            yield environ

    def tag(self, image: str, remote: str) -> None:
        """Give a local image a second name."""
        self._check("tag", _call(self.program, "tag", image, remote))

    def push(self, remote: str, environ: Mapping[str, str]) -> str:
        """Push an image, pass the client's output on to stderr, and return the digest of the pushed manifest.

        Args:
            remote: ``HOST[:PORT]/NAME:TAG``, the name of a local image.
            environ: of ``logged_in``.
        """
        if not self.podman:
            output = _stream([self.program, "push", remote], environ)
            self._check("push", output)
            digests = re.findall(r"digest: (sha256:[0-9a-f]{64})", output.stdout)
            if not digests:
                raise PushError(f"pushed, but {self.name} did not tell the digest: {_last_line(output.stdout)}")
            return str(digests[-1])
        # SageMaker's CreateModel refuses OCI manifests, which podman builds unless told otherwise.
        digest_file = Path(environ["DOCKER_CONFIG"], "digest")
        flags = ["--format", "v2s2", "--digestfile", str(digest_file), *self._tls(remote.partition("/")[0])]
        self._check("push", _stream([self.program, "push", *flags, remote], environ))
        return digest_file.read_text().strip()

    def _tls(self, host: str) -> list[str]:
        return ["--tls-verify=false"] if self.podman and is_loopback(host) else []

    def _check(self, step: str, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode:
            raise PushError(f"{self.name} {step} failed: {_last_line(done.stdout + done.stderr)}")


def find_engine(name: str | None) -> Engine:
    """The engine called ``name``; without a name docker when its daemon answers, else podman.

    Raises:
        PushError: there is none, or it gives no answer in 30 seconds.
    """
    for candidate in (name,) if name else ("docker", "podman"):
        program = shutil.which(candidate)
        # An installed docker client says nothing about a daemon; podman has none.
        if program and (name or candidate == "podman" or _call(program, "info").returncode == 0):
            podman = candidate == "podman" or "podman" in _call(program, "--version").stdout.lower()
            return Engine(candidate, program, podman)
    if name:
        raise PushError(f"{name} is not on the PATH; install it, or choose the other engine with --engine")
    raise PushError("no container engine: `docker info` fails and podman is not on the PATH; start or install one")


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


def is_loopback(host: str) -> bool:
    """Whether docker, and so this command with podman, speaks plain HTTP to the registry ``HOST[:PORT]``."""
    return host.partition(":")[0] in {"localhost", "127.0.0.1"}


def _private_config(folder: Path, host: str) -> Mapping[str, str]:
    """Write an engine's client configuration into ``folder`` and return the environment that selects it.

    Docker's and podman's have the same form. What docker takes from the user's own folder is still taken from there,
    or docker would not reach the same daemon: the choice of a context, and the certificates (docker CLI reference,
    "Environment variables": ``DOCKER_CERT_PATH`` is ``~/.docker`` unless set). The entry for ``host`` keeps ``docker
    login`` from putting the password into the keychain, which it does with a configuration that has no entry at all
    (docker CLI 28, cli/config, LoadDefaultConfigFile).
    """
    # A user without a home has no such folder; unlike Path.home, expanduser then leaves the ~ alone.
    own = Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")).absolute()
    config: dict[str, Any] = {"auths": {host: {}}}
    with contextlib.suppress(OSError, ValueError):
        config["currentContext"] = json.loads((own / "config.json").read_text()).get("currentContext", "")
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    (folder / "contexts").symlink_to(own / "contexts")
    return {
        **os.environ,
        "DOCKER_CONFIG": str(folder),
        "DOCKER_CERT_PATH": os.environ.get("DOCKER_CERT_PATH") or str(own),
        "REGISTRY_AUTH_FILE": str(path),
    }


def _call(
    program: str, *arguments: str, environ: Mapping[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [program, *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environ,
            timeout=_CALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        name = Path(program).name
        raise PushError(
            f"`{name} {arguments[0]}` gave no answer in {_CALL_TIMEOUT_S:g} s; see that {name} works and has a "
            "network, or choose the other engine with --engine"
        ) from None


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
                print(line.rstrip(), file=sys.stderr, flush=True)
        except BaseException:
            process.kill()  # leaving the with statement would wait for the end of the upload
            raise
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines), "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
