"""Whether records of different lengths may share a batch, padded, and how.

Three steps. *Found*: every input has a fixed record shape, or one open axis and a value to pad with; the usual
signature of an encoder has its values by convention, other models by ``byoc.toml``. *Tried*, before the model is ready:
made-up records run alone, and padded in one batch. Only if both agree padding is *used*. The same runs show which
axes of the outputs are as long as the record: names and declared shapes are no proof of that.

What some models compute changes with the length from some length on (attention scaled by the logarithm of the length,
windows of so many positions), so longer records are tried as well, as far as the model takes them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from byoc_server.batching.collate import Infer
from byoc_server.batching.lengths import PaddedCollation, PaddedInput, Padding
from byoc_server.batching.profile import BatchProfile
from byoc_server.errors import GpuUnavailable
from byoc_server.models.warmup import make_example
from byoc_server.types import STRING, Array, Signature, Tensors, TensorSpec

logger = logging.getLogger(__name__)

_ENCODER_INPUTS = frozenset({"input_ids", "attention_mask"})
_OPTIONAL_ENCODER_INPUTS = frozenset({"token_type_ids"})
"""What the tokenizers of Hugging Face return, and exporters keep (Transformers, ``BatchEncoding``). Position ids, where
they are an input, may be counted in many ways, and so are not among them."""

_VOCABULARIES = (64, 8, 2)
"""Made-up whole numbers are below the first of these that the model takes."""
_SHORT_ROWS, _LONG_ROWS = 2, 1
_LONGER = (45, 64), (120, 128)
"""Lengths of records tried after those of warm-up: what models for short texts take, and what most encoders do."""
_LONGER_BUDGET_S = 5.0
"""No longer records are tried where all that is tried would take longer than that."""
_TOLERANCE: Mapping[np.dtype[np.generic], float] = {
    np.dtype(np.float16): 2e-2,
    np.dtype(np.float32): 1e-3,
    np.dtype(np.float64): 1e-3,
}
"""How far a padded output may be off, as a share of its largest value: the order of a sum changes with its length.
Outputs of other dtypes must be the same."""
_LARGEST_TOLERANCE = 5e-2
_BATCHING_FACTOR = 2.0
"""A model whose outputs change more than that with the number of rows alone (weights of 8 bits, 16 bits inside) may
change twice as much by padding."""
_SEED = 0


class _UnsafeError(Exception):
    """Records must not be padded; the text says why."""


class _DoesNotRunError(_UnsafeError):
    """The model does not take records of these lengths."""


def padded_collation(
    infer: Infer,
    signature: Signature,
    declared: Mapping[str, float | str],
    open_axis: int | None,
    profile: BatchProfile,
    *,
    to_bucket: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> PaddedCollation | None:
    """How records of different lengths share a batch; ``None`` if they do not.

    Args:
        infer: takes tensors with a record axis.
        signature: of the model, verified.
        declared: values to pad with, by the name of the input in the graph.
        open_axis: length of open axes with which made-up records run; ``None`` if none did.
        profile: what batches of these cost.
        to_bucket: see ``PaddedCollation``.
        clock: seconds.

    Raises:
        GpuUnavailable: the engine cannot use its GPU.
    """
    inputs = find_padded_inputs(signature, declared)
    if not inputs:
        return None
    try:
        if open_axis is None or open_axis == 1:
            raise _UnsafeError("made-up records of several lengths do not run")
        trial = partial(_try_padding, infer, signature, inputs)
        padding = _try_lengths(trial, (open_axis * 5 // 8, open_axis), clock)
    except _UnsafeError as error:
        text = "records of different lengths do not share a batch: %s"
        logger.warning(text, error, extra={"event": "padding"})
        return None
    return PaddedCollation(padding, positions_of_a_run(profile, open_axis), to_bucket)


def positions_of_a_run(profile: BatchProfile, length: int) -> int:
    """How many positions are computed in the time that a run takes by itself, whatever is in it; at least 1.

    Args:
        profile: measured, with records of this length; it has rungs.
        length: of a record.
    """
    best = profile.best_batch_size
    row_s = dict(profile.rungs)[best] / best
    _, one_s = profile.rungs[0]  # a batch of a fixed size costs the same, however little is in it
    return max(1, round(length * (one_s - row_s) / row_s))


def find_padded_inputs(signature: Signature, declared: Mapping[str, float | str]) -> Mapping[str, PaddedInput]:
    """The inputs that are as long as the record, and what to pad them with; empty if the model cannot be padded.

    Args:
        signature: of the model.
        declared: values by the name of the input in the graph; they win over those found.
    """
    if not signature.batched or signature.batch_size == 1:
        return {}
    values = {**_encoder_values(signature), **declared}
    inputs = {}
    for spec in signature.inputs:
        record_shape = signature.record_shapes[spec.name]
        if None not in record_shape:
            continue
        if record_shape.count(None) > 1 or spec.name not in values:
            return {}
        inputs[spec.name] = PaddedInput(1 + record_shape.index(None), values[spec.name])
    return inputs


def _encoder_values(signature: Signature) -> Mapping[str, float]:
    """Zeros for an encoder's inputs: what any input has where the mask is 0 does not matter."""
    names = signature.input_by_name.keys()
    is_encoder = names >= _ENCODER_INPUTS and names <= _ENCODER_INPUTS | _OPTIONAL_ENCODER_INPUTS
    is_tokens = all(
        spec.dtype.kind in "iu" and signature.record_shapes[spec.name] == (None,) for spec in signature.inputs
    )
    return dict.fromkeys(names, 0) if is_encoder and is_tokens else {}


