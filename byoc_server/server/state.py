"""What all connections of one worker share."""

from __future__ import annotations

from uvicorn.server import ServerState

from byoc_server.server.answer_head import AnswerHeads


class WorkerState(ServerState):
    """uvicorn's state, and what this server's connections share beyond it.

    Attributes:
        draining: the worker is about to end.
        answer_heads: writes the heads of answers in the fast lane.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draining = False
        self.answer_heads = AnswerHeads(self)
