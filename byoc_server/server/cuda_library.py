"""Settling which ``libcuda`` this server runs on, where there is a GPU.

The dynamic linker reads ``LD_LIBRARY_PATH`` once, when a process starts (ld.so(8)). So where another library is wanted
than would be found, this process replaces itself by one with another environment: the same process id, so that signals
still arrive, and only once. It happens before a CUDA library is loaded and before gunicorn forks.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from byoc_server.config import Settings
from byoc_server.device.linker import find_libcuda, mapped_libraries
from byoc_server.device.resolution import Resolution, plan, resolve
from byoc_server.device.survey import THIS_MACHINE, Sources
from byoc_server.server.entrypoint import END_SIGNALS

logger = logging.getLogger(__name__)

GUARD = "_BYOC_CUDA_LIBRARY"
"""Variable that a process leaves to its workers and to what replaces it: its process id and the ``libcuda`` it chose.

The process id tells a replacement from a child: a server that another one starts decides for itself.
"""

Exec = Callable[[str, list[str], dict[str, str]], object]


def settle(
    settings: Settings,
    environ: MutableMapping[str, str],
    root: Path = Path("/"),
    sources: Sources = THIS_MACHINE,
    execve: Exec = os.execve,
) -> None:
    """Settle which ``libcuda`` will be found, and replace this process where that takes another environment.

    Returns where nothing has to change, in the replacement, and where replacing failed.

    Args:
        settings: of the server.
        environ: of this process; the guard variable is set in it.
        root: where ``proc``, ``dev`` and ``usr`` lie.
        sources: of facts that are not files.
        execve: replaces the process.
    """
    if _is_settled(environ, root):
        logger.debug("cuda-compat: settled before", extra={"event": "cuda_compat"})
        return
    resolution = resolve(settings, environ, root, sources)
    change = plan(resolution, environ, root)
    report(resolution)
    for remark in change.remarks:
        logger.log(remark.level, "cuda-compat: %s", remark.message, extra={"event": "cuda_compat"})
    environ[GUARD] = json.dumps({"pid": os.getpid(), "libcuda": str(change.library.real) if change.library else ""})
    if change.library_path is None:
        return
    problem = "it is a script that cannot be run again" if not _can_repeat(sys.argv[0]) else ""
    if not problem:
        # A signal has to wait until the replacement has its handlers: as PID 1 it would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        try:
            replaced = {**environ, "LD_LIBRARY_PATH": change.library_path}
            execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], replaced)
        except OSError as error:
            problem = str(error.strerror)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    text = "cuda-compat: cannot replace this process (%s); set LD_LIBRARY_PATH=%s for the container instead"
    logger.error(text, problem, change.library_path, extra={"event": "cuda_compat"})


def report(resolution: Resolution) -> None:
    """Log the decision in one line, and what was odd in a line each."""
    decision = resolution.decision
    for remark in decision.remarks:
        logger.log(remark.level, "cuda-compat: %s", remark.message, extra={"event": "cuda_compat"})
    fields = resolution.fields()
    logger.log(decision.level, "cuda-compat: %s", decision.message, extra={"event": "cuda_compat", **fields})


def check_mapped(environ: Mapping[str, str], maps: str) -> None:
    """Log which ``libcuda`` is loaded, once a model is: an error if it is not the one that was chosen.

    Args:
        environ: of this process, a worker's included.
        maps: text of ``/proc/self/maps``.
    """
    mapped = mapped_libraries(maps)
    if not mapped:
        return
    extra = {"event": "cuda_library", "libraries": list(mapped)}
    chosen = _guard(environ)[1]
    if chosen and chosen not in mapped:
        logger.error("cuda-compat: %s is loaded, not %s as decided", ", ".join(mapped), chosen, extra=extra)
    else:
        logger.info("CUDA runs on %s", ", ".join(mapped), extra=extra)


def _is_settled(environ: Mapping[str, str], root: Path) -> bool:
    """Whether this process has replaced another one that chose the library which is found now."""
    pid, chosen = _guard(environ)
    if pid != os.getpid():
        return False
    found = find_libcuda(root, environ.get("LD_LIBRARY_PATH", ""))
    return chosen == (str(found.real) if found else "")


def _guard(environ: Mapping[str, str]) -> tuple[int, str]:
    """Process id and ``libcuda`` from the guard variable; 0 and nothing without one, or with nonsense in it."""
    try:
        guard = json.loads(environ.get(GUARD, ""))
        return int(guard["pid"]), str(guard["libcuda"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return 0, ""


def _can_repeat(script: str) -> bool:
    """Whether the command that started this interpreter would do the same again: not a script from standard input."""
    return script == "-c" or os.path.isfile(script)
