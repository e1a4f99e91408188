"""Which ``libcuda.so.1`` the dynamic linker finds, and what makes it find another.

CUDA's user-mode driver is chosen by nothing but the search of the dynamic linker: the first ``libcuda.so.1`` wins. A
program that asks for it by its bare name gets it from, in this order, ``LD_LIBRARY_PATH``, ``/etc/ld.so.cache`` and the
default folders (``ld.so(8)``, glibc 2.36). ``LD_LIBRARY_PATH`` is read once, when a process starts, so another choice
takes effect only in a new process. Everything here therefore computes: what would be found, and the value that makes a
new process find something else.

Every function that looks at files takes a ``root``, ``/`` in a container and a folder in tests. Texts (items of
``LD_LIBRARY_PATH``, environment variables, links, lines of the cache) are paths as a process inside that root sees
them; ``Path`` values begin with the root.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from byoc_server.device.version import DriverVersion

SONAME = "libcuda.so.1"

_DEFAULT_FOLDERS = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
"""Where linkers look by default, those of Debian's kind and others; a system has one or the other."""

_MOUNTED_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib")
"""Where some hosts put the driver without telling the linker: Google Kubernetes Engine, and WSL."""

_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_OLD_CACHE_MAGIC = b"ld.so-1.7.0"
_CACHE_HEADER_BYTES, _OLD_CACHE_HEADER_BYTES, _OLD_CACHE_ENTRY_BYTES = 48, 16, 12
_CACHE_ENTRY = struct.Struct("=iIIIQ")

_CACHE_FLAGS = frozenset({0x0303, 0x0A03})
"""ELF for glibc (3) together with x86-64 (0x300) or aarch64 (0xa00), both 64 bits wide.

Source: glibc, sysdeps/generic/ldconfig.h: FLAG_ELF_LIBC6, FLAG_X8664_LIB64, FLAG_AARCH64_LIB64. A cache never holds
both: ldconfig passes over libraries of other machines.
"""

_MAX_PATH_BYTES = 4096
_MAX_LINKS = 40  # as many as the kernel follows

_COMPANIONS = (
    ("libnvidia-ptxjitcompiler.so", "1"),
    ("libnvidia-nvvm.so", "4"),
    ("libcudadebugger.so", "1"),
)
"""Libraries that ``libcuda`` loads by these names, and that must be of its own version."""


@dataclass(frozen=True, slots=True)
class FoundLibrary:
    """The library that a bare ``libcuda.so.1`` resolves to.

    Attributes:
        path: the path the linker opens, below the root that was searched.
        real: the file behind all links.
        how: ``LD_LIBRARY_PATH``, ``ld.so.cache`` or ``default folder``.
    """

    path: Path
    real: Path
    how: str


def parse_cache(data: bytes) -> tuple[tuple[str, str], ...]:
    """Read the linker's cache: (SONAME, path) of each library that this kind of process can load, in order.

    It is glibc's format since 2.2, alone or behind the older block (glibc, sysdeps/generic/dl-cache.h). Entries for
    special CPUs (hwcaps) are left out, as in ``find_libcuda``.

    Raises:
        ValueError: it is not such a cache, or a damaged one.
    """
    start = 0
    if data.startswith(_OLD_CACHE_MAGIC):
        entries_end = _OLD_CACHE_HEADER_BYTES + _OLD_CACHE_ENTRY_BYTES * int.from_bytes(data[12:16], "little")
        start = (entries_end + 7) // 8 * 8
    if data[start : start + len(_CACHE_MAGIC)] != _CACHE_MAGIC:
        raise ValueError("not a cache of the dynamic linker in a format known here")
    count = int.from_bytes(data[start + 20 : start + 24], "little")
    entries = data[start + _CACHE_HEADER_BYTES :][: _CACHE_ENTRY.size * count]
    if len(data) < start + _CACHE_HEADER_BYTES or len(entries) != _CACHE_ENTRY.size * count:
        raise ValueError("the linker's cache is cut off")
    return tuple(
        (_cache_text(data, start + soname), _cache_text(data, start + path))
        for flags, soname, path, _, hwcap in _CACHE_ENTRY.iter_unpack(entries)
        if flags in _CACHE_FLAGS and not hwcap
    )


