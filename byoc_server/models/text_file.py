"""Reading a small text file that lies beside the model."""

from __future__ import annotations

import stat
from pathlib import Path

from byoc_server.errors import ModelLoadError


def read_text(path: Path, max_bytes: int) -> str:
    """Read a whole file in UTF-8, with or without a byte order mark.

    Args:
        path: a regular file; anything else could block, or never end.
        max_bytes: of a larger file no more than this is read.

    Raises:
        ModelLoadError: naming the file and what is wrong with it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ModelLoadError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        with path.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise ModelLoadError(f"{path} is larger than {max_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ModelLoadError(f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8") from None
