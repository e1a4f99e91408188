"""The ``byoc`` command. Flags are made from the settings; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from byoc_server import __version__
from byoc_server.config import SETTINGS, load_settings, reference_page
from byoc_server.errors import StartupError

_USAGE_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split(" ")[0]
        flags = [spec.flag for spec in SETTINGS]
        near = difflib.get_close_matches(unknown, flags, n=1) if unknown.startswith("-") else []
        advice = f"did you mean {near[0]}?" if near else f"see `{self.prog} --help`"
        self.exit(_USAGE_ERROR, f"{self.prog}: {message}; {advice}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="byoc", description="Serve an ONNX model behind Amazon SageMaker's container contract.")
    parser.add_argument("--version", action="version", version=f"byoc-server {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="serve a model: GET /ping and POST /invocations",
        description="Serve a model: GET /ping and POST /invocations. Every flag is also a variable, "
        "e.g. --max-batch-size is BYOC_MAX_BATCH_SIZE; a flag wins.",
        allow_abbrev=False,
    )
    for spec in SETTINGS:
        default = f" (default {spec.default})" if spec.default != "" else ""
        serve.add_argument(
            spec.flag,
            dest=spec.name,
            metavar=type(spec.default).__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{spec.help}{default}".replace("%", "%%"),
        )
    commands.add_parser("settings", help="print every setting as a Markdown page")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``byoc ARGUMENTS`` and return its exit code."""
    options = vars(build_parser().parse_args(arguments))
    if options.pop("command") == "settings":
        print(reference_page(), end="")
        return 0
    return _serve(options)


def serve(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve ARGUMENTS``: the program SageMaker looks for on the PATH of an image without an entry point."""
    return main(["serve", *(sys.argv[1:] if arguments is None else arguments)])


def _serve(flags: dict[str, str]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server handles them; PID 1 would not even notice SIGTERM
        signal.signal(number, lambda *_: sys.exit(0))
    # NumPy's linear algebra, which nothing here uses, would start a thread a core as soon as NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from byoc_server.server.serve import serve  # noqa: PLC0415  # --help must not pay for a web server

    try:
        return serve(load_settings(flags, os.environ), os.environ)
    except StartupError as error:
        print(f"byoc serve: error: {error.message}", file=sys.stderr)
        return 1
