"""Between what clients see and what the model takes: names, dtypes and outputs. Pure.

Without a ``byoc.toml`` clients see the graph itself, and nothing is adapted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from byoc_server.types import Signature, Tensors

Adapt = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What clients see of a model, and the way there and back.

    Attributes:
        signature: what clients see; codecs decode and encode for it.
        model_signature: what the model takes and returns.
        prepare: from inputs of ``signature`` to those of ``model_signature``; ``None`` where they are the same. Raises
            ``InvalidPayload``.
        present: from outputs of ``model_signature`` to those of ``signature``; ``None`` where they are the same.
        model_name: how routes and answers that name the model call it.
        content_type: media type of requests without one; empty = the server's default.
        accept: media type of answers where the client does not care; empty = the server's default.
    """

    signature: Signature
    model_signature: Signature
    prepare: Adapt | None = None
    present: Adapt | None = None
    model_name: str = "model"
    content_type: str = ""
    accept: str = ""