def _cache_text(data: bytes, start: int) -> str:
    end = data.find(b"\0", start, start + _MAX_PATH_BYTES)
    if end < 0:
        raise ValueError("the linker's cache refers to a text it does not hold")
    return os.fsdecode(data[start:end])


def find_libcuda(root: Path, ld_library_path: str) -> FoundLibrary | None:
    """What a bare ``dlopen("libcuda.so.1")`` opens in a process started with this ``LD_LIBRARY_PATH``.

    It does as the linker does: a file that may not be read, that is behind a dangling link or for 32-bit processes, is
    passed over. At any other file the search ends, whether it can be loaded or not; at a folder of that name it ends
    with an error. Of the cache only the first entry counts. Subfolders for special CPUs (glibc-hwcaps) and variables
    such as ``$ORIGIN`` are not looked at: no driver is installed there.

    Args:
        root: where the search takes place.
        ld_library_path: as in the environment; empty and relative items mean the current directory, below ``root``.

    Returns:
        ``None`` if nothing is found.
    """
    for path, how in _candidates(root, ld_library_path):
        real = real_below(root, path)
        if real is None or _is_passed_over(real):
            continue
        return FoundLibrary(_below(root, path), real, how) if real.is_file() else None
    return None


def _candidates(root: Path, ld_library_path: str) -> Iterator[tuple[str, str]]:
    """(path, how) of each place the linker looks at, in order."""
    for item in _items(ld_library_path):
        folder = _absolute(item)
        if folder is not None:
            yield f"{folder}/{SONAME}", "LD_LIBRARY_PATH"
    for path in _cached_paths(root)[:1]:
        yield path, "ld.so.cache"
    for folder in _DEFAULT_FOLDERS:
        yield f"{folder}/{SONAME}", "default folder"


def prepended(value: str | None, folder: str) -> str:
    """An ``LD_LIBRARY_PATH`` that begins with the folder.

    Empty items, which would mean the current directory, and repeated ones are left out.

    Args:
        value: what the variable holds; ``None`` if it is not set.
        folder: an absolute path.

    Raises:
        ValueError: the folder has a ":" or ";" in its name; the linker knows no way to write that.
    """
    if not can_be_an_item(folder):
        raise ValueError(f"a folder with ':' or ';' in its name cannot be put on LD_LIBRARY_PATH: {folder}")
    kept: dict[str, str] = {}
    for item in (folder, *_items(value or "")):
        if item:
            kept.setdefault(item.rstrip("/"), item)
    return ":".join(kept.values())


def removed(value: str, folders: Sequence[Path], root: Path) -> str:
    """An ``LD_LIBRARY_PATH`` without the items that are one of the folders, by whatever links.

    Empty items go too, and folders named "stubs": the toolkit's libraries in there only serve to link programs, and
    ``cuInit`` of such a ``libcuda`` always fails (CUDA error 34).
    """
    unwanted = _reals(root, folders)
    kept = []
    for item in filter(None, _items(value)):
        folder = _absolute(item)
        real = real_below(root, folder) if folder is not None else None
        if real not in unwanted and not _is_stubs(item) and not (real and _is_stubs(real)):
            kept.append(item)
    return ":".join(kept)