def _try_lengths(
    trial: Callable[[tuple[int, int]], Padding], lengths: tuple[int, int], clock: Callable[[], float]
) -> Padding:
    """Try padding with records of two lengths, and with longer ones as far as the model takes them and time allows.

    Raises:
        _UnsafeError: the first do not run, or any do not agree.
        GpuUnavailable: the engine cannot use its GPU.
    """
    begin_s = start_s = clock()
    padding = trial(lengths)
    longest = lengths[1]
    for longer in _LONGER:
        now_s = clock()
        if now_s - begin_s + (now_s - start_s) * longer[1] / longest > _LONGER_BUDGET_S:
            break
        start_s = now_s
        try:
            found = trial(longer)
        except _DoesNotRunError:
            continue
        except GpuUnavailable as error:
            if error.lasting:
                raise
            break  # there is no room for so long ones
        longest = longer[1]
        if found != padding:
            raise _UnsafeError(
                f"records of {longest} positions and more have other axes of outputs as long as they are"
            )
    return padding


def _try_padding(
    infer: Infer, signature: Signature, inputs: Mapping[str, PaddedInput], lengths: tuple[int, int]
) -> Padding:
    """Run records of two lengths, the shorter first, alone and together.

    Raises:
        _DoesNotRunError: they do not run.
        _UnsafeError: they do not agree.
        GpuUnavailable: the engine cannot use its GPU.
    """
    parts, alone = _run_alone(infer, signature, inputs, lengths)
    padding = Padding(inputs, _axes_of_length(alone, lengths))
    collation = PaddedCollation(padding)
    try:
        single = infer({name: array[:1] for name, array in parts[0].items()})
        together = collation.split(infer(collation.stack(parts)), parts, [_SHORT_ROWS, _LONG_ROWS])
    except GpuUnavailable:
        raise
    except Exception as error:  # whatever the engine raises
        raise _UnsafeError(f"padded, they fail: {_first_line(error)}") from error
    for name in alone[0]:
        of_batching = _difference(single[name], alone[0][name][:1])
        off = max(_difference(ours[name], theirs[name]) for ours, theirs in zip(together, alone, strict=True))
        if off > max(
            _TOLERANCE.get(alone[0][name].dtype, 0.0), min(_BATCHING_FACTOR * of_batching, _LARGEST_TOLERANCE)
        ):
            size = f"by {off:.2g} of its largest value" if np.isfinite(off) else "altogether"
            raise _UnsafeError(f"output {name!r} of a padded record differs {size}")
    return padding


