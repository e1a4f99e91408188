"""``byoc.toml``: what is to be different for clients from what the model file says. Text in, ``ModelConfig`` out.

Only what can be told without the model is checked here; ``configured_adapter`` checks the rest against the
signature.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from byoc_server.codecs.base import CodecEntry, answer_codecs, codecs_by_media_type, media_types, request_codecs
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.errors import ModelLoadError
from byoc_server.models.text_file import read_text
from byoc_server.models.toml_source import TomlSource, dotted
from byoc_server.types import STRING, Layout, Resize

MAX_BYTES = 1024 * 1024

T = TypeVar("T")

_DTYPES: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "string": STRING,
}
_CHANNELS = ("RGB", "BGR", "L")
_MAX_SIDE_PIXELS = 65535
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """``[inputs.NAME.image]``; ``None`` where nothing is said. See ``ImageSpec``."""

    height: int | None = None
    width: int | None = None
    channels: str | None = None
    layout: Layout | None = None
    resize: Resize | None = None
    resize_to: int | None = None
    fill: int | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    shrink_on_load: bool | None = None


@dataclass(frozen=True, slots=True)
class InputConfig:
    """``[inputs.NAME]``; ``None`` or empty where nothing is said.

    Attributes:
        name: what clients call it.
        dtype: what clients send.
        columns: see ``TensorSpec``.
        padding_value: see ``TensorSpec``.
        image: how image files become records.
    """

    name: str | None = None
    dtype: np.dtype[np.generic] | None = None
    columns: tuple[str, ...] = ()
    padding_value: float | str | None = None
    image: ImageConfig | None = None


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """``[outputs.NAME]``; ``None`` where nothing is said.

    Attributes:
        name: what clients call it.
        softmax: whether numbers along the last axis become probabilities.
        top_k: how many of the greatest values along the last axis are answered.
        labels: name of a file, relative to the folder of the ``byoc.toml``, or the labels themselves.
    """

    name: str | None = None
    softmax: bool = False
    top_k: int | None = None
    labels: str | tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole ``byoc.toml``.

    Attributes:
        source: the file, to name the place of an error.
        name: of the model; empty where nothing is said, as in the next two.
        content_type: media type of requests without one.
        accept: media type of answers where the client does not care.
        inputs: by the name in the graph.
        outputs: by the name in the graph.
        returned: outputs, as clients call them, in the order of the answer; empty = all.
        pad: whether records of different lengths may share a batch, padded.
    """

    source: TomlSource
    name: str = ""
    content_type: str = ""
    accept: str = ""
    inputs: Mapping[str, InputConfig] = field(default_factory=dict)
    outputs: Mapping[str, OutputConfig] = field(default_factory=dict)
    returned: tuple[str, ...] = ()
    pad: bool = True


def read(path: Path) -> ModelConfig:
    """Read the file.

    Raises:
        ModelLoadError: it cannot be read; or as ``parse_config``.
    """
    return parse_config(read_text(path, MAX_BYTES), str(path))


