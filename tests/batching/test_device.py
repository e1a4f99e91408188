"""Lanes and whose batch runs next in them; the workers do what the test tells them to, the clock is a number."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from byoc_server.batching.batcher import Batcher
from byoc_server.batching.collate import RowCollation
from byoc_server.batching.cost import CostModel
from byoc_server.batching.device import DeviceScheduler
from byoc_server.batching.policy import BatchBounds, QueueLimits
from byoc_server.batching.worker_thread import Work, WorkerThread
from byoc_server.errors import ByocError, DeadlineExceeded
from byoc_server.types import Signature, Tensors, TensorSpec

F32 = np.dtype(np.float32)
X = Signature((TensorSpec("x", F32, (None, 1)),), (TensorSpec("y", F32, (None, 1)),))
FOREVER_S = 1e12


class Hand:
    """A worker whose work is done when the test says so, on the thread of the test."""

    def __init__(self) -> None:
        self.work: deque[Work] = deque()

    def submit(self, work: Work) -> None:
        self.work.append(work)

    def close(self, wait: bool) -> None:
        self.work.clear()


@dataclass
class Bench:
    """One device with lanes worked by hand, and what ran on it."""

    device: DeviceScheduler
    hands: list[Hand]
    now_s: list[float]
    ran: list[tuple[str, int, int]] = field(default_factory=list)
    answers: list[tuple[str, Tensors | ByocError]] = field(default_factory=list)

    def model(
        self,
        name: str,
        seconds: Callable[[int], float],
        rungs: tuple[tuple[int, float], ...],
        max_rows: int = 8,
        max_queue_delay_s: float = 0.0,
    ) -> Batcher:
        """A model whose batch of so many rows takes ``seconds(rows)``; ``ran`` gets its name, the lane and the rows."""

        def infer(inputs: Tensors, lane: int) -> Tensors:
            rows = len(inputs["x"])
            self.ran.append((name, lane, rows))
            self.now_s[0] += seconds(rows)
            return {"y": inputs["x"]}

        return Batcher(
            [partial(infer, lane=lane) for lane in range(len(self.hands))],
            RowCollation(X),
            QueueLimits(10**6, 10**9),
            BatchBounds(max_rows, max_rows),
            CostModel(rungs),
            self.device,
            max_queue_delay_s,
            lambda: self.now_s[0],
        )

    def ask(
        self, batcher: Batcher, name: str = "", count: int = 1, deadline_s: float = FOREVER_S, urgent: bool = False
    ) -> None:
        """Submit requests of one row; their answers go to ``answers`` under a name."""
        for _ in range(count):
            batcher.submit(
                {"x": np.zeros((1, 1), np.float32)},
                1,
                lambda outcome: self.answers.append((name, outcome)),
                deadline_s,
                urgent=urgent,
            )

    async def turn(self) -> None:
        """Let the event loop do what is due."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def work(self, lane: int = 0) -> None:
        """Do the next piece of work of a lane."""
        self.hands[lane].work.popleft()()
        await self.turn()


def on_bench(scenario: Callable[[Bench], Awaitable[None]], lanes: int = 1) -> Bench:
    async def main() -> Bench:
        hands, now_s = [Hand() for _ in range(lanes)], [0.0]
        bench = Bench(DeviceScheduler(hands, lambda: now_s[0]), hands, now_s)
        await scenario(bench)
        assert not any(hand.work for hand in hands)
        return bench

    return asyncio.run(main())


SECOND = ((1, 1.0), (8, 1.0))
MILLISECOND = ((1, 0.001), (8, 0.001))


def test_one_batch_goes_ahead_once_as_much_waits_as_is_running() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND)
        bench.ask(model, count=3)
        await bench.turn()
        bench.ask(model, count=2)
        await bench.turn()
        assert len(bench.hands[0].work) == 1
        bench.ask(model)
        await bench.turn()
        assert len(bench.hands[0].work) == 2
        bench.ask(model, count=20)
        await bench.turn()
        assert len(bench.hands[0].work) == 2
        while bench.hands[0].work:
            await bench.work()
        assert model.idle

    bench = on_bench(scenario)
    assert [rows for _, _, rows in bench.ran] == [3, 3, 8, 8, 4]
    assert len(bench.answers) == 26


