"""Rates in virtual time: half the bound at first, up step by step, down when AWS says so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from worker.ops.metrics import Metrics
from worker.ops.rates import QUOTAS, Rate, Rates

pytestmark = pytest.mark.looptime


def rate(bound: float) -> Rate:
    return Rate("ListTrainingJobs", bound, Metrics())


async def calls_within(seconds: float, rate: Rate, answer: Callable[[], None]) -> list[float]:
    """Call as fast as the rate allows; the times (s) at which calls started."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    times: list[float] = []
    while True:
        await rate.acquire()
        if loop.time() - started >= seconds:
            return times
        times.append(loop.time() - started)
        answer()


def most_in_one_second(times: list[float]) -> int:
    return max(sum(1 for other in times if 0 <= other - time < 1 - 1e-9) for time in times)


def nothing() -> None:
    """The call's end is not told."""


async def test_it_starts_at_half_its_bound_and_keeps_that_pace() -> None:
    slow = rate(10)
    assert slow.per_second == 5
    times = await calls_within(20, slow, nothing)
    assert 0.95 * 5 * 20 <= len(times) <= 5 * 20 + 2
    assert most_in_one_second(times) <= 6, "no burst at the start"


async def test_success_raises_the_pace_step_by_step_to_the_bound_and_no_further() -> None:
    growing = rate(10)
    times = await calls_within(60, growing, growing.succeeded)
    assert growing.per_second == pytest.approx(9.8), "a little below, or every jitter would be throttled"
    assert sum(1 for time in times if time < 1) <= 7, "half the bound at first: a step is no burst"
    assert most_in_one_second(times) <= 11
    in_last_half = sum(1 for time in times if time >= 30)
    assert in_last_half >= 0.95 * 10 * 30, "at least 95 % of the bound is used"


async def test_the_climb_takes_seconds_not_calls_at_once() -> None:
    growing = rate(10)
    paces = []
    for _ in range(60):
        await growing.acquire()
        growing.succeeded()
        paces.append(growing.per_second)
    assert paces == sorted(paces)
    assert asyncio.get_running_loop().time() > 6


async def test_the_first_throttling_halves_the_pace_and_the_next_call_waits() -> None:
    throttled = rate(10)
    await throttled.acquire()
    throttled.throttled()
    assert throttled.per_second == 2.5
    before = asyncio.get_running_loop().time()
    await throttled.acquire()
    assert asyncio.get_running_loop().time() - before >= 1 / 2.5 - 1e-6


async def test_one_throttled_call_among_many_served_ones_costs_little() -> None:
    busy = rate(10)
    await calls_within(60, busy, busy.succeeded)
    busy.throttled()
    assert busy.per_second > 9
    times = await calls_within(10, busy, busy.succeeded)
    assert len(times) > 90


async def test_calls_that_were_under_way_together_halve_it_once() -> None:
    throttled = rate(10)
    for _ in range(5):
        throttled.throttled()
    assert throttled.per_second == 2.5
    await asyncio.sleep(1)
    throttled.throttled()
    assert throttled.per_second == 1.25


async def test_the_pace_never_falls_to_nothing() -> None:
    throttled = rate(5)
    for _ in range(50):
        throttled.throttled()
        await asyncio.sleep(100)
    assert throttled.per_second == pytest.approx(0.1)
    async with asyncio.timeout(21):
        await throttled.acquire()
        await throttled.acquire()


async def test_a_wait_at_a_lowered_pace_reaches_those_who_queue_already() -> None:
    queued = rate(4)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(21):
            tasks.create_task(queued.acquire())
        await asyncio.sleep(0.1)
        queued.throttled()
    assert asyncio.get_running_loop().time() > 15, "at the old pace it would have taken 10 s"


async def test_a_cancelled_waiter_takes_no_turn() -> None:
    one = rate(2)
    await one.acquire()
    await one.acquire()
    waiter = asyncio.ensure_future(one.acquire())
    await asyncio.sleep(0.01)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    before = asyncio.get_running_loop().time()
    await one.acquire()
    assert asyncio.get_running_loop().time() - before <= 1


async def test_a_pause_saves_up_one_second_and_no_more() -> None:
    idle = rate(10)
    await idle.acquire()
    await asyncio.sleep(1000)
    assert most_in_one_second(await calls_within(5, idle, nothing)) <= 2 * 5 + 1


async def test_workers_that_share_a_quota_settle_below_it_and_share_it() -> None:
    """AWS as a bucket of 10 calls a second; three workers that know nothing of each other."""
    served: list[float] = []
    loop = asyncio.get_running_loop()

    async def worker(own: Rate) -> int:
        done = 0
        while loop.time() < 300:
            await own.acquire()
            if sum(1 for time in served[-30:] if time > loop.time() - 1) >= 10:
                own.throttled()
            else:
                served.append(loop.time())
                own.succeeded()
                done += 1
        return done

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(worker(rate(10))) for _ in range(3)]
    shares = [task.result() for task in running]
    assert sum(shares) > 0.6 * 10 * 300
    assert min(shares) > 0.2 * sum(shares)


