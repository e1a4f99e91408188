"""Ids of requests whose clients give them none: numbers, and how they are written."""

from __future__ import annotations

import itertools
import os
import time

RequestId = str | int
"""The client's own, or a number of this process."""


class RequestIds:
    """Gives out numbers. Written as text they are like no other id of this server, or of one before it.

    Attributes:
        prefix: stands before each number, which follows in hexadecimal digits.
    """

    def __init__(self) -> None:
        self.prefix = f"{os.getpid():x}-{int(time.time()):x}-"
        self.next = itertools.count(1).__next__

    def text(self, request_id: RequestId) -> str:
        """An id as it is shown."""
        return request_id if isinstance(request_id, str) else f"{self.prefix}{request_id:x}"
