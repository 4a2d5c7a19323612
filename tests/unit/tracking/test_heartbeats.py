"""LAUNCH_START_TIMEOUT goes by SageMaker's clock, whoever submitted the job and whatever clock that one had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.fakes.companion import FakeCompanion
from tests.unit.records import record
from worker.launch.record import JobFacts, LaunchRecord
from worker.tracking.heartbeats import CompanionHeartbeats

pytestmark = pytest.mark.looptime

NOW = 1_800_000_000.0
HOUR = 3600.0


async def stopped(launch: LaunchRecord, now: Callable[[], float]) -> list[str]:
    """Why the job was stopped within a minute."""
    reasons: list[str] = []

    async def stop(launch_id: str, reason: str) -> bool:
        reasons.append(reason)
        return True

    heartbeats = CompanionHeartbeats(
        FakeCompanion(),
        interval=30.0,
        start_timeout=1800.0,
        running=lambda: [launch],
        is_current=lambda: True,
        now=now,
    )
    run = asyncio.ensure_future(heartbeats.run(stop))
    await asyncio.sleep(45)
    run.cancel()
    return reasons


@pytest.mark.parametrize("noted", [NOW - HOUR, NOW + HOUR], ids=["an hour behind", "an hour ahead"])
async def test_a_wrong_clock_of_the_submitter_stops_no_job_and_saves_none(noted: float) -> None:
    fresh = record(accepted_at=noted, facts=JobFacts("InProgress", "Pending", created_at=NOW))
    assert await stopped(fresh, lambda: NOW + 60) == []
    late = record(accepted_at=noted, facts=JobFacts("InProgress", "Pending", created_at=NOW - HOUR))
    (reason,) = await stopped(late, lambda: NOW)
    assert "LAUNCH_START_TIMEOUT" in reason


async def test_a_job_that_has_started_is_left_alone() -> None:
    running = record(facts=JobFacts("InProgress", "Training", created_at=NOW - HOUR, started_at=NOW))
    assert await stopped(running, lambda: NOW) == []
