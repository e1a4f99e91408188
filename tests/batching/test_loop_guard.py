from byoc_server.batching.loop_guard import TOO_LONG_SECONDS, LoopGuard


def harmless_until_open(guard: LoopGuard) -> int:
    count = 0
    while not guard.open:
        guard.saw_threaded(TOO_LONG_SECONDS)
        count += 1
    return count


def test_it_stays_open_for_short_batches() -> None:
    guard = LoopGuard()
    assert not guard.saw_inline(TOO_LONG_SECONDS)
    guard.saw_threaded(10.0)
    assert guard.open


def test_one_long_batch_closes_it_and_each_time_it_takes_twice_as_long_to_open() -> None:
    guard = LoopGuard()
    waited = []
    for _ in range(12):
        assert guard.saw_inline(2 * TOO_LONG_SECONDS)
        assert not guard.open
        waited.append(harmless_until_open(guard))
    assert waited == [64 * 2**n for n in range(11)] + [65536]


def test_a_long_batch_elsewhere_begins_the_count_anew() -> None:
    guard = LoopGuard()
    guard.saw_inline(1.0)
    for _ in range(63):
        guard.saw_threaded(0.0)
    guard.saw_threaded(1.0)
    assert harmless_until_open(guard) == 64
