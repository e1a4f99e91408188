import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.batching.profile import BatchProfile, climb


def test_an_empty_profile_knows_nothing() -> None:
    profile = BatchProfile()
    assert profile.seconds(3) is None
    assert profile.rows_per_s is None
    assert profile.best_batch_size == 1


def test_seconds_are_linear_between_rungs_and_proportional_above() -> None:
    profile = BatchProfile(((1, 1.0), (2, 1.5), (4, 2.0)))
    assert profile.seconds(1) == 1.0
    assert profile.seconds(2) == 1.5
    assert profile.seconds(3) == pytest.approx(1.75)
    assert profile.seconds(8) == pytest.approx(4.0)


def test_the_best_size_is_the_smallest_within_five_percent_of_the_best_throughput() -> None:
    profile = BatchProfile(((1, 1.0), (2, 1.0), (4, 1.96), (8, 4.5)))
    assert profile.best_batch_size == 2
    assert profile.rows_per_s == pytest.approx(2.0)


def test_climbing_stops_after_two_rungs_that_gained_nothing() -> None:
    measured: list[int] = []

    def measure(rows: int) -> float:
        measured.append(rows)
        return 1.0 if rows <= 4 else rows / 4

    profile = climb(measure, largest=256, budget_s=1e9)
    assert measured == [1, 2, 4, 8, 16]
    assert profile.best_batch_size == 4


def test_climbing_ends_at_the_largest_size_even_if_it_is_no_power_of_two() -> None:
    profile = climb(lambda rows: 1.0, largest=6, budget_s=1e9)
    assert [rows for rows, _ in profile.rungs] == [1, 2, 4, 6]


def test_climbing_ends_when_the_next_rung_would_break_the_budget() -> None:
    profile = climb(lambda rows: float(rows) ** 0.5, largest=256, budget_s=10)
    assert [rows for rows, _ in profile.rungs] == [1, 2]


@pytest.mark.parametrize("fails_from", [1, 2, 8])
def test_climbing_ends_below_a_size_that_fails(fails_from: int) -> None:
    def measure(rows: int) -> float:
        if rows >= fails_from:
            raise RuntimeError("out of memory")
        return 1.0

    if fails_from == 1:
        with pytest.raises(RuntimeError, match="out of memory"):
            climb(measure, largest=256, budget_s=1e9)
    else:
        assert climb(measure, largest=256, budget_s=1e9).rungs[-1] == (fails_from // 2, 1.0)


def test_a_clock_too_coarse_to_see_a_run_does_no_harm() -> None:
    assert climb(lambda rows: 0.0, largest=4, budget_s=1).rows_per_s is not None


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=9), st.integers(1, 2000))
def test_an_estimate_lies_between_its_rungs(seconds: list[float], rows: int) -> None:
    profile = BatchProfile(tuple((2**i, s) for i, s in enumerate(seconds)))
    estimate = profile.seconds(rows)
    assert estimate is not None
    if rows <= 2 ** (len(seconds) - 1):
        assert min(seconds) * 0.999 <= estimate <= max(seconds) * 1.001
    else:
        assert estimate == pytest.approx(seconds[-1] * rows / 2 ** (len(seconds) - 1))
