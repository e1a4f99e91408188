"""The composition root of a worker: settings and a client that runs the model become one ASGI application."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from byoc_server.config import MIB, Settings
from byoc_server.core.client import ManagedClient
from byoc_server.errors import NotFound
from byoc_server.http.body import BodyBudget
from byoc_server.http.dialect import INVOCATIONS, Dialect
from byoc_server.http.fast_lane import FAST_LANE, FastLane
from byoc_server.http.inference import InferencePath
from byoc_server.http.invocations import InvocationsEndpoint, PingEndpoint
from byoc_server.http.open_inference import OPEN_INFERENCE, OpenInferenceEndpoint
from byoc_server.http.responses import error_response
from byoc_server.telemetry.logging import resolve_format
from byoc_server.telemetry.request_log import RequestLog

_CODEC_THREADS = 2


class App:
    """The ASGI application.

    The hot routes are found in a dictionary, everything else is Starlette's.

    Args:
        settings: of the server.
        open_client: makes what runs the model, once the event loop turns.
        all_ready: whether all workers of this server have become ready; pings say 503 until then.
        ready_first: do not begin to accept before the model has loaded (other workers can answer meanwhile).
    """

    def __init__(
        self,
        settings: Settings,
        open_client: Callable[[], ManagedClient],
        all_ready: Callable[[], bool] = lambda: True,
        *,
        ready_first: bool = False,
    ) -> None:
        self._settings = settings
        self._open_client = open_client
        self._all_ready = all_ready
        self._ready_first = ready_first
        self._hot: Mapping[str, ASGIApp] = {}
        self._rest = Starlette(lifespan=self._lifespan, exception_handlers={404: _not_found})
        self._open_inference: ASGIApp = self._rest
        self.clean = True
        """After shutdown: whether no inference was left running."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Dispatch one connection. A plain function that returns a coroutine saves the server one more of them."""
        if scope["type"] == "http":
            return self._hot.get(scope["path"], self._other)(scope, receive, send)
        return self._rest(scope, receive, send)

    def _other(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Dispatch a request for a path that is not in the dictionary."""
        endpoint = self._open_inference if scope["path"].startswith("/v2/") else self._rest
        return endpoint(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[Mapping[str, object]]:
        settings = self._settings
        client = self._open_client()
        executor = ThreadPoolExecutor(_CODEC_THREADS, thread_name_prefix="codec")
        log_format = resolve_format(settings.log_format)
        request_log = RequestLog(settings.request_log, log_format, sys.stderr.buffer)
        budget = BodyBudget(settings.max_payload_bytes, settings.max_queue_mib * MIB)

        def path_in(dialect: Dialect) -> InferencePath:
            return InferencePath(client, settings, executor, request_log, dialect)

        def endpoint(path: InferencePath) -> InvocationsEndpoint:
            return InvocationsEndpoint(path, budget, settings.request_timeout_s)

        path = path_in(INVOCATIONS)
        ping = PingEndpoint(client, self._all_ready)
        self._open_inference = OpenInferenceEndpoint(client, ping, endpoint(path_in(OPEN_INFERENCE)))
        self._hot = {"/invocations": endpoint(path), "/ping": ping, "/v2": self._open_inference}
        client.start()
        if self._ready_first:
            await client.settled()
        try:
            yield {FAST_LANE: FastLane(path, ping)}
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            self.clean = client.close()
            request_log.close()


async def _not_found(request: Request, _: Exception) -> StarletteResponse:
    response = error_response(
        NotFound("no such route; there are POST /invocations, GET /ping, and GET /v2 with those below it")
    )
    return StarletteResponse(response.body, response.status, media_type="application/json")