def test_when_half_of_the_time_of_a_batch_is_over_whatever_waits_goes_ahead() -> None:
    """Of 12 clients 8 wait for one batch and 4 for the next: the lane must not stand still between the two."""
    rungs = ((1, 0.004), (8, 0.004))

    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.004, rungs)
        for number in range(2):
            bench.ask(model, count=8)
            await bench.turn()
            bench.ask(model, count=4)
            await bench.turn()
            assert len(bench.hands[0].work) == 1
            bench.now_s[0] += 0.003
            while len(bench.hands[0].work) < 2:
                await asyncio.sleep(0.001)
            while bench.hands[0].work:
                await bench.work()
            assert [rows for _, _, rows in bench.ran[2 * number :]] == [8, 4]

    on_bench(scenario)


def test_the_next_batch_is_handed_over_before_the_answers_are_written() -> None:
    waiting: list[int] = []

    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND)
        model.submit({"x": np.zeros((4, 1), F32)}, 4, lambda outcome: waiting.append(len(bench.hands[0].work)), 1e12)
        await bench.turn()
        bench.ask(model)
        await bench.turn()
        await bench.work()
        await bench.work()

    on_bench(scenario)
    assert waiting == [1]


def test_lanes_run_side_by_side_each_with_its_own_copy() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND)
        bench.ask(model, count=3)
        await bench.turn()
        bench.ask(model)
        await bench.turn()
        assert [len(hand.work) for hand in bench.hands] == [1, 1]
        bench.ask(model)
        await bench.turn()
        assert [len(hand.work) for hand in bench.hands] == [1, 2]
        for lane in (1, 0, 1):
            await bench.work(lane)
        assert model.idle

    bench = on_bench(scenario, lanes=2)
    assert bench.ran == [("m", 1, 1), ("m", 0, 3), ("m", 1, 1)]


def test_how_long_the_oldest_batch_has_been_running() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, SECOND)
        other = bench.model("other", lambda rows: 0.0, SECOND)
        assert model.running_s == 0.0
        bench.ask(model)
        await bench.turn()
        bench.now_s[0] = 5.0
        bench.ask(model)
        await bench.turn()
        bench.now_s[0] = 7.0
        assert (model.running_s, other.running_s) == (7.0, 0.0)
        await bench.work()
        assert model.running_s == 0.0
        bench.now_s[0] = 8.0
        assert model.running_s == 1.0
        await bench.work()
        assert model.running_s == 0.0

    on_bench(scenario)


def test_a_batch_that_runs_again_in_pieces_is_no_run_that_hangs() -> None:
    """Each run takes 3 s; what counts is the one that is going on."""
    seen_s: list[float] = []

    async def scenario(bench: Bench) -> None:
        def seconds(rows: int) -> float:
            bench.now_s[0] += 3.0
            seen_s.append(model.running_s)
            if rows > 1:
                raise RuntimeError("one at a time")
            return 0.0

        model = bench.model("m", seconds, SECOND)
        bench.ask(model, count=4)
        await bench.turn()
        bench.now_s[0] = 1.0
        assert model.running_s == 1.0
        await bench.work()
        assert model.running_s == 0.0

    bench = on_bench(scenario)
    assert seen_s == [3.0] * 7
    assert len(bench.answers) == 4


def test_a_slow_model_does_not_starve_a_fast_one() -> None:
    """Both always have full batches waiting; a batch of one takes 20 times that of the other."""
    spent_s = {"slow": 0.0, "fast": 0.0}

    async def scenario(bench: Bench) -> None:
        def taking(name: str, seconds: float) -> Callable[[int], float]:
            def take(rows: int) -> float:
                spent_s[name] += seconds
                return seconds

            return take

        slow = bench.model("slow", taking("slow", 1.0), SECOND)
        fast = bench.model("fast", taking("fast", 0.05), ((1, 0.05), (8, 0.05)))
        for _ in range(300):
            bench.ask(slow, count=8)
            bench.ask(fast, count=8)
        await bench.turn()
        for _ in range(200):
            await bench.work()
            assert abs(spent_s["slow"] - spent_s["fast"]) < 3.1
        while bench.hands[0].work:
            await bench.work()

    bench = on_bench(scenario)
    assert len(bench.answers) == 4800


