"""Between what clients see and what the model takes: names, dtypes and outputs.

Without a ``byoc.toml`` clients see the graph itself, and nothing is adapted: then what reads it is not even imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from byoc_server.config import Settings
from byoc_server.types import Signature, Tensors

if TYPE_CHECKING:
    from byoc_server.models.model_config import ModelConfig

Adapt = Callable[[Tensors], Tensors]

FILE_NAME = "byoc.toml"
DEFAULT_MEDIA_TYPE = "application/json"
_PREFERRED_STEM = "model"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What clients see of a model, and the way there and back.

    Attributes:
        signature: what clients see; codecs decode and encode for it.
        model_signature: what the model takes and returns.
        prepare: from inputs of ``signature`` to those of ``model_signature``; ``None`` where they are the same. Raises
            ``InvalidPayload``.
        present: from outputs of ``model_signature`` to those of ``signature``; ``None`` where they are the same.
        answer_bytes: what clients are answered takes at most, in bytes, given outputs of ``model_signature``; ``None``
            where ``present`` adds nothing to them.
        model_name: how routes and answers that name the model call it.
        content_type: media type of requests without one; empty = the server's default.
        accept: media type of answers where the client does not care; empty = the server's default.
        config_path: of the ``byoc.toml``; empty if there is none.
    """

    signature: Signature
    model_signature: Signature
    prepare: Adapt | None = None
    present: Adapt | None = None
    answer_bytes: Callable[[Tensors], int] | None = None
    model_name: str = "model"
    content_type: str = ""
    accept: str = ""
    config_path: str = ""


def default_formats(settings: Settings, adapter: Adapter) -> tuple[str, str]:
    """Media types of a request without one, and of an answer where the client does not care; settings win."""
    return (
        settings.default_content_type or adapter.content_type or DEFAULT_MEDIA_TYPE,
        settings.default_accept or adapter.accept or DEFAULT_MEDIA_TYPE,
    )


def adapter_for(model_path: Path, signature: Signature) -> Adapter:
    """What clients see of a model: as its graph says, or as the ``byoc.toml`` in its folder does.

    Args:
        model_path: the model file.
        signature: of the model.

    Raises:
        ModelLoadError: there is a ``byoc.toml`` that cannot be read or does not fit the model.
    """
    return build_adapter(read_config(model_path), model_path, signature)


def read_config(model_path: Path) -> ModelConfig | None:
    """Read the ``byoc.toml`` in the folder of a model file; ``None`` if there is none.

    Raises:
        ModelLoadError: it cannot be read, or says what no model could have.
    """
    path = model_path.parent / FILE_NAME
    if not os.path.lexists(path):  # a link that leads nowhere is a mistake
        return None
    from byoc_server.models.model_config import read  # noqa: PLC0415  # takes 10 ms, which most models need not wait for

    return read(path)


def build_adapter(config: ModelConfig | None, model_path: Path, signature: Signature) -> Adapter:
    """As ``adapter_for``, of a ``byoc.toml`` that has been read."""
    if config is None:
        return Adapter(signature, signature, model_name=default_name(model_path))
    from byoc_server.models.configured_adapter import configured_adapter  # noqa: PLC0415  # as above

    return configured_adapter(config, model_path, signature)


def default_name(model_path: Path) -> str:
    """Name of a model whose ``byoc.toml`` gives it none: that of its file.

    A file called ``model`` has that of its folder, and a folder with a number, which is that of a version, that of the
    folder around it.
    """
    path = model_path.resolve()
    name = path.stem
    if name == _PREFERRED_STEM:
        name = next((folder.name for folder in path.parents if not folder.name.isdecimal()), "")
    return name or _PREFERRED_STEM
