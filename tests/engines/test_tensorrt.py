"""What TensorRT needs beside its options."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import TensorProto

from byoc_server.engines.base import GpuOptions
from byoc_server.engines.providers import EngineBuild
from byoc_server.engines.tensorrt import cache_folder, largest_batch, plan_build, preload
from byoc_server.errors import ModelLoadError, SettingsError
from tests.onnx_models import identity


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([("image", ["N", 3, 8, 8])], {"image": (64, 3, 8, 8)}),
        ([("a", ["N", 4]), ("b", [None])], {"a": (64, 4), "b": (64,)}),
        ([("ids", ["N", "L"])], {}),  # how long records get is not known
        ([("a", [None, None])], {}),
        ([("a", ["N", 4]), ("b", ["N", "L"])], {}),
        ([("image", [1, 3, 8, 8])], {}),  # nothing is open
        ([("scalar", [])], {}),
        ([("serving:0", ["N", 4])], {}),  # the name cannot be told from the shape
        ([("a,b", ["N", 4])], {}),
    ],
)
def test_the_largest_batch_is_known_where_only_the_batch_is_open(
    inputs: Sequence[tuple[str, Sequence[int | str | None]]], expected: dict[str, tuple[int, ...]]
) -> None:
    assert largest_batch(inputs, 64) == expected


def test_inputs_are_read_from_the_model(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx")
    assert plan_build(path, GpuOptions("tensorrt", largest_batch_rows=8)) == EngineBuild("", {"x": (8, 4)})


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"^ONNX Runtime cannot load broken\.onnx: .+"):
        plan_build(path, GpuOptions("tensorrt"))


def test_a_model_finds_its_engines_again_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would take the engine of any model of the same structure, with whatever weights."""
    (tmp_path / "model").mkdir()
    path, cache = identity(tmp_path / "model" / "m.onnx"), tmp_path / "cache"
    build = plan_build(path, GpuOptions("tensorrt", tensorrt_cache_dir=str(cache)))
    assert list(cache.iterdir()) == [Path(build.cache_folder)]
    assert list(Path(build.cache_folder).iterdir()) == []
    assert cache_folder(cache, path) == build.cache_folder
    (tmp_path / "model" / "m.weights").write_bytes(b"trained once more")
    weights = cache_folder(cache, path)
    identity(path, TensorProto.DOUBLE)
    structure = cache_folder(cache, path)
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    version = cache_folder(cache, path)
    assert len({build.cache_folder, weights, structure, version}) == 4


def test_a_cache_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    path = identity(tmp_path / "m.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"tensorrt_cache_dir=.*: cannot write there: Not a directory"):
        cache_folder(tmp_path / "file" / "cache", path)


def test_libraries_of_the_python_package_are_loaded_by_the_names_the_linker_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "tensorrt_libs"
    package.mkdir()
    for name in ("__init__.py", "libnvonnxparser.so.10", "libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (package / name).write_text("")
    loaded: list[str] = []

    def load(path: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        loaded.append(Path(path).name)
        if "parser" in path:
            raise OSError("file too short")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", load)
    with caplog.at_level(logging.DEBUG):
        preload()
    assert loaded == ["libnvinfer.so.10", "libnvonnxparser.so.10"]
    assert "libnvonnxparser.so.10 does not load: file too short" in caplog.text


def test_without_the_python_package_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_libs", None)
    monkeypatch.setattr(ctypes, "CDLL", None)
    preload()
