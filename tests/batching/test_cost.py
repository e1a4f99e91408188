"""What batches cost, by what they really took; time is a number here."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.batching.cost import CostModel

RUNGS = ((1, 0.010), (2, 0.012), (4, 0.016), (8, 0.032))


def observe(cost: CostModel, work: int, seconds: float, times: int) -> None:
    for _ in range(times):
        cost.observe(work, seconds)


def test_it_begins_with_what_was_measured() -> None:
    cost = CostModel(RUNGS)
    assert cost.seconds(1) == 0.010
    assert cost.seconds(3) == pytest.approx(0.014)
    assert cost.seconds(16) == pytest.approx(0.064)
    assert cost.best_work == 4


def test_without_any_measurement_the_first_batch_tells() -> None:
    cost = CostModel()
    assert cost.seconds(5) is None
    assert cost.wait_s(100, 5) == cost.wait_at_most_s(100) == 0.0
    assert cost.best_work == 1
    cost.observe(4, 0.0)
    observe(cost, 4, 2.0, 2000)
    assert cost.seconds(4) == pytest.approx(2.0, rel=0.01)
    assert cost.seconds(8) == pytest.approx(4.0, rel=0.01)
    assert cost.best_work == 1


@pytest.mark.parametrize("seconds", [0.002, 0.2])
def test_it_follows_what_batches_take(seconds: float) -> None:
    cost = CostModel(RUNGS)
    observe(cost, 4, seconds, 400)
    assert cost.seconds(4) == pytest.approx(seconds, rel=0.01)


def test_it_moves_quickly_down_and_slowly_up() -> None:
    """Whatever disturbs a run makes it longer."""
    quick, slow = CostModel(RUNGS), CostModel(RUNGS)
    observe(quick, 1, 0.005, 10)
    observe(slow, 1, 0.020, 10)
    assert quick.seconds(1) == pytest.approx(0.005, rel=0.1)
    assert slow.seconds(1) == pytest.approx(0.0125, rel=0.1)


@given(st.floats(0.02, 1e6))
def test_one_run_that_was_held_up_changes_little(seconds: float) -> None:
    cost = CostModel(RUNGS)
    cost.observe(1, seconds)
    changed = cost.seconds(1)
    assert changed is not None
    assert changed <= 0.010 * 1.04


def test_a_size_in_between_moves_both_neighbours_and_one_above_the_last_moves_that() -> None:
    cost = CostModel(RUNGS)
    cost.observe(3, 0.007)
    assert [cost.seconds(work) for work, _ in RUNGS] == [
        0.010,
        pytest.approx(0.0105),
        pytest.approx(0.014),
        0.032,
    ]
    cost = CostModel(RUNGS)
    cost.observe(16, 0.032)
    assert [cost.seconds(work) for work, _ in RUNGS] == [0.010, 0.012, 0.016, pytest.approx(0.028)]


def test_sizes_that_nobody_visits_follow_the_others() -> None:
    """A device that became twice as slow did so for all sizes."""
    cost = CostModel(RUNGS)
    observe(cost, 1, 0.020, 1280)
    assert cost.seconds(8) == pytest.approx(0.064, rel=0.02)
    assert cost.best_work == 4


def test_the_best_size_changes_once_another_is_clearly_better() -> None:
    cost = CostModel(RUNGS)
    for _ in range(64):
        cost.observe(4, 0.016)
        cost.observe(8, 0.031)
    assert cost.best_work == 4
    for _ in range(64):
        cost.observe(4, 0.016)
        cost.observe(8, 0.020)
    assert cost.best_work == 8


def test_the_wait_is_that_of_full_batches_and_the_rest() -> None:
    cost = CostModel(RUNGS)
    assert cost.wait_s(9, 4) == pytest.approx(2 * 0.016 + 0.010)
    assert cost.wait_s(8, 4) == pytest.approx(2 * 0.016)
    assert cost.wait_s(3, 4) == pytest.approx(0.014)


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 8]))
def test_the_quick_bound_is_never_below_the_wait(work: int, batch_work: int) -> None:
    cost = CostModel(RUNGS)
    cost.stretch = 1.5
    assert cost.wait_at_most_s(work) >= cost.wait_s(work, batch_work)


@settings(deadline=None, derandomize=True)
@given(st.floats(0.001, 100), st.floats(1, 4), st.sampled_from([1, 4, 32]))
def test_the_work_within_some_time_is_that_which_takes_it(seconds: float, stretch: float, first: int) -> None:
    cost = CostModel([(first * work, took_s) for work, took_s in RUNGS])
    cost.stretch = stretch
    work = cost.work_within(seconds)
    least_s = cost.wait_at_most_s(0)
    assert (work < 0) is (seconds < least_s)
    if work >= 0:
        assert cost.wait_at_most_s(int(work)) <= seconds * (1 + 1e-9)
        assert cost.wait_at_most_s(int(work) + 1) >= seconds * (1 - 1e-9)


def test_the_work_within_some_time_follows_what_batches_take() -> None:
    cost = CostModel(RUNGS)
    assert cost.work_within(0.040) == pytest.approx(3)
    cost.stretch = 2.0
    assert cost.work_within(0.040) == pytest.approx(1)
    cost.stretch = 1.0
    observe(cost, 1, 0.005, 200)
    assert cost.work_within(0.040) == pytest.approx(7, rel=0.01)


def test_with_unknown_speed_any_work_is_within_any_time() -> None:
    cost = CostModel()
    assert cost.work_within(0.0) == math.inf
    cost.observe(4, 1.0)
    assert cost.work_within(3.0) == pytest.approx(8)


def test_what_holds_batches_up_in_service_lengthens_the_wait_and_not_the_cost() -> None:
    cost = CostModel(RUNGS)
    for _ in range(200):
        cost.observe_service(0.010, 0.030)
    assert cost.wait_s(1, 4) == pytest.approx(0.030, rel=0.01)
    assert cost.seconds(1) == 0.010
    cost.observe_service(0.010, 1000.0)
    assert cost.stretch < 4
    for _ in range(200):
        cost.observe_service(0.010, 0.001)
    assert cost.stretch == pytest.approx(1.0, rel=0.01)
