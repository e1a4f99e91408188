"""Fuzzes one target, in a process of its own: libFuzzer ends the process when it is done, or when it crashes.

Run by ``benchmarks.fuzz``, with the target, a folder for findings, one for the seeds that code makes, and what
libFuzzer is told.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

_WATCHED = ["byoc_server.codecs", "byoc_server.http", "byoc_server.server"]

with atheris.instrument_imports(include=_WATCHED, enable_loader_override=False):
    from benchmarks.fuzz.findings import Findings
    from benchmarks.fuzz.seeds import made_seeds
    from benchmarks.fuzz.targets import targets
    from byoc_server.codecs.base import request_codecs

    for _entry in request_codecs():
        _entry.load()


def main(target: str, findings_folder: str, seeds_folder: str, *flags: str) -> None:
    check = targets()[target]
    for number, seed in enumerate(made_seeds(target)):
        (Path(seeds_folder) / str(number)).write_bytes(seed)
    findings = Findings(Path(findings_folder))

    def test_one_input(data: bytes) -> None:
        try:
            check(data)
        except Exception as error:  # what a reader should not let out is what is looked for
            findings.keep(data, error)

    atheris.Setup([sys.argv[0], *flags], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
