"""Answers of the Open Inference Protocol, version 2.

::

    {"model_name", "model_version", "id": TEXT, "outputs": [{"name", "shape", "datatype", "data"}, ...]}

An output may have ``binary_data_size`` among its parameters instead of ``data``. Its raw bytes then stand behind the
document, in the order of the outputs, without gaps (Triton Inference Server, "Binary Tensor Data Extension").
"""

from __future__ import annotations

import orjson

from byoc_server.codecs.base import Answer, EncodeOptions, Envelope
from byoc_server.codecs.open_inference.data import DATATYPE_NAMES, data_to_bytes, data_to_json
from byoc_server.types import Signature, Tensors

MODEL_VERSION = "1"
"""There is one version of the one model; the protocol wants it named."""

BINARY_MEDIA_TYPE = "application/vnd.sagemaker-triton.binary+json"
"""Of a document with raw data behind it, as Triton Inference Server calls it behind SageMaker."""

_ALIGNMENT = 8


def encode_answer(
    tensors: Tensors, signature: Signature, options: EncodeOptions, *, binary_unless_told: bool = False
) -> Answer:
    """Write the outputs of the signature as an answer.

    Args:
        tensors: the outputs by name.
        signature: of the model that made them.
        options: see ``EncodeOptions``.
        binary_unless_told: whether the data of outputs that the request says nothing about stands behind the JSON.

    Returns:
        Plain JSON, or if the data of any output stands behind it, the binary form. There the JSON ends in as many
        spaces as it takes to align that data.
    """
    envelope = options.envelope or Envelope()
    document: dict[str, object] = {"model_name": options.model_name, "model_version": MODEL_VERSION}
    if envelope.id is not None:
        document["id"] = envelope.id
    outputs: list[dict[str, object]] = []
    raw: list[memoryview | bytes] = []
    for spec in signature.outputs:
        array = tensors[spec.name]
        output: dict[str, object] = {
            "name": spec.name,
            "shape": array.shape,
            "datatype": DATATYPE_NAMES[array.dtype],
        }
        if envelope.binary.get(spec.name, binary_unless_told):
            data = data_to_bytes(array)
            output["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            output["data"] = data_to_json(array)
        outputs.append(output)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return Answer(text, "application/json")
    text += b" " * (-len(text) % _ALIGNMENT)
    return Answer(b"".join([text, *raw]), f"{BINARY_MEDIA_TYPE};json-header-size={len(text)}")
