"""The few asyncio tools: waiting with a limit, backing off, effects with names."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from worker.aio import Breather, backoff, effect, observe_effects, wait_for_event


@pytest.mark.looptime
async def test_waiting_for_an_event_ends_with_it_or_with_the_limit() -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    assert not await wait_for_event(event, 5)
    assert loop.time() == 5
    loop.call_later(2, event.set)
    assert await wait_for_event(event, 5)
    assert loop.time() == 7


@pytest.mark.looptime
async def test_a_wait_that_is_cancelled_is_cancelled() -> None:
    waiting = asyncio.ensure_future(wait_for_event(asyncio.Event(), 5))
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize(("tries", "step"), [(0, 2), (1, 4), (3, 16), (5, 60), (10_000, 60)])
def test_backing_off_doubles_up_to_a_cap_with_jitter(tries: int, step: float) -> None:
    pauses = [backoff(tries, base=2, cap=60) for _ in range(200)]
    assert min(pauses) >= step / 2
    assert max(pauses) <= step
    assert len(set(pauses)) > 100, "workers must not step in time"


def test_an_effect_is_told_before_and_after_but_not_after_it_failed() -> None:
    seen: list[tuple[str, str]] = []
    observe_effects(lambda when, name: seen.append((when, name)))
    try:
        with effect("write_intent"):
            seen.append(("itself", ""))
        with pytest.raises(ValueError, match="no"), effect("delete_message"):
            raise ValueError("no")
    finally:
        observe_effects(None)
    with effect("write_accepted"):
        pass
    assert seen == [
        ("before", "write_intent"),
        ("itself", ""),
        ("after", "write_intent"),
        ("before", "delete_message"),
    ]


async def test_long_pieces_of_work_that_become_ready_together_run_with_others_between_them() -> None:
    breather, ready, ran = Breather(), asyncio.Event(), list[str]()

    async def long_work() -> None:
        await ready.wait()
        for _ in range(2):
            await breather()
            ran.append("long")

    async def others() -> None:
        while ran.count("long") < 8:
            ran.append("other")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(long_work())
        await asyncio.sleep(0)
        ready.set()
        tasks.create_task(others())
    assert ran.count("long") == 8
    assert not any(pair == ("long", "long") for pair in pairwise(ran))
