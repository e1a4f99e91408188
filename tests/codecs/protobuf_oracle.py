"""The messages of the protobuf formats, made by Google's library from their public schemas: what others send us."""

from __future__ import annotations

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]  # ships no type information
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from byoc_server.errors import RequestError

_TYPES = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "float": _TYPES.TYPE_FLOAT,
    "double": _TYPES.TYPE_DOUBLE,
    "int32": _TYPES.TYPE_INT32,
    "int64": _TYPES.TYPE_INT64,
    "uint64": _TYPES.TYPE_UINT64,
    "bytes": _TYPES.TYPE_BYTES,
    "string": _TYPES.TYPE_STRING,
}

# SageMaker Developer Guide, "Common data formats for training": the schema of Record.
_RECORD = """
Float32Tensor: values=1 repeated float, keys=2 repeated uint64, shape=3 repeated uint64
Float64Tensor: values=1 repeated double, keys=2 repeated uint64, shape=3 repeated uint64
Int32Tensor: values=1 repeated int32, keys=2 repeated uint64, shape=3 repeated uint64
Bytes: value=1 repeated bytes, content_type=2 optional string
Value: float32_tensor=2 oneof Float32Tensor, float64_tensor=3 oneof Float64Tensor, int32_tensor=7 oneof Int32Tensor, \
bytes=9 oneof Bytes
Record: features=1 map Value, label=2 map Value, uid=3 optional string, metadata=4 optional string, \
configuration=5 optional string
"""
# TensorFlow, tensorflow/core/example/feature.proto and example.proto.
_EXAMPLE = """
BytesList: value=1 repeated bytes
FloatList: value=1 repeated float
Int64List: value=1 repeated int64
Feature: bytes_list=1 oneof BytesList, float_list=2 oneof FloatList, int64_list=3 oneof Int64List
Features: feature=1 map Feature
Example: features=1 optional Features
"""


def _classes(package: str, schema: str, packed: bool) -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for line in schema.strip().splitlines():
        name, _, listed = line.partition(": ")
        message = file.message_type.add(name=name)
        for item in listed.split(", "):
            key, label, kind = item.split()
            field_name, _, number = key.partition("=")
            field = message.field.add(name=field_name, number=int(number), label=_TYPES.LABEL_OPTIONAL)
            if label == "oneof":
                if not message.oneof_decl:
                    message.oneof_decl.add(name="kind")
                field.oneof_index = 0
            if label == "map":
                field.label = _TYPES.LABEL_REPEATED
                entry = message.nested_type.add(name=f"{field_name.capitalize()}Entry")
                entry.options.map_entry = True
                for inner, inner_number, inner_kind in (("key", 1, "string"), ("value", 2, kind)):
                    _set_type(
                        entry.field.add(name=inner, number=inner_number, label=_TYPES.LABEL_OPTIONAL),
                        package,
                        inner_kind,
                    )
                kind = f"{name}.{entry.name}"
            if label == "repeated":
                field.label = _TYPES.LABEL_REPEATED
                if kind not in ("bytes", "string"):
                    field.options.packed = packed
            _set_type(field, package, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = [message.name for message in file.message_type]
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{n}")) for n in names}


def _set_type(field: Any, package: str, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _TYPES.TYPE_MESSAGE, f".{package}.{kind}"


Record = _classes("aialgs.data", _RECORD, packed=True)["Record"]
UnpackedRecord = _classes("aialgs.data", _RECORD, packed=False)["Record"]
Example = _classes("tensorflow", _EXAMPLE, packed=True)["Example"]
UnpackedExample = _classes("tensorflow", _EXAMPLE, packed=False)["Example"]


def outcome(function: Any, *arguments: Any) -> Any:
    """Tensors or a refusal, as something to compare."""
    try:
        tensors = function(*arguments)
    except RequestError as error:
        return error.message, error.details
    return {name: (array.dtype, array.shape, array.tolist()) for name, array in tensors.items()}
