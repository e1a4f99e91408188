"""Coverage-guided fuzzing of every decoder, the content codings, the headers that choose, and the connection itself.

Each target runs in a process of its own (atheris, which is libFuzzer for Python). It watches the code of the codecs, of
HTTP and of connections. It begins with requests as clients write them and with the committed seeds, and looks for an
input at which a reader does anything but give tensors that fit the model or an error that is the client's, takes more
memory than it may, or does not come to an end; or at which the two lanes of a connection differ.

Every finding is kept: the input, and a text beside it that says what happened. Once it is mended the input belongs
into benchmarks/fuzz/seeds, where a test reads it ever after.

Run: python -m benchmarks.fuzz text/csv --seconds 60
     python -m benchmarks.fuzz --seconds 60 --corpus build/fuzz    (all targets; goes on where it stopped)
     python -m benchmarks.fuzz text/csv --replay build/findings/text-csv/0123456789ab
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.fuzz.seeds import COMMITTED, folder_name
from benchmarks.fuzz.targets import targets

_MAX_INPUT_BYTES = 4096
_INPUT_TIMEOUT_S = 10
_MAX_RESIDENT_MB = 1024
_START_S = 120.0
_TAIL_CHARACTERS = 3000
_SHOWN_BYTES = 200
_COUNT = re.compile(r"Done (\d+) runs")
_COVERED = re.compile(r"\bcov: (\d+)")


def main() -> int:
    """The exit code: 1 if there is a finding, or a target did not run."""
    options = _options()
    if options.replay:
        targets()[options.targets[0]](options.replay.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            "!!! atheris is not installed, as it has no wheel for this platform: NOTHING WAS FUZZED.", file=sys.stderr
        )
        return 0
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda target: _fuzz(target, options), options.targets))
    return 0 if all(results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = list(targets())
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all, or some of: {', '.join(known)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="targets at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 takes another one every time")
    parser.add_argument("--corpus", type=Path, help="folder that keeps what reached new code, a folder a target")
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "findings", help="folder for findings")
    parser.add_argument("--replay", type=Path, help="run one input through one target, without atheris")
    options = parser.parse_args()
    unknown = set(options.targets) - set(known)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.replay and len(options.targets) != 1:
        parser.error("--replay takes one target")
    options.targets = options.targets or known
    return options


def _fuzz(target: str, options: argparse.Namespace) -> bool:
    """Fuzz one target and print how it went; whether there was no finding."""
    name = folder_name(target)
    with tempfile.TemporaryDirectory() as folder:
        corpus: Path = options.corpus / name if options.corpus else Path(folder) / "corpus"
        made, findings = Path(folder) / "made", Path(folder) / "findings"
        for path in (corpus, made, findings):
            path.mkdir(parents=True, exist_ok=True)
        committed = COMMITTED / name
        folders = [str(path) for path in (corpus, made, committed) if path.is_dir()]
        flags = [
            f"-max_total_time={options.seconds}",
            f"-max_len={_MAX_INPUT_BYTES}",
            f"-timeout={_INPUT_TIMEOUT_S}",
            f"-rss_limit_mb={_MAX_RESIDENT_MB}",
            f"-artifact_prefix={findings}/",
            f"-seed={options.seed}",
            *folders,
        ]
        code, log = _run(
            [sys.executable, "-m", "benchmarks.fuzz.child", target, str(findings), str(made), *flags], options.seconds
        )
        found = sorted(findings.iterdir())
        if found:
            shutil.copytree(findings, options.findings / name, dirs_exist_ok=True)
        report = _report(target, found, code, log, options.findings / name)
    print(report, flush=True)
    return not found and not code


def _report(target: str, found: Sequence[Path], code: int, log: str, kept: Path) -> str:
    """How it went: one line, then what was found, then the end of the log where libFuzzer did not end well."""
    inputs, covered = (match[-1] if (match := pattern.findall(log)) else "?" for pattern in (_COUNT, _COVERED))
    faults = {path.stem for path in found}
    lines = [f"{target}: {inputs} inputs, {covered} places of the code reached, {len(faults) or 'no'} findings"]
    for path in found:
        text = path.read_text() if path.suffix == ".txt" else repr(path.read_bytes()[:_SHOWN_BYTES])
        lines += [f"{kept / path.name}:", text]
    return "\n".join([*lines, *([f"ended with {code}:", log[-_TAIL_CHARACTERS:]] if code else [])])


def _run(command: Sequence[str], seconds: int) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + _INPUT_TIMEOUT_S + _START_S,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
