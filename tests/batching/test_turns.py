from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from byoc_server.batching.turns import DeficitRoundRobin

QUANTUM_S = 0.01
costs_s = st.floats(1e-5, 5.0)


def turns(*keys: str) -> DeficitRoundRobin[str]:
    order: DeficitRoundRobin[str] = DeficitRoundRobin(QUANTUM_S)
    for key in keys:
        order.join(key)
    return order


def run(order: DeficitRoundRobin[str], waiting: str, cost_s: float, times: int) -> list[str]:
    chosen = []
    for _ in range(times):
        chosen.append(order.choose(waiting))
        order.charge(chosen[-1], cost_s)
    return chosen


def test_turns_of_equal_cost_go_round() -> None:
    assert run(turns("a", "b", "c"), "abc", 1.0, 6) == ["a", "b", "c", "a", "b", "c"]


def test_many_short_turns_weigh_as_much_as_one_long_one() -> None:
    order = turns("slow", "fast")
    chosen = []
    for _ in range(1010):
        chosen.append(order.choose(["slow", "fast"]))
        order.charge(chosen[-1], 1.0 if chosen[-1] == "slow" else 0.01)
    assert 9 <= chosen.count("slow") <= 11


def test_who_has_been_alone_owes_no_more_than_one_turn() -> None:
    order = turns("a", "b")
    run(order, "a", 1.0, 1000)
    assert "a" in run(order, "ab", 1.0, 3)


def test_who_does_not_wait_saves_nothing_up() -> None:
    order = turns("a", "b")
    order.charge("b", -5.0)
    run(order, "a", 1.0, 3)
    assert "a" in run(order, "ab", 1.0, 2)


def test_what_was_charged_too_much_comes_back() -> None:
    order = turns("a", "b")
    assert order.choose("ab") == "a"
    order.charge("a", 100.0)
    order.charge("a", -99.9)
    assert run(order, "ab", 0.1, 4).count("a") == 2


@given(
    st.lists(st.tuples(st.booleans(), costs_s), min_size=1, max_size=200),
    st.floats(0.001, 1.0),
)
@example([(False, 1.1875), (False, 0.1), (False, 1.25), (False, 1.0), (False, 1.0)], 0.640625)  # rounding eats a turn
def test_two_models_with_work_waiting_get_the_same_time_but_for_a_bounded_rest(
    steps: list[tuple[bool, float]], scale: float
) -> None:
    """A third that comes and goes changes nothing; one of the two is slower than the other by any factor."""
    order = turns("a", "b", "c")
    got_s = {"a": 0.0, "b": 0.0, "c": 0.0}
    longest_s = 0.0
    for third_waits, cost_s in steps:
        chosen = order.choose("abc" if third_waits else "ab")
        assert third_waits or chosen != "c"
        taken_s = cost_s * scale if chosen == "a" else cost_s
        order.charge(chosen, taken_s)
        got_s[chosen] += taken_s
        longest_s = max(longest_s, taken_s)
        assert abs(got_s["a"] - got_s["b"]) <= QUANTUM_S + longest_s + 1e-6
