"""How fast, how fair and at what cost the one loop delivers, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.cloudwatch_logs import CloudWatchLogs
from tests.unit.delivery.harsh import Delivering, aws_now, numbered
from tests.unit.records import OTHER
from worker.launch.record import JobFacts
from worker.training.cursor import MAX_BATCH_EVENTS, NOTHING_TAKEN, advance

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("clock")]

ONE = "job-1/algo-1-1700000000"


def stream(job: int) -> str:
    return f"job-{job}/algo-1-1700000000"


async def test_a_backlog_is_read_once_and_posted_twice_a_second(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.put(ONE, *numbered(3 * MAX_BATCH_EVENTS), age_ms=60_000)
    await worker.follow()
    async with worker.running():
        await asyncio.sleep(5)
        assert worker.lines() == numbered(3 * MAX_BATCH_EVENTS)
    assert worker.metrics.log_events._value.get() == 3 * MAX_BATCH_EVENTS, "nothing is read again"


async def test_what_is_put_between_two_pages_comes_in_its_place(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    """A part of one PutLogEvents would belong on the page before, and be late for ever."""
    logs.page_events = 10
    now = int(aws_now() * 1000)
    for number in range(20):
        logs.put(ONE, f"line {number}", at=now - 1000 + number * 10, ingested=now - 500)

    def meanwhile() -> None:
        logs.while_paging = lambda: None
        arrived = int(aws_now() * 1000) + 2_500
        logs.put("job-1/algo-2-1700000000", "early half", at=now - 995, ingested=arrived)
        logs.put("job-1/algo-2-1700000000", "late half", at=now - 795, ingested=arrived)

    logs.put("job-1/algo-2-1700000000", "first", at=now - 2000, ingested=now - 500)
    logs.while_paging = meanwhile
    positions = dict.fromkeys([ONE, "job-1/algo-2-1700000000"], NOTHING_TAKEN)
    sweep = await worker.feed.sweep(positions)
    assert "late half" not in [event.message for event in sweep.events]
    assert sweep.cut_at
    for name in positions:
        positions[name] = advance(NOTHING_TAKEN, [e for e in sweep.events if e.stream == name])
    again = await worker.feed.sweep(positions)
    assert [e.message for e in again.events if "half" in e.message] == ["early half", "late half"]


async def test_silent_jobs_are_read_less_often_and_together(worker: Delivering, logs: CloudWatchLogs) -> None:
    for job in range(100):
        logs.put(stream(job), "begun")
        await worker.follow(f"launch-{job}")
    async with worker.running():
        await asyncio.sleep(200)
        before = worker.calls_of("FilterLogEvents")
        await asyncio.sleep(60)
        assert worker.calls_of("FilterLogEvents") - before <= 12
        logs.put(stream(7), "and it speaks")
        await asyncio.sleep(8)
        assert worker.lines("launch-7") == ["begun", "and it speaks"]


async def test_known_streams_are_read_at_once_while_others_are_looked_for(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    for job in range(300):
        await worker.follow(f"launch-{job}", facts=JobFacts("InProgress", "Training"))
    logs.put(ONE, "at once")
    worker.delivery._logs["launch-1"].positions[ONE] = NOTHING_TAKEN
    async with worker.running():
        await asyncio.sleep(1)
        assert worker.lines("launch-1") == ["at once"]


@pytest.mark.parametrize("clean", [True, False])
async def test_a_successor_replays_what_was_not_acknowledged_with_few_calls(
    worker: Delivering, logs: CloudWatchLogs, clean: bool
) -> None:
    for job in range(150):
        logs.put(stream(job), *numbered(3))
        await worker.follow(f"launch-{job}")
    async with worker.running():
        await asyncio.sleep(60)
    if clean:
        await worker.held.release()
    posts = len(worker.companion.posts)
    successor = Delivering(logs, worker.companion, worker.ledger, name=OTHER)
    for job in range(150):
        await successor.adopt(f"launch-{job}")
    before = worker.calls_of("FilterLogEvents")
    async with successor.running():
        await asyncio.sleep(10)
        assert not any(log.posting for log in successor.delivery._logs.values())
    assert len(worker.companion.posts) - posts == (0 if clean else 150)
    assert worker.calls_of("FilterLogEvents") - before <= 15


async def test_a_read_of_running_jobs_does_not_wait_behind_hundreds_that_end(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    for job in range(500):
        logs.put(stream(job), "end")

    async def whole(job: int) -> list[str]:
        return [event.message async for page in worker.feed.pages([stream(job)], 0, None) for event in page]

    closers = [asyncio.ensure_future(whole(job)) for job in range(2, 500)]
    await asyncio.sleep(2)
    for _ in range(5):
        started, before = aws_now(), worker.calls_of("FilterLogEvents")
        sweep = await worker.feed.sweep({ONE: NOTHING_TAKEN})
        assert [event.message for event in sweep.events] == ["end"]
        assert worker.calls_of("FilterLogEvents") - before <= 4
        assert aws_now() - started < 2
    assert await asyncio.gather(*closers) == [["end"]] * 498


async def test_late_events_of_running_jobs_are_looked_for_while_hundreds_end(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    """A log that is searched is not read meanwhile."""
    for job in range(500):
        logs.put(stream(job), "begun")
        await worker.follow(f"launch-{job}")
    async with worker.running():
        await asyncio.sleep(270)
        for job in range(2, 500):
            worker.ended(worker.delivery._logs[f"launch-{job}"].held)
        for number in range(120):
            logs.put(ONE, f"line {number}")
            await asyncio.sleep(1)
            if number > 10:
                assert f"line {number - 10}" in worker.lines("launch-1")
        assert len(worker.delivered) < 490, "the others are not through by then"


async def test_thousands_of_silent_jobs_leave_half_of_the_quota_and_hold_up_none_that_prints(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    for job in range(5000):
        logs.events[stream(job)] = []
        await worker.follow(f"launch-{job}")
        log = worker.delivery._logs[f"launch-{job}"]
        log.positions[stream(job)], log.look_at = NOTHING_TAKEN, 1e9
        log.news_at = 0.0 if job == 1 else -1000.0
    async with worker.running():
        await asyncio.sleep(30)
        before = worker.calls_of("FilterLogEvents")
        logs.put(stream(4000), "it speaks")
        for number in range(60):
            logs.put(ONE, f"line {number}")
            await asyncio.sleep(1)
            if number >= 5:
                assert f"line {number - 5}" in worker.lines("launch-1")
        assert worker.calls_of("FilterLogEvents") - before <= 60 * 3.5, "of five a second"
        assert worker.lines("launch-4000") == ["it speaks"]


async def test_an_end_does_not_wait_behind_hundreds_of_jobs_without_a_stream(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.put(ONE, "last words")
    held = await worker.follow()
    for job in range(2, 402):
        await worker.follow(f"launch-{job}", facts=JobFacts("InProgress", "Downloading"))
    async with worker.running():
        await asyncio.sleep(60)
        await worker.end(held, limit=60)
    assert worker.lines() == ["last words"]


async def test_a_thousand_jobs_without_a_stream_leave_half_of_the_looks_and_hold_up_no_first_line(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    for job in range(1, 1001):
        await worker.follow(f"launch-{job}", facts=JobFacts("InProgress", "Downloading"))
    held = worker.delivery._logs["launch-1"].held
    async with worker.running():
        await asyncio.sleep(240)
        before = worker.calls_of("DescribeLogStreams")
        for _ in range(4):
            for log in worker.delivery._logs.values():
                worker.delivery.job_changed(log.held)  # described, and nothing new
            await asyncio.sleep(30)
        assert worker.calls_of("DescribeLogStreams") - before <= 120 * 15, "of 25 a second"
        held.update(facts=JobFacts("InProgress", "Training"))
        worker.delivery.job_changed(held)
        await asyncio.sleep(20)
        logs.put(ONE, "begun")
        await asyncio.sleep(12)
        assert worker.lines() == ["begun"]
