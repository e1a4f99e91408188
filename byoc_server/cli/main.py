"""The ``byoc`` command. Flags are made from the settings; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from byoc_server import __version__
from byoc_server.config import SETTINGS, load_settings, reference_page
from byoc_server.errors import StartupError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction["_Parser"]  # argparse has no public name for it

_USAGE_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that says what to do."""

    def parse_known_args(  # type: ignore[override]  # of its overloads only the one in use is needed
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse what is unknown here; argparse would leave it to the parser of the whole line, which knows no flag."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split(" ")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown, flags, n=1) if unknown.startswith("-") else []
        advice = f"did you mean {near[0]}?" if near else f"see `{self.prog} --help`"
        self.exit(_USAGE_ERROR, f"{self.prog}: {message}; {advice}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="byoc", description="Serve an ONNX model behind Amazon SageMaker's container contract.")
    parser.add_argument("--version", action="version", version=f"byoc-server {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_serve(commands)
    _add_info(commands)
    _add_push(commands)
    commands.add_parser("settings", help="print every setting as a Markdown page")
    return parser


def _add_serve(commands: _Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model: GET /ping, POST /invocations, and the routes below /v2",
        description="Serve a model: GET /ping, POST /invocations, and the routes of the Open Inference Protocol below "
        "/v2. Every flag is also a variable, "
        "e.g. --max-batch-size is BYOC_MAX_BATCH_SIZE; a flag wins.",
        allow_abbrev=False,
    )
    for spec in SETTINGS:
        default = f" (default {spec.default})" if spec.default != "" else ""
        parser.add_argument(
            spec.flag,
            dest=spec.name,
            metavar=type(spec.default).__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{spec.help}{default}".replace("%", "%%"),
        )


def _add_info(commands: _Commands) -> None:
    parser = commands.add_parser(
        "info",
        help="print what this machine offers, or what a model takes, with a request in every format",
        description="Without MODEL: print what this machine or container offers and what the server would make of it. "
        "With MODEL: load it, and print what clients see of it and a curl command in every format. Reads the same "
        "BYOC_* variables as `byoc serve`; starts no server.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", default="", help="model file, or folder that holds one")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")


def _add_push(commands: _Commands) -> None:
    parser = commands.add_parser(
        "push",
        help="push a local image to Amazon ECR",
        description="Push a local image to Amazon ECR and print the calls that put it on an endpoint. "
        "Needs docker or podman, and boto3: pip install 'byoc-server[push]'.",
        allow_abbrev=False,
    )
    parser.add_argument("image", metavar="IMAGE", help="name or id of an image on this machine")
    parser.add_argument(
        "repository", metavar="REPOSITORY", help="NAME[:TAG], or a whole ECR URI with account and region"
    )
    parser.add_argument("--tag", help="tag in the repository (default: the image's own, else latest)")
    parser.add_argument(
        "--region", help="AWS region (default: of the URI, AWS_REGION, AWS_DEFAULT_REGION, the profile)"
    )
    parser.add_argument("--profile", help="profile of the AWS configuration files")
    parser.add_argument("--create", action="store_true", help="make the repository when it is missing")
    parser.add_argument(
        "--engine", choices=("docker", "podman"), help="which engine has the image (default: docker if it runs)"
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print one JSON object, not Python to paste"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``byoc ARGUMENTS`` and return its exit code."""
    options = vars(build_parser().parse_args(arguments))
    return _COMMANDS[options.pop("command")](options)


def serve(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve ARGUMENTS``: the program SageMaker looks for on the PATH of an image without an entry point."""
    return main(["serve", *(sys.argv[1:] if arguments is None else arguments)])


def _serve(flags: Mapping[str, str]) -> int:
    from byoc_server.server.entrypoint import END_SIGNALS, enter  # noqa: PLC0415  # --help must not pay for it
    from byoc_server.telemetry.logging import configure, resolve_format  # noqa: PLC0415  # nor for this

    for number in END_SIGNALS:  # until the server handles them; PID 1 would not even notice SIGTERM
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)  # blocked while a process replaced itself by this one
    # NumPy's linear algebra, which nothing here uses, would start a thread a core as soon as NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        settings = load_settings(flags, os.environ)
        configure(settings.log_level, resolve_format(settings.log_format))
        enter(settings, os.environ)
        from byoc_server.server.serve import serve  # noqa: PLC0415  # not before it is settled which CUDA will be found

        return serve(settings, os.environ)
    except StartupError as error:
        print(f"byoc serve: error: {error.message}", file=sys.stderr)
        return 1


def _info(options: Mapping[str, Any]) -> int:
    try:
        settings = load_settings({}, os.environ)
        if options["model"]:
            from byoc_server.cli import model_info  # noqa: PLC0415  # serving must not pay for it

            text = model_info.run(settings, options["model"], os.environ, as_json=options["as_json"])
        else:
            from byoc_server.cli import info  # noqa: PLC0415  # nor for this

            facts = info.collect(settings, os.environ)
            text = info.as_json(facts) if options["as_json"] else info.as_text(facts)
    except StartupError as error:
        print(f"byoc info: error: {error.message}", file=sys.stderr)
        return 1
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `byoc info MODEL | head`; Python would find out again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _push(options: Mapping[str, Any]) -> int:
    from byoc_server.cli.push import run  # noqa: PLC0415  # serving must not pay for subprocess and tempfile

    return run(**options)


def _settings(_: Mapping[str, Any]) -> int:
    print(reference_page(), end="")
    return 0


_COMMANDS: Mapping[str, Callable[[Mapping[str, Any]], int]] = MappingProxyType(
    {"serve": _serve, "info": _info, "push": _push, "settings": _settings}
)
