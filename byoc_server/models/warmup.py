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

from byoc_server.batching.collate import Infer, infer_in_rungs
from byoc_server.batching.profile import LARGEST_RUNG, BatchProfile, Climb, DoesNotFit, descend, find_top
from byoc_server.errors import GpuUnavailable
from byoc_server.types import STRING, BatchAxis, Signature, Tensors

logger = logging.getLogger(__name__)

_OPEN_AXIS_GUESSES = (16, 1, 8, 64, 224)
"""Lengths tried for axes the graph leaves open: token sequences, single columns, images."""
_LONGEST_PROBE_S = 0.5
"""A batch that would take longer than that is not tried, unless a single record is slow or the user wants it: on slow
hardware it gains nothing but latency."""
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
    infer: Infer,
    signature: Signature,
    max_batch_size: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    fixed_shapes: bool = False,
) -> WarmUp:
    """Warm the model up.

    Args:
        infer: the engine's.
        signature: as declared by the graph.
        max_batch_size: no larger batch is measured; 0 = no bound of the user's.
        clock: seconds.
        fixed_shapes: the engine wants few different batch sizes: ``infer`` then rounds up to one that was measured.

    Raises:
        GpuUnavailable: the engine cannot use its GPU.
    """
    open_axis = _find_open_axis(infer, signature)
    if open_axis is None:
        logger.warning(
            "warm-up could not run the model on made-up inputs; it is served without a cost model",
            extra={"event": "warm_up"},
        )
        return WarmUp(signature, record_infer(infer, signature), BatchProfile())
    example = partial(make_example, open_axis=open_axis)
    signature = verify_batch_axis(infer, signature, example)
    run = record_infer(infer, signature)
    profile = _climb_down(run, partial(example, signature), signature, max_batch_size, clock)
    if fixed_shapes:
        run = record_infer(infer, signature, profile)
    return WarmUp(signature, run, profile, open_axis)


def warm_copy(infer: Infer, warm: WarmUp, *, fixed_shapes: bool) -> Infer:
    """Warm up another copy of the engine, of which everything is known by now.

    Args:
        infer: the copy's.
        warm: what the first one's warm-up found out.
        fixed_shapes: as there.

    Returns:
        What ``WarmUp.infer`` is for the first one.
    """
    run = record_infer(infer, warm.signature, warm.profile if fixed_shapes else None)
    if warm.open_axis is not None:
        for rows, _ in reversed(warm.profile.rungs):
            run(make_example(warm.signature, rows, warm.open_axis))
    return run


def record_infer(infer: Infer, signature: Signature, profile: BatchProfile | None = None) -> Infer:
    """An engine's ``infer`` as one that takes tensors with a record axis.

    Args:
        infer: the engine's.
        signature: verified.
        profile: has the batch sizes to keep to; ``None`` = any will do, as where it has none.
    """
    if signature.batch_axis is BatchAxis.FIXED:
        return partial(infer_in_rungs, infer, rungs=(signature.batch_size or 1,))
    if signature.batch_axis is BatchAxis.DYNAMIC and profile is not None and profile.rungs:
        return partial(infer_in_rungs, infer, rungs=[rows for rows, _ in profile.rungs])
    return infer


def _climb_down(
    run: Infer, example: Callable[[int], Tensors], signature: Signature, max_batch_size: int, clock: Callable[[], float]
) -> BatchProfile:
    """Measure the ladder of batch sizes, the largest first."""

    def attempt(measure: Callable[[Infer, Tensors, Callable[[], float]], float], rows: int) -> float:
        try:
            return measure(run, example(rows), clock)
        except Exception as error:
            if rows == 1 or (isinstance(error, GpuUnavailable) and error.lasting):
                raise
            text = "warm-up: a batch of %d fails: %s"
            logger.warning(text, rows, _first_line(error), extra={"event": "warm_up"})
            raise DoesNotFit from error

    if signature.batch_axis is not BatchAxis.DYNAMIC:
        rows = signature.batch_size or 1
        return BatchProfile(((rows, _measure(run, example(rows), clock)),))
    climb = Climb(partial(attempt, _time_one), max_batch_size or LARGEST_RUNG)
    top = find_top(climb, _LONGEST_PROBE_S, _BUDGET_S, wanted=max_batch_size > 0)
    return BatchProfile(descend(partial(attempt, _measure), top, _BUDGET_S - climb.spent_s), climb.fits)


def make_example(signature: Signature, rows: int, open_axis: int) -> Tensors:
    """Zeros and empty strings for ``rows`` records, axes without a declared length ``open_axis`` long."""
    tensors: Tensors = {}
    for spec in signature.inputs:
        record = tuple(open_axis if d is None else d for d in signature.record_shapes[spec.name])
        shape = (rows, *record) if signature.batched else record
        tensors[spec.name] = np.full(shape, "", dtype=object) if spec.dtype == STRING else np.zeros(shape, spec.dtype)
    return tensors


def verify_batch_axis(infer: Infer, signature: Signature, example: Callable[[Signature, int], Tensors]) -> Signature:
    """Check a declared open batch axis with batches of four and two records, which are rungs of every ladder.

    Exported graphs often declare an open axis and hold a reshape to one record inside, or return one result for the
    whole batch. The first is served record by record, the second as a model without a batch axis.
    """
    if signature.batch_axis is not BatchAxis.DYNAMIC:
        return signature
    try:
        follows = all(_rows_follow(infer(example(signature, rows)), rows) for rows in (4, 2))
    except Exception as error:
        if not _rows_follow(infer(example(signature, 1)), 1):
            return replace(signature, batch_axis=BatchAxis.ABSENT)
        logger.warning(
            "the model declares an open batch axis but fails on several records; it runs one record at a time: %s",
            _first_line(error),
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
    run = record_infer(infer, signature)
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


def _time_one(infer: Infer, tensors: Tensors, clock: Callable[[], float]) -> float:
    """Seconds of one run."""
    start_s = clock()
    infer(tensors)
    return clock() - start_s


def _measure(infer: Infer, tensors: Tensors, clock: Callable[[], float]) -> float:
    """Seconds of one run: the fastest of several, since everything that disturbs a run makes it longer."""
    infer(tensors)
    runs: list[float] = []
    while len(runs) < _RUNG_MIN_RUNS or (len(runs) < _RUNG_MAX_RUNS and sum(runs) < _RUNG_MIN_SECONDS):
        runs.append(_time_one(infer, tensors, clock))
    return min(runs)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
