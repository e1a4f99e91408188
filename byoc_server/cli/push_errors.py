"""The errors of ``byoc push``; each is one line that says what to do."""

from __future__ import annotations

from typing import ClassVar

from byoc_server.errors import ByocError


class PushError(ByocError):
    """The image could not be pushed."""

    code = "push_error"
    exit_code: ClassVar[int] = 1


class PushUsageError(PushError):
    """The arguments cannot be right, whatever the state of the engine and of AWS."""

    code = "push_usage_error"
    exit_code = 2
