"""What the dynamic linker finds: against folders made up, and against the linker itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from byoc_server.device.linker import (
    FoundLibrary,
    find_host_library,
    find_libcuda,
    library_version,
    make_host_folder,
    mapped_libraries,
    parse_cache,
    prepended,
    real_below,
    removed,
    seen,
)
from byoc_server.device.version import DriverVersion
from tests.device.dummy_libraries import build_jit_compiler, build_libcuda, needs_compiler

X86_64, AARCH64, I386 = 0x0303, 0x0A03, 0x0003
SYSTEM = "/usr/lib/x86_64-linux-gnu"
COMPAT = "/usr/local/cuda-12.9/compat"


def driver(text: str) -> DriverVersion:
    version = DriverVersion.parse(text)
    assert version is not None
    return version


def place(root: Path, *names: str) -> None:
    """Make files (``name``) and links (``name -> target``)."""
    for name in names:
        path, _, target = name.partition(" -> ")
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        if target:
            file.symlink_to(target)
        else:
            file.write_bytes(b"\x7fELF\x02")


def cache_of(*entries: tuple[str, str], flags: int = X86_64, hwcap: int = 0, old: int | None = None) -> bytes:
    """A cache with these (SONAME, path), behind ``old`` entries in the older format if that is a number."""
    strings, places = b"", []
    start = 48 + 24 * len(entries)
    for pair in entries:
        for text in pair:
            places.append(start + len(strings))
            strings += os.fsencode(text) + b"\0"
    lines = [
        struct.pack("=iIIIQ", flags, soname, path, 0, hwcap)
        for soname, path in zip(places[::2], places[1::2], strict=True)
    ]
    head = b"glibc-ld.so.cache1.1" + struct.pack("=II20x", len(entries), len(strings))
    before = b""
    if old is not None:
        before = b"ld.so-1.7.0\0" + struct.pack("=I", old) + bytes(12 * old)
        before += bytes(-len(before) % 8)
    return before + head + b"".join(lines) + strings


def put_cache(root: Path, *paths: str) -> None:
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/ld.so.cache").write_bytes(cache_of(*(("libcuda.so.1", path) for path in paths)))


PAIRS = (("liba.so.1", "/lib/liba.so.1"), ("libcuda.so.1", "/x/libcuda.so.1"), ("libcuda.so.1", "/y/libcuda.so.1"))


@pytest.mark.parametrize("flags", [X86_64, AARCH64])
@pytest.mark.parametrize("old", [None, 0, 1, 2])
def test_cache(flags: int, old: int | None) -> None:
    assert parse_cache(cache_of(*PAIRS, flags=flags, old=old)) == PAIRS


def test_cache_entries_that_do_not_count() -> None:
    assert parse_cache(cache_of(*PAIRS, flags=I386)) == ()
    assert parse_cache(cache_of(*PAIRS, hwcap=1 << 62)) == ()
    assert parse_cache(cache_of()) == ()


def test_a_path_that_is_no_utf_8() -> None:
    pairs = (("libcuda.so.1", os.fsdecode(b"/\xff/libcuda.so.1")),)
    assert parse_cache(cache_of(*pairs)) == pairs


WHOLE = cache_of(*PAIRS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ld.so-1.7.0\0\0\0\0\0",
        b"ld.so-1.7.0\0\xff\xff\xff\xff" + WHOLE,
        b"glibc-ld.so.cache1.2" + WHOLE[20:],
        WHOLE[:20],
        WHOLE[:47],
        WHOLE[:48],
        WHOLE[:-1],
        WHOLE[:20] + b"\xff\xff\xff\xff" + WHOLE[24:],
        WHOLE[:52] + b"\xff\xff\xff\xff" + WHOLE[56:],
        cache_of(("libcuda.so.1", "x" * 4096)),
    ],
)
def test_a_damaged_cache(data: bytes) -> None:
    with pytest.raises(ValueError, match="cache"):
        parse_cache(data)


@given(st.binary(), st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@example(b"", 0, 0)
def test_any_bytes_are_a_cache_or_not(garbage: bytes, start: int, end: int) -> None:
    for data in (garbage, WHOLE[:start] + garbage + WHOLE[end:], b"ld.so-1.7.0" + garbage):
        try:
            entries = parse_cache(data)
        except ValueError:
            continue
        assert all(isinstance(text, str) for entry in entries for text in entry)


def test_the_cache_of_this_machine() -> None:
    program = shutil.which("ldconfig", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if program is None or not os.path.exists("/etc/ld.so.cache"):
        pytest.skip("this machine has no ldconfig or no cache")
    lines = subprocess.run([program, "-p"], capture_output=True, text=True, check=True, timeout=20).stdout
    entries = re.findall(r"^\t(\S+) \((.*?)\) => (.*)$", lines, re.MULTILINE)
    kind = re.compile(r"libc6,(x86-64|AArch64)(?!.*hwcap)")
    expected = [(soname, path) for soname, details, path in entries if kind.match(details)]
    assert expected
    assert list(parse_cache(Path("/etc/ld.so.cache").read_bytes())) == expected


def found(root: Path, ld_library_path: str = "") -> tuple[str, str, str] | None:
    """(path, real, how) without the root."""
    library = find_libcuda(root, ld_library_path)
    if library is None:
        return None
    return f"/{library.path.relative_to(root)}", f"/{library.real.relative_to(root)}", library.how


def test_the_order_of_places(tmp_path: Path) -> None:
    place(tmp_path, "/a/libcuda.so.1", "/b/libcuda.so.1", "/c/libcuda.so.1", f"{SYSTEM}/libcuda.so.1")
    assert found(tmp_path) == (f"{SYSTEM}/libcuda.so.1", f"{SYSTEM}/libcuda.so.1", "default folder")
    put_cache(tmp_path, "/c/libcuda.so.1", "/b/libcuda.so.1")
    assert found(tmp_path) == ("/c/libcuda.so.1", "/c/libcuda.so.1", "ld.so.cache")
    assert found(tmp_path, "/nowhere:/b:/a") == ("/b/libcuda.so.1", "/b/libcuda.so.1", "LD_LIBRARY_PATH")
    assert found(tmp_path, "/nowhere;/a/;/b") == ("/a/libcuda.so.1", "/a/libcuda.so.1", "LD_LIBRARY_PATH")


@pytest.mark.parametrize(
    "folder", ["/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
)
def test_default_folders(tmp_path: Path, folder: str) -> None:
    place(tmp_path, f"{folder}/libcuda.so.1")
    assert found(tmp_path) == (f"{folder}/libcuda.so.1", f"{folder}/libcuda.so.1", "default folder")


def test_what_may_not_be_seen_or_named_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> str:
        raise PermissionError(13, "Permission denied")

    assert real_below(tmp_path, "/a\0b") is None
    monkeypatch.setattr(os, "readlink", refuse)
    assert real_below(tmp_path, "/nowhere/x") is None


def test_nothing_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, "/a:b:") is None


def test_links_lead_to_below_the_root(tmp_path: Path) -> None:
    place(
        tmp_path,
        "/usr/local/cuda-12.9/compat/libcuda.so.575.57.08",
        "/usr/local/cuda-12.9/compat/libcuda.so.1 -> /usr/local/cuda-12.9/compat/libcuda.so.575.57.08",
        "/usr/local/cuda -> cuda-12.9",
        "/opt/up -> ../../../../usr/./local/cuda/compat",
        "/opt/loop -> loop",
        "/opt/top -> ../../..",
    )
    real = f"{COMPAT}/libcuda.so.575.57.08"
    how = "LD_LIBRARY_PATH"
    for folder in ("/usr/local/cuda/compat", "/opt/up", "/opt/../opt/up/"):
        assert found(tmp_path, folder) == (f"{folder.rstrip('/')}/libcuda.so.1", real, how)
    assert found(tmp_path, "/opt/loop") is None
    assert real_below(tmp_path, tmp_path / "opt/up") == real_below(tmp_path, "/opt/up") == tmp_path / COMPAT[1:]
    assert real_below(tmp_path, "/opt/top") == real_below(tmp_path, tmp_path) == real_below(tmp_path, "/") == tmp_path
    assert real_below(tmp_path, "/opt/loop") is None
    assert real_below(tmp_path, "/opt/gone/../up") is None
    assert real_below(tmp_path, Path("/opt/up")) == tmp_path / COMPAT[1:]


def test_what_the_linker_passes_over(tmp_path: Path) -> None:
    place(tmp_path, "/dangling/libcuda.so.1 -> nowhere", "/i386/libcuda.so.1", "/good/libcuda.so.1")
    (tmp_path / "i386/libcuda.so.1").write_bytes(b"\x7fELF\x01 for 32-bit processes")
    assert found(tmp_path, "/dangling:/i386:/good") == ("/good/libcuda.so.1", "/good/libcuda.so.1", "LD_LIBRARY_PATH")


def test_a_folder_of_that_name_ends_the_search(tmp_path: Path) -> None:
    """The linker then gives up with "cannot read file data: Is a directory"."""
    place(tmp_path, "/folder/libcuda.so.1/x", "/good/libcuda.so.1")
    assert found(tmp_path, "/folder:/good") is None


def test_only_the_first_entry_of_the_cache_counts(tmp_path: Path) -> None:
    place(tmp_path, "/b/libcuda.so.1", f"{SYSTEM}/libcuda.so.1")
    put_cache(tmp_path, "/gone/libcuda.so.1", "/b/libcuda.so.1")
    assert found(tmp_path) == (f"{SYSTEM}/libcuda.so.1", f"{SYSTEM}/libcuda.so.1", "default folder")


def test_a_damaged_cache_is_no_cache(tmp_path: Path) -> None:
    place(tmp_path, "/etc/ld.so.cache", "/lib/libcuda.so.1")
    assert found(tmp_path) == ("/lib/libcuda.so.1", "/lib/libcuda.so.1", "default folder")


@pytest.mark.parametrize("value", [":", "/a:", ":/a", "/a::/b", ".", "sub/..", ";"])
def test_empty_and_relative_items_mean_the_current_directory(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    place(tmp_path, "/libcuda.so.1")
    library = find_libcuda(Path("/"), value)
    assert library is not None
    assert library.real == tmp_path.resolve() / "libcuda.so.1"


def test_an_empty_value_means_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "root", f"{tmp_path}/libcuda.so.1")
    assert found(tmp_path / "root") is None
    assert found(tmp_path / "root", ":") is not None


def test_a_current_directory_that_is_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert found(tmp_path, ":here") is None
    assert removed("here:/a", [tmp_path / "b"], tmp_path) == "here:/a"


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_file_that_may_not_be_read(public_folder: Path) -> None:
    place(public_folder, "/a/libcuda.so.1", "/b/libcuda.so.1")
    (public_folder / "a/libcuda.so.1").chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(54321)  # root may read everything
    try:
        assert found(public_folder, "/a:/b") == ("/b/libcuda.so.1", "/b/libcuda.so.1", "LD_LIBRARY_PATH")
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "/c"),
        ("", "/c"),
        (":", "/c"),
        ("/a", "/c:/a"),
        ("/a:/b", "/c:/a:/b"),
        (":/a::/b:", "/c:/a:/b"),
        ("/a;/b", "/c:/a:/b"),
        ("/a:/c:/b", "/c:/a:/b"),
        ("/a:/c/:/b/:/b:/a", "/c:/a:/b/"),
        ("lib:/", "/c:lib:/"),
    ],
)
def test_prepended(value: str | None, expected: str) -> None:
    assert prepended(value, "/c") == expected


@pytest.mark.parametrize("folder", ["/a:b", "/a;b"])
def test_a_folder_that_no_value_can_name(folder: str) -> None:
    with pytest.raises(ValueError, match="LD_LIBRARY_PATH"):
        prepended("/x", folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        (":", ""),
        ("/a:/b", "/a:/b"),
        (f"{COMPAT}:/a", "/a"),
        (f"/a:{COMPAT}/:/b", "/a:/b"),
        ("/usr/local/cuda/compat:/a", "/a"),
        ("/opt/ngc/lib:/a", "/a"),
        ("/opt/../usr/local/cuda/compat;/a", "/a"),
        ("/usr/local/cuda/lib64/stubs:/a", "/a"),
        ("/usr/local/cuda/lib64/stubs/:/a", "/a"),
        ("stubs:lib64/stubs:/a", "/a"),
        ("/opt/links:/a", "/a"),
        ("/nowhere:rel:/a", "/nowhere:rel:/a"),
        ("/usr/local/cuda/lib64", "/usr/local/cuda/lib64"),
    ],
)
def test_removed(tmp_path: Path, value: str, expected: str) -> None:
    place(
        tmp_path,
        f"{COMPAT}/libcuda.so.1",
        "/usr/local/cuda -> cuda-12.9",
        "/usr/local/cuda-12.9/lib64/stubs/libcuda.so",
        "/opt/ngc/lib -> /usr/local/cuda/compat",
        "/opt/links -> /usr/local/cuda/lib64/stubs",
    )
    for folder in (COMPAT, "/usr/local/cuda/compat"):
        assert removed(value, [tmp_path / folder[1:], tmp_path / "not there"], tmp_path) == expected


def test_a_relative_item_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compat").mkdir()
    monkeypatch.chdir(tmp_path)
    assert removed("compat:./compat/:other", [tmp_path / "compat"], Path("/")) == "other"


def host(
    root: Path, version: str | None, folders: Sequence[str] = (COMPAT,), environ: dict[str, str] | None = None
) -> str | None:
    known = driver(version) if version else None
    library = find_host_library(root, known, [root / folder[1:] for folder in folders], environ or {})
    return f"/{library.relative_to(root)}" if library else None


@pytest.mark.parametrize(
    "folder",
    [
        SYSTEM,
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/usr/local/nvidia/lib",
        "/usr/lib/wsl/lib",
    ],
)
@pytest.mark.parametrize("version", ["535.54.03", "535.54.3", None])
def test_where_the_host_s_library_is(tmp_path: Path, folder: str, version: str | None) -> None:
    place(tmp_path, f"{folder}/libcuda.so.535.54.03", f"{folder}/libcuda.so.1 -> libcuda.so.535.54.03")
    assert host(tmp_path, version) == f"{folder}/libcuda.so.{'535.54.03' if version else '1'}"
    assert host(tmp_path, "580.95.05") is None


def test_a_folder_that_is_announced_or_cached(tmp_path: Path) -> None:
    place(tmp_path, "/ctk/libcuda.so.1", "/cached/libcuda.so.1", f"{SYSTEM}/libcuda.so.1")
    assert host(tmp_path, "535.54.03") == f"{SYSTEM}/libcuda.so.1"
    put_cache(tmp_path, f"{COMPAT}/libcuda.so.1", "/cached/libcuda.so.1")
    assert host(tmp_path, "535.54.03") == "/cached/libcuda.so.1"
    assert host(tmp_path, "535.54.03", environ={"NVIDIA_CTK_LIBCUDA_DIR": "/ctk"}) == "/ctk/libcuda.so.1"
    assert host(tmp_path, "535.54.03", environ={"NVIDIA_CTK_LIBCUDA_DIR": "/gone"}) == "/cached/libcuda.so.1"
    assert host(tmp_path, "535.54.03", environ={"NVIDIA_CTK_LIBCUDA_DIR": ""}) == "/cached/libcuda.so.1"


def test_a_file_with_the_driver_s_version_wins_everywhere(tmp_path: Path) -> None:
    place(tmp_path, "/ctk/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.535.54.03")
    environ = {"NVIDIA_CTK_LIBCUDA_DIR": "/ctk"}
    assert host(tmp_path, "535.54.03", environ=environ) == "/usr/lib/wsl/lib/libcuda.so.535.54.03"


def test_no_library_of_a_compatibility_package_is_the_host_s(tmp_path: Path) -> None:
    place(
        tmp_path,
        f"{COMPAT}/libcuda.so.575.57.08",
        f"{COMPAT}/lib.real/libcuda.so.1",
        f"{SYSTEM}/libcuda.so.1 -> {COMPAT}/libcuda.so.575.57.08",
        f"/usr/lib64/libcuda.so.575.57.08 -> {COMPAT}/libcuda.so.575.57.08",
        f"/lib -> {COMPAT}/lib.real",
    )
    put_cache(tmp_path, f"{COMPAT}/libcuda.so.1")
    for version in ("575.57.08", "535.54.03", None):
        assert host(tmp_path, version) is None


def test_what_cannot_be_the_host_s(tmp_path: Path) -> None:
    place(
        tmp_path,
        f"{SYSTEM}/libcuda.so.1 -> gone",
        "/usr/lib64/libcuda.so.1/folder",
        "/usr/local/nvidia/lib/libcuda.so.1",
        "/stubs/libcuda.so.1",
    )
    (tmp_path / "usr/local/nvidia/lib/libcuda.so.1").write_bytes(b"\x7fELF\x01")
    put_cache(tmp_path, "/stubs/libcuda.so.1")
    assert host(tmp_path, "535.54.03") is None


def test_the_library_of_wsl_has_no_driver_s_version(tmp_path: Path) -> None:
    folder = "/usr/lib/wsl/lib"
    place(tmp_path, f"{folder}/libcuda.so.1.1", f"{folder}/libcuda.so.1 -> libcuda.so.1.1")
    assert host(tmp_path, "546.33") == f"{folder}/libcuda.so.1"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libcuda.so.535.54.03", "535.54.03"),
        ("libcuda.so.580.142", "580.142"),
        ("libcuda.so.1", None),
        ("libcuda.so.1.1", None),
        ("libcuda.so", None),
        ("x", None),
    ],
)
def test_the_version_of_a_library(tmp_path: Path, name: str, version: str | None) -> None:
    place(tmp_path, name, "folder/link -> ../" + name)
    expected = driver(version) if version else None
    assert library_version(tmp_path / name) == library_version(tmp_path / "folder/link") == expected


# The vectors of the compatibility rules that are about the linker, as far as it goes.


def package(root: Path, link: str = "libcuda.so.575.57.08") -> None:
    place(
        root,
        f"{COMPAT}/libcuda.so.575.57.08",
        f"{COMPAT}/libcuda.so.1 -> {link}",
        "/usr/local/cuda -> cuda-12.9",
        f"{SYSTEM}/libcuda.so.535.54.03",
        f"{SYSTEM}/libcuda.so.1 -> libcuda.so.535.54.03",
    )


COMPAT_LIBRARY = f"{COMPAT}/libcuda.so.575.57.08"
HOST_LIBRARY = f"{SYSTEM}/libcuda.so.535.54.03"


@pytest.mark.parametrize("link", ["libcuda.so.575.57.08", f"{COMPAT}/libcuda.so.575.57.08"])
def test_compat_first_on_the_path_is_active(tmp_path: Path, link: str) -> None:
    """Also with an absolute link."""
    package(tmp_path, link)
    value = "/usr/local/cuda/compat:/usr/local/nvidia/lib64"
    assert found(tmp_path, value) == ("/usr/local/cuda/compat/libcuda.so.1", COMPAT_LIBRARY, "LD_LIBRARY_PATH")


def test_compat_is_removed_by_its_real_path(tmp_path: Path) -> None:
    package(tmp_path)
    value = removed(COMPAT, [tmp_path / "usr/local/cuda/compat"], tmp_path)
    assert value == ""
    assert found(tmp_path, value) == (f"{SYSTEM}/libcuda.so.1", HOST_LIBRARY, "default folder")


def test_compat_in_the_cache_is_active_and_the_host_s_library_is_still_found(tmp_path: Path) -> None:
    package(tmp_path)
    put_cache(tmp_path, f"{COMPAT}/libcuda.so.1", f"{SYSTEM}/libcuda.so.1")
    assert found(tmp_path) == (f"{COMPAT}/libcuda.so.1", COMPAT_LIBRARY, "ld.so.cache")
    assert host(tmp_path, "535.54.03") == HOST_LIBRARY
    assert host(tmp_path, None) == f"{SYSTEM}/libcuda.so.1"


def test_compat_mounted_over_the_system_s_folder(tmp_path: Path) -> None:
    place(
        tmp_path,
        f"{COMPAT}/libcuda.so.570.124.06",
        f"{SYSTEM}/libcuda.so.1 -> libcuda.so.570.124.06",
        f"{SYSTEM}/libcuda.so.570.124.06",
        f"{SYSTEM}/libcuda.so.515.105.01",
    )
    assert found(tmp_path) == (f"{SYSTEM}/libcuda.so.1", f"{SYSTEM}/libcuda.so.570.124.06", "default folder")
    assert host(tmp_path, "515.105.01") == f"{SYSTEM}/libcuda.so.515.105.01"
    assert host(tmp_path, "515.105.02") is None


def test_an_empty_value_before_and_after(tmp_path: Path) -> None:
    package(tmp_path)
    assert found(tmp_path, "") == (f"{SYSTEM}/libcuda.so.1", HOST_LIBRARY, "default folder")
    value = prepended("", COMPAT)
    assert value == COMPAT
    assert found(tmp_path, value) == (f"{COMPAT}/libcuda.so.1", COMPAT_LIBRARY, "LD_LIBRARY_PATH")


def links_in(folder: Path) -> dict[str, str]:
    return {path.name: os.path.basename(os.readlink(path)) for path in folder.iterdir()}


def test_the_host_s_folder(tmp_path: Path) -> None:
    names = ["libnvidia-ptxjitcompiler.so", "libcudadebugger.so"]
    place(
        tmp_path,
        "libcuda.so.535.54.03",
        *(f"{name}.535.54.03" for name in names),
        *(f"{name}.1 -> {name}.535.54.03" for name in names),
        "libnvidia-nvvm.so.4",
        "libnvidia-gpucomp.so.535.54.03",
        "libnvidia-gpucomp.so.575.57.08",
        "libcudart.so.1",
    )
    folder = make_host_folder(tmp_path / "libcuda.so.535.54.03", driver("535.54.3"), [tmp_path])
    assert links_in(folder) == {
        "libcuda.so.1": "libcuda.so.535.54.03",
        "libcuda.so": "libcuda.so.535.54.03",
        "libnvidia-ptxjitcompiler.so.1": "libnvidia-ptxjitcompiler.so.535.54.03",
        "libnvidia-nvvm.so.4": "libnvidia-nvvm.so.4",
        "libcudadebugger.so.1": "libcudadebugger.so.535.54.03",
        "libnvidia-gpucomp.so.535.54.03": "libnvidia-gpucomp.so.535.54.03",
    }
    assert all(path.resolve().parent == tmp_path.resolve() for path in folder.iterdir())
    status = folder.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.geteuid())


def test_companions_of_another_version_are_not_taken(tmp_path: Path) -> None:
    """As where the toolkit has mounted the image's libraries beside the driver's."""
    jit, nvvm = "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so"
    place(
        tmp_path,
        "libcuda.so.515.105.01",
        f"{jit}.515.105.01",
        f"{jit}.570.124.06",
        f"{jit}.1 -> {jit}.570.124.06",
        f"{nvvm}.570.124.06",
        f"{nvvm}.4 -> {nvvm}.570.124.06",
        "libcudadebugger.so.1 -> gone",
    )
    folder = make_host_folder(tmp_path / "libcuda.so.515.105.01", driver("515.105.01"), [tmp_path])
    expected = {"libcuda.so.1", "libcuda.so"}
    assert links_in(folder) == {**dict.fromkeys(expected, "libcuda.so.515.105.01"), f"{jit}.1": f"{jit}.515.105.01"}


def test_a_library_behind_a_link(tmp_path: Path) -> None:
    place(tmp_path, "libcuda.so.1 -> libcuda.so.1.1", "libcuda.so.1.1")
    folder = make_host_folder(tmp_path / "libcuda.so.1", driver("546.33"), [tmp_path])
    assert links_in(folder) == {"libcuda.so.1": "libcuda.so.1.1", "libcuda.so": "libcuda.so.1.1"}


def test_the_host_s_folder_below_another_root(tmp_path: Path) -> None:
    package(tmp_path)
    put_cache(tmp_path, f"{COMPAT}/libcuda.so.1")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "link").symlink_to("tmp")
    for name in ("tmp", "link"):
        folder = make_host_folder(tmp_path / HOST_LIBRARY[1:], driver("535.54.03"), [tmp_path / name])
        path = seen(folder, tmp_path)
        assert path.startswith(f"/{name}/byoc-driver-")
        assert found(tmp_path, prepended("", path)) == (f"{path}/libcuda.so.1", HOST_LIBRARY, "LD_LIBRARY_PATH")


def test_paths_as_seen_from_inside(tmp_path: Path) -> None:
    assert seen(tmp_path / "usr/lib", tmp_path) == seen(Path("/usr/lib"), tmp_path) == "/usr/lib"
    assert seen(Path("/usr/lib"), Path("/")) == "/usr/lib"
    assert seen(tmp_path, tmp_path) == "/"


def test_each_host_s_folder_is_new(tmp_path: Path) -> None:
    place(tmp_path, "libcuda.so.1")
    assert len({make_host_folder(tmp_path / "libcuda.so.1", driver("535.54"), [tmp_path]) for _ in range(3)}) == 3


def test_places_for_the_host_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that can be used, is named as the linker can read it, and is safe from other users."""
    place(tmp_path, "libcuda.so.1", "a file")
    names = ("a:b", "a;b", "shared", "sticky", "good")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "sticky").chmod(0o1777)
    monkeypatch.chdir(tmp_path)
    bad = [tmp_path / "gone", tmp_path / "a file", *(tmp_path / name for name in names[:3]), Path("good")]
    library, version = tmp_path / "libcuda.so.1", driver("535.54")
    assert make_host_folder(library, version, [*bad, tmp_path / "sticky"]).parent == tmp_path / "sticky"
    assert make_host_folder(library, version, [*bad, tmp_path / "good"]).parent == tmp_path / "good"
    with pytest.raises(OSError, match="no place for links") as raised:
        make_host_folder(library, version, bad)
    for text in ("gone: No such file", "a file: Not a directory", "a:b: cannot be put", "good: cannot be put"):
        assert text in str(raised.value)
    assert "shared: everybody may replace" in str(raised.value)
    assert [path for name in names[:3] for path in (tmp_path / name).iterdir()] == []


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "libcuda.so.1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert make_host_folder(tmp_path / "libcuda.so.1", driver("535.54")).parent == tmp_path
    monkeypatch.delenv("TMPDIR")
    folder = make_host_folder(tmp_path / "libcuda.so.1", driver("535.54"))
    try:
        assert folder.parent in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_cannot_be_filled_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that fills up after the first link."""
    place(tmp_path, "libcuda.so.1", "/first/x", "/second/x")
    make_link = Path.symlink_to

    def symlink_to(self: Path, target: str) -> None:
        if self.name == "libcuda.so" and "first" in str(self):
            raise OSError(28, "No space left on device")
        make_link(self, target)

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    places = [tmp_path / "first", tmp_path / "second"]
    folder = make_host_folder(tmp_path / "libcuda.so.1", driver("535.54"), places)
    assert folder.parent == tmp_path / "second"
    assert os.listdir(tmp_path / "first") == ["x"]


def can_unshare() -> bool:
    program = shutil.which("unshare")
    if program is None:
        return False
    return subprocess.run([program, "-m", "true"], capture_output=True, check=False, timeout=20).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs the right to a mount namespace")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    place(tmp_path, "libcuda.so.1")
    program = """
