"""What happens before anything else, and once a model is loaded: seeing to the CUDA driver library.

Most servers run without a GPU and start where every millisecond counts, so without one this is a look at the names in
two folders, and nothing else is imported.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from byoc_server.config import Settings
from byoc_server.device.gpu import look_for_gpus

logger = logging.getLogger(__name__)

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a server; held back while a process replaces itself."""


def enter(settings: Settings, environ: MutableMapping[str, str], root: Path = Path("/")) -> None:
    """Settle which ``libcuda`` will be found, before anything loads one; this process may be replaced on the way.

    Args:
        settings: of the server.
        environ: the environment.
        root: where ``proc`` and ``dev`` lie.
    """
    if settings.device == "cpu":
        return
    start_s = time.perf_counter()
    presence = look_for_gpus(root, environ)
    if presence.driver_present or presence.platform:
        from byoc_server.server.cuda_library import settle  # noqa: PLC0415  # not without a GPU

        settle(settings, environ, root)
        return
    elapsed_ms = round((time.perf_counter() - start_s) * 1000, 2)
    extra = {"event": "cuda_compat", "decision": "SKIP_NO_GPU", "elapsed_ms": elapsed_ms}
    logger.info("cuda-compat: no GPU is visible", extra=extra)


def confirm(environ: Mapping[str, str]) -> None:
    """Say which ``libcuda`` this process has loaded, if it has, now that its model is loaded or could not be.

    Args:
        environ: of this process, a worker's included.
    """
    maps = ""
    with contextlib.suppress(OSError):  # a sandbox may have no /proc
        maps = Path("/proc/self/maps").read_text(errors="replace")
    if "/libcuda.so" in maps:
        from byoc_server.server.cuda_library import check_mapped  # noqa: PLC0415  # not without a GPU

        check_mapped(environ, maps)
