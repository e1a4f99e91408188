"""``byoc info MODEL``: what clients see of a model, what the server does with it, and a request in every format."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
import signal
from collections.abc import Mapping, MutableMapping
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import orjson

from byoc_server.codecs.base import CodecEntry, EncodeOptions, all_codecs, codecs_by_media_type
from byoc_server.codecs.examples import example_request, image_file, open_inference_document
from byoc_server.codecs.json import serializable
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.config import Settings
from byoc_server.errors import ByocError, InvalidPayload
from byoc_server.models.adapter import default_formats
from byoc_server.models.model import Model
from byoc_server.models.repository import find_model
from byoc_server.server.entrypoint import END_SIGNALS, enter
from byoc_server.server.worker import load_as_set, workers_for
from byoc_server.types import STRING, Array, BatchAxis, Signature, Tensors, TensorSpec

_LONGEST_TEXT = 1000
"""Characters of a body that a line of shell shows as it is; a longer one is packed."""
_LONGEST_COMMAND = 8000
_BATCHES = {
    BatchAxis.DYNAMIC: "records of several requests run as one batch, of up to {most}",
    BatchAxis.FIXED: "records run {size} at a time, as the graph demands; what is missing is filled up",
    BatchAxis.ABSENT: "one request is one run, with just the shapes of the graph",
}
_MULTIPART = "multipart/form-data"


def run(settings: Settings, path: str, environ: MutableMapping[str, str], *, as_json: bool) -> str:
    """Load a model as the server would, and describe it; this process may be replaced on the way.

    Args:
        settings: of the server.
        path: of a model file, or of a folder that holds one.
        environ: the environment.
        as_json: one JSON object, not lines for a person.

    Raises:
        StartupError: there is no model, or it cannot be loaded; the message says what to do.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)  # blocked while a process replaced itself by this one
    enter(settings, environ)
    source = find_model(path, environ).path
    model = load_as_set(settings, source, workers_for(settings, environ).threads)
    facts = collect_model(model, str(source), settings)
    model.close()
    return json.dumps(facts, indent=2) if as_json else model_as_text(facts)


def collect_model(model: Model, path: str, settings: Settings) -> dict[str, Any]:
    """Look at a loaded model, and run it once.

    Args:
        model: to look at.
        path: of its file.
        settings: of the server that the examples are for.

    Returns:
        What ``byoc info MODEL --json`` prints.
    """
    signature = model.adapter.signature
    content_type, accept = default_formats(settings, model.adapter)
    tensors, answer = _try_out(model, accept)
    url = f"localhost:{settings.port}"
    return {
        "model": path,
        "name": model.adapter.model_name,
        "inputs": [_input(spec) for spec in signature.inputs],
        "outputs": [spec.describe() for spec in signature.outputs],
        "batch_axis": signature.batch_axis.value,
        "batching": _BATCHES[signature.batch_axis].format(most=model.max_batch_size, size=signature.batch_size),
        "content_type": content_type,
        "accept": accept,
        "engine": dict(model.facts),
        "answer": answer,
        "examples": [
            *(_example(entry, tensors, signature, f"{url}/invocations") for entry in all_codecs()),
            _open_inference(tensors, f"{url}/v2/models/{quote(model.adapter.model_name, safe='')}/infer"),
        ],
    }


def model_as_text(facts: Mapping[str, Any]) -> str:
    """The facts for a person: a line a topic, then the examples."""
    engine = facts["engine"]
    lines = [
        ("model", facts["model"]),
        *((("takes", "")[i > 0], _input_line(spec)) for i, spec in enumerate(facts["inputs"])),
        *((("returns", "")[i > 0], text) for i, text in enumerate(facts["outputs"])),
        ("batches", facts["batching"]),
        (
            "formats",
            f"reads {facts['content_type']} without Content-Type, answers {facts['accept']} without Accept",
        ),
        ("speed", _speed_line(engine)),
        ("answers", facts["answer"]),
    ]
    text = "\n".join(f"{label:<10}{line}" for label, line in lines if line)
    usable = [example for example in facts["examples"] if example["command"]]
    others: dict[str, list[str]] = {}  # reason -> formats
    for example in facts["examples"]:
        if not example["command"]:
            others.setdefault(example["reason"], []).append(example["format"])
    for example in usable:
        text += f"\n\n# {example['format']}\n{example['command']}"
    if others:
        text += "\n\nNo example:\n" + "\n".join(f"{', '.join(names)}: {reason}" for reason, names in others.items())
    return text.encode(errors="backslashreplace").decode()


