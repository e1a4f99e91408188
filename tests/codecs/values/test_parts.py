"""Tensors of records that come some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.values.parts import tensors_from_parts
from byoc_server.errors import InvalidPayload, TensorsTooLarge
from byoc_server.types import Signature, Tensors
from tests.codecs.signatures import OPTIONS, assert_same, one, several


def read(parts: Any, signature: Signature, options: DecodeOptions = OPTIONS) -> Tensors | None:
    return tensors_from_parts(parts, signature, options, lambda i: f"record {i}")


def padded(signature: Signature, value: float | str) -> Signature:
    return replace(signature, inputs=(replace(signature.inputs[0], padding_value=value),))


def test_parts_are_joined_in_order() -> None:
    signature = several(("a", "float32", (None, None)), ("s", "string", (None,)))
    parts = [[{"a": [1, 2], "s": "x"}], [{"a": [3, 4], "s": "y"}, {"s": "z", "a": [5, 6]}]]
    tensors = read(parts, signature)
    assert tensors is not None
    assert_same(tensors["a"], np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    assert tensors["s"].tolist() == ["x", "y", "z"]


def test_parts_of_different_length() -> None:
    parts: list[list[object]] = [[[[1, 2]]], [[[3], [4]], [[5]]], [[]]]
    signature = one("int64", (None, None, None))
    assert read(parts, signature) is None
    tensors = read(parts, padded(signature, -1))
    assert tensors is not None
    expected = [[[1, 2], [-1, -1]], [[3, -1], [4, -1]], [[5, -1], [-1, -1]], [[-1, -1], [-1, -1]]]
    assert_same(tensors["x"], np.array(expected))
    assert tensors["x"].flags.c_contiguous


def test_what_is_wrong_is_left_to_be_told_of_all_records() -> None:
    def broken() -> Iterator[list[object]]:
        yield [[1, 2]]
        raise InvalidPayload("is not JSON")

    assert read([[[1, 2]], [[3, "a"]]], one(shape=(None, 2))) is None
    assert read(broken(), one(shape=(None, 2))) is None


def test_all_parts_share_one_limit() -> None:
    """Checklist 84."""
    signature = several(("a", "float32", (None, None)), ("b", "float64", (None,)))
    parts = [[{"a": [1, 2], "b": 3}]] * 3
    assert read(parts, signature, DecodeOptions({}, 48)) is not None
    with pytest.raises(TensorsTooLarge, match=r"^record 2: the records of this request are too large when dense$"):
        read(parts, signature, DecodeOptions({}, 47))
    tokens = padded(one("int64", (None, None)), 0)
    assert read([[[1, 2, 3]], [[4]]], tokens, DecodeOptions({}, 48)) is not None
    assert read([[[1, 2, 3]], [[4]]], tokens, DecodeOptions({}, 47)) is None
