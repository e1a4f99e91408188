"""Lays out a root folder as the compatibility modules find it in a container, with libraries made here, byte by byte.

NVIDIA's own libraries are neither needed nor shipped: what is read of them is an ELF header, a table of sections and a
note, and that fits into a kilobyte. The 64-bit files made here are complete enough for ``ldconfig``, ``readelf`` and
``dlopen``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOTE_SECTION = ".note.cuda.fwd_compatibility"

BRANCHES_128 = (470, 535, 550, 560, 565)
"""What compatibility libraries of CUDA 12.8 run on."""
BRANCHES_129 = (535, 550, 560, 565, 570, 575)
"""The same of CUDA 12.9 (575.57.08)."""
BRANCHES_131 = (535, 550, 570, 575, 580, 590)
"""The same of CUDA 13.1 (590.44.01)."""


def closed_banner(version: str, arch: str = "x86_64") -> str:
    """``/proc/driver/nvidia/version`` of the proprietary kernel module."""
    return (
        f"NVRM version: NVIDIA UNIX {arch} Kernel Module  {version}  Tue Jul 13 16:14:05 UTC 2021\n"
        "GCC version:  gcc version 7.3.1 20180712 (Red Hat 7.3.1-13) (GCC)\n"
    )


def open_banner(version: str, arch: str = "x86_64") -> str:
    """The same of the open kernel module, which the cloud's GPU machines load."""
    return (
        f"NVRM version: NVIDIA UNIX Open Kernel Module for {arch}  {version}  Release Build  "
        "(dvs-builder@U22-I3-AD05-51-5)  Tue Mar  3 19:14:46 UTC 2026\n"
        "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
    )


def note_text(branches: Iterable[int] | None, cuda: str | None = "12.9") -> bytes:
    """The JSON text of a note; what is ``None`` is left out of it."""
    content: dict[str, object] = {"format": 1}
    if cuda is not None:
        content["CUDA version"] = cuda
    if branches is not None:
        content["driver"] = list(branches)
        content["device"] = [1, 2, *range(7, 15)]
    return json.dumps(content).encode()


def note_section(text: bytes) -> bytes:
    """The section that holds the text: three sizes, the name padded to four bytes, the text."""
    name = b"NVIDIA Corporation\0"
    return struct.pack("<III", len(name), len(text), 1) + _padded(name, 4) + _padded(text, 4)


def elf_with_note(branches: Iterable[int] | None, cuda: str | None = "12.9", soname: str = "libcuda.so.1") -> bytes:
    """A library with a note for these driver branches and this CUDA level."""
    return elf(note_section(note_text(branches, cuda)), soname)


def elf_without_note(soname: str = "libcuda.so.1") -> bytes:
    """A library as older packages have it: no such section."""
    return elf(None, soname)


def elf(section: bytes | None, soname: str = "libcuda.so.1") -> bytes:
    """A 64-bit little-endian shared library whose note section holds these bytes; ``None`` = no such section."""
    header_size, program_size, section_size = 64, 56, 64
    strings = b"\0" + soname.encode() + b"\0"
    symbols = bytes(24)
    strings_at = header_size + 2 * program_size
    symbols_at = _up(strings_at + len(strings), 8)
    dynamic_at = symbols_at + len(symbols)
    entries = [(14, 1), (5, strings_at), (10, len(strings)), (6, symbols_at), (11, 24), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)

    # name, type, flags, content, link, alignment, size of an entry
    sections: list[tuple[str, int, int, bytes, int, int, int]] = [
        (".dynstr", 3, 2, strings, 0, 1, 0),
        (".dynsym", 11, 2, symbols, 1, 8, 24),
        (".dynamic", 6, 2, dynamic, 1, 8, 16),
    ]
    if section is not None:
        sections.append((NOTE_SECTION, 7, 0, section, 0, 4, 0))
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections.append((".shstrtab", 3, 0, names, 0, 1, 0))

    body, table = bytes(strings_at), bytes(section_size)
    for name, kind, flags, content, link, alignment, entry_size in sections:
        body = _padded(body, alignment)
        at = len(body)
        name_at = names.index(name.encode() + b"\0")
        address = at if flags else 0
        table += struct.pack(
            "<IIQQQQIIQQ", name_at, kind, flags, address, at, len(content), link, 0, alignment, entry_size
        )
        body += content
    body = _padded(body, 8)
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0),
        *(3, 62, 1, 0, header_size, len(body), 0),
        *(header_size, program_size, 2, section_size, len(sections) + 1, len(sections)),
    )
    size = len(body) + len(table)
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 0x1000)
    found = struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    return header + load + found + body[strings_at:] + table


@dataclass(frozen=True, slots=True)
class FakeRoot:
    """A root folder under construction; every method but ``path`` returns it again, for one to follow the other.

    Attributes:
        path: the folder, usually ``tmp_path``.
    """

    path: Path

    def file(self, name: str, content: str | bytes = b"") -> FakeRoot:
        """A file; ``name`` is relative to the root."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def link(self, name: str, target: str) -> FakeRoot:
        """A symbolic link with this text; it may lead nowhere.

        An absolute text means a place below the root to the code under test, but not to this builder: make nothing
        through such a link.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return self

    def folder(self, name: str) -> FakeRoot:
        """An empty folder."""
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self

    def banner(self, text: str) -> FakeRoot:
        """``/proc/driver/nvidia/version``; see ``closed_banner`` and ``open_banner``."""
        return self.file("proc/driver/nvidia/version", text)

    def sysfs(self, text: str) -> FakeRoot:
        """``/sys/module/nvidia/version``."""
        return self.file("sys/module/nvidia/version", text)

    def nodes(self, *names: str) -> FakeRoot:
        """Entries of ``/dev``, as plain files: ``nvidia0``, ``nvidiactl``, ``dxg``."""
        for name in names:
            self.file(f"dev/{name}")
        return self

    def compat(
        self,
        folder: str = "usr/local/cuda/compat",
        versions: Iterable[str] = ("575.57.08",),
        link: bool | str = True,
        note: Iterable[int] | bytes | None = None,
        cuda: str | None = "12.9",
    ) -> FakeRoot:
        """A folder of compatibility libraries.

        Args:
            folder: relative to the root.
            versions: one ``libcuda.so.<version>`` each; none for the package without libraries.
            link: whether there is a ``libcuda.so.1``, to the last version; or the text of that link.
            note: driver branches of the note, or the bytes of its text; ``None`` = libraries without a note.
            cuda: CUDA level that the note tells.
        """
        self.folder(folder)
        if note is None:
            library = elf_without_note()
        else:
            library = elf(note_section(note if isinstance(note, bytes) else note_text(note, cuda)))
        target = link if isinstance(link, str) else ""
        for version in versions:
            self.file(f"{folder}/libcuda.so.{version}", library)
            if link is True:
                target = f"libcuda.so.{version}"
        return self.link(f"{folder}/libcuda.so.1", target) if target else self

    def host_library(self, version: str, folder: str = "usr/lib/x86_64-linux-gnu") -> FakeRoot:
        """The driver's own ``libcuda`` with its links, as the container toolkit puts it into a container."""
        self.file(f"{folder}/libcuda.so.{version}", elf_without_note())
        self.link(f"{folder}/libcuda.so.1", f"libcuda.so.{version}")
        return self.link(f"{folder}/libcuda.so", "libcuda.so.1")


def _padded(content: bytes, alignment: int) -> bytes:
    return content + bytes(_up(len(content), alignment) - len(content))


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
