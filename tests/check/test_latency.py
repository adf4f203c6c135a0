import asyncio
import heapq
import math

import numpy as np
import pytest

from deploykit.check import closed_loop
from deploykit.check.latency import LEAST_ROUNDS, AsyncClock, Rounds, interleaved, open_loop, poisson_arrivals, summary
from deploykit.check.ratio import ratio_of_interleaved


class FakeClock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def system(self, seconds, noise=0.05, seed=0):
        rng = np.random.default_rng(seed)

        def call(index):
            drift = 1 + 0.3 * math.sin(self.now_s)  # the machine itself gets slower and faster
            self.now_s += seconds * drift * rng.lognormal(0, noise)

        return call


def ratio_of(clock, slower, rounds):
    systems = {"head": clock.system(0.010 * slower, seed=1), "against": clock.system(0.010, seed=2)}
    samples = interleaved(systems, Rounds(rounds, 5, 1e9), clock=clock)
    return ratio_of_interleaved(samples["head"], samples["against"], 0.5)


@pytest.mark.parametrize("rounds", [200, 1000])
def test_a_ten_percent_slower_system_is_seen(rounds):
    found = ratio_of(FakeClock(), 1.1, rounds)
    assert found.low is not None
    assert 1.0 < found.low < 1.1 < found.value * 1.03


@pytest.mark.parametrize("rounds", [200, 1000])
def test_an_equal_system_is_not_called_slower(rounds):
    found = ratio_of(FakeClock(), 1.0, rounds)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0 < found.high


def test_times_are_the_clock_s_in_milliseconds():
    clock = FakeClock()
    samples = interleaved({"head": clock.system(0.002, noise=0)}, Rounds(3, 0, 1e9), clock=lambda: clock.now_s)
    assert samples["head"] == pytest.approx([2.0, 2.0, 2.0], rel=0.3)


def test_warm_up_is_called_but_not_counted():
    clock = FakeClock()
    seen: list[int] = []

    def call(index):
        clock.now_s += 1.0 if len(seen) < 4 else 0.001
        seen.append(index)

    samples = interleaved({"head": call}, Rounds(10, 4, 1e9), clock=clock)
    assert seen == [0, 1, 2, 3, *range(10)]
    assert samples["head"].max() == pytest.approx(1.0)


@pytest.mark.parametrize(("untimed", "found"), [(0, 3.0), (1, 2.0)])
def test_what_another_systems_call_costs_a_system_is_seen_or_left_out(untimed, found):
    clock = FakeClock()
    latest = [""]

    def system(name):
        def call(_index):
            clock.now_s += 0.002 if latest[0] == name else 0.003
            latest[0] = name

        return call

    samples = interleaved({name: system(name) for name in "abcd"}, Rounds(30, 0, 1e9, untimed=untimed), clock=clock)
    assert all(np.median(each) == pytest.approx(found) for each in samples.values())


def test_untimed_calls_are_those_of_the_rounds_before():
    asked: list[int] = []
    interleaved({"head": asked.append}, Rounds(3, 1, 1e9, untimed=2), clock=FakeClock())
    assert asked == [0, -2, -1, 0, -1, 0, 1, 0, 1, 2]


def test_every_round_calls_every_system_once_with_the_same_work_in_changing_order():
    seen = []
    systems = {name: lambda index, name=name: seen.append((index, name)) for name in "ab"}
    interleaved(systems, Rounds(50, 0, 1e9), clock=FakeClock())
    rounds = [seen[start : start + 2] for start in range(0, 100, 2)]
    assert all({name for _, name in pair} == {"a", "b"} for pair in rounds)
    assert all(pair[0][0] == pair[1][0] == index for index, pair in enumerate(rounds))
    assert {pair[0][1] for pair in rounds} == {"a", "b"}


def test_rounds_end_with_the_time_and_samples_still_pair_up():
    clock = FakeClock()
    systems = {"head": clock.system(1.0), "against": clock.system(2.0)}
    samples = interleaved(systems, Rounds(1000, 0, 30.0), clock=clock)
    assert len(samples["head"]) == len(samples["against"])
    assert 5 <= len(samples["head"]) <= 20
    assert len(interleaved(systems, Rounds(1000, 0, 0.0), clock=clock)["head"]) == LEAST_ROUNDS


