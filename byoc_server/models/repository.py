"""Finding the model file: a file, or a folder that holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from byoc_server.engines.base import ENGINES
from byoc_server.errors import ModelLoadError
from byoc_server.models.adapter import FILE_NAME as CONFIG_FILE

DEMO_MODEL = Path(__file__).parent.parent / "demo" / "iris.onnx"
_PREFERRED_STEM = "model"
_LISTED_FILES = 8


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the model to serve lies.

    Attributes:
        path: the model file.
        demo: it is the bundled demo model, because nothing else was given.
    """

    path: Path
    demo: bool = False


def find_model(setting: str, environ: Mapping[str, str]) -> ModelSource:
    """Find the model to serve.

    Args:
        setting: path from the settings, or empty: then ``/opt/ml/model`` (SageMaker unpacks the model archive there;
            ``SAGEMAKER_BASE_DIR`` replaces ``/opt/ml``) if it holds anything, else the demo model.
        environ: the environment.

    Raises:
        ModelLoadError: no model there, several and none called ``model.onnx``, or no right to look.
    """
    folder = Path(environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml") / "model"
    try:
        if setting:
            return ModelSource(_named_model(Path(setting)))
        if folder.is_dir() and any(folder.iterdir()):
            return ModelSource(_model_in(folder))
    except OSError as error:
        raise ModelLoadError(f"cannot read {error.filename}: {error.strerror}; this user needs read access") from error
    return ModelSource(DEMO_MODEL, demo=True)


def _named_model(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() not in ENGINES:
            raise ModelLoadError(f"{path} is not a model file; expected one ending in {' or '.join(ENGINES)}")
        return path
    if not path.is_dir():
        raise ModelLoadError(f"there is no model at {path}; name an .onnx file, or a folder that holds one")
    return _model_in(path)


def _model_in(folder: Path) -> Path:
    next(folder.iterdir(), None)  # says so if this user may not look, where rglob would find nothing
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    models = [p for p in files if p.suffix.lower() in ENGINES]
    if not models:
        raise ModelLoadError(f"there is no .onnx file in {folder}; it holds {_listed(files, folder) or 'nothing'}")
    shallowest = min(len(p.parts) for p in models)
    nearest = [p for p in models if len(p.parts) == shallowest]
    preferred = [p for p in nearest if p.stem == _PREFERRED_STEM]
    candidates = preferred if len(preferred) == 1 else nearest
    if len(candidates) > 1:
        names = _listed(candidates, folder)
        raise ModelLoadError(f"{folder} holds several models ({names}); call one of them model.onnx, or name its file")
    stray = next((p / CONFIG_FILE for p in candidates[0].parents if p / CONFIG_FILE in files), None)
    if stray is not None and stray.parent != candidates[0].parent:  # or it would be passed over in silence
        raise ModelLoadError(f"{stray} lies beside no model; move it to {candidates[0].parent}")
    return candidates[0]


def _listed(files: Sequence[Path], folder: Path) -> str:
    """The first files, and how many more there are."""
    names = ", ".join(str(path.relative_to(folder)) for path in files[:_LISTED_FILES])
    return f"{names} and {len(files) - _LISTED_FILES} more" if len(files) > _LISTED_FILES else names