import sys
from pathlib import Path
from byoc_server.device.linker import make_host_folder
from byoc_server.device.version import DriverVersion
try:
    make_host_folder(Path(sys.argv[1]), DriverVersion.parse("535.54"))
except OSError as error:
    print(error)
"""
    script = """
mount --make-rprivate /
for point in $(awk '$5 !~ "^/(proc|sys)" {print $5}' /proc/self/mountinfo); do
    mount -o remount,bind,ro "$point" 2>/dev/null || true
done
exec "$@"
"""
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", program, str(tmp_path / "libcuda.so.1")]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("COV")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert result.stdout.startswith("no place for links to the driver's libraries ("), result.stdout + result.stderr
    assert "/tmp: Read-only file system" in result.stdout


MAPS = """\
55d0c0a00000-55d0c0a01000 r--p 00000000 fe:00 123                        /usr/bin/python3.11
7f0000000000-7f0000001000 r-xp 00000000 fe:00 124                        /usr/lib/x86_64-linux-gnu/libcuda.so.535.54.03
7f0000001000-7f0000002000 rw-p 00001000 fe:00 124                        /usr/lib/x86_64-linux-gnu/libcuda.so.535.54.03
7f0000003000-7f0000004000 r-xp 00000000 fe:00 125                        /opt/a folder/libcuda.so.1 (deleted)
7f0000005000-7f0000006000 r-xp 00000000 fe:00 126                        /usr/local/cuda/lib64/libcudart.so.12
7f0000007000-7f0000008000 r-xp 00000000 fe:00 127                        /libcuda.so/other
7f0000009000-7f000000a000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0                          [stack]

