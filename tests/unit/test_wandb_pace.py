"""Two posts a second a run, and slower all together after a 429."""

from __future__ import annotations

import asyncio

import pytest

from worker.clients.wandb_pace import QueryLine, StreamPace
from worker.errors import Throttled, Unreachable

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


async def post(pace: StreamPace, run: str) -> float:
    async with pace.turn(run):
        return round(now(), 3)


async def refuse(pace: StreamPace, run: str, retry_after: float | None) -> None:
    with pytest.raises(Throttled):
        async with pace.turn(run):
            raise Throttled("429", retry_after=retry_after)


async def test_a_run_posts_twice_a_second_and_waits_for_no_other() -> None:
    pace = StreamPace(now)
    first = now()
    times = await asyncio.gather(*(post(pace, "a") for _ in range(4)), post(pace, "b"))
    assert [round(at - first, 3) for at in times] == [0.0, 0.5, 1.0, 1.5, 0.0]


async def test_a_run_that_was_asked_to_wait_is_not_posted_to() -> None:
    pace = StreamPace(now)
    await refuse(pace, "a", 30)
    with pytest.raises(Throttled, match="asked to wait") as raised:
        await post(pace, "a")
    assert raised.value.retry_after == pytest.approx(30, abs=0.1)
    await post(pace, "b")
    await asyncio.sleep(30)
    await post(pace, "a")


async def test_all_runs_together_come_slower_after_refusals_and_recover() -> None:
    pace = StreamPace(now)
    for number in range(9):
        await refuse(pace, f"r{number}", None)
    started = now()
    for number in range(5):
        await post(pace, f"s{number}")
    assert now() - started > 1
    for number in range(1000):
        await post(pace, f"t{number}")
    started = now()
    for number in range(100):
        await post(pace, f"u{number}")
    assert now() - started < 0.1


async def test_posts_of_a_run_are_never_under_way_together_and_hold_up_no_other() -> None:
    pace, order = StreamPace(), []

    async def post(run: str, name: str, seconds: float) -> None:
        async with pace.turn(run):
            order.append(f"{name} begins")
            await asyncio.sleep(seconds)
            order.append(f"{name} ends")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(post("a", "slow heartbeat", 5))
        await asyncio.sleep(0.01)
        tasks.create_task(post("a", "end of the run", 0.1))
        tasks.create_task(post("b", "another run", 0.1))
    assert order == [
        "slow heartbeat begins",
        "another run begins",
        "another run ends",
        "slow heartbeat ends",
        "end of the run begins",
        "end of the run ends",
    ]
    assert pace._flights == {}


async def test_steps_of_two_queries_all_come_through_a_limit_that_lets_one_pass_at_a_time() -> None:
    """Asking again all at once, each would spend what is allowed on its first query, for ever."""
    line, allowed_at, order = QueryLine(now), 0.0, []

    async def query() -> None:
        nonlocal allowed_at
        if now() < allowed_at:
            raise Throttled("429", retry_after=allowed_at - now())
        allowed_at = now() + 0.7

    async def step(name: str) -> None:
        for part in "12":
            await line.ask(f"{name}{part}", query)
            order.append(f"{name}{part}")

    async with asyncio.TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(step(name))
    assert sorted(order) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert [name for name in order if name.endswith("1")] == ["a1", "b1", "c1"]


async def test_whoever_would_wait_long_is_told_so_and_nobody_asks_meanwhile() -> None:
    line, asked = QueryLine(now), 0

    async def query() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Throttled("429", retry_after=50)

    for _ in range(3):
        with pytest.raises(Throttled) as raised:
            await line.ask("Viewer", query)
        assert raised.value.retry_after == pytest.approx(50, abs=1)
    assert asked == 1
    await asyncio.sleep(50)
    await line.ask("Viewer", query)
    assert asked == 2


async def test_a_limit_without_a_time_is_the_caller_s_to_wait_for() -> None:
    async def query() -> None:
        raise Throttled("429")

    with pytest.raises(Throttled):
        await QueryLine(now).ask("Viewer", query)


async def test_a_process_that_stood_still_before_its_turn_does_not_post() -> None:
    """Somebody else may have ended the run meanwhile; the one who posts looks whose it is, and comes again."""
    frozen = 0.0
    pace = StreamPace(lambda: now() + frozen)
    await post(pace, "a")
    waiting = asyncio.ensure_future(post(pace, "a"))
    await asyncio.sleep(0.1)
    frozen = 40.0
    with pytest.raises(Unreachable, match="stood still for 40 s"):
        await waiting
    await post(pace, "a")


async def test_a_process_that_stood_still_behind_another_post_of_the_run_does_not_post() -> None:
    frozen = 0.0
    pace = StreamPace(lambda: now() + frozen)
    answered = asyncio.Event()

    async def first() -> None:
        async with pace.turn("a"):
            await answered.wait()

    posting = asyncio.ensure_future(first())
    await asyncio.sleep(0.1)
    waiting = asyncio.ensure_future(post(pace, "a"))
    await asyncio.sleep(0.1)
    frozen = 40.0
    answered.set()
    with pytest.raises(Unreachable, match="stood still for 40 s"):
        await waiting
    await posting


async def test_the_patience_of_a_query_counts_from_when_it_joined_the_line() -> None:
    """And not from when those before it have used up theirs."""
    line = QueryLine(now)

    async def limited() -> None:
        raise Throttled("429", retry_after=9)

    async def told_after() -> float:
        joined = now()
        with pytest.raises(Throttled):
            await line.ask("Viewer", limited)
        return now() - joined

    assert max(await asyncio.gather(*(told_after() for _ in range(5)))) <= 10
