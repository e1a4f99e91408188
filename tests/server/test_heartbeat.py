from __future__ import annotations

import threading

from byoc_server.server.heartbeat import Heartbeat, MissedBeats
from tests.server_process import wait_for


def test_it_beats_while_the_event_loop_is_busy() -> None:
    beats: list[int] = []
    stuck: list[str] = []
    heartbeat = Heartbeat(lambda: beats.append(1), 1000.0, stuck.append, beat_s=0.001)
    wait_for(lambda: len(beats) > 5, "it beats, though nobody has said that the loop turns")
    heartbeat.close()
    count = len(beats)
    assert stuck == []
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert len(beats) == count


def test_a_loop_that_stands_still_for_too_long_is_given_up() -> None:
    beats: list[int] = []
    stuck: list[str] = []
    heartbeat = Heartbeat(lambda: beats.append(1), 0.05, stuck.append, beat_s=0.001)
    wait_for(lambda: stuck, "it has been given up")
    assert "has not turned" in stuck[0]
    heartbeat.close()
    assert len(stuck) == 1


def test_a_loop_that_turns_is_not() -> None:
    stuck: list[str] = []
    turned = threading.Event()
    heartbeat = Heartbeat(turned.set, 1000.0, stuck.append, beat_s=0.001)
    assert turned.wait(20)
    before_s = heartbeat._turned_s
    heartbeat.turn()
    assert heartbeat._turned_s > before_s
    heartbeat.close()
    assert stuck == []


def test_a_process_that_has_stopped_to_beat_stands_still() -> None:
    missed = MissedBeats()
    for beat in range(10):
        assert missed.look({7: beat, 8: beat}) == []
    for look in range(5):
        assert missed.look({7: 9, 8: 100 + look}) == []
    assert missed.look({7: 9, 8: 200}) == [7]
    assert missed.look({7: 300, 8: 201}) == []


def test_a_process_that_stops_after_its_first_beat_stands_still_too() -> None:
    missed = MissedBeats()
    assert [bool(missed.look({7: 2.0})) for _ in range(7)] == [False] * 6 + [True]


def test_another_process_begins_anew() -> None:
    missed = MissedBeats()
    for _ in range(6):
        missed.look({7: 2.0})
    assert missed.look({}) == []
    assert missed.look({7: 2.0}) == []
