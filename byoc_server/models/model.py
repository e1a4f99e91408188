"""One served model: loaded, warmed up, its costs known."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from byoc_server.batching.collate import Collation, Infer, RowCollation
from byoc_server.batching.lengths import PaddedCollation
from byoc_server.batching.policy import BatchBounds
from byoc_server.batching.profile import LARGEST_RUNG, BatchProfile
from byoc_server.codecs.base import codecs_by_media_type
from byoc_server.engines.base import Engine, EngineOptions, engine_for
from byoc_server.models.adapter import Adapter, build_adapter, read_config
from byoc_server.models.padding import padded_collation
from byoc_server.models.signature import find_signature
from byoc_server.models.warmup import WarmUp, make_example, warm_copy, warm_up
from byoc_server.types import BatchAxis, Signature

logger = logging.getLogger(__name__)

_AN_IMAGE = "image/png"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to run.

    Attributes:
        engines: copies of it on one device, each with its own memory.
        infers: one for each engine; takes tensors with a record axis (without one where the signature has none).
        signature: verified by warm-up.
        adapter: what clients see of it.
        collation: which requests may share a batch.
        profile: what batches cost.
        record_length: positions of the records that were measured; see ``Collation.length``.
        bounds: of a batch.
        load_s: seconds it took to load and warm up.
        open_axis: length of open axes with which it ran on made-up inputs; ``None`` if it took none.
    """

    engines: Sequence[Engine]
    infers: Sequence[Infer]
    signature: Signature
    adapter: Adapter
    collation: Collation
    profile: BatchProfile
    record_length: int
    bounds: BatchBounds
    load_s: float
    open_axis: int | None = None

    @property
    def engine(self) -> Engine:
        """The first copy."""
        return self.engines[0]

    @property
    def infer(self) -> Infer:
        """Runs the first copy."""
        return self.infers[0]

    @property
    def max_batch_size(self) -> int:
        """Rows of the largest batch of records as long as those of warm-up; it may change a little while serving."""
        if self.bounds.max_work is None:
            return min(self.bounds.max_rows, self.profile.best_batch_size)
        return max(1, min(self.bounds.max_rows, self.bounds.max_work // self.record_length))

    @property
    def facts(self) -> Mapping[str, object]:
        """What the log says when it is ready."""
        best_s = self.profile.seconds(1)
        return {
            **self.engine.facts,
            **({"sessions": len(self.engines)} if len(self.engines) > 1 else {}),
            "model_name": self.adapter.model_name,
            **({"config": self.adapter.config_path} if self.adapter.config_path else {}),
            "inputs": [spec.describe() for spec in self.adapter.signature.inputs],
            "outputs": [spec.describe() for spec in self.adapter.signature.outputs],
            **({"padded": self.collation.values} if isinstance(self.collation, PaddedCollation) else {}),
            "batch_axis": self.signature.batch_axis.value,
            "max_batch_size": self.max_batch_size,
            "one_record_ms": None if best_s is None else round(best_s * 1000, 3),
            "rows_per_s": None if self.profile.rows_per_s is None else round(self.profile.rows_per_s),
            "load_s": round(self.load_s, 3),
        }

    def close(self) -> None:
        """Give the memory back. The model is not used afterwards."""
        for engine in self.engines:
            engine.close()


def load_model(
    path: Path,
    options: EngineOptions,
    max_batch_size: int,
    *,
    max_batch_tokens: int = 0,
    pad_lengths: bool = True,
    sessions: int = 1,
) -> Model:
    """Load and warm up; takes from milliseconds to minutes, so it runs on a thread of its own.

    Args:
        path: a model file.
        options: for the engine.
        max_batch_size: the user's; 0 = the best by measurement.
        max_batch_tokens: most positions of a batch, the user's; 0 = the best by measurement.
        pad_lengths: records of different lengths may share a batch.
        sessions: copies of the engine.

    Raises:
        ModelLoadError: the engine cannot load it, or the ``byoc.toml`` beside it is wrong.
        GpuUnavailable: it is to run on a GPU and cannot.
    """
    start_s = time.perf_counter()
    config = read_config(path)  # first, as a large model takes minutes
    open_engine = engine_for(path)
    engine = open_engine(path, options)
    declared = find_signature(engine.inputs, engine.outputs)
    warm = warm_up(engine.infer, declared, max_batch_size, fixed_shapes=engine.fixed_shapes)
    adapter = build_adapter(config, path, warm.signature)
    may_pad = pad_lengths and (config is None or config.pad)
    collation = _collation(warm, adapter, may_pad, fixed_shapes=engine.fixed_shapes)
    copies = [open_engine(path, options) for _ in range(1, sessions)]
    infers = [warm.infer, *[warm_copy(copy.infer, warm, fixed_shapes=copy.fixed_shapes) for copy in copies]]
    engines = (engine, *copies)
    for warmed in engines:
        warmed.warmed_up()
    if any(spec.image for spec in adapter.signature.inputs) and not codecs_by_media_type()[_AN_IMAGE].installed:
        logger.warning("byoc.toml declares an image, and none can be read here: Pillow is not installed")
    return Model(
        engines,
        infers,
        warm.signature,
        adapter,
        collation,
        warm.profile,
        1 if warm.open_axis is None else collation.length(make_example(warm.signature, 1, warm.open_axis)),
        batch_bounds(warm.signature, warm.profile, max_batch_size, max_batch_tokens),
        time.perf_counter() - start_s,
        warm.open_axis,
    )


def batch_bounds(
    signature: Signature, profile: BatchProfile, max_batch_size: int, max_batch_tokens: int
) -> BatchBounds:
    """How large batches get.

    Args:
        signature: of the model, verified.
        profile: what batches cost.
        max_batch_size: the user's; 0 = by the profile.
        max_batch_tokens: the user's; 0 = by the profile, or unbounded if the user bounds the rows.
    """
    if signature.batch_axis is BatchAxis.ABSENT:
        return BatchBounds(1, None)
    if signature.batch_axis is BatchAxis.FIXED and not max_batch_size:
        max_batch_size = signature.batch_size or 1
    rows = min(max_batch_size or LARGEST_RUNG, profile.fits or sys.maxsize)
    if signature.record_shape_is_fixed:
        return BatchBounds(rows, rows if max_batch_size else None)
    return BatchBounds(rows, max_batch_tokens or (sys.maxsize if max_batch_size else None))


def _collation(warm: WarmUp, adapter: Adapter, may_pad: bool, *, fixed_shapes: bool) -> Collation:
    if may_pad:
        pairs = zip(adapter.signature.inputs, warm.signature.inputs, strict=True)
        declared = {own.name: seen.padding_value for seen, own in pairs if seen.padding_value is not None}
        padded = padded_collation(
            warm.infer, warm.signature, declared, warm.open_axis, warm.profile, to_bucket=fixed_shapes
        )
        if padded is not None:
            return padded
    return RowCollation(warm.signature)