def parse_config(text: str, path: str) -> ModelConfig:
    """Read a ``byoc.toml``.

    Args:
        text: of the file.
        path: how error messages call it.

    Raises:
        ModelLoadError: it is not TOML, or a key is unknown or has a value that it cannot have. The message names file,
            line and key, what was expected and what is there.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelLoadError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ModelLoadError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError:  # of Python's own, where an integer has thousands of digits
        raise ModelLoadError(f"{path} holds an integer of more digits than Python reads") from None
    top = _Table(TomlSource(path, text), (), content, _KNOWN_AT_TOP)
    outputs = top.table("outputs")
    returned: tuple[str, ...] = ()
    if not isinstance(outputs.content.get("return", {}), dict):  # a table is that of an output called so
        returned = outputs.take("return", _names) or ()
    return ModelConfig(
        top.source,
        name=top.take("name", _model_name) or "",
        content_type=top.take("content_type", _media_type(request_codecs())) or "",
        accept=top.take("accept", _media_type(answer_codecs())) or "",
        inputs={name: _input(table) for name, table in top.table("inputs").tables()},
        outputs={name: _output(table) for name, table in outputs.tables(but="return" if returned else "")},
        returned=returned,
        pad=top.table("batching", ("pad",)).take("pad", _boolean) is not False,
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What there is, for a message about a name that there is not; first of all the nearest, if one is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(map(repr, known))
    return f"did you mean {near[0]!r}? There is {listed}" if near else f"there is {listed}"


class _Table:
    """One table of the file.

    Args:
        source: the file.
        keys: of the table and those around it.
        content: what the parser made of it.
        known: the keys it may have; empty = names of any kind.
    """

    def __init__(self, source: TomlSource, keys: tuple[str, ...], content: object, known: Sequence[str] = ()) -> None:
        if not isinstance(content, dict):
            raise source.error(keys, f"expected a table, [{dotted(keys)}], got {_shown(content)}")
        self.source = source
        self.keys = keys
        self.content = cast(dict[str, object], content)
        for key in self.content if known else ():
            if key not in known:
                advice = did_you_mean(key, known)
                if isinstance(content[key], dict) and len(keys) > 1:
                    name = dotted((keys[0], ".".join((*keys[1:], key))))
                    advice += f"; a name with a dot in it needs quotation marks, [{name}]"
                raise source.error((*keys, key), f"there is no such key; {advice}")

    def take(self, key: str, check: Callable[[object], T]) -> T | None:
        """The checked value of a key, ``None`` if it is not there."""
        if key not in self.content:
            return None
        value = self.content[key]
        try:
            return check(value)
        except _UnexpectedError as error:
            raise self.source.error((*self.keys, key), f"expected {error}, got {_shown(value)}") from None

    def table(self, key: str, known: Sequence[str] = ()) -> _Table:
        """A table in this one; an empty one if there is none."""
        return _Table(self.source, (*self.keys, key), self.content.get(key, {}), known)

    def tables(self, but: str = "") -> list[tuple[str, _Table]]:
        """All tables in this one by name, without one key."""
        return [(name, self.table(name, _KNOWN[self.keys[0]])) for name in self.content if name != but]


_KNOWN_AT_TOP = ("name", "content_type", "accept", "batching", "inputs", "outputs")
_KNOWN: Mapping[str, Sequence[str]] = {
    "inputs": ("name", "dtype", "columns", "padding_value", "image"),
    "outputs": ("name", "softmax", "top_k", "labels"),
}
_IMAGE_KEYS = tuple(ImageConfig.__dataclass_fields__)


def _input(table: _Table) -> InputConfig:
    return InputConfig(
        table.take("name", _name),
        table.take("dtype", _one_of(_DTYPES)),
        table.take("columns", _names) or (),
        table.take("padding_value", _padding_value),
        _image(table.table("image", _IMAGE_KEYS)) if "image" in table.content else None,
    )


def _image(table: _Table) -> ImageConfig:
    sides = _integer(1, _MAX_SIDE_PIXELS)
    return ImageConfig(
        table.take("height", sides),
        table.take("width", sides),
        table.take("channels", _one_of({name: name for name in _CHANNELS})),
        table.take("layout", _one_of({layout.value: layout for layout in Layout})),
        table.take("resize", _one_of({resize.value: resize for resize in Resize})),
        table.take("resize_to", sides),
        table.take("fill", _integer(0, 255)),
        table.take("scale", _number),
        table.take("mean", _numbers),
        table.take("std", _divisors),
        table.take("shrink_on_load", _boolean),
    )


def _output(table: _Table) -> OutputConfig:
    return OutputConfig(
        table.take("name", _name),
        table.take("softmax", _boolean) or False,
        table.take("top_k", _integer(1, 2**31 - 1)),
        table.take("labels", _labels),
    )


class _UnexpectedError(Exception):
    """A value is not what its key takes; the text says what that is."""


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _UnexpectedError("a name")
    return value


def _model_name(value: object) -> str:
    is_part_of_path = isinstance(value, str) and re.fullmatch(r"[^/\s?#%]+", value) and value not in (".", "..")
    if not is_part_of_path or not cast(str, value).isprintable():
        raise _UnexpectedError("a name without spaces and without / ? # %, as it is part of a path")
    return cast(str, value)


def _names(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise _UnexpectedError("an array of different names")
    return tuple(names)


def _labels(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value and "\0" not in value:
        if value.startswith("/") or ".." in value.split("/"):
            raise _UnexpectedError("a file in the folder of the byoc.toml, or below it")
        return value
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise _UnexpectedError("the name of a file, or an array of strings")
    return tuple(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnexpectedError("true or false")
    return value


def _integer(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _UnexpectedError(f"a whole number from {low} to {high}")
        return value

    return check


def _number(value: object) -> float:
    try:
        number = float(cast(float, value)) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _UnexpectedError("a number")
    return number


def _numbers(value: object) -> tuple[float, ...]:
    try:
        return tuple(map(_number, value)) if isinstance(value, list) and value else (_number(value),)
    except _UnexpectedError:
        raise _UnexpectedError("a number, or an array of one for each channel") from None


def _divisors(value: object) -> tuple[float, ...]:
    numbers = _numbers(value)
    if 0 in numbers:
        raise _UnexpectedError("numbers other than 0")
    return numbers


def _padding_value(value: object) -> float | str:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, int) and abs(value) >= 2**64):
        raise _UnexpectedError("a value of the input")
    return value


def _one_of(choices: Mapping[str, T]) -> Callable[[object], T]:
    def check(value: object) -> T:
        if not isinstance(value, str) or value not in choices:
            raise _UnexpectedError(f"one of {', '.join(map(repr, choices))}")
        return choices[value]

    return check


def _media_type(entries: Sequence[CodecEntry]) -> Callable[[object], str]:
    """Check for a media type that one of these reads or writes."""

    def check(value: object) -> str:
        media_type = parse_media_type(value) if isinstance(value, str) else None
        entry = codecs_by_media_type().get(media_type.essence) if media_type else None
        if entry not in entries:
            needs = f" ({entry.media_type} needs {entry.requirement})" if entry and not entry.installed else ""
            raise _UnexpectedError(f"one of {', '.join(media_types(entries))}{needs}")
        return cast(str, value)

    return check


def _shown(value: object) -> str:
    """A value as an error message may show it: short, and in the words of TOML."""
    if isinstance(value, dict):
        return "a table"
    if type(value) is int and abs(value) >= 2**64:  # Python writes no integers of thousands of digits
        return "a larger integer"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
