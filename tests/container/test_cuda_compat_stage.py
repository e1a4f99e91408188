"""The stage of Dockerfile.gpu that fetches the CUDA compatibility package, against a repository on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import apt_repository as apt
from tests.container.engine import ROOT, Engine, EngineError
from tests.server_process import free_port

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(bool(apt.missing_tools()), reason=f"to make a repository, install {apt.missing_tools()}"),
]

COMPAT = "/compat/usr/local/cuda-13.0/compat"


@pytest.fixture(scope="module")
def key() -> Iterator[apt.Signer]:
    with apt.signer() as key:
        yield key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with apt.served(folder) as address:
        yield address


def good_repository(folder: Path, key: apt.Signer) -> None:
    """As NVIDIA's: the package asks for another, which is not there and not wanted."""
    apt.package(folder, "cuda-compat-13-0", f"{apt.DRIVER}-1", apt.compat_files(), depends="cuda-toolkit-13-0-config")
    apt.keyring_package(folder, key.public_key())
    apt.write_index(folder, key)


def build(engine: Engine, address: str, **arguments: str) -> str:
    """Build the stage alone and expect that it fails; return what was printed."""
    named = {"CUDA_COMPAT_REPOSITORY": address, **arguments}
    with (
        pytest.raises(EngineError) as failure,
        engine.image(ROOT / "Dockerfile.gpu", target="compat", arguments=named),
    ):
        pass
    assert "Traceback" not in str(failure.value)
    return str(failure.value)


def content(engine: Engine, image: str) -> dict[str, str]:
    """Files and links below ``/compat`` -> where a link leads."""
    script = (
        "import json, os, pathlib\n"
        "print(json.dumps({str(p): os.readlink(p) if p.is_symlink() else '' "
        "for p in pathlib.Path('/compat').rglob('*') if not p.is_dir()}))"
    )
    done = engine.run(image, "python3", "-c", script)
    assert done.code == 0, done.errors
    found = json.loads(done.output)
    assert isinstance(found, dict)
    return found


def build_good(engine: Engine, address: str, **arguments: str) -> dict[str, str]:
    """Build the stage alone; return its content."""
    named = {"CUDA_COMPAT_REPOSITORY": address, **arguments}
    with engine.image(ROOT / "Dockerfile.gpu", target="compat", arguments=named) as image:
        return content(engine, image)


def test_the_libraries_and_their_license_arrive(engine: Engine, folder: Path, address: str, key: apt.Signer) -> None:
    """With the links that programs ask for, which the package may lack; what the package depends on stays away."""
    good_repository(folder, key)
    assert build_good(engine, f"{address}/", REQUIRE_CUDA_COMPAT="true") == {
        f"{COMPAT}/libcuda.so.{apt.DRIVER}": "",
        f"{COMPAT}/libcuda.so.1": f"libcuda.so.{apt.DRIVER}",
        f"{COMPAT}/libnvidia-ptxjitcompiler.so.{apt.DRIVER}": "",
        f"{COMPAT}/libnvidia-ptxjitcompiler.so.1": f"libnvidia-ptxjitcompiler.so.{apt.DRIVER}",
        "/compat/usr/share/doc/cuda-compat-13-0/copyright": "",
    }


def test_another_version_can_be_asked_for(engine: Engine, folder: Path, address: str, key: apt.Signer) -> None:
    apt.package(folder, "cuda-compat-12-8", "570.172.08-1", apt.compat_files("12.8"))
    apt.keyring_package(folder, key.public_key())
    apt.write_index(folder, key)
    found = build_good(engine, address, CUDA_COMPAT="12-8")
    assert f"/compat/usr/local/cuda-12.8/compat/libcuda.so.{apt.DRIVER}" in found


def test_without_a_repository_the_image_says_what_it_lacks(engine: Engine) -> None:
    with engine.image(ROOT / "Dockerfile.gpu", target="compat", arguments={"REQUIRE_CUDA_COMPAT": "false"}) as image:
        assert content(engine, image) == {}
    # a cached build prints nothing again, so the line is looked for in one that cannot be cached
    nobody = f"http://127.0.0.1:{free_port()}"
    dockerfile = ROOT / "Dockerfile.gpu"
    tag = "byoc-server-test-unreachable"
    try:
        log = engine.build(dockerfile, tag, target="compat", arguments={"CUDA_COMPAT_REPOSITORY": nobody})
        assert content(engine, tag) == {}
    finally:
        engine.call("rmi", "--force", tag)
    (line,) = [line for line in log.splitlines() if "NOTE" in line]
    for words in (
        "no CUDA compatibility package",
        "refused",
        "supports CUDA 13.",
        "CUDA_COMPAT_REPOSITORY",
        "build-an-image.md",
    ):
        assert words in line


