"""Ask NVML and say what it tells: a program of its own, run by ``byoc_server.device.nvml``.

It runs by its path in a bare interpreter, and gets the folders where modules are found as its arguments. Whatever the
library does, it does here: crash, hang, print. The answer, an ``NvmlReport`` as one line of JSON, goes to what standard
output was at the start; what the library prints goes nowhere::

    {"driver": "535.54.03", "gpus": [{"name": "Tesla T4", "brand": 14, ...}], "error": "", "error_code": 0}
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(folders: Iterable[str]) -> None:
    """Answer with the modules of these folders; afterwards, nothing can be said on standard output any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a hang does not outlive who has started this
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)  # not passed on to programs that the library starts
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.path.extend(folders)
    from byoc_server.device.nvml import ask_nvml  # noqa: PLC0415  # found only with these folders

    os.write(answer, f"{json.dumps(asdict(ask_nvml()))}\n".encode())


if __name__ == "__main__":  # pragma: no cover  # the interpreter is left at once, and coverage with it
    main(sys.argv[1:])
    os._exit(0)  # no clean-up: the library's own could hang or crash