def find_host_library(
    root: Path, driver: DriverVersion | None, compat_folders: Sequence[Path], environ: Mapping[str, str]
) -> Path | None:
    """The ``libcuda`` that belongs to the kernel's driver, wherever the container's runtime has put it.

    A file named after the driver's version is the driver's. Without one, ``libcuda.so.1`` is believed only if it does
    not lead to a compatibility package and is not named after another version: NVIDIA's container toolkit can mount the
    image's compatibility libraries over the driver's own folder, where ``libcuda.so.1`` then leads to the wrong one.

    Args:
        root: where to look.
        driver: version of the kernel's driver; ``None`` if unknown.
        compat_folders: folders of compatibility packages.
        environ: ``NVIDIA_CTK_LIBCUDA_DIR``, set by the toolkit since 1.18, is looked at first.

    Returns:
        The path as it was found, links not followed; ``None`` if there is none.
    """
    announced = environ.get("NVIDIA_CTK_LIBCUDA_DIR", "")
    cached = [os.path.dirname(path) for path in _cached_paths(root)]
    texts = (announced, *cached, *_DEFAULT_FOLDERS, *_MOUNTED_FOLDERS)
    folders = [
        _below(root, text) for text in texts if text.startswith("/") and can_be_an_item(text) and not _is_stubs(text)
    ]
    unwanted = _reals(root, compat_folders)

    def is_the_hosts(path: Path) -> bool:
        real = real_below(root, path)
        if real is None or not real.is_file() or _is_passed_over(real):
            return False
        return not any(real.is_relative_to(folder) for folder in unwanted) and _fits(real.name, driver)

    named = (path for folder in folders for path in _of_version(folder, "libcuda.so", driver))
    linked = (folder / SONAME for folder in folders)
    return next(filter(is_the_hosts, (*named, *linked)), None)


def library_version(path: Path) -> DriverVersion | None:
    """The version in the name of the file behind all links; ``None`` if there is none, as in ``libcuda.so.1.1``."""
    return version_in_name(os.path.basename(os.path.realpath(path)))


def seen(path: Path, root: Path) -> str:
    """The path as a process inside the root sees it; one that does not begin with the root is left as it is."""
    return str("/" / path.relative_to(root)) if path.is_relative_to(root) else str(path)


def make_host_folder(library: Path, driver: DriverVersion | None, places: Sequence[Path] | None = None) -> Path:
    """Make a folder with nothing but links to the driver's ``libcuda`` and its companions beside it.

    At the head of ``LD_LIBRARY_PATH`` it brings back the driver's own library and shadows no other, as the system's
    library folder would. The name is unpredictable, the folder new and the user's own, so nobody else can plant a
    library in it. It lives as long as the container: every process started later needs it. Being only links, it may lie
    on a file system mounted noexec.

    Args:
        library: the driver's ``libcuda``, or a link to it.
        driver: its version, by which the companions are chosen as in ``find_host_library``; ``None`` if unknown.
        places: where to make it, the first that can be written to; ``TMPDIR`` and the usual places if ``None``.

    Raises:
        OSError: none of the places can be used; the text says why.
    """
    links = _host_links(library, driver)
    problems = []
    for place in _usual_places() if places is None else places:
        folder = place / f"byoc-driver-{os.urandom(8).hex()}"
        try:
            _check_place(place)
            folder.mkdir(mode=0o700)
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
            continue
        try:
            for name, target in links.items():
                # relative, so that they also hold where the whole tree is seen below another root
                (folder / name).symlink_to(os.path.relpath(target, os.path.realpath(folder)))
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
            _discard(folder)
            continue
        return folder
    raise OSError(f"no place for links to the driver's libraries ({'; '.join(problems)})")


def mapped_libraries(maps: str, stem: str = "libcuda.so") -> tuple[str, ...]:
    """Distinct paths, in order, whose file name begins with ``stem``, in the text of ``/proc/PID/maps``."""
    lines = (line.split(maxsplit=5) for line in maps.splitlines())
    paths = (fields[5].removesuffix(" (deleted)") for fields in lines if len(fields) == 6)
    return tuple(dict.fromkeys(path for path in paths if os.path.basename(path).startswith(stem)))


