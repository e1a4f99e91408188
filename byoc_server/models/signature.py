"""Finding the batch axis of a model from the shapes its graph declares. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from byoc_server.types import BatchAxis, Signature, TensorSpec


def find_signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """Tell how axis 0 works, as far as the declared shapes tell.

    * Axis 0 is open in every input: it is the batch. Output shapes are no evidence against it, exporters often leave
      them out; warm-up finds out (``warmup.verify_batch_axis``).
    * Axis 0 has one and the same length B in all inputs and outputs: the batch is fixed to B. With B > 1 only if
      every input has a second axis, since a vector of B features looks the same.
    * Anything else: no batch axis.
    """
    inputs, outputs = tuple(inputs), tuple(outputs)
    if all(spec.shape and spec.shape[0] is None for spec in inputs):
        return Signature(inputs, outputs, BatchAxis.DYNAMIC)
    lengths = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    output_lengths = {spec.shape[0] if spec.shape else 0 for spec in outputs} - {None}
    if len(lengths) == 1 and output_lengths <= lengths:
        (length,) = lengths
        if length == 1 or (length and all(len(spec.shape) > 1 for spec in inputs)):
            return Signature(inputs, outputs, BatchAxis.FIXED, length)
    return Signature(inputs, outputs, BatchAxis.ABSENT)
