"""Compatibility packages: finding them, and reading what their libraries say of themselves."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from byoc_server.device.compat_package import (
    CompatNote,
    CompatPackage,
    Defect,
    find_packages,
    inspect_folder,
    inspect_library,
    parse_note,
    read_note,
)
from byoc_server.device.version import DriverVersion
from tests.device.fake_root import (
    BRANCHES_128,
    BRANCHES_129,
    BRANCHES_131,
    NOTE_SECTION,
    FakeRoot,
    elf,
    elf_with_note,
    elf_without_note,
    note_section,
    note_text,
)

FOLDER = "usr/local/cuda/compat"
NOTE_129 = CompatNote((12, 9), frozenset(BRANCHES_129))


def version(text: str) -> DriverVersion:
    parsed = DriverVersion.parse(text)
    assert parsed is not None
    return parsed


def note_of(content: object) -> CompatNote:
    return parse_note(note_section(json.dumps(content).encode()))


# --- the note


@pytest.mark.parametrize(
    ("branches", "cuda", "note"),
    [
        (BRANCHES_129, "12.9", NOTE_129),
        (BRANCHES_131, "13.1", CompatNote((13, 1), frozenset(BRANCHES_131))),
        (None, "13.2", CompatNote((13, 2), frozenset())),  # Orin: no lists
        (BRANCHES_128, None, CompatNote(None, frozenset(BRANCHES_128))),
        ((), None, CompatNote(None, frozenset())),
    ],
)
def test_note(branches: tuple[int, ...] | None, cuda: str | None, note: CompatNote) -> None:
    assert parse_note(note_section(note_text(branches, cuda))) == note


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"cuda VERSION": "12.9", "DRIVER": [535]}, CompatNote((12, 9), frozenset({535}))),
        (
            {"CUDA version": " 12.9.1 ", "driver": ["535", " 550 ", 575]},
            CompatNote((12, 9), frozenset({535, 550, 575})),
        ),
        ({"CUDA version": 12.9}, CompatNote(None, frozenset())),
        ({"CUDA version": "twelve"}, CompatNote(None, frozenset())),
        ({"CUDA version": "12"}, CompatNote(None, frozenset())),
        ({"driver": None, "device": "nonsense"}, CompatNote(None, frozenset())),
        ({}, CompatNote(None, frozenset())),
    ],
)
def test_note_content(content: object, note: CompatNote) -> None:
    """Keys in any case, numbers as text, and a CUDA level only if it is one."""
    assert note_of(content) == note


@pytest.mark.parametrize(
    "drivers",
    [535, "535", {"535": 1}, [535.0], [True], [None], [[535]], [-535], [0], [10**9], ["535.54"], ["x"], [""], ["٥٣٥"]],
)
def test_lists_that_make_no_sense(drivers: object) -> None:
    """Half a list would allow or forbid the wrong drivers."""
    with pytest.raises(ValueError, match="branch"):
        note_of({"CUDA version": "12.9", "driver": drivers})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"CUDA version": "12.9", "driver": [535,]}',  # vector 48
        b"[535, 550]",
        b"null",
        b'"text"',
        b'{"driver": [535',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"driver": [' + b"9" * 10_000 + b"]}",
    ],
)
def test_texts_that_make_no_sense(text: bytes) -> None:
    with pytest.raises(ValueError, match="the note") as caught:
        parse_note(note_section(text))
    assert len(str(caught.value)) <= 120


def test_sizes_over_the_end() -> None:
    """The whole rest counts, zeros at its end not: there are libraries like that."""
    text = note_text(BRANCHES_129)
    name = b"NVIDIA Corporation\0\0"
    for size in (len(text) + 1, len(text) + 4096, 2**32 - 1):
        assert parse_note(struct.pack("<III", 19, size, 1) + name + text + b"\0\0") == NOTE_129


@pytest.mark.parametrize("size", range(1, 21))
def test_the_name_is_padded(size: int) -> None:
    text = note_text(BRANCHES_129)
    name = b"x" * size + bytes(-size % 4)
    assert parse_note(struct.pack("<III", size, len(text), 1) + name + text) == NOTE_129


@pytest.mark.parametrize("section", [b"", b"\0" * 11, b"\0" * 12, struct.pack("<III", 2**32 - 1, 5, 1) + b"{}   "])
def test_notes_too_short(section: bytes) -> None:
    with pytest.raises(ValueError, match="the note"):
        parse_note(section)


# --- the library


def lay(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "libcuda.so.575.57.08"
    path.write_bytes(content)
    return path


def test_read_note(tmp_path: Path) -> None:
    assert read_note(lay(tmp_path, elf_with_note(BRANCHES_129))) == NOTE_129
    assert read_note(lay(tmp_path, elf_without_note())) is None


def elf_32(text: bytes) -> bytes:
    """A file of 32 bits with a note and nothing else."""
    names = b"\0" + NOTE_SECTION.encode() + b"\0"
    section = note_section(text)
    header = struct.pack(
        "<4s5B7xHHIIIIIHHHHHH",
        *(b"\x7fELF", 1, 1, 1, 0, 0),
        *(3, 40, 1, 0, 0, 52 + len(section) + len(names), 0, 52, 0, 0, 40, 3, 2),
    )
    table = bytes(40)
    table += struct.pack("<10I", 1, 7, 0, 0, 52, len(section), 0, 0, 4, 0)
    table += struct.pack("<10I", 0, 3, 0, 0, 52 + len(section), len(names), 0, 0, 1, 0)
    return header + section + names + table


def test_32_bits(tmp_path: Path) -> None:
    assert read_note(lay(tmp_path, elf_32(note_text(BRANCHES_129)))) == NOTE_129


def test_a_large_library_is_not_read_whole(tmp_path: Path) -> None:
    """100 MB between the note and the table of sections, as in the real ones."""
    content = elf_with_note(BRANCHES_129)
    table_at = struct.unpack_from("<Q", content, 0x28)[0]
    moved = 100 * 1024 * 1024
    path = lay(tmp_path, content[:0x28] + struct.pack("<Q", moved) + content[0x30:table_at])
    with path.open("r+b") as file:
        file.seek(moved)
        file.write(content[table_at:])
    tracemalloc.start()
    try:
        assert read_note(path) == NOTE_129
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def patched(content: bytes, layout: str, offset: int, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


GOOD = elf_with_note(BRANCHES_129)
TABLE = struct.unpack_from("<Q", GOOD, 0x28)[0]
NOTE_ENTRY = TABLE + 4 * 64
NAMES_ENTRY = TABLE + 5 * 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"#!/bin/sh\necho not a library\n", "not an ELF file"),
        (b"\x7fELF", "truncated"),
        (GOOD[:40], "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (patched(GOOD, "B", 5, 2), "kind of machine"),  # big endian
        (patched(GOOD, "B", 4, 3), "kind of machine"),
        (patched(GOOD, "<Q", 0x28, 2**64 - 1), "truncated"),
        (patched(GOOD, "<Q", 0x28, 2**63), "truncated"),
        (patched(GOOD, "<Q", 0x28, len(GOOD) - 1), "truncated"),
        (patched(GOOD, "<H", 0x3A, 0), "no sense"),  # size of a section's header
        (patched(GOOD, "<H", 0x3A, 40), "no sense"),
        (patched(GOOD, "<H", 0x3A, 65535), "no sense"),
        (patched(GOOD, "<H", 0x3C, 65535), "no sense"),  # number of sections
        (patched(GOOD, "<H", 0x3C, 4096), "truncated"),
        (patched(GOOD, "<H", 0x3E, 6), "no sense"),  # index of the names
        (patched(GOOD, "<H", 0x3E, 65535), "no sense"),
        (patched(GOOD, "<Q", NAMES_ENTRY + 24, 2**64 - 1), "truncated"),
        (patched(GOOD, "<Q", NAMES_ENTRY + 32, 2**64 - 1), "truncated"),
        (patched(GOOD, "<Q", NOTE_ENTRY + 24, 2**64 - 1), "truncated"),
        (patched(GOOD, "<Q", NOTE_ENTRY + 24, len(GOOD)), "truncated"),
        (patched(GOOD, "<Q", NOTE_ENTRY + 32, 2**64 - 1), "truncated"),
        (patched(GOOD, "<Q", NOTE_ENTRY + 32, 0), "truncated"),
        (elf(b""), "truncated"),
        (elf(note_section(b"{")), "no JSON"),
    ],
)
def test_damaged_libraries(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_note(lay(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        patched(GOOD, "<Q", 0x28, 0),  # no table of sections
        patched(GOOD, "<H", 0x3C, 0),  # an empty one
        patched(GOOD, "<I", NOTE_ENTRY + 4, 1),  # not of the type of notes
        patched(GOOD, "<I", NOTE_ENTRY, 2),  # its name begins later
        patched(GOOD, "<I", NOTE_ENTRY, 2**32 - 1),
        patched(GOOD, "<Q", NAMES_ENTRY + 32, 5),  # the name is cut off
    ],
)
def test_libraries_without_a_note(tmp_path: Path, content: bytes) -> None:
    assert read_note(lay(tmp_path, content)) is None


def test_a_huge_section_is_read_in_part(tmp_path: Path) -> None:
    """64 KiB of it, in which the sizes may well fit."""
    path = lay(tmp_path, elf(note_section(note_text(BRANCHES_129)) + bytes(10**6)))
    assert read_note(path) == NOTE_129
    too_long = note_text(BRANCHES_129) + b" " * 10**6
    assert read_note(lay(tmp_path, elf(note_section(too_long)))) == NOTE_129
    with pytest.raises(ValueError, match="no JSON"):
        read_note(lay(tmp_path, elf(note_section(b" " * 10**6 + note_text(BRANCHES_129)))))


@pytest.mark.parametrize("name", ["missing", "folder", "fifo", "x" * 300])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """A named pipe would make the reader wait for ever."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match=r"not a regular file|not readable: File name too long"):
        read_note(tmp_path / name)


