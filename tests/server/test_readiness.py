from __future__ import annotations

from byoc_server.server.readiness import ReadinessBoard


def test_ready_when_all_are() -> None:
    board = ReadinessBoard(2)
    assert (board.any_ready, board.all_ready) == (False, False)
    board.set_ready(7)
    assert (board.any_ready, board.all_ready) == (True, False)
    board.set_gone(7)
    assert not board.any_ready
    board.set_ready(8)
    board.set_ready(9)
    board.set_gone(8)  # once all were ready, one that is replaced changes nothing
    assert board.all_ready


def test_word_for_the_parent() -> None:
    board = ReadinessBoard(1)
    assert board.failure == ""
    board.failure = "no such file: mödel.onnx"
    assert board.failure == "no such file: mödel.onnx"
    board.set_silent(3, 4711)
    assert board.is_silent(3, 4711)
    assert not board.is_silent(3, 4712)  # the process that has taken its place
    assert not board.is_silent(2, 4711)
