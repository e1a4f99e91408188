"""Print what pyproject.toml asks for, so that it can be installed before the source is there.

Usage: python requirements.py EXTRA...   the dependencies and those of some extras
       python requirements.py build      what builds the package
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """The requirements of the package with some extras, or of its build."""
    content = tomllib.loads(pyproject)
    if list(extras) == ["build"]:
        return list(content["build-system"]["requires"])
    optional = content["project"]["optional-dependencies"]
    return [*content["project"]["dependencies"], *(name for extra in extras for name in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text(encoding="utf-8"), sys.argv[1:])))
