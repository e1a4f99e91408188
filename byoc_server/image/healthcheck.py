"""Exit with 0 when the server in this container answers ``/ping`` with 200, else say why not and exit with 1.

It runs every few seconds beside the server, so it imports as little as it can: about 20 ms of CPU time.
"""

import _socket
import os
import sys

_TIMEOUT_S = 4.0  # less than the engine's, so that the reason is recorded


def port() -> int:
    """Where the server listens, unless it was told by a flag; the order is that of byoc_server/config.py."""
    for name in ("SAGEMAKER_BIND_TO_PORT", "BYOC_PORT"):
        if text := os.environ.get(name, "").strip():
            return int(text)
    return 8080


def ping() -> bytes:
    """The whole answer to one ping."""
    connection = _socket.socket()
    connection.settimeout(_TIMEOUT_S)
    connection.connect(("127.0.0.1", port()))
    connection.send(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = b""
    while part := connection.recv(65536):
        answer += part
    connection.close()
    return answer


if __name__ == "__main__":
    try:
        head, _, body = ping().partition(b"\r\n\r\n")
    except OSError as error:
        sys.exit(f"no answer on port {port()}: {error}")
    status = head.split(b"\r\n")[0].decode("latin-1")
    sys.exit(0 if status.startswith("HTTP/1.1 200") else f"{status}: {body.decode('utf-8', 'replace')}")