def test_a_model_whose_cost_is_unknown_pays_what_it_took() -> None:
    async def scenario(bench: Bench) -> None:
        unknown = bench.model("unknown", lambda rows: 1.0, ())
        known = bench.model("known", lambda rows: 0.1, ((1, 0.1), (8, 0.1)))
        for _ in range(40):
            bench.ask(unknown, count=8)
            bench.ask(known, count=8)
        await bench.turn()
        for _ in range(24):
            await bench.work()
        names = [name for name, _, _ in bench.ran]
        assert 2 <= names.count("unknown") <= 4
        while bench.hands[0].work:
            await bench.work()

    on_bench(scenario)


def test_the_place_ahead_stays_free_for_the_model_whose_turn_it_is() -> None:
    """A request of a fast model that comes while a slow one runs waits for one batch of it, not for two."""

    async def scenario(bench: Bench) -> None:
        slow = bench.model("slow", lambda rows: 1.0, SECOND)
        fast = bench.model("fast", lambda rows: 0.01, ((1, 0.01), (8, 0.01)))
        bench.ask(slow)
        await bench.turn()
        bench.ask(fast)
        await bench.turn()
        bench.ask(slow, count=16)
        await bench.turn()
        assert len(bench.hands[0].work) == 1
        bench.ask(fast, count=2)
        while bench.hands[0].work:
            await bench.work()

    bench = on_bench(scenario)
    assert bench.ran == [("slow", 0, 1), ("fast", 0, 3), ("slow", 0, 8), ("slow", 0, 8)]


def test_a_batch_of_another_model_goes_ahead_if_it_takes_as_long_as_the_one_that_runs() -> None:
    async def scenario(bench: Bench) -> None:
        one = bench.model("one", lambda rows: 1.0, SECOND)
        other = bench.model("other", lambda rows: 2.0, ((1, 2.0), (8, 2.0)))
        bench.ask(one)
        await bench.turn()
        bench.ask(other)
        await bench.turn()
        assert len(bench.hands[0].work) == 2
        while bench.hands[0].work:
            await bench.work()

    on_bench(scenario)


def test_two_busy_models_share_the_lanes() -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.device.contention == 0.5
        one, other = bench.model("one", lambda rows: 1.0, SECOND), bench.model("other", lambda rows: 1.0, SECOND)
        bench.ask(one)
        bench.ask(other)
        await bench.turn()
        assert bench.device.contention == 1.0
        await bench.work(0)
        await bench.work(1)
        assert bench.device.contention == 0.5

    on_bench(scenario, lanes=2)


def test_a_short_batch_runs_on_the_event_loop_while_another_model_holds_the_lane() -> None:
    async def scenario(bench: Bench) -> None:
        slow = bench.model("slow", lambda rows: 1.0, SECOND)
        fast = bench.model("fast", lambda rows: 0.0, ((1, 1e-6), (8, 1e-6)))
        bench.ask(slow)
        await bench.turn()
        bench.ask(fast, "fast", count=9)
        await bench.turn()
        assert [name for name, _ in bench.answers] == ["fast"] * 9
        await bench.work()

    on_bench(scenario)


def test_a_batch_waits_for_more_until_it_is_full() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND, max_rows=3, max_queue_delay_s=3600.0)
        bench.ask(model, count=2)
        await bench.turn()
        assert not bench.hands[0].work
        bench.ask(model)
        await bench.turn()
        await bench.work()
        assert model.idle

    assert on_bench(scenario).ran == [("m", 0, 3)]


