from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from functools import partial

from byoc_server.batching.worker_thread import WorkerThread


class Tensor:
    """Something that a piece of work holds."""

    def use(self) -> None:
        pass


def test_work_is_done_in_order_on_a_daemon_of_that_name() -> None:
    seen: list[tuple[int, str, bool]] = []

    def work(number: int) -> None:
        thread = threading.current_thread()
        seen.append((number, thread.name, thread.daemon))

    worker = WorkerThread("lane")
    for number in range(3):
        worker.submit(partial(work, number))
    done = threading.Event()
    worker.submit(done.set)
    assert done.wait(20)
    worker.close(wait=True)
    assert seen == [(number, "lane", True) for number in range(3)]


def test_what_has_not_begun_is_dropped() -> None:
    begun, gate, dropped = threading.Event(), threading.Event(), threading.Event()
    worker = WorkerThread("lane")

    def work() -> None:
        begun.set()
        assert gate.wait(20)

    worker.submit(work)
    worker.submit(dropped.set)
    assert begun.wait(20)
    worker.close(wait=False)
    gate.set()
    worker.close(wait=True)
    assert not dropped.is_set()


def test_it_lets_go_of_what_is_done() -> None:
    """Or the tensors of the last batch would stay until the next one comes."""
    tensor = Tensor()
    gone = threading.Event()
    weakref.finalize(tensor, gone.set)
    worker = WorkerThread("lane")
    worker.submit(tensor.use)
    del tensor
    assert gone.wait(20)
    worker.close(wait=True)


def test_the_interpreter_does_not_end_under_what_runs() -> None:
    """Nor does it wait for a worker that has nothing to do."""
    program = """
import threading, time
from byoc_server.batching.worker_thread import WorkerThread

begun = threading.Event()

def work():
    begun.set()
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print("done", flush=True)

idle, busy = WorkerThread("idle"), WorkerThread("busy")
busy.submit(work)
begun.wait()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
