"""``GET /ping`` and ``POST /invocations`` as plain ASGI endpoints.

They are dispatched before Starlette's router, whose matching alone would cost as much as a small inference
(docs/decisions/0001-plain-asgi-endpoints.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from byoc_server.core.client import InferenceClient, ModelState
from byoc_server.errors import BodyTimeout, ByocError, MethodNotAllowed, NotReady, Unavailable
from byoc_server.http.body import BodyBudget, BodyLease, ClientGoneError, declared_length, discard_body, read_rest
from byoc_server.http.content_coding import CONTENT_ENCODING
from byoc_server.http.dialect import Head, fields_of
from byoc_server.http.inference import InferencePath
from byoc_server.http.responses import EMPTY, Response, all_headers, error_response, send_response
from byoc_server.http.watch import Exchange, Watch

_PING_METHODS = ("GET", "HEAD", "POST")
ENDING = "the server is ending; send the request again"


class PingEndpoint:
    """200 with an empty body when the model is ready, else 503 with the reason.

    It reads one attribute, so it is as quick while the model computes as when it is idle.
    """

    def __init__(self, client: InferenceClient, all_ready: Callable[[], bool]) -> None:
        self._client = client
        self._all_ready = all_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ping."""
        if scope["method"] in _PING_METHODS:
            response = self.answer()
        else:
            response = error_response(MethodNotAllowed(scope["method"], _PING_METHODS))
        await send_response(send, response)

    def answer(self) -> Response:
        """Answer one ping that came with a method for it."""
        refusal = self.refusal()
        return EMPTY if refusal is None else error_response(refusal)

    def refusal(self) -> Unavailable | None:
        """Why requests are not served now; ``None`` if they are."""
        status = self._client.status
        if status.state is not ModelState.READY:
            return status.refusal()
        return None if self._all_ready() else NotReady("other workers are still loading the model")


class InvocationsEndpoint:
    """Reads the request off ASGI, hands it to the request path, and writes the answer."""

    def __init__(self, path: InferencePath, budget: BodyBudget, request_timeout_s: float) -> None:
        self._path = path
        self._budget = budget
        self._timeout_s = request_timeout_s
        self._watch = Watch()
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one invocation."""
        arrived_s = time.monotonic()
        fields = fields_of(scope["headers"])
        head = self._path.head_of(fields)
        task = asyncio.current_task(self._loop)  # with the loop given it need not be looked up
        assert task is not None
        exchange = Exchange(task, receive, arrived_s + self._timeout_s)
        self._watch.add(exchange)
        response: Response | None = None
        refusal: ByocError | None = None
        lease: BodyLease | None = None
        coded: BodyLease | None = None
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(scope["method"], ["POST"])
            if b"content-length" in fields:
                self._budget.check_length(declared_length(fields[b"content-length"]))  # before anything is buffered
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                body = message["body"]
            else:
                lease = BodyLease(self._budget)
                body = await read_rest(receive, message, lease)
            if CONTENT_ENCODING in fields:
                coded = lease = lease or BodyLease(self._budget)
            exchange.answer = answer = self._loop.create_future()
            exchange.cancel = self._path.submit(head, arrived_s, body, exchange.reply, coded)
            del body, message  # a decoder that copied has no more need of it while the model runs
            response = await answer
        except ClientGoneError:
            return
        except ByocError as error:
            # Its traceback leads to this frame, which holds it: a cycle with the whole body in it.
            refusal = error.with_traceback(None)
        except asyncio.CancelledError:
            task.uncancel()
            exchange.give_up()
            refusal = BodyTimeout(_too_slow(self._timeout_s)) if exchange.timed_out else Unavailable(ENDING)
        finally:
            self._watch.remove(exchange)
            exchange.cancel = None  # it leads to who replies, and from there back to the exchange
            if lease is not None:
                lease.release()
        if refusal is not None:
            await self._refuse(head, arrived_s, refusal, receive, send)
        elif response is not None:
            await send_response(send, response)

    async def refuse(self, error: ByocError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not for the model."""
        head = self._path.head_of(fields_of(scope["headers"]))
        await self._refuse(head, time.monotonic(), error, receive, send)

    async def _refuse(self, head: Head, arrived_s: float, error: ByocError, receive: Receive, send: Send) -> None:
        """Answer without the model, and end the connection once the client has had a chance to see it."""
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._path.refuse(head, arrived_s, error, answer.set_result)
        response = answer.result()
        headers = [*all_headers(response), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if type(error) is not Unavailable:  # which is said when the server ends: it waits for nothing any more
            with contextlib.suppress(asyncio.CancelledError):  # it may also come to its end here
                await discard_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_slow(timeout_s: float) -> str:
    return f"the body did not arrive within {timeout_s:g} s"
