from pathlib import Path

import pytest

from byoc_server.errors import ModelLoadError
from byoc_server.models.repository import DEMO_MODEL, find_model


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_a_file_is_taken_as_named(tmp_path: Path) -> None:
    touch(tmp_path, "any.onnx")
    assert find_model(str(tmp_path / "any.onnx"), {}).path == tmp_path / "any.onnx"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["clf.onnx"], "clf.onnx"),
        (["model.onnx", "other.onnx"], "model.onnx"),
        (["model.onnx", "deeper/model.onnx"], "model.onnx"),
        (["1/clf.onnx", "readme.txt"], "1/clf.onnx"),
        (["top.onnx", "deeper/model.onnx"], "top.onnx"),
        (["model.ort"], "model.ort"),
        (["Model.ONNX"], "Model.ONNX"),
    ],
)
def test_a_folder_gives_its_one_or_its_nearest_preferred_model(tmp_path: Path, names: list[str], chosen: str) -> None:
    assert find_model(str(touch(tmp_path, *names)), {}).path == tmp_path / chosen


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.onnx", "b.onnx"], r"several models \(a.onnx, b.onnx\)"),
        (["model.onnx", "model.ort"], "several models"),
        (["model.pkl", "code/inference.py"], r"no \.onnx file .*code/inference.py, model.pkl"),
    ],
)
def test_a_folder_that_does_not_say_which_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """Checklist 13."""
    with pytest.raises(ModelLoadError, match=message):
        find_model(str(touch(tmp_path, *names)), {})


def test_a_missing_path_or_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no model at"):
        find_model(str(tmp_path / "missing"), {})
    with pytest.raises(ModelLoadError, match="not a model file"):
        find_model(str(touch(tmp_path, "model.pkl") / "model.pkl"), {})


def test_without_a_setting_the_platform_folder_counts_and_else_the_demo(tmp_path: Path) -> None:
    """Checklist 15: SAGEMAKER_BASE_DIR replaces /opt/ml."""
    environ = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    assert find_model("", environ) == find_model("", {"SAGEMAKER_BASE_DIR": str(tmp_path / "none")})
    assert find_model("", environ).path == DEMO_MODEL
    assert find_model("", environ).demo
    (tmp_path / "model").mkdir()
    assert find_model("", environ).demo
    touch(tmp_path, "model/clf.onnx")
    source = find_model("", environ)
    assert (source.path, source.demo) == (tmp_path / "model/clf.onnx", False)


def test_a_platform_folder_without_a_model_never_falls_back_to_the_demo(tmp_path: Path) -> None:
    touch(tmp_path, "model/model.pkl")
    with pytest.raises(ModelLoadError, match=r"holds model\.pkl"):
        find_model("", {"SAGEMAKER_BASE_DIR": str(tmp_path)})


def test_a_folder_this_user_may_not_read_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checklist 7 and 13."""

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)  # root may read everything, so a real folder would prove nothing
    with pytest.raises(ModelLoadError, match=r"cannot read .*m\.onnx: Permission denied; this user needs read access"):
        find_model(str(tmp_path / "m.onnx"), {})


def test_a_config_that_lies_beside_no_model_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1/model.onnx", "byoc.toml")
    with pytest.raises(ModelLoadError, match=r"byoc\.toml lies beside no model; move it to .*/1$"):
        find_model(str(tmp_path), {})
    touch(tmp_path, "1/byoc.toml")
    assert find_model(str(tmp_path), {}).path == tmp_path / "1/model.onnx"