def real_below(root: Path, path: Path | str) -> Path | None:
    """The file or folder behind all links, absolute ones leading to below ``root``; ``None`` if there is nothing.

    Args:
        root: taken as it is.
        path: absolute. A text is as seen from inside the root; a ``Path`` begins with the root, or is taken as a text.
    """
    begins_with_root = isinstance(path, Path) and path.is_relative_to(root)
    inside = PurePosixPath(path).relative_to(root) if begins_with_root else PurePosixPath(path)
    ahead = [*reversed(inside.parts)]
    real, links = root, 0
    while ahead:
        part = ahead.pop()
        if part == "/":
            real = root
        elif part == "..":
            if not os.path.isdir(real):
                return None
            real = real.parent if real != root else root
        else:
            try:
                target = os.readlink(real / part)
            except (OSError, ValueError):  # not a link, not there, not for us to see or no name: that shows in the end
                real = real / part
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            ahead += reversed(PurePosixPath(target).parts)
    return real if os.path.exists(real) else None


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _reals(root: Path, folders: Sequence[Path]) -> set[Path]:
    return {real for folder in folders if (real := real_below(root, folder)) is not None}


def _items(ld_library_path: str) -> list[str]:
    """Its items; the linker takes ";" for ":", and an empty variable for none."""
    return re.split("[:;]", ld_library_path) if ld_library_path else []


def can_be_an_item(folder: str) -> bool:
    """Whether ``LD_LIBRARY_PATH`` can name this folder: the linker knows no way to write its own separators."""
    return not re.search("[:;]", folder)


def _absolute(item: str) -> str | None:
    """The folder an item means; ``None`` if it is relative to a current directory that is no more."""
    try:
        return item if item.startswith("/") else os.path.join(os.getcwd(), item)
    except OSError:
        return None


def _is_stubs(folder: str | Path) -> bool:
    return PurePosixPath(folder).name == "stubs"


def _is_passed_over(file: Path) -> bool:
    """Whether the linker goes on to the next folder although there is this file."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            head = stream.read(5)
    except OSError:
        return True
    return head == b"\x7fELF\x01"  # for 32-bit processes


def _cached_paths(root: Path) -> list[str]:
    """Paths of ``libcuda.so.1`` in the linker's cache; none if it is damaged or not there, as for the linker."""
    try:
        cache = parse_cache((root / "etc/ld.so.cache").read_bytes())
    except (OSError, ValueError):
        return []
    return [path for soname, path in cache if soname == SONAME]


def version_in_name(name: str) -> DriverVersion | None:
    """The version in the name of a library, ``libcuda.so.575.57.08``; ``None`` if there is none.

    ``libcuda.so.1.1`` is the name on WSL and Tegra: this 1 is the SONAME's, and not a version of a driver.
    """
    version = DriverVersion.parse(name.partition(".so.")[2])
    return version if version is not None and version.branch > 1 else None


def _fits(name: str, driver: DriverVersion | None) -> bool:
    """Whether a file of this name can be the driver's: it has the version, or one of the two is unknown."""
    version = version_in_name(name)
    return version is None or driver is None or version == driver


def _of_version(folder: Path, stem: str, driver: DriverVersion | None) -> list[Path]:
    """Files in the folder that are named ``<stem>.<version of the driver>``."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    wanted = (name for name in names if name.startswith(f"{stem}."))
    return [folder / name for name in wanted if driver is not None and version_in_name(name) == driver]


def _host_links(library: Path, driver: DriverVersion | None) -> dict[str, str]:
    """Name -> target of the links in the private folder."""
    real = os.path.realpath(library)
    links = {SONAME: real, "libcuda.so": real}
    for stem, number in _COMPANIONS:
        for path in (*_of_version(library.parent, stem, driver), library.parent / f"{stem}.{number}"):
            real = os.path.realpath(path)
            if os.path.isfile(real) and _fits(os.path.basename(real), driver):
                links.setdefault(f"{stem}.{number}", real)
    for path in _of_version(library.parent, "libnvidia-gpucomp.so", driver):
        links[path.name] = os.path.realpath(path)
    return links


def _discard(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            link.unlink()
        folder.rmdir()


def _usual_places() -> list[Path]:
    places = (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm", "/run")
    return [Path(place) for place in places if place]


def _check_place(place: Path) -> None:
    """Raise ``OSError`` for a place that the linker cannot be told of, or where others could swap our folder."""
    if not place.is_absolute() or not can_be_an_item(str(place)):
        raise OSError(0, "cannot be put on LD_LIBRARY_PATH")
    mode = place.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(0, "everybody may replace what is in it")
