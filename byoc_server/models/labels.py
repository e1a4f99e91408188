"""Reading a file of labels.

A file whose name ends in ``.json`` holds an array of strings, or an object from index to label as
``{"0": "cat", "1": "dog"}``; any other one label a line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from byoc_server.errors import ModelLoadError
from byoc_server.models.postprocess import Labels
from byoc_server.models.text_file import read_text

_MAX_BYTES = 16 * 1024 * 1024
_MAX_INDEX = 10_000_000
"""A label takes a place in a table even where the indices before it have none."""


def read_labels(path: Path) -> Labels:
    """Read a file of labels.

    Raises:
        ModelLoadError: it cannot be read, or holds none or something else.
    """
    text = read_text(path, _MAX_BYTES)
    labels: Any = _json(text, path) if path.suffix.lower() == ".json" else _lines(text)
    if not labels:
        raise ModelLoadError(f"{path} holds no labels")
    return Labels(labels)


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _json(text: str, path: Path) -> list[str] | dict[int, str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "it is nested too deeply"
        raise ModelLoadError(f"{path} is not valid JSON: {reason}") from None
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        return content
    if isinstance(content, dict) and all(isinstance(label, str) for label in content.values()):
        wrong = next((key for key in content if not re.fullmatch("0|[1-9][0-9]{0,7}", key)), None)
        if wrong is not None:
            raise ModelLoadError(f"{path}: key {wrong!r} is not an index")
        by_index = {int(key): label for key, label in content.items()}
        if by_index and max(by_index) > _MAX_INDEX:
            raise ModelLoadError(f"{path}: index {max(by_index)} is beyond {_MAX_INDEX}")
        return by_index
    raise ModelLoadError(f"{path}: expected an array of strings, or an object from index to label")
