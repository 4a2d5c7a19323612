"""Warnings on queue items while W&B is away or limits the rate: told once it answers, the newest of each item."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.unit.records import record
from worker.clients.wandb_api import WandbRefused
from worker.errors import Throttled, Unreachable
from worker.intake.refusal import Refusals

pytestmark = pytest.mark.looptime


@contextlib.asynccontextmanager
async def running(refusals: Refusals) -> AsyncIterator[None]:
    task = asyncio.ensure_future(refusals.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_warning_that_met_a_limit_is_told_later_and_once() -> None:
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [Throttled("429", retry_after=5), Unreachable("away")]
    async with running(refusals):
        await refusals.warn("a", "launch_waits", "no room", "run")
        await refusals.warn("a", "launch_waits", "no room", "run")
        assert items.warned == []
        await asyncio.sleep(100)
    assert items.warned == [("a", "LW-LAUNCH-WAITS: no room", "run")]


async def test_the_newest_warning_of_an_item_stands() -> None:
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [Unreachable("away"), Unreachable("away"), Unreachable("away")]
    async with running(refusals):
        for message in ("no room", "no capacity"):
            await refusals.warn("a", "launch_waits", message, "run")
        await refusals.warn("b", "launch_waits", "other", "run")
        await asyncio.sleep(100)
        await refusals.warn("a", "launch_waits", "no capacity", "run")
    assert items.warned == [
        ("a", "LW-LAUNCH-WAITS: no capacity", "run"),
        ("b", "LW-LAUNCH-WAITS: other", "run"),
    ]


async def test_a_newer_one_that_is_taken_at_once_is_not_overtaken_by_an_older() -> None:
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [Unreachable("away")]
    async with running(refusals):
        for message in ("old", "new"):
            await refusals.warn("a", "launch_waits", message, "run")
        await asyncio.sleep(100)
    assert items.warned == [("a", "LW-LAUNCH-WAITS: new", "run")]


async def test_what_an_image_lacks_is_told_later_with_its_file() -> None:
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [None, Unreachable("away")]
    launch = record(item_id="a", agent_run="agent-1", queue_entity="acme")
    async with running(refusals):
        await refusals.warn_of_build(launch, ["packages were left out"], ["apex"])
        await asyncio.sleep(100)
    assert items.warned == [("a", "LW-BUILD-WARNING: packages were left out", "build")]
    assert items.attached == [["a/warning/failed-packages.log"]]


async def test_an_item_that_is_gone_is_not_asked_for_again() -> None:
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [WandbRefused("no such item", status=200)]
    async with running(refusals):
        await refusals.warn("a", "launch_waits", "no room", "run")
        await asyncio.sleep(100)
    assert items.warned == []


async def test_a_warning_for_which_there_was_no_room_is_told_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.intake.refusal._REMEMBERED", 2)
    items = FakeQueueItems()
    refusals = Refusals(items, FakeLaunchQueue())
    items.errors = [Unreachable("away")] * 3
    for item in "abc":
        await refusals.warn(item, "launch_waits", "no room", "run")
    await refusals.warn("c", "launch_waits", "no room", "run")
    assert items.warned == [("c", "LW-LAUNCH-WAITS: no room", "run")]
