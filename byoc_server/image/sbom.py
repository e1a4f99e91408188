"""Print the Python packages of an image as JSON: what `pip inspect` says of them, less what tells of the build machine.

Usage: python sbom.py VENV...    the virtual environments whose packages the image gets
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_METADATA = (
    "name",
    "version",
    "summary",
    "license_expression",
    "license_file",
    "license",
    "requires_python",
    "requires_dist",
)
_ENVIRONMENT = (
    "implementation_name",
    "platform_machine",
    "platform_python_implementation",
    "python_full_version",
    "python_version",
    "sys_platform",
)
_LICENSE_LENGTH = 200  # a longer one is the whole text of a license, which the package's own folder holds


def bill(report: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a `pip inspect` report (format version 1): no paths, addresses or kernel versions."""
    installed = [{"metadata": _metadata(package["metadata"])} for package in report["installed"]]
    return {
        "version": report["version"],
        "pip_version": report["pip_version"],
        "installed": sorted(installed, key=lambda package: str(package["metadata"]["name"]).lower()),
        "environment": {key: report["environment"][key] for key in _ENVIRONMENT},
    }


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    kept = {key: metadata[key] for key in _METADATA if key in metadata}
    if len(kept.get("license", "")) > _LICENSE_LENGTH:
        del kept["license"]
    licenses = [name for name in metadata.get("classifier", []) if name.startswith("License ::")]
    return kept | ({"classifier": licenses} if licenses else {})


def license_files(folder: Path) -> list[str]:
    """License files in the metadata of a package, which a pip before the version 2.4 of metadata leaves out."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("LICEN[CS]E*") if path.is_file())


if __name__ == "__main__":
    folders = [str(path) for venv in sys.argv[1:] for path in Path(venv).glob("lib/python*/site-packages")]
    command = [sys.executable, "-m", "pip", "inspect", *(f"--path={folder}" for folder in folders)]
    inspected = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    report = json.loads(inspected)
    for package in report["installed"]:
        package["metadata"]["license_file"] = license_files(Path(package["metadata_location"]))
    print(json.dumps(bill(report), indent=1))