@pytest.mark.parametrize("address", ["", "nobody"])
def test_a_required_package_that_is_out_of_reach_fails_the_build(engine: Engine, address: str) -> None:
    address = f"http://127.0.0.1:{free_port()}" if address else ""
    said = build(engine, address, REQUIRE_CUDA_COMPAT="true")
    assert "error: this image gets no CUDA compatibility package" in said


def test_a_repository_signed_by_somebody_else_fails_the_build(
    engine: Engine, folder: Path, address: str, key: apt.Signer
) -> None:
    good_repository(folder, key)
    with apt.signer() as other:
        apt.write_index(folder, other)
    said = build(engine, address)
    assert "apt-get update failed" in said
    assert "NO_PUBKEY" in said


def test_an_index_that_was_changed_fails_the_build(engine: Engine, folder: Path, address: str, key: apt.Signer) -> None:
    good_repository(folder, key)
    signed = folder / "InRelease"
    signed.write_text(signed.read_text().replace("Label: Test", "Label: Best"))
    assert "apt-get update failed" in build(engine, address)


def test_a_package_that_was_changed_fails_the_build(
    engine: Engine, folder: Path, address: str, key: apt.Signer
) -> None:
    good_repository(folder, key)
    (path,) = folder.glob("cuda-compat-*.deb")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert "apt-get download cuda-compat-13-0 failed" in build(engine, address)


def test_an_empty_package_fails_the_build(engine: Engine, folder: Path, address: str, key: apt.Signer) -> None:
    """The repository's newest cuda-compat-12-8 of June 2025 was one (reference of this project, section 1)."""
    apt.package(folder, "cuda-compat-13-0", f"{apt.DRIVER}-1", {"usr/share/doc/cuda-compat-13-0/copyright": b"text"})
    apt.keyring_package(folder, key.public_key())
    apt.write_index(folder, key)
    assert "cuda-compat-13-0 holds 0 files libcuda.so.*" in build(engine, address)


def test_a_package_that_is_not_there_fails_the_build(
    engine: Engine, folder: Path, address: str, key: apt.Signer
) -> None:
    good_repository(folder, key)
    said = build(engine, address, CUDA_COMPAT="13-9")
    assert "Unable to locate package cuda-compat-13-9" in said


def test_an_address_that_is_no_repository_fails_the_build(engine: Engine, address: str) -> None:
    assert "cuda-keyring_1.1-1_all.deb: HTTP Error 404" in build(engine, address)
    assert "is no address" in build(engine, "debian12")


def test_a_keyring_that_is_no_package_fails_the_build(engine: Engine, folder: Path, address: str) -> None:
    (folder / "cuda-keyring_1.1-1_all.deb").write_text("<html>sign in first</html>")
    assert "cuda-keyring_1.1-1_all.deb is no Debian package" in build(engine, address)


def test_the_gpu_image_carries_the_package_and_does_not_register_it(
    engine: Engine, gpu_image: str, folder: Path, address: str, key: apt.Signer
) -> None:
    """Whether it may be used is decided at start, by the driver: neither the linker nor the environment knows of it."""
    good_repository(folder, key)
    dockerfile = ROOT / "Dockerfile.gpu"
    script = (
        "import json, pathlib, subprocess, os\n"
        "names = sorted(p.name for p in pathlib.Path('/usr/local/cuda-13.0/compat').glob('*'))\n"
        "cache = subprocess.run(['/sbin/ldconfig', '-p'], capture_output=True, text=True).stdout\n"
        "conf = [p.read_text() for p in pathlib.Path('/etc/ld.so.conf.d').glob('*')]\n"
        "print(json.dumps([names, 'libcuda' in cache, 'cuda' in str(conf), 'LD_LIBRARY_PATH' in os.environ]))"
    )
    named = {"CUDA_COMPAT_REPOSITORY": address, "VERSION": "1.2.3"}
    with engine.image(dockerfile, arguments=named) as image:
        names, cached, configured, variable = json.loads(engine.python(image, script))
        assert names == [
            "libcuda.so.1",
            f"libcuda.so.{apt.DRIVER}",
            "libnvidia-ptxjitcompiler.so.1",
            f"libnvidia-ptxjitcompiler.so.{apt.DRIVER}",
        ]
        assert [cached, configured, variable] == [False, False, False]
        with engine.running(image, options=["--network=none"]) as container:
            (ping,) = container.ask()
            assert ping.status == 200
    assert json.loads(engine.python(gpu_image, script)) == [[], False, False, False]
