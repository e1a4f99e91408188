"""Drives a container engine, podman or docker, through its command; what it starts is always removed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
"""The base of every image that is built here."""

_PROBE = Path(__file__).with_name("probe.py")
_CANDIDATES = ("docker", "podman")
_COMMAND_TIMEOUT_S = 60.0
_BUILD_TIMEOUT_S = 600.0
_POLL_S = 0.05


class EngineError(Exception):
    """A command of the engine failed; the message has the command and its output."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command came to."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to a request; status 0 and the reason when there was none."""

    status: int
    media_type: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that answers."""

    command: str

    def call(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S, stdin: str | None = None) -> Done:
        """Run one command of the engine, whatever comes of it."""
        # podman writes OCI images by default, which have no health check
        environ = os.environ | {"BUILDAH_FORMAT": "docker"}
        done = subprocess.run(
            [self.command, *arguments], capture_output=True, text=True, timeout=timeout_s, env=environ, input=stdin
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def check(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S, stdin: str | None = None) -> str:
        """Run one command of the engine and return its standard output.

        Raises:
            EngineError: it failed.
        """
        done = self.call(*arguments, timeout_s=timeout_s, stdin=stdin)
        if done.code:
            raise EngineError(f"{self.command} {' '.join(arguments)}: {done.code}\n{done.output}{done.errors}")
        return done.output

    def build(
        self,
        dockerfile: Path,
        tag: str,
        *,
        context: Path = ROOT,
        target: str = "",
        arguments: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Build an image on the network of this machine and return what was printed.

        Raises:
            EngineError: the build failed.
        """
        named = {"PYTHON_IMAGE": PYTHON_IMAGE, **arguments}
        options = [f"--build-arg={name}={text}" for name, text in named.items()]
        if target:
            options.append(f"--target={target}")
        command = ["build", "--network=host", f"--file={dockerfile}", f"--tag={tag}", *options, str(context)]
        done = self.call(*command, timeout_s=_BUILD_TIMEOUT_S)
        if done.code:
            raise EngineError(f"{self.command} {' '.join(command)}: {done.code}\n{done.output}{done.errors}")
        return done.output + done.errors

    @contextlib.contextmanager
    def image(self, dockerfile: Path, **options: Any) -> Iterator[str]:
        """Build an image under a tag of its own, and take the tag away again; see ``build``."""
        tag = unique("byoc-server-test")
        try:
            self.build(dockerfile, tag, **options)
            yield tag
        finally:
            self.call("rmi", "--force", tag)

    def inspect_image(self, image: str) -> dict[str, Any]:
        """What the engine knows about an image."""
        (found,) = json.loads(self.check("image", "inspect", image))
        assert isinstance(found, dict)
        return found

    @contextlib.contextmanager
    def running(self, image: str, *arguments: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """Start a container in the background and remove it whatever happens.

        Args:
            image: to start.
            arguments: in place of the image's own.
            options: of the engine's ``run``.
        """
        name = unique("byoc-test")
        try:
            self.check("run", "--detach", f"--name={name}", "--no-healthcheck", *options, image, *arguments)
            yield Container(self, name)
        finally:
            self.call("rm", "--force", "--volumes", name)

    def run(self, image: str, *arguments: str, options: Sequence[str] = ()) -> Done:
        """Run a container to its end and return its exit code and output."""
        name = unique("byoc-test")
        try:
            return self.call("run", f"--name={name}", "--no-healthcheck", *options, image, *arguments)
        finally:
            self.call("rm", "--force", "--volumes", name)

    def python(self, image: str, script: str, options: Sequence[str] = ()) -> str:
        """Run a script with the Python of the server's virtual environment and return what it printed."""
        done = self.run(image, "-c", script, options=["--entrypoint=/opt/venv/bin/python", *options])
        assert done.code == 0, done.errors
        return done.output

    @property
    def read_only(self) -> list[str]:
        """Options for a root that cannot be written, without the temporary folders that podman would add."""
        return ["--read-only", *(["--read-only-tmpfs=false"] if Path(self.command).name == "podman" else [])]


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started."""

    engine: Engine
    name: str

    def exec(self, *command: str, stdin: str | None = None, environ: Mapping[str, str] = MappingProxyType({})) -> Done:
        """Run a command inside."""
        options = [f"--env={name}={text}" for name, text in environ.items()]
        if stdin is not None:
            options.append("--interactive")
        return self.engine.call("exec", *options, self.name, *command, stdin=stdin)

    def ask(
        self, *requests: tuple[bytes, Mapping[str, str]], port: int = 8080, until_ready: bool = True
    ) -> list[Answer]:
        """Ping until it is ready, or until it answers at all, then send invocations; all from inside.

        Args:
            requests: body and headers of each invocation.
            port: where it listens.
            until_ready: whether to wait until a ping gets something other than 503.

        Returns:
            The answer to the last ping, and those to the invocations.
        """
        texts = json.dumps([(body.hex(), dict(headers)) for body, headers in requests])
        command = ["/opt/venv/bin/python", "-", str(port), str(until_ready).lower(), texts]
        done = self.exec(*command, stdin=_PROBE.read_text())
        assert done.code == 0, f"{done.errors}\n{self.log()}"
        return [Answer(status, media_type, bytes.fromhex(body)) for status, media_type, body in json.loads(done.output)]

    def state(self) -> dict[str, Any]:
        """Process id, times and exit code, as the engine gives them."""
        (found,) = json.loads(self.engine.check("container", "inspect", self.name))
        state = found["State"]
        assert isinstance(state, dict)
        return state

    def address(self, port: int = 8080) -> str:
        """Where a port that was published with ``--publish 127.0.0.1::PORT`` is found."""
        return self.engine.check("port", self.name, f"{port}/tcp").split()[-1]

    def log(self) -> str:
        """Everything it has printed."""
        done = self.engine.call("logs", self.name)
        return done.output + done.errors

    def events(self, name: str) -> list[dict[str, Any]]:
        """All complete JSON log lines of one event."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def changed_paths(self) -> set[str]:
        """Files and folders that differ from the image's."""
        return {line.split(maxsplit=1)[1] for line in self.engine.check("diff", self.name).splitlines()}

    def stop(self, timeout_s: int = 30) -> tuple[int, float]:
        """Send the stop signal, and a kill after ``timeout_s``.

        Returns:
            The exit code, and the seconds that it took.
        """
        begin_s = time.monotonic()
        self.engine.check("stop", f"--time={timeout_s}", self.name)
        return int(self.state()["ExitCode"]), time.monotonic() - begin_s

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        """Wait until a condition holds; fail with the container's log when it does not."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"after {timeout_s:g} s still not: {what}\n{self.log()}"
            time.sleep(_POLL_S)


def unique(prefix: str) -> str:
    """A name that nothing else has."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def find_engine() -> Engine | None:
    """The engine that ``CONTAINER_ENGINE`` names, else the first that answers; ``None`` where none does."""
    named = os.environ.get("CONTAINER_ENGINE", "")
    for command in (named,) if named else _CANDIDATES:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            engine = Engine(command)
            if engine.call("info").code == 0:
                return engine
    return None
