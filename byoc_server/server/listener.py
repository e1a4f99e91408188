"""The listening socket: opened by the server itself, so that a port in use is one clear line and not a trace."""

from __future__ import annotations

import errno
import socket

from byoc_server.errors import StartupError

BACKLOG = 2048
"""Connections the kernel keeps until a worker accepts them. SageMaker wants a connection accepted within 250 ms."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        StartupError: the address cannot be used; the message says what to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(_advice(host, port, error)) from error
    listener.setblocking(False)
    return listener


def _advice(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; end the other program or choose another port with --port or BYOC_PORT"
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}; choose one above 1023 with --port or BYOC_PORT"
    return f"cannot listen on {host} port {port}: {error.strerror}; choose another address with --host or BYOC_HOST"
