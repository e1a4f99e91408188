"""The image on hosts with older and newer drivers: which ``libcuda`` the server in the container really maps.

The host is made of dummies: libraries compiled here, a ``nvidia-smi`` that tells a version, a file for the device.
``LD_PRELOAD`` makes every process load whichever ``libcuda.so.1`` the linker finds, as a GPU build would later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.container.engine import Container, Engine
from tests.device.dummy_libraries import build_libcuda, needs_compiler
from tests.device.fake_root import BRANCHES_129

pytestmark = [pytest.mark.container, needs_compiler]

PACKAGE, OLDER, NEWER = "575.57.08", "535.54.03", "580.95.05"
COMPAT, HOST = "/usr/local/cuda-12.9/compat", "/usr/local/nvidia/lib64"
HARDENED = ("--user=1234:0", "--network=none", "--cap-drop=all")


@contextmanager
def host(
    engine: Engine, image: str, folder: Path, driver: str, *options: str, init_code: int = 0
) -> Iterator[Container]:
    note = json.dumps({"format": 1, "CUDA version": "12.9", "driver": BRANCHES_129})
    build_libcuda(folder / "compat", PACKAGE, init_code, note=note)
    build_libcuda(folder / "host", driver)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho {driver}\n")
    (folder / "nvidia-smi").chmod(0o755)
    (folder / "nvidia0").touch()
    mounts = {"compat": COMPAT, "host": HOST, "nvidia-smi": "/usr/bin/nvidia-smi", "nvidia0": "/dev/nvidia0"}
    run = [
        *(f"--volume={folder / name}:{place}:ro" for name, place in mounts.items()),
        *("--env=LD_PRELOAD=libcuda.so.1", "--env=BYOC_DEVICE=auto", *HARDENED, *options),
    ]
    with engine.running(image, "serve", options=run) as container:
        yield container


def mapped(container: Container) -> set[str]:
    """Every ``libcuda`` in the first process."""
    done = container.exec("cat", "/proc/1/maps", environ={"LD_PRELOAD": ""})
    return {line.split()[-1] for line in done.output.splitlines() if "libcuda" in line}


def decision(container: Container) -> str:
    (line,) = [line for line in container.events("cuda_compat") if "decision" in line]
    return str(line["decision"])


@pytest.mark.parametrize("root", ["writable", "read-only"])
def test_an_older_driver_runs_on_the_package(engine: Engine, cpu_image: str, tmp_path: Path, root: str) -> None:
    read_only = engine.read_only if root == "read-only" else []
    own = f"--env=LD_LIBRARY_PATH={HOST}"
    with host(engine, cpu_image, tmp_path, OLDER, own, *read_only) as container:
        ping, answer = container.ask((b"5.1,3.5,1.4,0.2", {"Content-Type": "text/csv"}))
        assert (ping.status, answer.status) == (200, 200)
        assert decision(container) == "ENABLE"
        assert mapped(container) == {f"{COMPAT}/libcuda.so.{PACKAGE}"}
        assert container.stop()[0] == 0


def test_a_newer_driver_gets_its_own_library_back(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    """A base image has put the package on the search path; on this host it would be CUDA error 803."""
    with host(engine, cpu_image, tmp_path, NEWER, f"--env=LD_LIBRARY_PATH={COMPAT}") as container:
        (ping,) = container.ask()
        assert ping.status == 200
        assert decision(container) == "EVICT"
        assert mapped(container) == {f"{HOST}/libcuda.so.{NEWER}"}
        assert container.stop()[0] == 0


def test_a_package_that_cuda_refuses_is_not_used(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    own = f"--env=LD_LIBRARY_PATH={HOST}"
    with host(engine, cpu_image, tmp_path, OLDER, own, init_code=803) as container:
        (ping,) = container.ask()
        assert ping.status == 200
        assert decision(container) == "SKIP_PROBE_803"
        assert mapped(container) == {f"{HOST}/libcuda.so.{OLDER}"}


def test_info_in_a_running_container_says_the_same(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    with host(engine, cpu_image, tmp_path, OLDER, f"--env=LD_LIBRARY_PATH={HOST}") as container:
        container.ask()
        facts = json.loads(container.exec("byoc", "info", "--json").output)
        assert facts["driver"]["version"] == OLDER
        assert facts["cuda_compat"]["decision"] == decision(container) == "ENABLE"