def outcome(path: Path, content: bytes) -> CompatNote | None:
    """Reads the file; a ``ValueError`` is as good an answer as any."""
    path.write_bytes(content)
    try:
        return read_note(path)
    except ValueError:
        return None


MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(st.binary(max_size=2048), st.sampled_from([b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"]))
def test_any_bytes(tmp_path: Path, content: bytes, start: bytes) -> None:
    assert outcome(tmp_path / "library", start + content) in (None, CompatNote(None, frozenset()))


@MANY
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.sampled_from([GOOD, elf_32(note_text(BRANCHES_129))]))
@example(0x28, 0, GOOD)
def test_any_single_change(tmp_path: Path, place: int, value: int, content: bytes) -> None:
    changed = bytearray(content)
    changed[place % len(content)] = value
    outcome(tmp_path / "library", bytes(changed))


@MANY
@given(st.integers(0, len(GOOD) // 4 - 1), st.integers(0, 2**64 - 1), st.integers(0, len(GOOD)))
def test_any_number_and_any_end(tmp_path: Path, place: int, value: int, end: int) -> None:
    """Offsets and sizes of any magnitude, in a file that ends anywhere."""
    changed = bytearray(GOOD) + bytes(8)
    struct.pack_into("<Q", changed, place * 4, value)
    outcome(tmp_path / "library", bytes(changed))
    outcome(tmp_path / "library", GOOD[:end])


@MANY
@given(st.binary(max_size=512))
def test_any_section(section: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_note(section), CompatNote)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@MANY
@given(JSON, JSON, JSON)
def test_any_json(cuda: Any, drivers: Any, anything: Any) -> None:
    for content in ({"CUDA version": cuda, "driver": drivers}, anything):
        try:
            note = note_of(content)
        except ValueError:
            continue
        assert all(0 < branch < 100_000 for branch in note.branches)


# --- one folder


def inspect(root: FakeRoot, folder: str = FOLDER) -> CompatPackage:
    return inspect_folder(root.path / folder, root.path)


def test_a_whole_package(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).compat(note=BRANCHES_129)
    expected = CompatPackage(tmp_path / FOLDER, version("575.57.08"), cuda=(12, 9), note=NOTE_129)
    assert inspect(root) == expected


@pytest.mark.parametrize(
    ("folder", "number", "note", "cuda"),
    [
        (FOLDER, "575.57.08", None, (12, 9)),  # by the branch
        (FOLDER, "999.1", None, None),
        ("usr/local/cuda-12.8/compat", "575.57.08", None, (12, 8)),  # by the folder, which beats the branch
        ("usr/local/cuda-12.8/compat", "999.1", None, (12, 8)),  # by the folder
        ("opt/nvidia/hpc_sdk/cuda/13.0/compat", "999.1", None, (13, 0)),
        ("usr/local/cuda-12/compat", "999.1", None, None),
        ("usr/local/cuda-12.8/compat", "575.57.08", (535,), (12, 9)),  # by the note, which beats both
    ],
)
def test_cuda_level(
    tmp_path: Path, folder: str, number: str, note: tuple[int] | None, cuda: tuple[int, int] | None
) -> None:
    assert inspect(FakeRoot(tmp_path).compat(folder, [number], note=note), folder).cuda == cuda


def test_cuda_level_behind_a_link(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).compat("usr/local/cuda-12.8/compat", ["999.1"]).link("usr/local/cuda", "cuda-12.8")
    package = inspect(root)
    assert package.folder == tmp_path / "usr/local/cuda-12.8/compat"
    assert package.cuda == (12, 8)


def test_no_note(tmp_path: Path) -> None:
    package = inspect(FakeRoot(tmp_path).compat())
    assert (package.version, package.note, package.note_error) == (version("575.57.08"), None, "")


def test_unreadable_note(tmp_path: Path) -> None:
    """Row 24, vector 48: the package is good without it; the link's text is absolute, and means a place in the root."""
    root = FakeRoot(tmp_path).compat(
        "usr/local/cuda-12.9/compat",
        note=b'{"driver": [535,]}',
        link="/usr/local/cuda-12.9/compat/libcuda.so.575.57.08",
    )
    package = inspect(root.link("usr/local/cuda", "/usr/local/cuda-12.9"))
    assert package.defect is None
    assert package.version == version("575.57.08")
    assert package.note is None
    assert package.note_error.startswith("the note is no JSON")
    assert package.cuda == (12, 9)


def test_a_library_that_is_none(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).compat()
    root.file(f"{FOLDER}/libcuda.so.575.57.08", "this is not ELF, alas")
    assert inspect(root).note_error == "not an ELF file"


@pytest.mark.parametrize(
    ("versions", "link", "defect", "detail"),
    [
        # row 5, vector 36: nothing in it; and a link that leads nowhere
        ((), False, Defect.EMPTY, ""),
        ((), "libcuda.so.575.57.08", Defect.EMPTY, ""),
        # row 6, vector 37
        (("615.31",), False, Defect.NO_LINK, "libcuda.so.615.31"),
        (("615.31",), "libcuda.so.610.10", Defect.NO_LINK, "libcuda.so.615.31"),
        (("615.31",), "libcuda.so.1", Defect.NO_LINK, "libcuda.so.615.31"),
        (("615.31",), "../lib/libcuda.so.615.31", Defect.NO_LINK, "libcuda.so.615.31"),
        (("615.31",), "../elsewhere/libcuda.so.615.31", Defect.NO_LINK, "libcuda.so.615.31"),
        (("550.54.15", "575.57.08"), False, Defect.NO_LINK, "libcuda.so.550.54.15, libcuda.so.575.57.08"),
        # row 7, vector 39
        (("1.1",), True, Defect.MALFORMED, "libcuda.so.1.1"),
        (("575",), True, Defect.MALFORMED, "libcuda.so.575"),
        (("575.57.08.01",), True, Defect.MALFORMED, "libcuda.so.575.57.08.01"),
        (("575.57.08", "old"), True, Defect.MALFORMED, "libcuda.so.575.57.08, libcuda.so.old"),
        # row 8, vector 38
        (("550.54.15", "575.57.08"), True, Defect.AMBIGUOUS, "libcuda.so.550.54.15, libcuda.so.575.57.08"),
    ],
)
def test_defects(tmp_path: Path, versions: tuple[str, ...], link: bool | str, defect: Defect, detail: str) -> None:
    root = FakeRoot(tmp_path).compat(versions=versions, link=link, note=BRANCHES_129)
    root.file(f"{FOLDER}/libnvidia-ptxjitcompiler.so.575.57.08", b"x")
    root.file("usr/local/cuda/elsewhere/libcuda.so.615.31", elf_without_note())
    assert inspect(root) == CompatPackage(tmp_path / FOLDER, None, defect, detail)


def test_no_such_folder(tmp_path: Path) -> None:
    package = inspect(FakeRoot(tmp_path))
    assert package == CompatPackage(tmp_path / FOLDER, None, Defect.EMPTY, "there is no such folder")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    assert inspect(FakeRoot(tmp_path).file(FOLDER)).defect is Defect.EMPTY


def test_empty_files_are_no_libraries(tmp_path: Path) -> None:
    """Container toolkits leave them behind in images made from a container."""
    root = (
        FakeRoot(tmp_path).file(f"{FOLDER}/libcuda.so.575.57.08").link(f"{FOLDER}/libcuda.so.1", "libcuda.so.575.57.08")
    )
    assert inspect(root).defect is Defect.EMPTY


def test_links_and_folders_are_no_libraries(tmp_path: Path) -> None:
    """Only regular files count, so that a link beside the library does not make it look like two."""
    root = FakeRoot(tmp_path).compat().link(f"{FOLDER}/libcuda.so.600.10", "libcuda.so.575.57.08")
    root.folder(f"{FOLDER}/libcuda.so.700.10")
    assert inspect(root).version == version("575.57.08")


def test_a_copy_in_place_of_the_link(tmp_path: Path) -> None:
    """Images are sometimes made by tools that copy what a link leads to."""
    root = FakeRoot(tmp_path).compat(link=False).file(f"{FOLDER}/libcuda.so.1", elf_without_note())
    assert inspect(root).version == version("575.57.08")


def test_a_copy_alone(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).file(f"{FOLDER}/libcuda.so.1", elf_with_note(BRANCHES_129))
    assert inspect(root) == CompatPackage(tmp_path / FOLDER, None, Defect.MALFORMED, "libcuda.so.1 alone")


def test_a_forgotten_copy_does_no_harm(tmp_path: Path) -> None:
    """What is loaded is what the link leads to."""
    root = FakeRoot(tmp_path).compat().file(f"{FOLDER}/libcuda.so.575.57.08.orig", elf_without_note())
    assert inspect(root).version == version("575.57.08")


def test_one_version_twice(tmp_path: Path) -> None:
    """575.64 and 575.64.00 are one version; the note is that of the library that is loaded."""
    root = FakeRoot(tmp_path).compat(versions=["575.64.00"], note=BRANCHES_129)
    root.file(f"{FOLDER}/libcuda.so.575.64", elf_without_note())
    package = inspect(root)
    assert (package.version, package.note) == (version("575.64"), NOTE_129)


def test_a_chain_of_links(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).compat(link="libcuda.so").link(f"{FOLDER}/libcuda.so", "./libcuda.so.575.57.08")
    assert inspect(root).version == version("575.57.08")


def test_one_library(tmp_path: Path) -> None:
    """As a container toolkit mounts it among the system's libraries, next to the driver's own."""
    folder = tmp_path / "usr/lib/x86_64-linux-gnu"
    root = FakeRoot(tmp_path).host_library("515.105.01")
    root.file("usr/lib/x86_64-linux-gnu/libcuda.so.570.124.06", elf_with_note(BRANCHES_128, "12.8"))
    package = inspect_library(folder / "libcuda.so.570.124.06", tmp_path)
    note = CompatNote((12, 8), frozenset(BRANCHES_128))
    assert package == CompatPackage(folder, version("570.124.06"), cuda=(12, 8), note=note)


@pytest.mark.parametrize("name", ["libcuda.so.1.1", "libcuda.so.1", "driver.575.57.08"])
def test_one_library_without_a_version(tmp_path: Path, name: str) -> None:
    assert inspect_library(tmp_path / name, tmp_path) == CompatPackage(tmp_path, None, Defect.MALFORMED, name)


# --- all of them


def found(root: FakeRoot, cuda_major: int | None = None, conda_prefix: str = "", explicit: str = "") -> list[str]:
    packages = find_packages(root.path, explicit, conda_prefix, cuda_major)
    return [package.folder.relative_to(root.path).as_posix() for package in packages]


def test_no_package(tmp_path: Path) -> None:
    """Row 4, vector 35; a toolkit without the package is none, and neither is a file of that name."""
    assert found(FakeRoot(tmp_path), conda_prefix="/opt/conda") == []
    root = FakeRoot(tmp_path).folder("usr/local/cuda-12.9/lib64").file("usr/local/cuda-13.0/compat")
    assert found(root, conda_prefix="/opt/conda") == []


def several(tmp_path: Path) -> FakeRoot:
    root = FakeRoot(tmp_path)
    root.compat("usr/local/cuda-12.9/compat", ["575.57.08"]).link("usr/local/cuda", "cuda-12.9")
    root.compat("usr/local/cuda-12.10/compat", ["576.10"], note=BRANCHES_129, cuda="12.10")
    root.compat("usr/local/cuda-13.0/compat", ["580.95.05"]).compat("usr/local/cuda-9.2/compat", ["396.10"])
    root.compat("usr/local/cuda-12.8/compat", ["570.124.06"])
    root.compat("opt/conda/cuda-compat", ["590.48.01"]).compat("usr/local/cuda-12.9/compat/lib.real", ["575.57.08"])
    return root.compat("usr/local/cuda-old/compat").compat("usr/local/cuda-12.9.bak/compat")


def test_order_of_the_places(tmp_path: Path) -> None:
    """Highest number first, as numbers; one folder is found once, however many names it has."""
    assert found(several(tmp_path), conda_prefix="/opt/conda") == [
        "usr/local/cuda-12.9/compat",
        "usr/local/cuda-13.0/compat",
        "usr/local/cuda-12.10/compat",
        "usr/local/cuda-12.8/compat",
        "usr/local/cuda-9.2/compat",
        "opt/conda/cuda-compat",
        "usr/local/cuda-12.9/compat/lib.real",
    ]


def test_the_right_major_goes_first(tmp_path: Path) -> None:
    """Row 9: the highest minor of it first."""
    assert found(several(tmp_path), 13, "/opt/conda") == [
        "opt/conda/cuda-compat",
        "usr/local/cuda-13.0/compat",
        "usr/local/cuda-12.9/compat",
        "usr/local/cuda-12.10/compat",
        "usr/local/cuda-12.8/compat",
        "usr/local/cuda-9.2/compat",
        "usr/local/cuda-12.9/compat/lib.real",
    ]
    assert found(several(tmp_path / "12"), 12)[:4] == [
        "usr/local/cuda-12.10/compat",
        "usr/local/cuda-12.9/compat",
        "usr/local/cuda-12.9/compat/lib.real",
        "usr/local/cuda-12.8/compat",
    ]
    assert found(several(tmp_path / "11"), 11)[0] == "usr/local/cuda-12.9/compat"


@pytest.mark.parametrize("folder", ["opt/cuda:12", "opt/cuda;12"])
def test_a_folder_that_the_search_path_cannot_name(tmp_path: Path, folder: str) -> None:
    root = FakeRoot(tmp_path).compat(f"{folder}/compat").link("usr/local/cuda", f"/{folder}")
    assert inspect(root).defect is Defect.UNNAMEABLE


def test_names_in_a_message_are_few_and_printable(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path)
    for number in range(100):
        root.file(f"{FOLDER}/libcuda.so.x\nforged {number}", b"x")
    detail = inspect(root).detail
    assert "\n" not in detail
    assert len(detail) < 400


def test_packages_without_a_known_level_go_last(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).compat(versions=["999.1"]).compat("usr/local/cuda-12.9/compat")
    assert found(root) == [FOLDER, "usr/local/cuda-12.9/compat"]
    assert found(root, 12) == ["usr/local/cuda-12.9/compat", FOLDER]


def test_defects_go_last(tmp_path: Path) -> None:
    """NVIDIA's NGC images keep the libraries one folder deeper, and the folder above looks empty."""
    root = FakeRoot(tmp_path).compat("usr/local/cuda-13.0/compat/lib.real", ["580.95.05"])
    root.link("usr/local/cuda", "/usr/local/cuda-13.0")
    assert found(root, 13) == ["usr/local/cuda-13.0/compat/lib.real", "usr/local/cuda-13.0/compat"]
    assert found(root, 12) == ["usr/local/cuda-13.0/compat/lib.real", "usr/local/cuda-13.0/compat"]


def test_links_lead_to_one_folder(tmp_path: Path) -> None:
    """As the system of alternatives lays them."""
    root = FakeRoot(tmp_path).compat("usr/local/cuda-12.9/compat").link("usr/local/cuda", "/etc/alternatives/cuda")
    root.link("etc/alternatives/cuda", "/usr/local/cuda-12").link("usr/local/cuda-12", "cuda-12.9")
    root.link("opt/conda/cuda-compat", "../../../../usr/local/cuda-12.9/compat")
    assert found(root, conda_prefix="/opt/conda") == ["usr/local/cuda-12.9/compat"]
    assert inspect(root).version == version("575.57.08")


def test_links_in_a_circle(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path).link("usr/local/cuda", "cuda-12").link("usr/local/cuda-12", "cuda")
    assert found(root) == []


@pytest.mark.parametrize("explicit", ["/opt/compat", "/opt/compat/", "opt/compat"])
def test_named_by_hand(tmp_path: Path, explicit: str) -> None:
    """Then nothing else is looked at."""
    root = several(tmp_path).compat("opt/compat", ["560.35.05"])
    assert found(root, 13, "/opt/conda", explicit) == ["opt/compat"]
    assert find_packages(tmp_path, explicit, "", None)[0].version == version("560.35.05")


def test_named_by_hand_and_not_there(tmp_path: Path) -> None:
    (package,) = find_packages(several(tmp_path).path, "/opt/compat", "", None)
    assert package == CompatPackage(tmp_path / "opt/compat", None, Defect.EMPTY, "there is no such folder")


def test_damaged_root(tmp_path: Path) -> None:
    assert found(FakeRoot(tmp_path).file("usr/local")) == []