class Bucket:
    """AWS's side: a token bucket that saves up `burst` calls."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._tokens, self._filled_at = burst, 0.0

    def take(self, now: float) -> bool:
        """Serve a call, or throttle it."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


async def use(quota: float, bucket: Bucket, seconds: float, jitter: float, rng: random.Random) -> list[float]:
    """One worker's calls, each 100 ms there and back, give or take `jitter`; the times at which they were served."""
    loop, own, served = asyncio.get_running_loop(), rate(quota), list[float]()

    async def call() -> None:
        await asyncio.sleep(0.05 + rng.uniform(-jitter, jitter))
        taken = bucket.take(loop.time())
        if taken:
            served.append(loop.time())
        await asyncio.sleep(0.05)
        (own.succeeded if taken else own.throttled)()

    async with asyncio.TaskGroup() as tasks:
        while loop.time() < seconds:
            await own.acquire()
            tasks.create_task(call())
    return served


@pytest.mark.parametrize(
    ("quota", "burst", "jitter", "share"),
    [
        (1, 1, 0.005, 0.97),
        (1, 1, 0.03, 0.95),
        # A throttled call is known 100 ms later: with one call in 2.5 that comes early, no more is to be had.
        (1, 1, 0.05, 0.93),
        (1, 2, 0.05, 0.97),
        (2, 2, 0.05, 0.95),
        (5, 5, 0.05, 0.95),
        (25, 25, 0.05, 0.95),
    ],
)
async def test_a_worker_alone_uses_95_percent_of_a_quota(
    quota: float, burst: float, jitter: float, share: float
) -> None:
    """Also where the bucket saves nothing up, with a network whose delay is not even; its slow start included."""
    seconds = 300 if quota <= 2 else 120
    served = await use(quota, Bucket(quota, burst), seconds, jitter, random.Random(1))
    assert len(served) >= share * quota * seconds


@pytest.mark.parametrize(
    ("quota", "burst", "jitter"), [(1, 1, 0.03), (1, 1, 0.05), (1, 2, 0.005), (5, 5, 0.05)]
)
async def test_two_workers_share_a_quota_also_when_one_was_there_before(
    quota: float, burst: float, jitter: float
) -> None:
    random.seed(7)
    rng, bucket = random.Random(1), Bucket(quota, burst)

    async def second() -> list[float]:
        await asyncio.sleep(60)
        return await use(quota, bucket, 420, jitter, rng)

    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(use(quota, bucket, 420, jitter, rng)), tasks.create_task(second())]
    shares = [sum(1 for at in task.result() if at >= 120) for task in both]
    assert max(shares) <= 2 * min(shares), "over five minutes"
    assert sum(shares) >= 0.6 * quota * 300


async def test_a_call_that_came_a_moment_early_is_tried_again_at_once() -> None:
    loop, busy = asyncio.get_running_loop(), rate(1)
    await calls_within(60, busy, busy.succeeded)
    before = loop.time()
    waiting = asyncio.ensure_future(busy.acquire())
    await asyncio.sleep(0.01)
    busy.throttled()
    await waiting
    assert loop.time() - before <= 0.06
    assert busy.per_second == 0.98
    for _ in range(2):
        busy.throttled()
    assert busy.per_second < 0.98, "somebody else is there"


async def test_every_api_has_a_rate_and_a_setting_wins_over_the_quota() -> None:
    rates = Rates(Metrics(), {"CreateTrainingJob": 4.0, "StopTrainingJob": None})
    assert rates["CreateTrainingJob"].bound == 4
    assert rates["StopTrainingJob"].bound == QUOTAS["StopTrainingJob"]
    assert {rates[api].api for api in QUOTAS} == set(QUOTAS)


async def test_pace_calls_and_throttles_are_told() -> None:
    metrics = Metrics()
    told = Rate("DescribeTrainingJob", 4, metrics)
    await told.acquire()
    told.give_back()  # a turn that is not used is no call
    await told.acquire()
    told.sent()
    told.throttled()
    text = metrics.text().decode()
    assert 'launch_aws_calls_total{api="DescribeTrainingJob"} 1.0' in text
    assert 'launch_aws_throttles_total{api="DescribeTrainingJob"} 1.0' in text
    assert 'launch_aws_rate{api="DescribeTrainingJob"} 1.0' in text


@pytest.mark.parametrize("gap", [0.3, 1.7])
async def test_a_turn_that_is_given_back_gives_back_what_it_took(
    gap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a quota is shared turns are further apart or nearer, at random."""
    monkeypatch.setattr("worker.ops.pace._SPREAD", (gap, gap))
    own, loop = rate(1), asyncio.get_running_loop()
    for _ in range(3):
        own.throttled()
    await own.acquire()
    own.sent()
    own.succeeded()
    before = loop.time()
    await own.acquire()
    own.give_back()
    await own.acquire()
    assert loop.time() - before == pytest.approx(gap / own.per_second, abs=0.01)
    before = loop.time()
    own.sent()
    await own.acquire()
    assert loop.time() - before == pytest.approx(gap / own.per_second, abs=0.01)
