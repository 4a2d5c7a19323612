"""Stop, pressed in a companion: an answer to a post is heard at once, and each job is stopped once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.fakes.companion import FakeCompanion
from tests.unit.records import record
from worker.errors import Unreachable
from worker.launch.record import LaunchRecord
from worker.tracking.heartbeats import PRESSED, CompanionHeartbeats
from worker.tracking.turns import Turns

pytestmark = pytest.mark.looptime


class Bench:
    def __init__(self) -> None:
        self.companion = FakeCompanion()
        self.launch: LaunchRecord = record()
        self.current = True
        self.stops: list[tuple[float, str, str]] = []
        self.errors: list[Exception] = []
        self.heartbeats = CompanionHeartbeats(
            self.companion,
            interval=30.0,
            running=lambda: [self.launch],
            is_current=lambda: self.current,
        )

    async def stop(self, launch_id: str, reason: str) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        self.stops.append((round(asyncio.get_running_loop().time(), 1), launch_id, reason))
        self.launch = replace(self.launch, stop_reason=reason)
        return True

    async def run(self, seconds: float) -> None:
        task = asyncio.ensure_future(self.heartbeats.run(self.stop))
        await asyncio.sleep(seconds)
        task.cancel()


async def test_an_answer_to_a_post_does_not_wait_for_a_heartbeat() -> None:
    bench = Bench()
    run = asyncio.ensure_future(bench.run(100))
    await asyncio.sleep(2)
    for _ in range(3):
        bench.heartbeats.pressed(bench.launch)
    await run
    assert bench.stops == [(2.0, "launch-1", PRESSED)]


async def test_a_heartbeat_brings_it_and_a_stop_that_failed_is_asked_for_again() -> None:
    bench = Bench()
    bench.companion.stop_pressed = True
    bench.errors = [Unreachable("SageMaker is away")]
    await bench.run(100)
    ((at, launch_id, reason),) = bench.stops
    assert (launch_id, reason) == ("launch-1", PRESSED)
    assert 30 < at <= 61, "with the second heartbeat; the first one comes at a moment of its own within 30 s"


async def test_a_worker_that_may_be_taken_for_dead_says_nothing() -> None:
    bench = Bench()
    bench.current = False
    await bench.run(100)
    assert bench.companion.heartbeats == []


async def test_the_stop_that_ended_the_attempt_before_is_not_heard_twice() -> None:
    bench = Bench()
    bench.launch = replace(bench.launch, stopped_before=True)
    bench.companion.stop_pressed = True
    await bench.run(100)
    assert bench.stops == []
    bench.heartbeats.answered(bench.launch, stopped=False)
    await bench.run(100)
    assert [launch_id for _, launch_id, _ in bench.stops] == ["launch-1"]


class AllDue(Turns):
    def due(self, launch_ids: Iterable[str], now: float) -> list[str]:
        return list(launch_ids)


async def test_a_run_whose_end_is_told_while_its_heartbeat_begins_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be running again in W&B, behind its end."""
    monkeypatch.setattr("worker.tracking.heartbeats._AT_ONCE", 1)
    companion = FakeCompanion()
    launches = [record(f"launch-{number}") for number in range(25)]
    heartbeats = CompanionHeartbeats(
        companion,
        interval=30.0,
        running=lambda: launches,
        is_current=lambda: True,
        is_silent=lambda launch_id: launch_id != "launch-7" and len(companion.heartbeats) < 19,
    )
    async with asyncio.TaskGroup() as tasks:
        heartbeats._beat_due(AllDue(30.0), tasks)
    assert len(companion.heartbeats) == 19
    assert "launch-7" not in companion.heartbeats


class Hanging(FakeCompanion):
    """W&B answers about one run after a minute, and soon about all others."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []

    async def heartbeat(self, record: LaunchRecord) -> bool:
        self.begun.append(record.launch_id)
        await asyncio.sleep(60 if record.launch_id == "launch-7" else 0.1)
        return await super().heartbeat(record)


async def test_a_heartbeat_that_hangs_holds_up_no_other_and_is_not_joined_by_its_next() -> None:
    companion = Hanging()
    launches = [record(f"launch-{number}") for number in range(1000)]
    heartbeats = CompanionHeartbeats(
        companion, interval=15.0, running=lambda: launches, is_current=lambda: True
    )

    async def stop(_: str, __: str) -> bool:
        return True

    running = asyncio.ensure_future(heartbeats.run(stop))
    await asyncio.sleep(60)
    running.cancel()
    counts = Counter(companion.begun)
    assert counts.pop("launch-7") == 1
    assert len(counts) == 999
    assert set(counts.values()) <= {4, 5}, "each once in 15 s, the first sooner"


async def test_a_launch_that_is_gone_is_forgotten() -> None:
    heartbeats = CompanionHeartbeats(
        FakeCompanion(),
        interval=30.0,
        running=list,
        is_current=lambda: True,
        is_held=lambda launch_id: launch_id == "launch-2",
    )
    for launch_id in ("launch-1", "launch-2"):
        heartbeats.answered(record(launch_id, stopped_before=True), stopped=False)

    async def stop(_: str, __: str) -> bool:
        return True

    running = asyncio.ensure_future(heartbeats.run(stop))
    await asyncio.sleep(2)
    running.cancel()
    assert heartbeats._unpressed == {"launch-2"}