nonsense
"""


def test_mapped_libraries() -> None:
    expected = ("/usr/lib/x86_64-linux-gnu/libcuda.so.535.54.03", "/opt/a folder/libcuda.so.1")
    assert mapped_libraries(MAPS) == expected
    assert mapped_libraries(MAPS, "libcudart") == ("/usr/local/cuda/lib64/libcudart.so.12",)
    assert mapped_libraries("") == ()


# The linker itself, in real processes.

LOAD = """
import ctypes, json, sys
from pathlib import Path
try:
    code = ctypes.CDLL("libcuda.so.1").cuInit(0)
except OSError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"code": code, "maps": Path("/proc/self/maps").read_text()}))
"""


def loaded(ld_library_path: str, cwd: Path) -> tuple[tuple[str, ...], int] | str:
    """What a process with that ``LD_LIBRARY_PATH`` has mapped after a bare dlopen, and cuInit's code; or the error."""
    environ = {"LD_LIBRARY_PATH": ld_library_path}
    command = [sys.executable, "-I", "-S", "-c", LOAD]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environ, cwd=cwd)
    answer = json.loads(result.stdout)
    return answer["error"] if "error" in answer else (mapped_libraries(answer["maps"]), answer["code"])


def agree(ld_library_path: str, cwd: Path) -> None:
    """``find_libcuda`` finds what the linker opens."""
    script = """
import sys
from pathlib import Path
from byoc_server.device.linker import find_libcuda
library = find_libcuda(Path("/"), sys.argv[1])
print(library and library.real)
"""
    package = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r})\n{script}", ld_library_path]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=cwd).stdout.strip()
    real = loaded(ld_library_path, cwd)
    if isinstance(real, str):
        assert answer == "None", (ld_library_path, answer, real)
    else:
        assert (answer,) == real[0], ld_library_path


