"""What a target finds wrong, told apart by where it happened: one run can find several faults."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path


class FindingError(Exception):
    """A property does not hold. The message says which."""


class Findings:
    """Keeps the shortest input of every fault.

    Args:
        folder: gets two files a fault: the input, and what was raised beside it, ending in ``.txt``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths: dict[str, int] = {}

    def keep(self, data: bytes, error: Exception) -> None:
        """Keep an input unless a shorter one shows the same fault.

        That is an error of the same type from the same line, or a property that fails in the same words, numbers aside.
        """
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/byoc_server/" in frame.filename] or frames
        words = re.sub(r"\d+", "", str(error))
        reason = words if isinstance(error, FindingError) else f"{own[-1].filename}:{own[-1].lineno}"
        key = hashlib.sha256(f"{type(error).__name__} {reason}".encode()).hexdigest()[:12]
        if len(data) >= self._lengths.get(key, len(data) + 1):
            return
        self._lengths[key] = len(data)
        (self._folder / key).write_bytes(data)
        (self._folder / f"{key}.txt").write_text("".join(traceback.format_exception(error)))
