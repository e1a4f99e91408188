"""Formats that other installed packages add."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_server.codecs import base
from byoc_server.codecs.plug_ins import plug_ins
from byoc_server.errors import StartupError
from tests.onnx_models import identity
from tests.server_process import run_to_end, running

MODULE = """
import numpy as np
from byoc_server.codecs.base import CodecEntry
from byoc_server.errors import InvalidPayload

ENTRY = CodecEntry("application/x-sum", "sums", ("application/x-plus",))
TAKEN = CodecEntry("application/x-other", "sums", ("text/csv",))
NO_ENTRY = "application/x-sum"
NO_DECODE = CodecEntry("application/x-none", "json.encoder")
NO_MODULE = CodecEntry("application/x-none", "no_such_module")

def decode(body, signature, options):
    try:
        numbers = [float(word) for word in body.split(b"+")]
    except ValueError:
        raise InvalidPayload("expected numbers with + between them") from None
    return {signature.sole_input.name: np.array([numbers], np.float32)}

def encode(tensors, signature, options):
    return "+".join(f"{n:g}" for n in tensors[signature.outputs[0].name].ravel()).encode()
"""


def install(folder: Path, *names: str) -> Path:
    """Lay a package out as an installer does, with entry points of these names."""
    (folder / "sums.py").write_text(MODULE)
    metadata = folder / "sums-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    lines = [f"{name.lower()} = sums:{name}" for name in names]
    (metadata / "entry_points.txt").write_text("\n".join(["[byoc_server.codecs]", *lines, "[other]", "x = y:z", ""]))
    return folder


@pytest.fixture
def caches() -> Iterator[None]:
    """The table of formats is made anew in the test and after it."""

    def clear() -> None:
        sys.modules.pop("sums", None)
        for cached in (base.all_codecs, base.codecs_by_media_type, base.request_codecs, base.answer_codecs):
            cached.cache_clear()

    clear()
    yield
    clear()


def test_none_are_installed_here() -> None:
    assert plug_ins() == []
    assert base.all_codecs() == base.CODECS


def test_a_package_without_any(tmp_path: Path) -> None:
    assert plug_ins([str(tmp_path), str(tmp_path / "missing")]) == []


def test_one_is_served(tmp_path: Path) -> None:
    """As any other format: negotiated, listed, its errors told."""
    folder = install(tmp_path, "ENTRY")
    model = identity(tmp_path / "model.onnx", shape=("N", 2))
    with running("--model", str(model), environ={"PYTHONPATH": str(folder)}) as server:
        answer = server.invoke("1+2.5", Content_Type="application/x-sum")
        assert (answer.status_code, answer.json()) == (200, {"predictions": [[1.0, 2.5]]})
        answer = server.invoke("1+2.5", Content_Type="application/x-plus", Accept="application/x-sum, text/csv;q=0.5")
        assert (answer.headers["content-type"], answer.text) == ("application/x-sum", "1+2.5")
        answer = server.invoke("1+", Content_Type="application/x-sum")
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "expected numbers with + between them")
        answer = server.invoke("1", Content_Type="application/x-product")
        assert "application/x-sum" in answer.json()["error"]["accepted"]
        assert server.stop() == 0


@pytest.mark.usefixtures("caches")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TAKEN", r"taken = sums:TAKEN: there is a codec for text/csv already"),
        ("NO_DECODE", r"no_decode = sums:NO_DECODE: json.encoder has no function decode"),
        ("NO_ENTRY", r"no_entry = sums:NO_ENTRY is a str, not a CodecEntry"),
        ("NO_MODULE", r"no_module = sums:NO_MODULE cannot be loaded: ModuleNotFoundError: .*no_such_module"),
        ("MISSING", r"missing = sums:MISSING cannot be loaded: AttributeError: .*MISSING"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, name))
    with pytest.raises(StartupError, match=expected):
        base.all_codecs()


@pytest.mark.usefixtures("caches")
def test_two_for_one_media_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(tmp_path, "ENTRY")
    points = folder / "sums-1.0.dist-info" / "entry_points.txt"
    points.write_text("[byoc_server.codecs]\na = sums:ENTRY\nb = sums:ENTRY\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(StartupError, match="b = sums:ENTRY: there is a codec for application/x-plus, "):
        base.all_codecs()


def test_the_server_does_not_start_with_a_broken_one(tmp_path: Path) -> None:
    done = run_to_end(environ={"PYTHONPATH": str(install(tmp_path, "MISSING"))})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("byoc serve: error: codec plug-in missing = sums:MISSING cannot be")
