"""Finding and reading the CUDA forward-compatibility packages in an image.

A package is a folder with the user-mode part of a driver: ``libcuda.so.<version>`` and its compilers. The name tells
the version. A note inside the library (an ELF section) tells the CUDA level and the driver branches it runs on; the
NVIDIA Container Toolkit 1.20 goes by the same note. Packages come with images that others built, so nothing here trusts
them: a file that makes no sense gives a reason, and never costs more than a few hundred kilobytes of reading.

All paths lie below a ``root``, and links are followed as a process would that has this folder as its ``/``.
"""

from __future__ import annotations

import enum
import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from byoc_server.device.linker import SONAME, can_be_an_item, real_below, version_in_name
from byoc_server.device.version import CudaLevel, DriverVersion

_PREFIX = "libcuda.so."
_MAX_SECTION_BYTES = 64 * 1024
_MAX_SECTIONS = 4096
"""A ``libcuda`` has about 40 sections, and its note about 200 bytes."""
_MAX_REASON_CHARACTERS = 120

# Sizes and numbers from the System V ABI, edition 4.1, chapter 4, "Object Files", and its 64-bit counterpart.
_LAYOUTS = {
    1: (struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<10I")),
    2: (struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")),
}
"""Class, 32 or 64 bits -> the file's header and the header of one section."""
_LITTLE_ENDIAN = 1
_SHT_NOTE = 7
_MAX_NAMES_SHOWN = 8
_SECTION_NAME = b".note.cuda.fwd_compatibility\0"
_NOTE_HEADER = struct.Struct("<III")
_BRANCH = re.compile(r"[1-9]\d{0,4}", re.ASCII)

_LEVEL = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.\d{1,6})?", re.ASCII)
_LEVEL_IN_PATH = re.compile(r"/cuda[-/](\d{1,3})\.(\d{1,3})(?=/)", re.ASCII)
_TOOLKIT = re.compile(r"cuda-(\d{1,3})(?:\.(\d{1,3}))?", re.ASCII)


class Defect(enum.Enum):
    """Why a folder of compatibility libraries cannot be used."""

    EMPTY = "no usable libcuda"
    NO_LINK = "libcuda.so.1 is missing"
    MALFORMED = "the version cannot be read"
    UNNAMEABLE = "LD_LIBRARY_PATH cannot name a folder with ':' or ';'"
    AMBIGUOUS = "several versions"


@dataclass(frozen=True, slots=True)
class CompatNote:
    """What a compatibility library says of itself in its ELF note.

    Attributes:
        cuda: CUDA level it brings; ``None`` if the note does not say.
        branches: driver branches it runs on; empty if the note does not say.
    """

    cuda: CudaLevel | None
    branches: frozenset[int]


@dataclass(frozen=True, slots=True)
class CompatPackage:
    """One folder of compatibility libraries.

    Attributes:
        folder: the folder itself, links followed; the one that was named if there is none.
        version: of the driver it was built from; ``None`` if there is a defect.
        defect: why it cannot be used; ``None`` if it can.
        detail: the names that show the defect, for the log line.
        cuda: CUDA level: from the note, else the folder's name, else the branch; ``None`` if none of them tells.
        note: ``None`` if the library carries none.
        note_error: why the note cannot be read; empty if there is none or it can.
    """

    folder: Path
    version: DriverVersion | None
    defect: Defect | None = None
    detail: str = ""
    cuda: CudaLevel | None = None
    note: CompatNote | None = None
    note_error: str = ""


def find_packages(root: Path, explicit: str, conda_prefix: str, cuda_major: int | None) -> tuple[CompatPackage, ...]:
    """All packages, in order of preference.

    The order of the places is that of NVIDIA's images (``/usr/local/cuda``, which is a link to one toolkit of possibly
    several), then conda's, then the one NGC images move theirs to. Packages for the CUDA major that is needed go before
    the others, the highest minor first, and any package before those with a defect.

    Args:
        root: where ``usr`` lies.
        explicit: the folder somebody named; then it is the only one, even if it is not there.
        conda_prefix: the active conda environment; empty without one.
        cuda_major: that ONNX Runtime needs; ``None`` if unknown.
    """
    if explicit:
        return (inspect_folder(root / explicit.lstrip("/"), root),)
    packages = [inspect_folder(folder, root) for folder in _folders(root, conda_prefix)]
    return tuple(sorted(packages, key=lambda package: _preference(package, cuda_major)))


def inspect_folder(folder: Path, root: Path) -> CompatPackage:
    """Look at one folder.

    A library is a regular file (links count as links only) that is not empty: container toolkits leave empty files
    behind where they mounted something while an image was made.

    Args:
        folder: below ``root``; if it does not exist, it is a package without libraries.
        root: where links are followed from.
    """
    real = real_below(root, folder)
    if real is None:
        return CompatPackage(folder, None, Defect.EMPTY, "there is no such folder")
    if not can_be_an_item(str(real)):
        return CompatPackage(real, None, Defect.UNNAMEABLE)
    names = _library_names(real)
    if not names:
        return CompatPackage(real, None, Defect.EMPTY)
    versioned = {name: version_in_name(name) for name in names if name != SONAME}
    detail = ", ".join(ascii(name)[1:-1] for name in [*versioned][:_MAX_NAMES_SHOWN])
    if not versioned:
        return CompatPackage(real, None, Defect.MALFORMED, f"{SONAME} alone")
    loaded = real_below(root, real / SONAME)
    if loaded is None or loaded.parent != real or loaded.name not in names:
        return CompatPackage(real, None, Defect.NO_LINK, detail)
    readable = {name: version for name, version in versioned.items() if version is not None}
    if not readable or loaded.name not in (SONAME, *readable):
        return CompatPackage(real, None, Defect.MALFORMED, detail)
    if len(set(readable.values())) > 1:
        return CompatPackage(real, None, Defect.AMBIGUOUS, detail)
    name = min(readable) if loaded.name == SONAME else loaded.name
    return _package(real / name, readable[name], root)


def inspect_library(library: Path, root: Path) -> CompatPackage:
    """Look at one library by itself, such as a container toolkit mounts among those of the system.

    Args:
        library: the file behind all links, below ``root``.
        root: where links are followed from.
    """
    version = version_in_name(library.name)
    if version is None:
        return CompatPackage(library.parent, None, Defect.MALFORMED, ascii(library.name)[1:-1])
    return _package(library, version, root)


def read_note(path: Path) -> CompatNote | None:
    """Read the note of a library; ``None`` if it carries none.

    Reads the ELF header, the table of sections, their names and the note; the file itself may have 100 MB.

    Raises:
        ValueError: why it cannot be read, whatever the file holds.
    """
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            section = _note_section(file)
    except OSError as error:
        raise ValueError(f"not readable: {error.strerror}") from error
    return parse_note(section) if section is not None else None


def parse_note(section: bytes) -> CompatNote:
    """Read the section ``.note.cuda.fwd_compatibility``.

    Two sizes and a type, 4 bytes each; a name, padded to 4 bytes; a JSON text, such as
    ``{"format": 1, "CUDA version": "12.9", "driver": [535, 550], "device": [1, 2]}``. Its keys are compared without
    regard to case, as the container toolkit (written in Go) does. A size that reaches over the end means the end: that
    happens in libraries that NVIDIA shipped. The meaning of ``device`` is not documented, and it is not read. Source:
    NVIDIA Container Toolkit 1.20, ``cmd/nvidia-cdi-hook/cudacompat/cuda-elf-header.go``.

    Raises:
        ValueError: why it cannot be read.
    """
    if len(section) < _NOTE_HEADER.size:
        raise ValueError("the note is truncated")
    name_size, text_size, _type = _NOTE_HEADER.unpack_from(section)
    start = _NOTE_HEADER.size + -(-name_size // 4) * 4
    text = section[start : start + text_size].rstrip(b"\0")
    try:
        content = json.loads(text.decode())
    except RecursionError as error:
        raise ValueError("the note is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"the note is no JSON: {error}"[:_MAX_REASON_CHARACTERS]) from error
    if not isinstance(content, dict):
        raise ValueError("the note is no JSON object")
    fields = {key.lower(): value for key, value in content.items()}
    level = fields.get("cuda version")
    match = _LEVEL.fullmatch(level.strip()) if isinstance(level, str) else None
    cuda = (int(match[1]), int(match[2])) if match else None
    return CompatNote(cuda, _branches(fields.get("driver")))


def _package(library: Path, version: DriverVersion, root: Path) -> CompatPackage:
    try:
        note, note_error = read_note(library), ""
    except ValueError as error:
        note, note_error = None, str(error)
    cuda = (note.cuda if note is not None else None) or _level_in(library.relative_to(root)) or version.cuda
    return CompatPackage(library.parent, version, cuda=cuda, note=note, note_error=note_error)


def _level_in(path: Path) -> CudaLevel | None:
    """CUDA level in the name of a folder above: ``cuda-12.9/``, or ``cuda/12.9/`` as NVIDIA's HPC SDK has it."""
    levels = _LEVEL_IN_PATH.findall(f"/{path.as_posix()}")
    return (int(levels[-1][0]), int(levels[-1][1])) if levels else None


def _preference(package: CompatPackage, cuda_major: int | None) -> tuple[bool, bool, int]:
    if cuda_major is None:
        return package.defect is not None, False, 0
    if package.cuda is None or package.cuda[0] != cuda_major:
        return package.defect is not None, True, 0
    return package.defect is not None, False, -package.cuda[1]


def _folders(root: Path, conda_prefix: str) -> list[Path]:
    """Every folder that may be a package, in order, each once however many links lead to it."""
    local = real_below(root, root / "usr/local") or root / "usr/local"
    folders = [local / "cuda/compat", *(local / name / "compat" for name in _toolkits(local))]
    if conda_prefix:
        folders.append(root / conda_prefix.lstrip("/") / "cuda-compat")
    folders.append(local / "cuda/compat/lib.real")
    found: dict[Path, Path] = {}
    for folder in folders:
        real = real_below(root, folder)
        if real is not None and os.path.isdir(real):
            found.setdefault(real, folder)
    return list(found.values())


def _toolkits(local: Path) -> list[str]:
    """Names like ``cuda-12.9`` in a folder without links in its path, the highest version first."""
    try:
        matches = [match for name in os.listdir(local) if (match := _TOOLKIT.fullmatch(name))]
    except OSError:
        return []
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), int(match[2] or -1)), reverse=True)]


