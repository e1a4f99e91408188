"""Run a freshly loaded model on made-up inputs, before it is ready.

It proves that the model runs, finds out whether it really batches, and measures what a batch costs.

The inputs are zeros (valid indices, harmless numbers) and empty strings; open axes get a guessed length. A model that
takes none of the guesses is served all the same, without a cost model: its first real request may well fit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from byoc_server.batching.collate import Infer, infer_in_fixed_batches
from byoc_server.batching.profile import LARGEST_RUNG, BatchProfile, climb
from byoc_server.errors import GpuUnavailable
from byoc_server.types import STRING, BatchAxis, Signature, Tensors

logger = logging.getLogger(__name__)

_OPEN_AXIS_GUESSES = (16, 1, 8, 64, 224)
"""Lengths tried for axes the graph leaves open: token sequences, single columns, images."""
_BUDGET_S = 5.0
_RUNG_MIN_SECONDS, _RUNG_MIN_RUNS, _RUNG_MAX_RUNS = 0.05, 2, 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What warm-up found out.

    Attributes:
        signature: as declared, or corrected where the model turned out to behave otherwise.
        infer: takes tensors with a record axis, whatever the model's own batch axis is.
        profile: cost model; without rungs if no made-up input ran.
        open_axis: length of open axes with which made-up inputs ran; ``None`` if none did.
    """

    signature: Signature
    infer: Infer
    profile: BatchProfile
    open_axis: int | None = None


def warm_up(
    infer: Infer, signature: Signature, max_batch_size: int, clock: Callable[[], float] = time.perf_counter
) -> WarmUp:
    """Warm the model up.

    Args:
        infer: the engine's.
        signature: as declared by the graph.
        max_batch_size: no larger batch is measured; 0 = no bound of the user's.
        clock: seconds.

    Raises:
        GpuUnavailable: the engine cannot use its GPU.
    """
    open_axis = _find_open_axis(infer, signature)
    if open_axis is None:
        logger.warning(
            "warm-up could not run the model on made-up inputs; it is served without a cost model",
            extra={"event": "warm_up"},
        )
        return WarmUp(signature, _record_infer(infer, signature), BatchProfile())
    example = partial(make_example, open_axis=open_axis)
    signature = verify_batch_axis(infer, signature, example)
    run = _record_infer(infer, signature)
    largest = {
        BatchAxis.DYNAMIC: max_batch_size or LARGEST_RUNG,
        BatchAxis.FIXED: signature.batch_size or 1,
        BatchAxis.ABSENT: 1,
    }[signature.batch_axis]

    def measure(rows: int) -> float:
        try:
            return _measure(run, example(signature, rows), clock)
        except Exception as error:
            text = "warm-up: a batch of %d fails, larger ones are not tried: %s"
            logger.warning(text, rows, str(error).partition("\n")[0], extra={"event": "warm_up"})
            raise

    return WarmUp(signature, run, climb(measure, largest, _BUDGET_S), open_axis)


def make_example(signature: Signature, rows: int, open_axis: int) -> Tensors:
    """Zeros and empty strings for ``rows`` records, axes without a declared length ``open_axis`` long."""
    tensors: Tensors = {}
    for spec in signature.inputs:
        record = tuple(open_axis if d is None else d for d in signature.record_shapes[spec.name])
        shape = (rows, *record) if signature.batched else record
        tensors[spec.name] = np.full(shape, "", dtype=object) if spec.dtype == STRING else np.zeros(shape, spec.dtype)
    return tensors


def verify_batch_axis(infer: Infer, signature: Signature, example: Callable[[Signature, int], Tensors]) -> Signature:
    """Check a declared open batch axis with batches of two and three records.

    Exported graphs often declare an open axis and hold a reshape to one record inside, or return one result for the
    whole batch. The first is served record by record, the second as a model without a batch axis.
    """
    if signature.batch_axis is not BatchAxis.DYNAMIC:
        return signature
    try:
        follows = all(_rows_follow(infer(example(signature, rows)), rows) for rows in (2, 3))
    except Exception as error:
        if not _rows_follow(infer(example(signature, 1)), 1):
            return replace(signature, batch_axis=BatchAxis.ABSENT)
        logger.warning(
            "the model declares an open batch axis but fails on two records; it runs one record at a time: %s",
            str(error).partition("\n")[0],
            extra={"event": "warm_up"},
        )
        return replace(signature, batch_axis=BatchAxis.FIXED, batch_size=1)
    if follows:
        return signature
    logger.warning(
        "the model's outputs do not follow its batch axis; one request is one run", extra={"event": "warm_up"}
    )
    return replace(signature, batch_axis=BatchAxis.ABSENT)


def _rows_follow(outputs: Tensors, rows: int) -> bool:
    return all(array.ndim > 0 and len(array) == rows for array in outputs.values())


def _find_open_axis(infer: Infer, signature: Signature) -> int | None:
    guesses = (1,) if signature.record_shape_is_fixed else _OPEN_AXIS_GUESSES
    run = _record_infer(infer, signature)
    for guess in guesses:
        try:
            run(make_example(signature, 1, guess))
        except GpuUnavailable:  # no guess can help
            raise
        except Exception as error:
            logger.debug("warm-up with open axes of length %d failed: %s", guess, error)
        else:
            return guess
    return None


def _record_infer(infer: Infer, signature: Signature) -> Infer:
    if signature.batch_axis is BatchAxis.FIXED:
        return lambda tensors: infer_in_fixed_batches(infer, tensors, signature.batch_size or 1)
    return infer


def _measure(infer: Infer, tensors: Tensors, clock: Callable[[], float]) -> float:
    """Seconds of one run: the fastest of several, since everything that disturbs a run makes it longer."""
    infer(tensors)
    runs: list[float] = []
    while len(runs) < _RUNG_MIN_RUNS or (len(runs) < _RUNG_MAX_RUNS and sum(runs) < _RUNG_MIN_SECONDS):
        start_s = clock()
        infer(tensors)
        runs.append(clock() - start_s)
    return min(runs)