class FakeTime:
    """An event loop's time without waiting: whoever sleeps least wakes first, when all others are asleep too."""

    def __init__(self):
        self.now_s = 0.0
        self.asleep = []

    def now(self):
        return self.now_s

    async def sleep(self, seconds):
        event = asyncio.Event()
        heapq.heappush(self.asleep, (self.now_s + seconds, id(event), event))
        await event.wait()

    async def run(self, work):
        task = asyncio.create_task(work)
        while not task.done():
            for _ in range(20):  # let everyone who can go on do so
                await asyncio.sleep(0)
            if self.asleep and not task.done():
                wake_s, _, event = heapq.heappop(self.asleep)
                self.now_s = max(self.now_s, wake_s)
                event.set()
        return task.result()


def timed(call, arrivals):
    fake = FakeTime()
    return asyncio.run(fake.run(open_loop(lambda index: call(fake, index), arrivals, AsyncClock(fake.now, fake.sleep))))


def test_open_loop_does_not_wait_for_answers():
    async def call(fake, index):
        await fake.sleep(1.0)
        return True

    assert timed(call, [0.1, 0.2, 0.3]) == pytest.approx([1000.0] * 3)


def test_a_stall_is_charged_to_every_request_that_it_held_up():
    async def call(fake, index):
        if index == 1:
            fake.now_s += 2.0  # the whole client stands still: no other request can even be sent
        else:
            await fake.sleep(0.01)
        return True

    found = timed(call, [0.5, 1.0, 1.5, 2.0, 2.5, 4.0])
    assert found == pytest.approx([10, 2000, 1510, 1010, 510, 10])


def test_open_loop_sees_a_ten_percent_slower_server():
    def server(seconds):
        async def call(fake, index):
            await fake.sleep(seconds)
            return True

        return call

    arrivals = poisson_arrivals(50, 100, seed=0)
    base, head = (timed(server(seconds), arrivals) for seconds in (0.010, 0.011))
    assert ratio_of_interleaved(head, base, 0.5).value == pytest.approx(1.1)


def test_a_failed_request_is_infinitely_slow_and_never_dropped():
    async def call(fake, index):
        await fake.sleep(0.01)
        return index != 1

    found = summary(timed(call, [0.1, 0.2, 0.3]))
    assert (found["n"], found["p99_ms"]) == (3, math.inf)
    assert found["p50_ms"] == pytest.approx(10.0)


def test_poisson_arrivals_keep_the_rate_and_bunch_as_they_should():
    gaps = np.diff(poisson_arrivals(20.0, 20_000, seed=1))
    assert gaps.mean() == pytest.approx(0.05, rel=0.03)
    assert gaps.std() == pytest.approx(0.05, rel=0.03)
    assert (poisson_arrivals(20.0, 5, seed=1) == poisson_arrivals(20.0, 5, seed=1)).all()


def test_summary_names_every_percentile_with_its_interval():
    found = summary(np.arange(1.0, 501.0))
    assert (found["p50_ms"], found["p99_ms"], found["n"]) == (250.0, 495.0, 500)
    assert found["p95_ms_low"] < found["p95_ms"] < found["p95_ms_high"]


def test_a_turn_is_so_many_calls_of_a_system_after_some_that_are_not_timed():
    clock, asked = FakeClock(), []

    def system(name):
        def call(index):
            asked.append((name, index))
            clock.now_s += 0.002 if asked[-2:-1] == [(name, index - 1)] else 0.003

        return call

    found = interleaved(
        {name: system(name) for name in "ab"}, Rounds(7, 0, 1e9, seed=0, untimed=2, turn=3), clock=clock
    )
    turns = [[index for name, index in asked if name == "a"][start : start + 5] for start in range(0, 12, 5)]
    assert turns == [[-2, -1, 0, 1, 2], [1, 2, 3, 4, 5], [4, 5, 6]], "the last turn is as long as there are rounds"
    assert all(samples == pytest.approx([2.0] * 7) for samples in found.values())


def test_where_the_time_is_over_there_are_still_enough_turns():
    clock = FakeClock()
    found = interleaved({"head": clock.system(1.0)}, Rounds(1000, 0, 0.0, turn=4), clock=clock)
    assert len(found["head"]) == 4 * LEAST_ROUNDS


def test_the_mean_of_a_turn_is_a_sample():
    asked: list[str] = []
    rows = [{"text": str(index)} for index in range(5)]
    rounds = Rounds(count=21, warm_up=1, seconds=60.0, turn=3)
    found = closed_loop.means_of_turns({"head": lambda given: asked.extend(row["text"] for row in given)}, rows, rounds)
    assert asked == ["0", *(str(index % 5) for index in range(21))]
    assert found["head"].shape == (7,)
