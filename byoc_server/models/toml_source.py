"""Where a key stands in a TOML text, for error messages: the parser of the standard library does not keep it. Pure.

A small scan of the text, line by line. What stands in an inline table is found at the line where that begins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from byoc_server.errors import ModelLoadError

_STRING = r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''
_STRING_OR_COMMENT = re.compile(rf"({_STRING})|#[^\n]*", re.DOTALL)
_PART = r'(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')'
_PARTS = re.compile(_PART)
_KEY = rf"\s*{_PART}(?:\s*\.\s*{_PART})*\s*"
_HEADER = re.compile(rf"\s*\[\[?({_KEY})\]\]?\s*\Z")
_ASSIGNMENT = re.compile(rf"({_KEY})=(.*)")
_QUOTED = re.compile(_STRING)


@dataclass(frozen=True, slots=True)
class TomlSource:
    """A file that has been read.

    Attributes:
        path: of the file.
        text: valid TOML.
    """

    path: str
    text: str

    def error(self, keys: Sequence[str], problem: str) -> ModelLoadError:
        """An error that names the file, the line and the key.

        Args:
            keys: names of the tables around the key, outermost first, and the key. If it is not there, the line is
                that of the table it belongs to.
            problem: what is wrong with it.
        """
        line = line_of(self.text, keys)
        place = f", line {line}" if line else ""
        return ModelLoadError(f"{self.path}{place}, {dotted(keys)}: {problem}")


def dotted(keys: Sequence[str]) -> str:
    """Keys as TOML spells them: joined by dots, in quotation marks where they need some."""
    return ".".join(key if re.fullmatch("[A-Za-z0-9_-]+", key) else f'"{key}"' for key in keys)


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line, counted from 1, where a key or the nearest table around it first appears; 0 if none does."""
    wanted = tuple(keys)
    best, found = 0, 0
    table: tuple[str, ...] = ()
    depth = 0
    for number, line in enumerate(_STRING_OR_COMMENT.sub(_on_one_line, text).split("\n"), 1):
        header = _HEADER.match(line) if depth == 0 else None
        assignment = _ASSIGNMENT.match(line) if depth == 0 else None
        if header:
            path = table = _split(header[1])
        elif assignment:
            path = (*table, *_split(assignment[1]))
            depth = _brackets(assignment[2])
        else:
            depth = max(0, depth + _brackets(line))
            continue
        common = _common(path, wanted)
        if common > best:
            best, found = common, number
    return found


def _on_one_line(match: re.Match[str]) -> str:
    """Empty strings of several lines in the place of such strings, nothing in the place of comments."""
    text = match[0]
    return text if match[1] and "\n" not in text else ('""' if match[1] else "") + "\n" * text.count("\n")


def _brackets(text: str) -> int:
    """How many more brackets open than close outside strings."""
    plain = _QUOTED.sub("", text)
    return plain.count("[") + plain.count("{") - plain.count("]") - plain.count("}")


def _split(key: str) -> tuple[str, ...]:
    parts = _PARTS.findall(key)
    return tuple(str(tomllib.loads(f"key = {part}")["key"]) if part[0] in "\"'" else part for part in parts)


def _common(path: Sequence[str], wanted: Sequence[str]) -> int:
    """How many keys ``path`` and ``wanted`` have in common from the start."""
    count = 0
    for ours, theirs in zip(path, wanted, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
