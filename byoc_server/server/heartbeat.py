"""How a core process shows its parent that it is alive, and how the parent sees that it is not.

It does so from a thread, since its event loop may be busy.

A batch that is expected to be short runs on the event loop, and now and then one is not short at all. ONNX Runtime
lets go of the interpreter meanwhile, so a thread goes on beating. It stops with the process, and it gives the process
up when the event loop has not turned for longer than any batch may take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

BEAT_S = 1.0
_MOST_MISSED = 5


class Heartbeat:
    """Beats until it is closed.

    Args:
        beat: called every second, on a thread.
        longest_s: how long the event loop may stand still.
        on_stuck: told why, on the thread, when it has stood still for longer.
        beat_s: seconds between two beats.
    """

    def __init__(
        self,
        beat: Callable[[], None],
        longest_s: float,
        on_stuck: Callable[[str], None],
        beat_s: float = BEAT_S,
    ) -> None:
        self._beat = beat
        self._longest_s = longest_s
        self._on_stuck = on_stuck
        self._beat_s = beat_s
        self._turned_s = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """The event loop turns."""
        self._turned_s = time.monotonic()

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        self._beat()
        while not self._closed.wait(self._beat_s):
            still_s = time.monotonic() - self._turned_s
            if still_s > self._longest_s:
                self._on_stuck(f"the event loop has not turned for {still_s:.0f} s")
                return
            self._beat()


class MissedBeats:
    """Counts how many looks in a row there was no beat. Pure.

    Looks are counted, not seconds: when the whole container was stopped, its processes have missed nothing.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}

    def look(self, beats: Mapping[int, float]) -> list[int]:
        """Those that stand still.

        Args:
            beats: process -> time of its last beat, in whatever unit; only of those that have begun to beat.
        """
        self._seen = {pid: self._count(pid, beat) for pid, beat in beats.items()}
        return [pid for pid, (_, missed) in self._seen.items() if missed > _MOST_MISSED]

    def _count(self, pid: int, beat: float) -> tuple[float, int]:
        seen, missed = self._seen.get(pid, (beat, -1))
        return beat, missed + 1 if beat == seen else 0
