"""One served model: loaded, warmed up, its costs known."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from byoc_server.batching.collate import Infer
from byoc_server.batching.profile import BatchProfile
from byoc_server.codecs.base import codecs_by_media_type
from byoc_server.engines.base import Engine, EngineOptions, engine_for
from byoc_server.models.adapter import Adapter, build_adapter, read_config
from byoc_server.models.signature import find_signature
from byoc_server.models.warmup import warm_up
from byoc_server.types import BatchAxis, Signature

logger = logging.getLogger(__name__)

_AN_IMAGE = "image/png"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to run.

    Attributes:
        engine: owns its memory.
        infer: takes tensors with a record axis (without one where the signature has none).
        signature: verified by warm-up.
        adapter: what clients see of it.
        profile: cost model.
        max_batch_size: rows of the largest batch to form.
        load_s: seconds it took to load and warm up.
        open_axis: length of open axes with which it ran on made-up inputs; ``None`` if it took none.
    """

    engine: Engine
    infer: Infer
    signature: Signature
    adapter: Adapter
    profile: BatchProfile
    max_batch_size: int
    load_s: float
    open_axis: int | None = None

    @property
    def facts(self) -> Mapping[str, object]:
        """What the log says when it is ready."""
        best_s = self.profile.seconds(1)
        return {
            **self.engine.facts,
            "model_name": self.adapter.model_name,
            **({"config": self.adapter.config_path} if self.adapter.config_path else {}),
            "inputs": [spec.describe() for spec in self.adapter.signature.inputs],
            "outputs": [spec.describe() for spec in self.adapter.signature.outputs],
            "batch_axis": self.signature.batch_axis.value,
            "max_batch_size": self.max_batch_size,
            "one_record_ms": None if best_s is None else round(best_s * 1000, 3),
            "rows_per_s": None if self.profile.rows_per_s is None else round(self.profile.rows_per_s),
            "load_s": round(self.load_s, 3),
        }


def load_model(path: Path, options: EngineOptions, max_batch_size: int) -> Model:
    """Load and warm up; takes from milliseconds to minutes, so it runs on a thread of its own.

    Args:
        path: a model file.
        options: for the engine.
        max_batch_size: the user's; 0 = the best by measurement.

    Raises:
        ModelLoadError: the engine cannot load it, or the ``byoc.toml`` beside it is wrong.
        GpuUnavailable: it is to run on a GPU and cannot.
    """
    start_s = time.perf_counter()
    config = read_config(path)  # first, as a large model takes minutes
    engine = engine_for(path)(path, options)
    warm = warm_up(engine.infer, find_signature(engine.inputs, engine.outputs), max_batch_size)
    largest = max_batch_size or warm.profile.best_batch_size
    if warm.signature.batch_axis is BatchAxis.ABSENT:
        largest = 1
    adapter = build_adapter(config, path, warm.signature)
    if any(spec.image for spec in adapter.signature.inputs) and not codecs_by_media_type()[_AN_IMAGE].installed:
        logger.warning("byoc.toml declares an image, and none can be read here: Pillow is not installed")
    return Model(
        engine,
        warm.infer,
        warm.signature,
        adapter,
        warm.profile,
        largest,
        time.perf_counter() - start_s,
        warm.open_axis,
    )
