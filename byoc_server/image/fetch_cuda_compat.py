"""Fetch NVIDIA's CUDA compatibility package from an apt repository, for an image of any Debian release.

Usage: python fetch_cuda_compat.py REPOSITORY VERSION REQUIRED ROOT

REPOSITORY is the address of the folder that holds the repository's index and NVIDIA's keyring package, VERSION the
end of the package's name such as 13-0, REQUIRED true or false, ROOT the folder to put /usr/local/cuda-X.Y/compat in.

Without a repository, or where it cannot be reached, ROOT stays empty: the image then serves on drivers that are new
enough by themselves. Whatever else goes wrong fails the build, since it would be found out on an endpoint: an address
that is no repository, a package that is not signed by the keyring's owner, a package without a library (one such was
published in June 2025). The package's dependencies are not wanted, and nothing is registered with the linker: whether
the libraries may be used depends on the driver, and is decided when the server starts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

_KEYRING_PACKAGE = "cuda-keyring_1.1-1_all.deb"
_KEYRING = "usr/share/keyrings/cuda-archive-keyring.gpg"
_TIMEOUT_S = 30
_LIBRARIES = "usr/local/cuda-*/compat"
_DRIVER = "libcuda.so.*"
_LICENSES = "usr/share/doc/cuda-compat-*"


class OutOfReachError(Exception):
    """No repository answers at the address."""


class PackageError(Exception):
    """The repository answers, but what it gives cannot be used."""


def fetch(repository: str, version: str, root: Path) -> Path:
    """Put the libraries and their license below ``root``.

    Returns:
        The folder of the libraries.

    Raises:
        OutOfReachError: no repository answers.
        PackageError: it answers, but has no signed package with libraries.
    """
    if not repository:
        raise OutOfReachError("no repository was named")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _download(f"{repository.rstrip('/')}/{_KEYRING_PACKAGE}", work / _KEYRING_PACKAGE)
        _extract(work / _KEYRING_PACKAGE, work)
        package = f"cuda-compat-{version}"
        _extract(_download_signed(repository, package, work / _KEYRING, work), work)
        return _take(package, work, root)


def _download(address: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            path.write_bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise PackageError(f"{address}: {error}") from None
    except ValueError as error:
        raise PackageError(f"CUDA_COMPAT_REPOSITORY is no address: {error}") from None
    except OSError as error:  # a URLError too
        raise OutOfReachError(f"{address}: {getattr(error, 'reason', error)}") from None


def _download_signed(repository: str, package: str, keyring: Path, work: Path) -> Path:
    """Let apt fetch a package from a repository whose index is signed with a key of the keyring, and from no other."""
    sources = work / "cuda.list"
    sources.write_text(f"deb [signed-by={keyring}] {repository.rstrip('/')}/ /\n")
    (work / "lists").mkdir()
    options = [
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={work / 'lists'}",
        f"Acquire::http::Timeout={_TIMEOUT_S}",
        "APT::Sandbox::User=root",
        "APT::Update::Error-Mode=any",
    ]
    apt = ["apt-get", *(f"--option={option}" for option in options)]
    for command in (["update"], ["download", package]):
        done = subprocess.run([*apt, *command], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise PackageError(f"apt-get {' '.join(command)} failed:\n{done.stdout}")
    return next(work.glob(f"{package}_*.deb"))


def _extract(package: Path, folder: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", package, folder], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PackageError(f"{package.name} is no Debian package: {done.stderr.strip()}")


def _take(package: str, work: Path, root: Path) -> Path:
    libraries = [path for path in work.glob(f"{_LIBRARIES}/{_DRIVER}") if path.is_file() and not path.is_symlink()]
    if len(libraries) != 1:
        raise PackageError(f"{package} holds {len(libraries)} files {_DRIVER} in {_LIBRARIES} instead of one")
    compat = libraries[0].parent
    subprocess.run(["/sbin/ldconfig", "-n", compat], check=True)  # links named as programs ask for the libraries
    for folder in (compat, *work.glob(_LICENSES)):
        shutil.copytree(folder, root / folder.relative_to(work), symlinks=True)
    return root / compat.relative_to(work)


def main(repository: str, version: str, required: str, root: Path) -> int:
    """Fetch the package and say what became of it."""
    try:
        compat = fetch(repository, version, root)
    except PackageError as error:
        print(f"error: the CUDA compatibility package: {error}", file=sys.stderr)
        return 1
    except OutOfReachError as error:
        needed = required == "true"
        print(
            f"{'error' if needed else 'NOTE'}: this image gets no CUDA compatibility package ({error}). It will use a "
            f"GPU only where the driver itself supports CUDA {version.partition('-')[0]}. To add the package, build "
            "with --build-arg CUDA_COMPAT_REPOSITORY=ADDRESS; see docs/build-an-image.md",
            file=sys.stderr,
        )
        return int(needed)
    names = " ".join(sorted(path.name for path in compat.iterdir()))
    print(f"CUDA compatibility package cuda-compat-{version}: {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
