"""Talks to the server from inside its container, where no network is needed.

Usage: python - PORT READY REQUESTS < probe.py

READY is ``true`` to wait until ``/ping`` says something other than 503, else any answer will do. REQUESTS is JSON:
``[[body in hexadecimal, headers], ...]``, each for ``/invocations``. It prints JSON: the answers to the ping and to the
requests, each as ``[status, content type, body in hexadecimal]``.
"""

import http.client
import json
import sys
import time

_TIMEOUT_S = 60.0
_POLL_S = 0.02

port, until_ready, requests = int(sys.argv[1]), sys.argv[2] == "true", json.loads(sys.argv[3])


def send(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type", ""), answer.read().hex()


def ping() -> tuple[int, str, str]:
    end_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            answer = send("GET", "/ping")
        except OSError as error:
            answer = 0, "", str(error).encode().hex()
        if answer[0] not in ((0, 503) if until_ready else (0,)) or time.monotonic() > end_s:
            return answer
        time.sleep(_POLL_S)


answers = [ping()]
answers += [send("POST", "/invocations", bytes.fromhex(body), headers) for body, headers in requests]
print(json.dumps(answers))
