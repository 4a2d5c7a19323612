"""W&B is away, refuses, or refuses for good: what becomes of the log, at production's pace in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.cloudwatch_logs import CloudWatchLogs
from tests.fakes.companion import FakeCompanion
from tests.unit.delivery.harsh import Delivering, aws_now, numbered
from tests.unit.records import OTHER
from worker.clients.wandb_api import WandbRefused
from worker.delivery import taking_in
from worker.errors import Throttled, Unreachable, WorkerError
from worker.launch.record import LaunchRecord
from worker.persistence import GIVE_UP_AFTER

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("clock")]

QUARTER = 900.0
"""Seconds: long against all paces of the delivery, and short enough to be played through at each of them."""

ONE = "job-1/algo-1-1700000000"
REFUSALS = {status: WandbRefused(f"W&B answered {status}", status=status) for status in (401, 403, 404, 409)}


FAULTS: dict[str, WorkerError] = {
    "down": Unreachable("no answer from W&B"),
    "throttled": Throttled("W&B answered 429", retry_after=20.0),
    **{str(status): error for status, error in REFUSALS.items()},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_ten_minutes_without_wandb_cost_nothing_but_time(
    worker: Delivering, logs: CloudWatchLogs, fault: str
) -> None:
    held = await worker.follow()
    async with worker.running():
        logs.put(ONE, "line 0")
        await asyncio.sleep(10)
        worker.companion.down = FAULTS[fault]
        for number in range(1, 60):
            logs.put(ONE, f"line {number}")
            await asyncio.sleep(10)
        assert worker.lines() == ["line 0"]
        assert worker.metrics.log_events._value.get() <= 1 + 2, "the backlog is not read"
        worker.companion.down = None
        await asyncio.sleep(60)
        assert worker.lines() == numbered(60), "it goes on where it stood, while the job runs"
        await worker.end(held)
    assert len({first for _, first, _ in worker.companion.posts}) == len(worker.companion.posts)


async def test_retry_after_is_kept_up_to_five_minutes(worker: Delivering, logs: CloudWatchLogs) -> None:
    await worker.follow()
    worker.companion.down = Throttled("slow down", retry_after=20.0)
    async with worker.running():
        logs.put(ONE, "a")
        await asyncio.sleep(5)
        worker.companion.down = None
        await asyncio.sleep(10)
        assert worker.lines() == []
        await asyncio.sleep(15)
        assert worker.lines() == ["a"]
        worker.companion.down = Throttled("come back next week", retry_after=7 * 86_400.0)
        logs.put(ONE, "b")
        await asyncio.sleep(10)
        worker.companion.down = None
        await asyncio.sleep(301)
        assert worker.lines() == ["a", "b"]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refusal_for_good_is_ridden_out_while_the_job_runs_and_bounded_after_its_end(
    logs: CloudWatchLogs, status: int
) -> None:
    worker = Delivering(logs, give_up_after=QUARTER)
    held = await worker.follow()
    worker.delivery._interval = 30.0
    async with worker.running():
        logs.put(ONE, "line 0")
        await asyncio.sleep(60)
        worker.companion.down = REFUSALS[status]
        logs.put(ONE, "line 1")
        await asyncio.sleep(2 * QUARTER)
        assert not worker.delivered, "the job runs: never given up"
        ended_at = aws_now()
        await worker.end(held, limit=2 * QUARTER)
        assert QUARTER - 60 <= aws_now() - ended_at <= QUARTER + 120
    assert worker.lines() == ["line 0"]
    assert str(status) in held.record.log.undelivered, "told in the ledger"
    text = worker.metrics.text().decode()
    assert 'launch_given_up_total{step="log_delivery"} 1.0' in text, "and in a metric"


async def test_a_project_that_is_restored_in_time_loses_nothing(
    logs: CloudWatchLogs,
) -> None:
    worker = Delivering(logs, give_up_after=2 * QUARTER)
    held = await worker.follow()
    worker.delivery._interval = 30.0
    worker.companion.down = REFUSALS[404]
    async with worker.running():
        logs.put(ONE, *numbered(100))
        await asyncio.sleep(QUARTER)
        worker.ended(held)
        await asyncio.sleep(1.5 * QUARTER)
        worker.companion.down = None
        await worker.end(held)
    assert worker.lines() == numbered(100)
    assert held.record.log.undelivered == ""


async def test_a_worker_that_takes_over_long_after_the_end_still_gives_wandb_ten_minutes(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    held = await worker.follow()
    worker.companion.down = REFUSALS[403]
    async with worker.running():
        logs.put(ONE, "a")
        await asyncio.sleep(10)
        worker.ended(held)
        await worker.held.save([held])
    await asyncio.sleep(2 * GIVE_UP_AFTER)
    successor = Delivering(logs, worker.companion, worker.ledger, name=OTHER)
    adopted = await successor.adopt()
    async with successor.running():
        successor.delivery.job_ended(adopted)
        await asyncio.sleep(300)
        assert not successor.delivered
        worker.companion.down = None
        await asyncio.sleep(120)
    assert successor.delivered == ["launch-1"]
    assert successor.lines() == ["a"]


async def test_files_that_wandb_refuses_for_good_do_not_hold_the_launch(logs: CloudWatchLogs) -> None:
    worker = Delivering(logs, give_up_after=600.0)
    held = await worker.follow()
    async with worker.running():
        logs.put(ONE, "a")
        await asyncio.sleep(10)
        worker.companion.down = REFUSALS[403]
        await worker.end(held, limit=2 * QUARTER)
    assert worker.lines() == ["a"]
    assert "403" in held.record.log.undelivered


class SomeRunsDeleted(FakeCompanion):
    """W&B knows the companion runs of some launches no more."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    async def post_lines(self, record: LaunchRecord, *args: Any, **rows: Any) -> bool:
        if record.launch_id in self.deleted:
            raise REFUSALS[404]
        return await super().post_lines(record, *args, **rows)


async def test_jobs_whose_runs_were_deleted_do_not_stop_the_logs_of_others(
    logs: CloudWatchLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_in, "_MAX_AHEAD", 4_000)
    companion = SomeRunsDeleted()
    worker = Delivering(logs, companion)
    held = {job: await worker.follow(f"launch-{job}", job_name=f"job-{job}") for job in (1, 2, 3)}
    streams = {job: f"job-{job}/algo-1-1700000000" for job in (1, 2, 3)}
    async with worker.running():
        for stream in streams.values():
            logs.put(stream, "begun")
        await asyncio.sleep(20)
        companion.deleted = {"launch-1", "launch-2"}
        for job in (1, 2):
            logs.put(streams[job], *numbered(8_000, "burst"))
            await asyncio.sleep(60)
        read = worker.metrics.log_events._value.get()
        for number in range(30):
            logs.put(streams[3], f"line {number}")
            await asyncio.sleep(10)
            assert worker.lines("launch-3") == ["begun", *numbered(number + 1)]
        assert worker.metrics.log_events._value.get() - read == 30, "what nobody takes is not read again"
        companion.deleted = set()
        for job in (1, 2):
            await worker.end(held[job])
    for job in (1, 2):
        assert worker.lines(f"launch-{job}") == ["begun", *numbered(8_000, "burst")]
