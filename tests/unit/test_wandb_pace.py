"""Two posts a second a run, and slower all together after a 429."""

from __future__ import annotations

import asyncio

import pytest

from worker.clients.wandb_pace import StreamPace
from worker.errors import Throttled

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
