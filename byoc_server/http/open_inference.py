"""The routes of the Open Inference Protocol, version 2, over HTTP: everything under ``/v2``.

::

    GET  /v2                       GET  /v2/models/NAME          POST /v2/models/NAME/infer
    GET  /v2/health/live           GET  /v2/models/NAME/ready
    GET  /v2/health/ready          the three of a model also under /v2/models/NAME/versions/1

An inference goes the way of ``/invocations``, in another dialect. A request is JSON, or with the header
``Inference-Header-Content-Length: N`` N bytes of JSON and raw data behind them; an answer is alike, in the form the
request asks for, so ``Accept`` has no say. Errors are ``{"error": MESSAGE}`` (KServe, "Open Inference Protocol",
HTTP/REST; Triton Inference Server, "Binary Tensor Data Extension").
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

from starlette.types import Receive, Scope, Send

from byoc_server import __version__
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.codecs.open_inference.answer import BINARY_MEDIA_TYPE, MODEL_VERSION
from byoc_server.codecs.open_inference.data import DATATYPE_NAMES
from byoc_server.codecs.values.walk import shown
from byoc_server.core.client import InferenceClient
from byoc_server.errors import (
    ByocError,
    InvalidPayload,
    MethodNotAllowed,
    NotFound,
    Unavailable,
    UnsupportedMediaType,
)
from byoc_server.http.dialect import Dialect, Key
from byoc_server.http.invocations import InvocationsEndpoint, PingEndpoint
from byoc_server.http.responses import EMPTY, Header, Response, json_response, send_response
from byoc_server.models.adapter import Adapter
from byoc_server.types import Signature, TensorSpec

_JSON_BYTES = b"inference-header-content-length"
_JSON = "application/json"
_METHODS = ("GET", "HEAD")
_PLATFORM = "onnxruntime_onnx"
_ROUTES = (
    "there are GET /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME and /v2/models/NAME/ready, "
    "and POST /v2/models/NAME/infer"
)
_MAX_DIGITS = 18


class OpenInferenceEndpoint:
    """Everything under ``/v2``.

    Args:
        client: runs the model.
        ping: knows whether requests are served.
        infer: serves inferences in the dialect of this protocol.
    """

    def __init__(self, client: InferenceClient, ping: PingEndpoint, infer: InvocationsEndpoint) -> None:
        self._client = client
        self._ping = ping
        self._infer = infer

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Dispatch one request."""
        parts = scope["path"].split("/")[2:]
        if len(parts) > 2 and parts[0] == "models" and parts[-1] == "infer":
            return self._serve_inference(parts[1], parts[2:-1], scope, receive, send)
        return self._tell(parts, scope["method"], send)

    async def _serve_inference(
        self, name: str, version: Sequence[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        refusal: NotFound | None = None
        try:
            self._model(name, version)
        except NotFound as error:
            refusal = error
        except Unavailable:
            pass  # whatever its name, it is refused where all inferences are
        if refusal is None:
            await self._infer(scope, receive, send)
        else:
            await self._infer.refuse(refusal, scope, receive, send)

    async def _tell(self, parts: Sequence[str], method: str, send: Send) -> None:
        """Answer what is asked about the server and its model."""
        try:
            response = self._answer(parts, method)
        except ByocError as error:
            response = protocol_error(error)
        await send_response(send, response)

    def _answer(self, parts: Sequence[str], method: str) -> Response:
        response = EMPTY
        match parts:
            case []:
                response = json_response(200, _SERVER)
            case ["health", "live"]:
                pass
            case ["health", "ready"]:
                self._require_ready()
            case ["models", name, *version, "ready"]:
                self._require_ready()
                self._model(name, version)
            case ["models", name, *version]:
                response = json_response(200, _description(self._model(name, version)))
            case _:
                raise NotFound(f"no such route; {_ROUTES}")
        if method not in _METHODS:
            raise MethodNotAllowed(method, _METHODS)
        return response

    def _require_ready(self) -> None:
        refusal = self._ping.refusal()
        if refusal is not None:
            raise refusal

    def _model(self, name: str, version: Sequence[str]) -> Adapter:
        """The model of that name and version, ``["versions", NUMBER]`` or nothing.

        Raises:
            NotFound: there is no such model, or no such route below models.
            Unavailable: it is not loaded.
        """
        if version and (len(version) != 2 or version[0] != "versions"):
            raise NotFound(f"no such route; {_ROUTES}")
        adapter = self._client.adapter
        if name != adapter.model_name:
            raise NotFound(f"there is no model {shown(name)}; there is {adapter.model_name!r}")
        if version and version[1] != MODEL_VERSION:
            raise NotFound(f"{adapter.model_name!r} has no version {shown(version[1])}; it has {MODEL_VERSION!r}")
        return adapter


_SERVER = {"name": "byoc-server", "version": __version__, "extensions": ["binary_tensor_data"]}


def _description(adapter: Adapter) -> dict[str, object]:
    signature = adapter.signature
    return {
        "name": adapter.model_name,
        "versions": [MODEL_VERSION],
        "platform": _PLATFORM,
        "inputs": [_tensor(spec, signature) for spec in signature.inputs],
        "outputs": [_tensor(spec, signature) for spec in signature.outputs],
    }


def _tensor(spec: TensorSpec, signature: Signature) -> dict[str, object]:
    """Metadata of a tensor; -1 stands for any length, as of a batch axis, whatever its length in the graph."""
    shape = [-1 if d is None else d for d in spec.shape]
    if signature.batched and shape:
        shape[0] = -1
    return {"name": spec.name, "datatype": DATATYPE_NAMES[spec.dtype], "shape": shape}


def protocol_error(error: ByocError, **details: object) -> Response:
    """Write an error as ``{"error": MESSAGE}``; the protocol has no place for details but the message."""
    more = "".join(f" ({name} {value})" for name, value in details.items())
    return json_response(error.status, {"error": error.message + more}, error.headers())


def _media_types(content_type: bytes | None, json_bytes: bytes | None) -> tuple[str, str]:
    """The media types that a request would have, and want, on ``/invocations``.

    Args:
        content_type: the header.
        json_bytes: ``Inference-Header-Content-Length``.

    Raises:
        UnsupportedMediaType: the body is said to be something that is no inference request.
        InvalidPayload: the length is none.
    """
    text = "" if content_type is None else content_type.decode("latin-1").strip()
    media_type = parse_media_type(text or _JSON)
    essence = "" if media_type is None else media_type.essence
    if essence == BINARY_MEDIA_TYPE and json_bytes is None:
        return text, _JSON
    if essence not in (_JSON, BINARY_MEDIA_TYPE) and (essence != "application/octet-stream" or json_bytes is None):
        raise UnsupportedMediaType(
            f"Content-Type {shown(text)} is not supported here; use application/json; or {BINARY_MEDIA_TYPE}; or, with "
            "the header Inference-Header-Content-Length, application/octet-stream"
        )
    if json_bytes is None:
        return BINARY_MEDIA_TYPE, _JSON
    if not json_bytes.isdigit() or len(json_bytes) > _MAX_DIGITS:
        raise InvalidPayload(
            f"Inference-Header-Content-Length: expected a number of bytes, got {shown(json_bytes.decode('latin-1'))}",
            field="Inference-Header-Content-Length",
        )
    return f"{BINARY_MEDIA_TYPE};json-header-size={int(json_bytes)}", _JSON


def _entity_headers(media_type: str) -> tuple[Header, ...]:
    _, binary, json_bytes = media_type.partition(";json-header-size=")
    if not binary:
        return ((b"content-type", media_type.encode()),)
    return (b"content-type", b"application/octet-stream"), (_JSON_BYTES, json_bytes.encode())


def _key(fields: Mapping[bytes, bytes]) -> Key:
    return fields.get(b"content-type"), fields.get(_JSON_BYTES)


OPEN_INFERENCE = Dialect(_key, _media_types, _entity_headers, protocol_error)
"""The Open Inference Protocol's, over HTTP."""