def _try_out(model: Model, accept: str) -> tuple[Tensors, str]:
    """Find inputs of one record that the model runs on.

    Returns:
        The inputs as clients send them, and the answer, or why there is none.
    """
    reason = ""
    tensors: Tensors = {}
    for number in (1, 0):  # ones say more than zeros, and may be no valid index
        tensors = {spec.name: _made_up(spec, model, number) for spec in model.adapter.signature.inputs}
        try:
            prepared = model.adapter.prepare(dict(tensors)) if model.adapter.prepare else tensors
            outputs = model.infer(prepared)
        except Exception as error:  # the engine's own: the model does not like these inputs
            reason = f"nothing to made-up inputs: {str(error).partition(chr(10))[0]}"
            continue
        outputs = model.adapter.present(outputs) if model.adapter.present else outputs
        return tensors, _answer(outputs, model.adapter.signature, accept)
    return tensors, reason


def _answer(outputs: Tensors, signature: Signature, accept: str) -> str:
    """What a client that names no format gets."""
    media_type = parse_media_type(accept)
    assert media_type is not None
    codec = codecs_by_media_type()[media_type.essence].load()
    try:
        body = cast(bytes, codec.encode(outputs, signature, EncodeOptions()))  # no envelope asks for more
    except ByocError as error:
        return f"nothing in its default format: {error.message}"
    return _shortened(body.decode()) if _is_text(body) else f"{len(body)} bytes of {media_type.essence}"


def _made_up(spec: TensorSpec, model: Model, number: int) -> Array:
    signature = model.adapter.signature
    length = model.open_axis or 1
    shape = tuple(length if d is None else d for d in signature.record_shapes[spec.name])
    shape = (1, *shape) if signature.batched else shape
    return np.full(shape, "text", STRING) if spec.dtype == STRING else np.full(shape, number, spec.dtype)


def _input(spec: TensorSpec) -> dict[str, Any]:
    return {
        "input": spec.describe(),
        "columns": list(spec.columns),
        "image": "" if spec.image is None else f"{spec.image.width}x{spec.image.height} {spec.image.channels}",
        "padding_value": spec.padding_value,
    }


def _input_line(spec: Mapping[str, Any]) -> str:
    line: str = spec["input"]
    if spec["columns"]:
        line += f", columns {', '.join(spec['columns'])}"
    if spec["image"]:
        line += f", or an image file, resized to {spec['image']}"
    if spec["padding_value"] is not None:
        line += f", shorter records padded with {spec['padding_value']}"
    return line


def _speed_line(engine: Mapping[str, Any]) -> str:
    if engine["one_record_ms"] is None:
        return ""
    per_s = float(f"{engine['rows_per_s']:.2g}")
    return f"{engine['one_record_ms']} ms for one record, about {per_s:,.0f} a second in the best batch"


def _example(entry: CodecEntry, tensors: Tensors, signature: Signature, url: str) -> dict[str, str]:
    try:
        command = (
            _multipart_command(tensors, signature, url)
            if entry.media_type == _MULTIPART
            else _command(*example_request(entry, tensors, signature), url)
        )
    except ByocError as error:
        return {"format": entry.media_type, "command": "", "reason": error.message}
    return _shown_if_short(entry.media_type, command)


def _open_inference(tensors: Tensors, url: str) -> dict[str, str]:
    command = _command("application/json", open_inference_document(tensors), url)
    return _shown_if_short("Open Inference Protocol", command)


def _shown_if_short(name: str, command: str) -> dict[str, str]:
    if len(command) > _LONGEST_COMMAND:
        return {"format": name, "command": "", "reason": f"an example would be {len(command)} characters long"}
    return {"format": name, "command": command, "reason": ""}


def _command(content_type: str, body: bytes, url: str) -> str:
    """A line of shell that sends a body: as it is where a person can read it, else through base64."""
    header = f"-H {shlex.quote(f'Content-Type: {content_type}')}"
    if len(body) <= _LONGEST_TEXT and _is_text(body):
        return f"curl {url} {header} --data-binary {shlex.quote(body.decode())}"
    packed, coding = body, ""
    if len(body) > _LONGEST_TEXT:
        packed, coding = gzip.compress(body, mtime=0), "-H 'Content-Encoding: gzip' "
    return f"echo {base64.b64encode(packed).decode()} | base64 -d \\\n  | curl {url} {header} {coding}--data-binary @-"


def _multipart_command(tensors: Tensors, signature: Signature, url: str) -> str:
    """A line of shell with a field an input; at most one of them comes from a pipe."""
    fields, file = [], b""
    for spec in signature.inputs:
        if "=" in spec.name:
            raise InvalidPayload(f"curl would end the name {spec.name!r} at the equals sign")
        if spec.image is not None and not file:
            file = image_file(spec.image, "image/png")
            fields.append(f"-F {shlex.quote(f'{spec.name}=@-;type=image/png')}")
        else:
            value = orjson.dumps(serializable(tensors[spec.name]), option=orjson.OPT_SERIALIZE_NUMPY).decode()
            fields.append(f"-F {shlex.quote(f'{spec.name}={value};type=application/json')}")
    pipe = f"echo {base64.b64encode(file).decode()} | base64 -d \\\n  | " if file else ""
    return f"{pipe}curl {url} {' '.join(fields)}"


def _is_text(body: bytes) -> bool:
    return body.isascii() and body.decode().replace("\n", "").isprintable()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