@needs_compiler
def test_the_linker_agrees(tmp_path: Path) -> None:
    if find_libcuda(Path("/"), "") is not None:
        pytest.skip("this machine has a libcuda of its own")
    for name in ("a", "b", "i386"):
        build_libcuda(tmp_path / name)
    foreign = tmp_path / "i386/libcuda.so.575.57.08"
    data = bytearray(foreign.read_bytes())
    data[4] = 1
    foreign.write_bytes(data)
    place(tmp_path, "/dangling/libcuda.so.1 -> gone", "/folder/libcuda.so.1/x", "/link -> b")
    values = ["{0}/a:{0}/b", "{0}/b;{0}/a", "{0}/dangling:{0}/b", "{0}/i386:{0}/b", "{0}/folder:{0}/b"]
    values += ["{0}/link/:{0}/a", "{0}/gone", "", ":", "{0}/gone:", ".:{0}/b", "../a", "../a/../b", "{0}/gone/../a"]
    for value in values:
        agree(value.format(tmp_path), tmp_path / "b")


@needs_compiler
def test_what_is_first_is_loaded(tmp_path: Path) -> None:
    compat = build_libcuda(tmp_path / "compat", "575.57.08", behaviour="jit")
    build_jit_compiler(tmp_path / "compat", "575.57.08", code=575)
    host = build_libcuda(tmp_path / "host", "535.54.03", behaviour="jit")
    build_jit_compiler(tmp_path / "host", "535.54.03", code=535)
    hosts = str(tmp_path / "host")

    assert loaded(hosts, tmp_path) == ((str(host),), 535)
    with_compat = prepended(hosts, str(tmp_path / "compat"))
    assert loaded(with_compat, tmp_path) == ((str(compat),), 575)
    (tmp_path / "link").symlink_to("compat")
    without = removed(f"{tmp_path}/link:{with_compat}", [tmp_path / "compat"], Path("/"))
    assert loaded(without, tmp_path) == ((str(host),), 535)


