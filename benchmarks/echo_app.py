"""The yardstick: the least an ASGI application on uvicorn can do with a request.

It reads the body and answers a JSON text of a fixed length, on the same event loop and parser as the server that is
measured, with everything switched off that can be. What it costs is the cost of uvicorn and ASGI.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


def make_app(answer_bytes: int) -> ASGIApp:
    """Build the application.

    Args:
        answer_bytes: length of the answer, at least two.
    """
    answer = b'"' + b"0" * (answer_bytes - 2) + b'"'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    body = {"type": "http.response.body", "body": answer}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send(start)
        await send(body)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the bare echo.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer-bytes", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        make_app(options.answer_bytes),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


if __name__ == "__main__":
    main()
