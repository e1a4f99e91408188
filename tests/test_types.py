"""Specs and signatures."""

from __future__ import annotations

import numpy as np
import pytest

from byoc_server.types import STRING, BatchAxis, Signature, TensorSpec

X = TensorSpec("x", np.dtype("float32"), (None, 4))
S = TensorSpec("s", STRING, (None,))


def test_specs_describe_themselves() -> None:
    assert X.describe() == "x: float32[?, 4]"
    assert S.describe() == "s: string[?]"
    assert TensorSpec("n", np.dtype("int64"), ()).describe() == "n: int64[]"
    assert (X.dtype_name, S.dtype_name) == ("float32", "string")


@pytest.mark.parametrize(
    ("batch_axis", "batch_size", "batched", "record_shape"),
    [
        (BatchAxis.DYNAMIC, None, True, (4,)),
        (BatchAxis.FIXED, 8, True, (4,)),
        (BatchAxis.ABSENT, None, False, (None, 4)),
    ],
)
def test_signatures(
    batch_axis: BatchAxis, batch_size: int | None, batched: bool, record_shape: tuple[int | None, ...]
) -> None:
    signature = Signature((X,), (X,), batch_axis, batch_size)
    assert signature.batched is batched
    assert signature.sole_input is X
    assert signature.input_by_name == {"x": X}
    assert signature.record_shapes == {"x": record_shape}
    assert signature.record_shape_is_fixed is batched


def test_several_inputs() -> None:
    signature = Signature((X, S), (X,))
    assert signature.sole_input is None
    assert list(signature.input_by_name) == ["x", "s"]
    assert signature.record_shapes == {"x": (4,), "s": ()}