def test_a_batch_waits_for_more_no_longer_than_its_oldest_request_may() -> None:
    """On the event loop as well as in a lane; the timer is real, the clock says when it is due."""

    async def scenario(bench: Bench) -> None:
        slow = bench.model("slow", lambda rows: 1.0, SECOND, max_queue_delay_s=0.01)
        fast = bench.model("fast", lambda rows: 0.0, ((1, 1e-6), (8, 1e-6)), max_queue_delay_s=0.01)
        for model in (slow, fast):
            bench.ask(model)
            await bench.turn()
            bench.ask(model)
            await bench.turn()
        assert not bench.ran
        bench.now_s[0] = 1.0
        while not (bench.hands[0].work and bench.answers):
            await asyncio.sleep(0.001)
        await bench.work()
        assert slow.idle
        assert fast.idle

    assert sorted(on_bench(scenario).ran) == [("fast", 0, 2), ("slow", 0, 2)]


def test_what_waits_behind_a_batch_waits_for_more_as_well() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, SECOND, max_rows=2, max_queue_delay_s=0.01)
        bench.ask(model, count=3)
        await bench.turn()
        await bench.work()
        assert not bench.hands[0].work
        bench.now_s[0] = 1.0
        while not bench.hands[0].work:
            await asyncio.sleep(0.001)
        await bench.work()

    assert on_bench(scenario).ran == [("m", 0, 2), ("m", 0, 1)]


def test_all_that_was_cancelled_while_it_waited_for_more_is_forgotten() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, SECOND, max_queue_delay_s=0.01)
        cancel = model.submit({"x": np.zeros((1, 1), F32)}, 1, lambda outcome: None, FOREVER_S)
        await bench.turn()
        cancel()
        while not model.idle:
            await asyncio.sleep(0.001)

    assert on_bench(scenario).ran == []


def test_urgent_requests_overtake_and_others_do_not_starve() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND, max_rows=1)
        bench.ask(model, "first")
        await bench.turn()
        bench.ask(model, "first")
        await bench.turn()
        bench.ask(model, "normal", count=2)
        bench.now_s[0] = 0.5
        bench.ask(model, "urgent", count=8, urgent=True)
        while bench.hands[0].work:
            await bench.work()

    names = [name for name, _ in on_bench(scenario).answers]
    assert names == ["first"] * 2 + (["urgent"] * 3 + ["normal"]) * 2 + ["urgent"] * 2


def test_entries_that_left_while_their_batch_stood_ready_do_not_run() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND)
        bench.ask(model)
        await bench.turn()
        cancel = model.submit({"x": np.zeros((1, 1), F32)}, 1, lambda outcome: None, FOREVER_S)
        await bench.turn()
        bench.ask(model, "next", count=2)
        cancel()
        while bench.hands[0].work:
            await bench.work()
        assert model.idle

    assert on_bench(scenario).ran == [("m", 0, 1), ("m", 0, 2)]


def test_a_request_that_is_overdue_in_its_lane_is_answered_and_what_waits_longer_stays() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, SECOND)
        bench.ask(model, "late", deadline_s=0.02)
        bench.ask(model, "kept", deadline_s=FOREVER_S)
        await bench.turn()
        bench.now_s[0] = 1.0
        while not bench.answers:
            await asyncio.sleep(0.001)
        assert isinstance(bench.answers[0][1], DeadlineExceeded)
        await bench.work()

    bench = on_bench(scenario)
    assert [name for name, _ in bench.answers] == ["late", "kept"]


def test_an_earlier_deadline_than_those_known_is_kept_as_well() -> None:
    """While a batch runs that never ends; the one behind it is looked at too."""

    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, MILLISECOND)
        bench.ask(model, "patient", count=4, deadline_s=1000.0)
        await bench.turn()
        bench.ask(model, "second", deadline_s=0.02)
        bench.ask(model, "first", deadline_s=0.01)
        bench.now_s[0] = 0.015
        while len(bench.answers) < 1:
            await asyncio.sleep(0.001)
        bench.now_s[0] = 0.025
        while len(bench.answers) < 2:
            await asyncio.sleep(0.001)
        await bench.work()
        while bench.hands[0].work:
            await bench.work()

    assert [name for name, _ in on_bench(scenario).answers] == ["first", "second", *["patient"] * 4]


