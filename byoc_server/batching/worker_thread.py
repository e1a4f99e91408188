"""A thread that runs what it is given, one after another.

An executor of the standard library does the same with a lock, a condition and a future for every piece of work, which
takes about 10 us more of every batch. And the interpreter waits for its threads when it ends, even for one that never
returns.

Nor may the interpreter end right under one: ONNX Runtime's C++ cannot bear that its thread is ended when it asks for
the interpreter again, and aborts the process. So at the end there is a wait, and the wait has an end.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

Work = Callable[[], None]
_LAST_WAIT_S = 5.0


class Worker(Protocol):
    """Runs pieces of work elsewhere, one after another."""

    def submit(self, work: Work) -> None:
        """Run ``work``, which raises nothing, after what was submitted before. Returns at once."""
        ...

    def close(self, wait: bool) -> None:
        """Drop what has not begun, and take nothing more; ``wait`` for what has."""
        ...


class WorkerThread:
    """See ``Worker``. A daemon: work that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def submit(self, work: Work) -> None:
        """See ``Worker.submit``."""
        self._queue.put(work)

    def close(self, wait: bool) -> None:
        """See ``Worker.close``."""
        self._closed = True
        self._queue.put(None)
        if wait:
            self._thread.join()
            atexit.unregister(self._end)

    def _end(self) -> None:
        """Let the interpreter end once nothing runs, or what does has had its time."""
        self.close(wait=False)
        self._thread.join(_LAST_WAIT_S)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if not self._closed:
                work()
            del work  # or it would keep the tensors of the last batch until the next one comes
