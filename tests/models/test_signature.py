import numpy as np
import pytest

from byoc_server.models.signature import find_signature
from byoc_server.types import BatchAxis, TensorSpec

Shape = tuple[int | None, ...]


def specs(*shapes: Shape) -> list[TensorSpec]:
    return [TensorSpec(f"t{i}", np.dtype(np.float32), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "axis", "size"),
    [
        ([(None, 4)], [(None, 3)], BatchAxis.DYNAMIC, None),
        ([(None, 4)], [(None,), (None, 3)], BatchAxis.DYNAMIC, None),
        ([(None,), (None, 8)], [(3,)], BatchAxis.DYNAMIC, None),
        ([(1, 3, 224, 224)], [(1, 1000)], BatchAxis.FIXED, 1),
        ([(1, 3, 224, 224)], [(None, 1000)], BatchAxis.FIXED, 1),
        ([(8, 4)], [(8, 2)], BatchAxis.FIXED, 8),
        ([(1,)], [(1,)], BatchAxis.FIXED, 1),
        ([(4,)], [(4,)], BatchAxis.ABSENT, None),
        ([(3, 224, 224)], [(1000,)], BatchAxis.ABSENT, None),
        ([(8, 4), (2, 4)], [(8, 2)], BatchAxis.ABSENT, None),
        ([()], [()], BatchAxis.ABSENT, None),
        ([(None, 4), ()], [(None, 2)], BatchAxis.ABSENT, None),
        ([(0, 4)], [(0, 4)], BatchAxis.ABSENT, None),
    ],
)
def test_the_declared_shapes_tell_the_batch_axis(
    inputs: list[Shape], outputs: list[Shape], axis: BatchAxis, size: int | None
) -> None:
    signature = find_signature(specs(*inputs), specs(*outputs))
    assert (signature.batch_axis, signature.batch_size) == (axis, size)
