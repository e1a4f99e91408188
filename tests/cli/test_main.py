"""The command line as a process, apart from serving (see tests/server/test_start.py)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_server.cli.main import build_parser, main
from byoc_server.config import SETTINGS, reference_page

BYOC = str(Path(sys.executable).parent / "byoc")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_help_names_every_flag_and_its_variable_rule() -> None:
    """Checklist 102: every setting is a flag and a variable."""
    result = run(BYOC, "serve", "--help")
    assert result.returncode == 0
    for spec in SETTINGS:
        assert spec.flag in result.stdout
    assert "BYOC_MAX_BATCH_SIZE" in result.stdout


def test_help_of_the_whole_command() -> None:
    result = run(BYOC, "--help")
    assert result.returncode == 0
    for command in ("serve", "push", "settings"):
        assert command in result.stdout


def test_version() -> None:
    assert run(BYOC, "--version").stdout.startswith("byoc-server ")


def test_settings_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Checklist 102."""
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == reference_page()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND", "--help"]),
        (["sevre"], ["sevre", "--help"]),
        (["serve", "--prot", "1"], ["--prot", "did you mean --port?"]),
        (["serve", "--port"], ["--port"]),
        (["serve", "extra"], ["extra"]),
        (["serve", "--mod", "x"], ["--mod"]),
        (["serve", "--tag", "x"], ["byoc serve: unrecognized arguments: --tag x; see `byoc serve --help`"]),
        (["settings", "extra"], ["byoc settings", "extra"]),
        (["push"], ["IMAGE", "REPOSITORY", "`byoc push --help`"]),
        (["push", "image"], ["REPOSITORY", "`byoc push --help`"]),
        (["push", "image", "name", "--rgion=x"], ["byoc push: ", "--rgion", "did you mean --region?"]),
        (["push", "image", "name", "--reg", "x"], ["--reg"]),
        (["push", "image", "name", "--port", "1"], ["--port", "see `byoc push --help`"]),
        (["push", "image", "name", "--engine", "crio"], ["crio", "docker", "podman"]),
    ],
)
def test_a_wrong_command_line_is_one_line_that_helps(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Checklist 13."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line


def test_flags_that_are_not_given_leave_the_variables_alone() -> None:
    assert vars(build_parser().parse_args(["serve", "--port", "1"])) == {"command": "serve", "port": "1"}


def test_flags_of_push() -> None:
    arguments = ["push", "image", "name", "--create", "--json", "--engine", "podman"]
    assert vars(build_parser().parse_args(arguments)) == {
        "command": "push",
        "image": "image",
        "repository": "name",
        "tag": None,
        "region": None,
        "profile": None,
        "create": True,
        "engine": "podman",
        "as_json": True,
    }


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    """Checklist 27: what is imported before the listening socket opens is time the platform cannot connect."""
    code = "import sys, byoc_server.cli.main as m; m.build_parser(); print(*sys.modules)"
    modules = set(run(sys.executable, "-c", code).stdout.split())
    assert modules
    assert not modules & {
        "onnxruntime",
        "uvicorn",
        "starlette",
        "gunicorn",
        "asyncio",
        "boto3",
        "subprocess",
        "tempfile",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_is_there(number: signal.Signals) -> None:
    """Checklist 11: while modules are still being imported; PID 1 would not end by a signal it does not handle."""
    code = (
        "import sys, time, types, byoc_server.cli.main as m; slow = types.ModuleType('byoc_server.server.serve');"
        "slow.serve = lambda *_: (print('up', flush=True), time.sleep(60));"
        "sys.modules['byoc_server.server.serve'] = slow; sys.exit(m.serve())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
