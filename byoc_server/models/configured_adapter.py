"""The adapter that a ``byoc.toml`` describes: checked against the signature of the model, and then done.

``model_config`` has read the file and checked what can be told without the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from byoc_server.codecs.base import codecs_by_media_type
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.codecs.values.conform import convert, first_misfit
from byoc_server.codecs.values.walk import checked_leaf, shown
from byoc_server.errors import InvalidPayload, ModelLoadError
from byoc_server.models.adapter import Adapt, Adapter, default_name
from byoc_server.models.image_input import image_spec
from byoc_server.models.labels import read_labels
from byoc_server.models.model_config import (
    InputConfig,
    ModelConfig,
    OutputConfig,
    did_you_mean,
)
from byoc_server.models.postprocess import Labels, Postprocessing
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

_NO_INPUT = InputConfig()
_NO_OUTPUT = OutputConfig()


def configured_adapter(config: ModelConfig, model_path: Path, signature: Signature) -> Adapter:
    """What clients see of a model.

    Args:
        config: what the file says.
        model_path: the model file; labels lie beside it.
        signature: of the model.

    Raises:
        ModelLoadError: the file does not fit the model.
    """
    _require_known("inputs", config.inputs, signature.inputs, config)
    _require_known("outputs", config.outputs, signature.outputs, config)
    inputs = tuple(_client_input(spec, config, signature) for spec in signature.inputs)
    _require_unique_inputs(inputs, signature, config)
    processed = _processed_outputs(config, model_path.parent, signature)
    outputs = _returned(config, processed)
    clients = replace(signature, inputs=inputs, outputs=outputs)
    _require_accepted(config, len(outputs))
    return Adapter(
        clients,
        signature,
        _prepare(clients, signature),
        _present(processed, outputs, signature),
        _answer_bytes(processed),
        config.name or default_name(model_path),
        config.content_type,
        config.accept,
        config.source.path,
    )


def _require_known(table: str, names: Mapping[str, object], specs: Sequence[TensorSpec], config: ModelConfig) -> None:
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise config.source.error(
                (table, name), f"the graph of the model has no such {table[:-1]}; {did_you_mean(name, known)}"
            )


def _client_input(spec: TensorSpec, config: ModelConfig, signature: Signature) -> TensorSpec:
    """What clients see of an input."""
    said = config.inputs.get(spec.name, _NO_INPUT)
    keys = ("inputs", spec.name)
    record_shape = signature.record_shapes[spec.name]

    def refusal(key: str, problem: str) -> ModelLoadError:
        return config.source.error((*keys, *key.split(".")) if key else keys, problem)

    if said.dtype is not None and (said.dtype == STRING) != (spec.dtype == STRING):
        raise refusal("dtype", f"strings and numbers do not become each other; the input is {spec.describe()}")
    client = replace(spec, name=said.name or spec.name, dtype=spec.dtype if said.dtype is None else said.dtype)
    if said.columns:
        _check_columns(said.columns, spec, record_shape, refusal)
    padding_value = said.padding_value
    if padding_value is not None:
        if None not in record_shape:
            raise refusal("padding_value", f"records of {spec.describe()} have no open axis to pad along")
        try:
            checked_leaf(padding_value, spec, "padding_value")
            padding_value = cast(float | str, checked_leaf(padding_value, client, "padding_value"))
        except InvalidPayload as error:
            raise refusal(
                "padding_value", f"expected {error.details['expected']}, got {error.details['got']}"
            ) from None
    image = None
    if said.image is not None:
        image = image_spec(
            said.image, client, record_shape, lambda k, problem: refusal(f"image.{k}".strip("."), problem)
        )
    return replace(client, columns=said.columns, padding_value=padding_value, image=image)


def _check_columns(
    columns: Sequence[str],
    spec: TensorSpec,
    record_shape: tuple[int | None, ...],
    refusal: Callable[[str, str], ModelLoadError],
) -> None:
    if record_shape == (None,):
        return
    if None in record_shape:
        raise refusal("columns", f"records of {spec.describe()} have open axes, so their number of values is not fixed")
    values = math.prod(cast(tuple[int, ...], record_shape))
    if len(columns) != values:
        raise refusal("columns", f"expected {values}, as a record of {spec.describe()} has, got {len(columns)}")


def _require_unique_inputs(inputs: Sequence[TensorSpec], signature: Signature, config: ModelConfig) -> None:
    """Refuse inputs and columns that clients could not tell apart."""
    owner: dict[str, str] = {}
    for key in ("name", "columns"):  # what is made up of columns comes last: those are in the file for certain
        for client, spec in zip(inputs, signature.inputs, strict=True):
            said = config.inputs.get(spec.name, _NO_INPUT)
            for name in (client.name,) if key == "name" else client.columns:
                other = owner.setdefault(name, spec.name)
                if other == spec.name:
                    continue
                at_fault, of = (other, spec.name) if key == "name" and said.name is None else (spec.name, other)
                raise config.source.error(
                    ("inputs", at_fault, key), f"{name!r} is also a name or a column of input {of!r}"
                )


@dataclass(frozen=True, slots=True)
class _ProcessedOutput:
    """One output of the model, and what clients see of it."""

    graph_name: str
    client_name: str
    steps: Postprocessing
    specs: tuple[TensorSpec, ...]


def _processed_outputs(config: ModelConfig, folder: Path, signature: Signature) -> list[_ProcessedOutput]:
    processed = []
    owner: dict[str, str] = {}
    for spec in signature.outputs:
        said = config.outputs.get(spec.name, _NO_OUTPUT)
        name = said.name or spec.name
        steps = _postprocessing(said, spec, config, folder, signature.batched)
        output = _ProcessedOutput(spec.name, name, steps, steps.specs(spec, name))
        for made in output.specs:
            other = owner.setdefault(made.name, spec.name)
            if other != spec.name:
                key = "name" if said.name else "top_k"
                raise config.source.error(("outputs", spec.name, key), f"{made.name!r} is already output {other!r}")
        processed.append(output)
    return processed


def _postprocessing(
    said: OutputConfig, spec: TensorSpec, config: ModelConfig, folder: Path, batched: bool
) -> Postprocessing:
    keys = ("outputs", spec.name)
    if said.softmax and spec.dtype.kind != "f":
        raise config.source.error((*keys, "softmax"), f"it is for floats; the output is {spec.describe()}")
    if said.top_k is not None and spec.dtype == STRING:
        raise config.source.error((*keys, "top_k"), f"it is for numbers; the output is {spec.describe()}")
    if batched and len(spec.shape) == 1 and (said.softmax or said.top_k is not None):
        at_fault = "softmax" if said.softmax else "top_k"
        raise config.source.error((*keys, at_fault), f"{spec.describe()} has no axis behind that of the records")
    labels = _labels(said, spec, config, folder)
    return Postprocessing(said.softmax, said.top_k, labels)


def _labels(said: OutputConfig, spec: TensorSpec, config: ModelConfig, folder: Path) -> Labels | None:
    if said.labels is None:
        return None
    keys = ("outputs", spec.name, "labels")
    if said.top_k is None and spec.dtype.kind not in "iu":
        raise config.source.error(
            keys, f"they need top_k, or an output of whole numbers, which are the indices; it is {spec.describe()}"
        )
    try:
        labels = Labels(said.labels) if isinstance(said.labels, tuple) else read_labels(folder / said.labels)
    except ModelLoadError as error:
        raise config.source.error(keys, error.message) from None
    length = spec.shape[-1] if said.top_k is not None and spec.shape else None
    if length is not None and not labels.fit(length):
        expected = f"{length} label{'s' * (length != 1)}, as the last axis of {spec.describe()} has"
        raise config.source.error(keys, f"expected {expected}, got {labels.count}")
    return labels


def _returned(config: ModelConfig, processed: Sequence[_ProcessedOutput]) -> tuple[TensorSpec, ...]:
    """The outputs that clients get, in their order."""
    specs = {spec.name: spec for output in processed for spec in output.specs}
    for name in config.returned:
        if name not in specs:
            renamed = next((o.client_name for o in processed if o.graph_name == name), None)
            advice = f"clients call it {renamed!r}" if renamed else did_you_mean(name, specs)
            raise config.source.error(("outputs", "return"), f"there is no output {name!r}; {advice}")
    return tuple(specs[name] for name in config.returned or specs)


def _require_accepted(config: ModelConfig, outputs: int) -> None:
    """Refuse a default format of answers that could never be written."""
    media_type = parse_media_type(config.accept)
    if media_type and outputs > 1 and codecs_by_media_type()[media_type.essence].sole_output:
        raise config.source.error(("accept",), f"it carries one output only, and there are {outputs}")


def _prepare(clients: Signature, model: Signature) -> Adapt | None:
    """The way from the client's inputs to the model's."""
    pairs = list(zip(clients.inputs, model.inputs, strict=True))
    if any(ours.dtype != theirs.dtype for ours, theirs in pairs):
        return lambda tensors: {theirs.name: _cast(tensors[ours.name], ours, theirs.dtype) for ours, theirs in pairs}
    if any(ours.name != theirs.name for ours, theirs in pairs):
        return partial(_renamed, names={ours.name: theirs.name for ours, theirs in pairs})
    return None


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    return {names[name]: array for name, array in tensors.items()}


def _cast(array: Array, spec: TensorSpec, dtype: np.dtype[np.generic]) -> Array:
    """Convert an input to the dtype of the graph.

    Raises:
        InvalidPayload: naming the first value that the graph's dtype does not hold.
    """
    converted = array if array.dtype == dtype else convert(array, dtype)
    if converted is not None:
        return converted
    index = np.unravel_index(first_misfit(array, dtype), array.shape)
    place = spec.name + "".join(f"[{i}]" for i in index)
    value = shown(array[index].item())
    raise InvalidPayload(
        f"{place}: {value} does not convert to {dtype.name}, which the model takes, without changing it",
        field=place,
        expected=f"a value of {dtype.name}",
        got=value,
    )


def _answer_bytes(processed: Sequence[_ProcessedOutput]) -> Callable[[Tensors], int] | None:
    if all(output.steps == Postprocessing() for output in processed):
        return None
    return lambda tensors: sum([output.steps.answer_bytes(tensors[output.graph_name]) for output in processed])


def _present(processed: Sequence[_ProcessedOutput], outputs: Sequence[TensorSpec], model: Signature) -> Adapt | None:
    """The way from the model's outputs to the client's."""
    names = [spec.name for spec in outputs]
    wanted = [output for output in processed if not {spec.name for spec in output.specs}.isdisjoint(names)]
    if any(output.steps != Postprocessing() for output in wanted):
        axes_before = 1 if model.batched else 0

        def present(tensors: Tensors) -> Tensors:
            made: Tensors = {}
            for output in wanted:
                made.update(output.steps.apply(tensors[output.graph_name], output.client_name, axes_before))
            return {name: made[name] for name in names}

        return present
    graph_names = {output.client_name: output.graph_name for output in wanted}
    if set(names) == {spec.name for spec in model.outputs} and all(a == b for a, b in graph_names.items()):
        return None
    return lambda tensors: {name: tensors[graph_names[name]] for name in names}
