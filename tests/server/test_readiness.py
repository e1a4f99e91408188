from __future__ import annotations

from byoc_server.server.readiness import ReadinessBoard


def test_ready_when_all_are() -> None:
    board = ReadinessBoard(2)
    assert (board.any_ready, board.all_were_ready) == (False, False)
    board.set_ready(7)
    assert (board.any_ready, board.all_were_ready) == (True, False)
    board.set_gone(7)
    assert not board.any_ready
    board.set_ready(8)
    board.set_ready(9)
    assert board.all_were_ready


def test_once_all_were_ready_those_that_are_replaced_change_nothing() -> None:
    board = ReadinessBoard(1)
    board.set_ready(1)
    board.set_gone(1)
    assert board.all_were_ready
    assert not board.any_ready  # there is nobody to answer while another one loads


def test_word_for_the_parent() -> None:
    board = ReadinessBoard(1)
    assert board.failure == ""
    board.failure = "no such file: mödel.onnx"
    assert board.failure == "no such file: mödel.onnx"