def _library_names(folder: Path) -> list[str]:
    """Names of the libraries in a folder without links in its path."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.startswith(_PREFIX)
                and entry.is_file(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_size > 0
            )
    except OSError:
        return []


def _branches(entries: object) -> frozenset[int]:
    """The driver branches of a note: a list of numbers, as such or as text; nothing if the note has no list."""
    if entries is None:
        return frozenset()
    if not isinstance(entries, list):
        raise ValueError("the note's driver branches are no list")
    return frozenset(_branch(entry) for entry in entries)


def _branch(entry: object) -> int:
    text = entry.strip() if isinstance(entry, str) else str(entry) if isinstance(entry, int) else ""
    if not _BRANCH.fullmatch(text):
        raise ValueError("a driver branch of the note is no number")
    return int(text)


def _note_section(file: BinaryIO) -> bytes | None:
    """Find the note's section by the table of section headers; as much of it as a note may have."""
    identity = _slice(file, 0, 16)
    if not identity.startswith(b"\x7fELF"):
        raise ValueError("not an ELF file")
    if identity[4] not in _LAYOUTS or identity[5] != _LITTLE_ENDIAN:
        raise ValueError("not an ELF file of this kind of machine")
    header, entry = _LAYOUTS[identity[4]]
    fields = header.unpack(_slice(file, 0, header.size))
    table_at, entry_size, count, names_index = fields[6], *fields[-3:]
    if table_at == 0 or count == 0:
        return None
    if entry_size != entry.size or count > _MAX_SECTIONS or names_index >= count:
        raise ValueError("the table of sections makes no sense")
    # of each section: name, type, flags, address, offset, size, and more
    sections = list(entry.iter_unpack(_slice(file, table_at, count * entry_size)))
    names = _content(file, sections[names_index])
    for section in sections:
        if section[1] == _SHT_NOTE and names.startswith(_SECTION_NAME, section[0]):
            return _content(file, section)
    return None


def _content(file: BinaryIO, section: Sequence[int]) -> bytes:
    return _slice(file, section[4], min(section[5], _MAX_SECTION_BYTES))


def _slice(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a file; ``ValueError`` if it has fewer."""
    content = b""
    if offset + size <= os.fstat(file.fileno()).st_size:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise ValueError("the file is truncated")
    return content