def _run_alone(
    infer: Infer, signature: Signature, inputs: Mapping[str, PaddedInput], lengths: tuple[int, int]
) -> tuple[list[Tensors], list[Tensors]]:
    """Made-up records of both lengths, and their outputs.

    Raises:
        _DoesNotRunError: none runs.
        GpuUnavailable: the engine cannot use its GPU.
    """
    failure: Exception | None = None
    for vocabulary in _VOCABULARIES:
        random = np.random.default_rng(_SEED)
        parts = [
            _make_up(signature, inputs, rows, length, vocabulary, random)
            for rows, length in zip((_SHORT_ROWS, _LONG_ROWS), lengths, strict=True)
        ]
        try:
            return parts, [infer(part) for part in parts]
        except GpuUnavailable:
            raise
        except Exception as error:  # whatever the engine raises
            failure = error
    raise _DoesNotRunError(f"made-up records do not run: {_first_line(failure)}") from failure


def _make_up(
    signature: Signature,
    inputs: Mapping[str, PaddedInput],
    rows: int,
    length: int,
    vocabulary: int,
    random: np.random.Generator,
) -> Tensors:
    """Records without padding that differ from it wherever they can."""
    tensors = make_example(signature, rows, length)
    for name, padded in inputs.items():
        spec = signature.input_by_name[name]
        tensors[name] = _values(spec, padded.value, tensors[name].shape, vocabulary, random)
    return tensors


def _values(
    spec: TensorSpec, padding_value: float | str, shape: tuple[int, ...], vocabulary: int, random: np.random.Generator
) -> Array:
    if "mask" in spec.name.lower():  # what is not masked is 1, or 0 where padding is
        return np.full(shape, padding_value != 1, spec.dtype)
    if spec.name == "token_type_ids":  # some models have one type only
        return np.zeros(shape, spec.dtype)
    if spec.dtype.kind == "f":
        return random.standard_normal(shape).astype(spec.dtype)
    choices: Sequence[object] = range(vocabulary)
    if spec.dtype == STRING:
        choices = "ab"
    elif spec.dtype.kind == "b":
        choices = (False, True)
    return random.choice(np.array([c for c in choices if c != padding_value], spec.dtype), shape)


def _axes_of_length(alone: Sequence[Tensors], lengths: tuple[int, int]) -> Mapping[str, Sequence[int]]:
    """The axes behind the first of each output that were as long as the record in both runs.

    Raises:
        _UnsafeError: an output changes with the length in another way.
    """
    found = {}
    for name in alone[0]:
        short, long = (outputs[name].shape[1:] for outputs in alone)
        axes = [axis for axis, both in enumerate(zip(short, long, strict=False), 1) if both == lengths]
        if [lengths[1] if axis in axes else size for axis, size in enumerate(short, 1)] != list(long):
            shapes = f"{short} for records of length {lengths[0]}, {long} for those of {lengths[1]}"
            raise _UnsafeError(f"which part of output {name!r} is padding cannot be told: a record has {shapes}")
        if axes:
            found[name] = axes
    return found


def _difference(ours: Array, theirs: Array) -> float:
    """The largest difference as a share of the largest value of ``theirs``; infinite where no number tells it."""
    if ours.shape != theirs.shape:
        return np.inf
    if theirs.dtype.kind != "f":
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    got, wanted = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(wanted)
    if wanted.size and not finite.any():  # it proves nothing
        return np.inf
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    off = np.abs(got[finite] - wanted[finite]).max(initial=0.0)
    return float(off / np.abs(wanted[finite]).max(initial=np.finfo(np.float64).tiny))


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0]