@needs_compiler
def test_no_item_becomes_the_current_directory(tmp_path: Path) -> None:
    """Which is what joining with ":" does to a variable that is not set."""
    library = build_libcuda(tmp_path / "compat")
    trap = build_libcuda(tmp_path / "here", "1.666")
    empty = str(tmp_path / "empty")
    assert loaded(f"{empty}:", trap.parent) == ((str(trap),), 0)
    assert "cannot open shared object file" in loaded(removed(f"{empty}:", [], Path("/")), trap.parent)
    assert "cannot open shared object file" in loaded(prepended("", empty), trap.parent)
    assert loaded(prepended(":", str(library.parent)), trap.parent) == ((str(library),), 0)


@needs_compiler
def test_the_host_s_folder_brings_back_the_host_s_library(tmp_path: Path) -> None:
    """Also where the image's libraries lie in the same folder under the usual names; others are not shadowed."""
    system = tmp_path / "system"
    host = build_libcuda(system, "515.105.01", behaviour="jit")
    build_jit_compiler(system, "515.105.01", code=515)
    mounted = build_libcuda(system, "570.124.06", behaviour="jit")
    build_jit_compiler(system, "570.124.06", code=570)
    assert loaded(str(system), tmp_path) == ((str(mounted),), 570)

    folder = make_host_folder(host, driver("515.105.01"), [tmp_path])
    assert loaded(prepended(str(system), str(folder)), tmp_path) == ((str(host),), 515)
    found = find_libcuda(Path("/"), prepended(str(system), str(folder)))
    assert found == FoundLibrary(folder / "libcuda.so.1", host, "LD_LIBRARY_PATH")
    assert library_version(folder / "libcuda.so.1") == driver("515.105.01")
