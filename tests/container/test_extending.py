"""What docs/build-an-image.md tells a user to write."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.container.engine import ROOT, Engine

pytestmark = pytest.mark.container


def test_an_image_with_a_model_is_two_lines(engine: Engine, cpu_image: str, model_folder: Path, tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {cpu_image}\nCOPY model /opt/ml/model\n")
    with (
        engine.image(dockerfile, context=tmp_path) as image,
        engine.running(image, "serve", options=["--network=none", "--user=1234:0", *engine.read_only]) as container,
    ):
        ping, answer = container.ask((b"1,2,3,4", {"Content-Type": "text/csv"}))
        assert ping.status == 200
        assert answer.json() == {"predictions": [[1, 2, 3, 4]]}
        assert container.stop()[0] == 0


def test_a_package_is_added_with_the_pip_of_the_base(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(tmp_path / "extra-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("extra.py", "ANSWER = 42\n")
        archive.writestr("extra-1.0.dist-info/METADATA", metadata)
        archive.writestr("extra-1.0.dist-info/WHEEL", wheel)
        archive.writestr("extra-1.0.dist-info/RECORD", "")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        f"FROM {cpu_image}\nCOPY *.whl /wheels/\n"
        "RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-index --find-links /wheels extra\n"
    )
    with engine.image(dockerfile, context=tmp_path) as image:
        assert engine.python(image, "import extra, byoc_server; print(extra.ANSWER)").strip() == "42"


def test_an_own_image_gets_serve_on_its_path(engine: Engine, tmp_path: Path) -> None:
    """As in an AWS Deep Learning Container: the Python of the base, no virtual environment, its own entry point."""
    source = tmp_path / "byoc-server"
    source.mkdir()
    for name in ("constraints.txt", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy2(ROOT / name, source)
    shutil.copytree(ROOT / "byoc_server", source / "byoc_server")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "ARG PYTHON_IMAGE\nFROM $PYTHON_IMAGE\n"
        "COPY byoc-server /opt/byoc-server\n"
        "RUN pip install --no-cache-dir --constraint /opt/byoc-server/constraints.txt '/opt/byoc-server[cpu]'\n"
        'ENTRYPOINT []\nCMD ["serve"]\n'
    )
    probe = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/ping', timeout=5).status)"
    with (
        engine.image(dockerfile, context=tmp_path) as image,
        engine.running(image, "serve", options=["--env=LD_LIBRARY_PATH=/usr/local/cuda/compat"]) as container,
    ):
        container.wait_for(lambda: container.exec("python", "-c", probe).output.strip() == "200", "ping answers 200")
        assert container.stop()[0] == 0
