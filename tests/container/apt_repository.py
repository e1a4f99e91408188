"""A small apt repository with the layout of NVIDIA's: a flat folder, signed, with a package that brings the keyring."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("dpkg-deb", "gpg", "gpgconf", "gcc")
"""What must be installed to make one."""

DRIVER = "580.95.05"
"""The version of the compatibility libraries in it."""

KEYRING = "usr/share/keyrings/cuda-archive-keyring.gpg"
_TIMEOUT_S = 60.0


class Signer:
    """A key of its own, in a folder of its own.

    Args:
        home: for the key; its path must be short, since gpg puts a socket there.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        home.chmod(0o700)
        identity = "Test repository <test@example.invalid>"
        self._gpg("--passphrase", "", "--quick-generate-key", identity, "ed25519", "sign", "never")

    def _gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S).stdout

    def public_key(self) -> bytes:
        """The public half, as a keyring file."""
        return self._gpg("--export")

    def sign(self, path: Path) -> bytes:
        """The file with a signature in clear text around it."""
        return self._gpg("--clearsign", "--output", "-", str(path))

    def close(self) -> None:
        """End the agent that gpg has started."""
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "gpg-agent"], check=True, timeout=_TIMEOUT_S)


@contextlib.contextmanager
def signer() -> Iterator[Signer]:
    """A key for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="gpg", ignore_cleanup_errors=True) as folder:
        key = Signer(Path(folder))
        try:
            yield key
        finally:
            key.close()


def package(folder: Path, name: str, version: str, files: dict[str, bytes], depends: str = "") -> Path:
    """Make a Debian package.

    Args:
        folder: where to put it.
        name: of the package.
        version: of the package.
        files: path without the first slash -> content.
        depends: what it asks for.
    """
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        control = [
            f"Package: {name}",
            f"Version: {version}",
            "Architecture: all",
            "Maintainer: Test <t@example.invalid>",
        ]
        control += [f"Depends: {depends}"] if depends else []
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN" / "control").write_text("\n".join([*control, "Description: for a test", ""]))
        target = folder / f"{name}_{version}_all.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    return target


def library(soname: str) -> bytes:
    """A shared library without a function."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "empty.c", Path(work) / "library.so"
        source.write_text("int byoc_test_library = 1;\n")
        command = ["gcc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{soname}", "-o", str(target), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        return target.read_bytes()


def compat_files(cuda: str = "13.0") -> dict[str, bytes]:
    """The files of a compatibility package, without links, as some releases of it come."""
    folder = f"usr/local/cuda-{cuda}/compat"
    return {
        f"{folder}/libcuda.so.{DRIVER}": library("libcuda.so.1"),
        f"{folder}/libnvidia-ptxjitcompiler.so.{DRIVER}": library("libnvidia-ptxjitcompiler.so.1"),
        f"usr/share/doc/cuda-compat-{cuda.replace('.', '-')}/copyright": b"NVIDIA's license\n",
    }


def keyring_package(folder: Path, key: bytes) -> Path:
    """The package that brings the key, under the name that it has in NVIDIA's repository."""
    made = package(folder, "cuda-keyring", "1.1-1", {KEYRING: key})
    return made.rename(folder / "cuda-keyring_1.1-1_all.deb")


def write_index(folder: Path, key: Signer) -> None:
    """Write ``Packages``, ``Release`` and ``InRelease`` over the packages in a folder."""
    entries = []
    for path in sorted(folder.glob("*.deb")):
        control = subprocess.run(
            ["dpkg-deb", "--field", str(path)], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        ).stdout
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(f"{control}Filename: ./{path.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    packages = "\n".join(entries).encode()
    indexes = {"Packages": packages, "Packages.gz": gzip.compress(packages)}
    lines = [
        "Origin: Test",
        "Label: Test",
        "Architectures: amd64 arm64",
        "Date: Sat, 01 Nov 2025 00:00:00 UTC",
        "SHA256:",
    ]
    for name, content in indexes.items():
        (folder / name).write_bytes(content)
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}")
    release = folder / "Release"
    release.write_text("\n".join([*lines, ""]))
    (folder / "InRelease").write_bytes(key.sign(release))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback address and give the address."""
    handler = functools.partial(_Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def missing_tools() -> list[str]:
    """Those of ``TOOLS`` that are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]
