"""The priority of a request, from the one header that InvokeEndpoint passes on to a container as it is. Pure.

``X-Amzn-SageMaker-Custom-Attributes`` belongs to the client, who may have put other things there: SageMaker's image for
TensorFlow Serving reads ``tfs-model-name=...,tfs-method=...`` from it, others put trace ids there. So the priority is
one item among any others, between commas or semicolons: ``priority=high``.
"""

from __future__ import annotations

import re

_HIGH = re.compile(rb"(?:^|[,;])[ \t]*priority[ \t]*=[ \t]*high[ \t]*(?:$|[,;])", re.IGNORECASE)


def is_urgent(custom_attributes: bytes) -> bool:
    """Whether the custom attributes of a request hold the item ``priority=high``, in any case."""
    return _HIGH.search(custom_attributes) is not None