def test_a_deadline_that_was_kept_passes_in_silence() -> None:
    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, MILLISECOND)
        bench.ask(model, deadline_s=0.01)
        await bench.turn()
        await bench.work()
        await asyncio.sleep(0.02)  # timers fire in order, so the one of the deadline has

    assert len(on_bench(scenario).answers) == 1


def test_a_queue_of_overdue_requests_leaves_a_lane_idle() -> None:
    """More than are looked at for one batch."""

    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 0.0, MILLISECOND)
        bench.ask(model, "runs")
        await bench.turn()
        bench.ask(model, "late", count=600, deadline_s=1.0)
        await bench.turn()
        bench.now_s[0] = 2.0
        for _ in range(2):
            await bench.work()
        assert model.idle

    bench = on_bench(scenario)
    assert bench.ran == [("m", 0, 1)]
    assert [type(outcome) for name, outcome in bench.answers if name == "late"].count(DeadlineExceeded) >= 592


def test_large_tensors_are_stacked_in_the_lane() -> None:
    """Or the event loop would be kept from its pings."""

    async def scenario(bench: Bench) -> None:
        model = bench.model("m", lambda rows: 1.0, SECOND)
        for _ in range(2):
            model.submit({"x": np.zeros((1, 200_000), F32)}, 1, lambda outcome: None, FOREVER_S)
        await bench.turn()
        await bench.work()

    assert on_bench(scenario).ran == [("m", 0, 2)]


def test_a_loop_that_is_gone_is_told_nothing() -> None:
    """The server ended, and a batch came back afterwards."""
    bench_and_model: list[Bench] = []

    async def main() -> None:
        hands = [Hand()]
        bench = Bench(DeviceScheduler(hands, lambda: 0.0), hands, [0.0])
        bench.ask(bench.model("m", lambda rows: 1.0, SECOND))
        await bench.turn()
        bench_and_model.append(bench)

    asyncio.run(main())
    (bench,) = bench_and_model
    bench.hands[0].work.popleft()()
    assert bench.ran == [("m", 0, 1)]
    assert bench.answers == []


def test_real_threads_run_two_models_side_by_side() -> None:
    """Each model has an engine for each lane, and no engine is ever used twice at the same time."""
    in_use = {(name, lane): threading.Lock() for name in "ab" for lane in range(2)}

    def engine(name: str, lane: int) -> Callable[[Tensors], Tensors]:
        def infer(inputs: Tensors) -> Tensors:
            lock = in_use[name, lane]
            assert lock.acquire(blocking=False)
            try:
                return {"y": inputs["x"] + (1 if name == "a" else 2)}
            finally:
                lock.release()

        return infer

    async def main() -> None:
        workers = [WorkerThread(f"inference_{lane}") for lane in range(2)]
        device = DeviceScheduler(workers)
        models = {
            name: Batcher(
                [engine(name, lane) for lane in range(2)],
                RowCollation(X),
                QueueLimits(10**6, 10**9),
                BatchBounds(4, 4),
                CostModel(SECOND),
                device,
            )
            for name in "ab"
        }
        loop = asyncio.get_running_loop()
        answers = []
        for number in range(300):
            for name, batcher in models.items():
                answer: asyncio.Future[Tensors | ByocError] = loop.create_future()
                batcher.submit({"x": np.full((1, 1), number, F32)}, 1, answer.set_result, FOREVER_S)
                answers.append((number + (1 if name == "a" else 2), answer))
            if number % 10 == 0:
                await asyncio.sleep(0)
        for expected, answer in answers:
            outcome = await asyncio.wait_for(answer, 60)
            assert isinstance(outcome, dict), outcome
            assert outcome["y"].tolist() == [[expected]]
        for worker in workers:
            worker.close(wait=True)

    asyncio.run(main())
