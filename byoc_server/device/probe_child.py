"""Load one ``libcuda`` and initialise it: a program of its own, run by ``byoc_server.device.probe``.

It runs by its path in a bare interpreter, so it imports nothing but the standard library. Whatever the library does, it
does here: crash, hang, print. The answer, one line of JSON, goes to what standard output was at the start; what the
library prints goes nowhere::

    {"init": 0, "version": 12090, "devices": 1}     codes and numbers as CUDA gives them; devices null if not asked
    {"error": "cannot load: ..."}
"""

import ctypes
import json
import os
import resource
import signal
import sys

_MAX_TEXT = 300
_PR_SET_PDEATHSIG = 1  # prctl(2)


def examine(path: str) -> dict[str, int | str | None]:
    """Load and initialise the library; no context is made, so no memory of the GPU is taken.

    Args:
        path: absolute.

    Returns:
        The answer: ``init`` (what ``cuInit`` returned), ``version`` (0 if not told) and ``devices``, or ``error``.
    """
    version, devices = ctypes.c_int(0), ctypes.c_int(0)
    try:
        library = ctypes.CDLL(path)
        get_version, init, count = library.cuDriverGetVersion, library.cuInit, library.cuDeviceGetCount
    except (OSError, AttributeError) as error:  # what ctypes raises for a library or a symbol that is not there
        return {"error": f"cannot load: {error}"[:_MAX_TEXT]}
    if get_version(ctypes.byref(version)) != 0:
        version.value = 0
    code = init(0)
    counted = code == 0 and count(ctypes.byref(devices)) == 0
    return {"init": code, "version": version.value, "devices": devices.value if counted else None}


def main(path: str) -> None:
    """Answer for the library at ``path``; afterwards, nothing can be said on standard output any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a hang does not outlive who has started this
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)  # not passed on to programs that the library starts
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.write(answer, f"{json.dumps(examine(path))}\n".encode())


if __name__ == "__main__":  # pragma: no cover  # the interpreter is left at once, and coverage with it
    main(sys.argv[1])
    os._exit(0)  # no clean-up: the library's own could hang or crash
