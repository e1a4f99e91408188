import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_server.batching.profile import BatchProfile, Climb, DoesNotFit, descend, find_top


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


def test_sizes_can_be_counted_in_positions() -> None:
    assert BatchProfile(((1, 1.0), (2, 1.5))).work_rungs(16) == ((16, 1.0), (32, 1.5))


def test_each_probe_tells_how_far_the_next_may_go() -> None:
    """0.1 s for one record, of which 0.09 s are for any batch."""
    probed: list[int] = []

    def probe(rows: int) -> float:
        probed.append(rows)
        return 0.09 + 0.01 * rows

    assert find_top(Climb(probe, 256), 0.5, 5.0) == 32
    assert probed == [1, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("seconds", "largest", "top"), [(1e-6, 256, 256), (0.0, 6, 6), (0.2, 6, 2), (0.09, 6, 4), (3.0, 256, 1)]
)
def test_the_top_is_a_rung_or_the_largest_size_there_may_be(seconds: float, largest: int, top: int) -> None:
    climb = Climb(lambda rows: seconds * rows, largest)
    assert find_top(climb, 0.5, 5.0) == top
    assert climb.fits is None


@pytest.mark.parametrize(("fits", "top"), [(1, 1), (5, 4), (16, 16), (99, 64)])
def test_below_a_size_that_does_not_fit_the_next_lower_one_is_tried(fits: int, top: int) -> None:
    def probe(rows: int) -> float:
        if rows > fits:
            raise DoesNotFit
        return 1e-3

    climb = Climb(probe, 100)
    assert find_top(climb, 0.5, 5.0) == top
    assert climb.fits == top


@pytest.mark.parametrize(
    ("fixed_s", "row_s", "wanted", "probed", "top"),
    [
        (0.45, 0.0, False, [1, 2, 4, 8, 16, 32, 64], 64),
        (0.45, 0.0, True, [1, 2, 64], 64),
        (0.30, 0.2, False, [1, 2, 4, 8], 8),  # there is no time for 16
        (0.30, 0.2, True, [1, 2, 4, 8], 8),
        (0.02, 0.4, False, [1, 2], 1),  # 2 bring nothing
        (1.20, 0.3, True, [1, 2], 2),
        (1.00, 0.01, True, [1, 2, 64], 64),
        (2.60, 0.0, False, [1], 1),
        (0.09, 0.01, True, [1, 4, 8, 16, 32, 64], 64),
        (0.00, 0.01, True, [1, 32], 32),  # twice as many take twice as long: that needs no proof
    ],
)
def test_where_a_record_is_slow_or_batches_are_wanted_sizes_are_tried_as_long_as_it_pays(
    fixed_s: float, row_s: float, wanted: bool, probed: list[int], top: int
) -> None:
    seen: list[int] = []

    def probe(rows: int) -> float:
        seen.append(rows)
        return fixed_s + row_s * rows

    assert find_top(Climb(probe, 64), 0.5, 5.0, wanted=wanted) == top
    assert seen == probed


def test_a_slow_batch_that_does_not_fit_ends_the_climb_below_it() -> None:
    seen: list[int] = []

    def probe(rows: int) -> float:
        seen.append(rows)
        if rows > 9:
            raise DoesNotFit
        return 0.45

    climb = Climb(probe, 64)
    assert find_top(climb, 0.5, 5.0, wanted=True) == 8
    assert climb.fits == 8
    assert seen == [1, 2, 64, 32, 16, 8]


def test_the_ladder_is_measured_from_the_top_down() -> None:
    measured: list[int] = []

    def measure(rows: int) -> float:
        measured.append(rows)
        return rows / 10

    assert descend(measure, 6, 100.0) == ((1, 0.1), (2, 0.2), (4, 0.4), (6, 0.6))
    assert measured == [6, 4, 2, 1]


def test_a_rung_that_fails_is_left_out() -> None:
    def measure(rows: int) -> float:
        if rows == 8:
            raise DoesNotFit
        return 1.0

    assert [rows for rows, _ in descend(measure, 16, 100.0)] == [1, 2, 4, 16]


def test_when_the_time_is_over_only_the_lowest_rung_is_left() -> None:
    assert [rows for rows, _ in descend(lambda rows: 1.0, 64, 5.0)] == [1, 32, 64]


def test_a_clock_too_coarse_to_see_a_run_does_no_harm() -> None:
    assert BatchProfile(descend(lambda rows: 0.0, 4, 1.0)).rows_per_s is not None


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=9), st.integers(1, 2000))
def test_an_estimate_lies_between_its_rungs(seconds: list[float], rows: int) -> None:
    profile = BatchProfile(tuple((2**i, s) for i, s in enumerate(seconds)))
    estimate = profile.seconds(rows)
    assert estimate is not None
    if rows <= 2 ** (len(seconds) - 1):
        assert min(seconds) * 0.999 <= estimate <= max(seconds) * 1.001
    else:
        assert estimate == pytest.approx(seconds[-1] * rows / 2 ** (len(seconds) - 1))
