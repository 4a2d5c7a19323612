"""What CloudWatch may do within its documents, manner by manner, to the real feed and delivery in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.aws_errors import AwsError
from tests.fakes.cloudwatch_logs import CloudWatchLogs, Request
from tests.unit.delivery.harsh import HOUR, NOW, Clock, Delivering, aws_now, numbered
from tests.unit.records import OTHER, record
from worker.launch.record import JobFacts, LaunchState
from worker.training.cursor import NOTHING_TAKEN

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("clock")]

ONE, TWO = "job-1/algo-1-1700000000", "job-1/algo-2-1700000000"


# Pages and streams.


async def test_more_than_ten_thousand_events_a_page(worker: Delivering, logs: CloudWatchLogs) -> None:
    logs.put(ONE, *numbered(12_000))
    held = await worker.follow()
    async with worker.running():
        await worker.end(held)
    assert worker.lines() == numbered(12_000)
    assert any("nextToken" in request for request in logs.requests("FilterLogEvents"))


async def test_more_than_a_megabyte_a_page(worker: Delivering, logs: CloudWatchLogs) -> None:
    texts = [f"{number} {'x' * 200_000}" for number in range(12)]
    logs.put(ONE, *texts)
    held = await worker.follow()
    async with worker.running():
        await worker.end(held)
    assert worker.lines() == texts


async def test_more_than_a_hundred_streams(worker: Delivering, logs: CloudWatchLogs) -> None:
    for host in range(1, 251):
        logs.put(f"job-1/algo-{host}-1700000000", f"from host {host}")
    held = await worker.follow(instance_count=250)
    async with worker.running():
        await worker.end(held)
    assert sorted(worker.lines()) == sorted(f"from host {host}" for host in range(1, 251))
    assert all(len(request["logStreamNames"]) <= 100 for request in logs.requests("FilterLogEvents"))


async def test_one_missing_stream_in_a_batch_of_a_hundred(worker: Delivering, logs: CloudWatchLogs) -> None:
    for host in range(1, 101):
        logs.put(f"job-1/algo-{host}-1700000000", "first")
    held = await worker.follow(instance_count=100)
    async with worker.running():
        await asyncio.sleep(20)
        del logs.events["job-1/algo-37-1700000000"]
        before = worker.calls_of("FilterLogEvents")
        for host in range(1, 101):
            if host != 37:
                logs.put(f"job-1/algo-{host}-1700000000", "second")
        await asyncio.sleep(20)
        assert worker.calls_of("FilterLogEvents") - before < 40, "found by halves, and not asked for again"
        assert len(worker.lines()) == 100 + 99
        await worker.end(held)
    assert len(worker.lines()) == 100 + 99


async def test_missing_log_group(worker: Delivering, logs: CloudWatchLogs) -> None:
    logs.group_exists = False
    held = await worker.follow()
    async with worker.running():
        await asyncio.sleep(120)
        await worker.end(held, limit=120)
    assert worker.lines() == []


async def test_a_stream_that_is_listed_only_after_the_jobs_end(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.put(ONE, "the only words")
    logs.listed_from[ONE] = NOW + 65
    held = await worker.follow()
    async with worker.running():
        await asyncio.sleep(55)
        await worker.end(held)
    assert worker.lines() == ["the only words"]


async def test_a_token_that_expired_or_is_not_known(worker: Delivering, logs: CloudWatchLogs) -> None:
    logs.page_events = 10
    logs.put(ONE, *numbered(50))
    held = await worker.follow()

    def forget() -> None:
        logs.while_paging = lambda: None
        raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")

    logs.while_paging = forget
    async with worker.running():
        await worker.end(held)
    assert worker.lines() == numbered(50)


async def test_a_read_that_is_throttled_on_every_page_comes_to_its_end(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.page_events = 10
    logs.put(ONE, *numbered(100))

    def throttle() -> None:
        logs.failures = [AwsError("ThrottlingException")]

    logs.while_paging = throttle
    sweep = await worker.feed.sweep({ONE: NOTHING_TAKEN})
    assert [event.message for event in sweep.events] == numbered(100)


# Late, out of order, tied.


async def test_what_arrives_behind_the_page_that_is_being_read(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.page_events = 10
    logs.put(ONE, *numbered(25), age_ms=100)
    arrived = iter(numbered(3, "meanwhile"))

    def write() -> None:
        for text in arrived:
            logs.put(ONE, text, age_ms=60_000)
            break

    logs.while_paging = write
    held = await worker.follow()
    async with worker.running():
        await worker.end(held)
    assert sorted(worker.lines()) == sorted([*numbered(25), *numbered(3, "meanwhile")])


async def test_a_put_that_becomes_visible_behind_one_ingested_later(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    held = await worker.follow()
    async with worker.running():
        for number in range(30):
            logs.put(ONE, f"line {number}", visible_in=9.0 if number % 10 == 3 else 0.0)
            await asyncio.sleep(1)
        await worker.end(held)
    assert sorted(worker.lines()) == sorted(numbered(30))
    assert worker.metrics.text().decode().count("launch_log_unreconciled_total 0.0") == 1


async def test_equal_lines_of_one_millisecond_that_become_visible_late(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    held = await worker.follow()
    async with worker.running():
        logs.put(ONE, ".", ".", ".", visible_in=20)
        await asyncio.sleep(1)
        logs.put(ONE, ".", "end")
        await asyncio.sleep(60)
        await worker.end(held)
    assert sorted(worker.lines()) == [".", ".", ".", ".", "end"]


@pytest.mark.parametrize("late", [HOUR / 3, 5 * HOUR])
async def test_an_event_that_is_hours_late_is_found_though_the_job_runs_on(
    worker: Delivering, logs: CloudWatchLogs, late: float
) -> None:
    """The windows of deep sweeps grow; a fixed one would have forgotten that it came late."""
    worker.delivery._interval = 60.0  # hours go by
    held = await worker.follow()
    async with worker.running():
        for number in range(int(late / 300) + 3):
            logs.put(ONE, f"line {number}")
            await asyncio.sleep(300)
        for number in range(60):
            logs.put(ONE, f"late {number}", age_ms=int(late * 1000))
        for number in range(int(2 * late / 300)):
            logs.put(ONE, f"more {number}")
            await asyncio.sleep(300)
        assert sorted(line for line in worker.lines() if line.startswith("late")) == sorted(
            numbered(60, "late")
        )
        await worker.end(held)
    assert sorted(worker.lines()) == sorted(logs.texts(ONE))


async def test_marks_stay_few_however_long_a_job_runs(worker: Delivering, logs: CloudWatchLogs) -> None:
    worker.delivery._interval = 150.0
    held = await worker.follow()
    async with worker.running():
        for day_part in range(600):  # two days
            logs.put(ONE, f"line {day_part}")
            await asyncio.sleep(300)
        (position,) = held.record.log.positions.values()
        assert len(position.marks) <= 24
        read = sum(1 for r in logs.requests("FilterLogEvents") if "endTime" in r)
        assert read <= 2 * 600, "about one sweep in five minutes"


async def test_a_whole_outage_of_a_log_agent_arrives_late_in_one_piece(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    held = await worker.follow(instance_count=2)
    async with worker.running():
        for _ in range(20):
            logs.put(TWO, "the other host goes on")
            await asyncio.sleep(60)
        for number in range(500):
            logs.put(ONE, f"line {number}", age_ms=(500 - number) * 2_000)
        await asyncio.sleep(30)
        await worker.end(held)
    assert worker.lines_of("algo-1") == numbered(500)


# Clocks.


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_worker_whose_clock_is_an_hour_wrong_delivers_as_any_other(
    worker: Delivering, logs: CloudWatchLogs, clock: Clock, ahead: float
) -> None:
    clock.ahead = ahead
    held = await worker.follow(instance_count=2)
    async with worker.running():
        logs.put(ONE, "first")
        await asyncio.sleep(300)
        logs.put(TWO, "the other one is silent")
        await asyncio.sleep(300)
        logs.put(ONE, "second")
        await asyncio.sleep(10)
        assert worker.lines() == ["first", "the other one is silent", "second"], "at once, and in order"
        await worker.end(held, limit=60)


# Memory and hands.


async def test_memory_is_flat_while_wandb_is_away(worker: Delivering, logs: CloudWatchLogs) -> None:
    held = await worker.follow()
    worker.companion.answering.clear()
    async with worker.running():
        logs.put(ONE, "outstanding")
        await asyncio.sleep(10)
        read = worker.metrics.log_events._value.get()
        for number in range(600):
            logs.put(ONE, *numbered(100, f"backlog {number}"))
            await asyncio.sleep(1)
        assert worker.metrics.log_events._value.get() == read, "the backlog stays in CloudWatch"
        assert worker.companion.waiting == 1
        worker.companion.answering.set()
        await worker.end(held)
    assert len(worker.lines()) == 1 + 60_000


async def test_a_log_begun_by_a_version_without_sketches_is_gone_on_with(
    worker: Delivering, logs: CloudWatchLogs
) -> None:
    logs.put(ONE, "a")
    held = await worker.follow()
    async with worker.running():
        await asyncio.sleep(10)
    stored = held.record
    assert stored.log.sketch
    worker.ledger._put(
        record(log=type(stored.log)(stored.log.next_line, stored.log.positions, stored.log.batch))
    )
    successor = Delivering(logs, worker.companion, worker.ledger, name=OTHER)
    adopted = await successor.adopt()
    logs.put(ONE, "b")
    async with successor.running():
        await successor.end(adopted)
    assert successor.lines() == ["a", "b"]
    assert adopted.record.log.sketch == ""


async def test_a_console_that_cannot_be_compared_is_told(worker: Delivering, logs: CloudWatchLogs) -> None:
    """Half of the log is gone by retention: nothing can be said about the rest, but the job ends."""
    held = await worker.follow()
    async with worker.running():
        for number in range(200):
            logs.put(ONE, f"line {number}")
        await asyncio.sleep(10)
        logs.events[ONE] = logs.events[ONE][100:]
        await worker.end(held)
    assert sorted(worker.lines()) == sorted(numbered(200))
    assert "launch_log_unreconciled_total 1.0" in worker.metrics.text().decode()


class SomeThrottled(CloudWatchLogs):
    """AWS throttles the calls that name a certain stream, or its job."""

    throttled = ""

    def answer(self, operation: str, request: Request) -> dict[str, Any]:
        streams = request.get("logStreamNames") or [request["logStreamNamePrefix"]]
        if self.throttled in streams:
            self.calls.append((operation, dict(request)))
            raise AwsError("ThrottlingException", "Rate exceeded")
        return super().answer(operation, request)


async def test_a_group_that_is_throttled_delays_only_the_logs_of_its_own() -> None:
    logs = SomeThrottled(aws_now)
    worker = Delivering(logs)
    streams = [f"job-{job}/algo-1-1700000000" for job in range(250)]
    for job, stream in enumerate(streams):
        logs.put(stream, "begun")
        await worker.follow(f"launch-{job}")
    held = [worker.delivery._logs[f"launch-{job}"].held for job in (0, 249)]
    async with worker.running():
        await asyncio.sleep(60)
        logs.throttled = streams[249]
        logs.put(streams[0], "last words")
        logs.put(streams[249], "last words")
        await asyncio.sleep(300)
        await worker.end(held[0], limit=60)
        worker.ended(held[1])
        await asyncio.sleep(120)
        assert worker.delivered == ["launch-0"]
        logs.throttled = ""
        await worker.end(held[1], limit=120)
    assert worker.lines("launch-0") == worker.lines("launch-249") == ["begun", "last words"]


async def test_a_group_that_fails_for_good_is_given_up_long_after_the_end_of_its_jobs() -> None:
    logs = SomeThrottled(aws_now)
    worker = Delivering(logs, give_up_after=HOUR)
    for job in range(150):
        logs.put(f"job-{job}/algo-1-1700000000", "begun")
        await worker.follow(f"launch-{job}")
    held = worker.delivery._logs["launch-99"].held
    worker.delivery._interval = 30.0
    async with worker.running():
        await asyncio.sleep(120)
        logs.throttled = "job-99/algo-1-1700000000"
        await asyncio.sleep(2 * HOUR)
        started = aws_now()
        await worker.end(held, limit=2 * HOUR)
        assert aws_now() - started >= HOUR
    assert "hrottl" in held.record.log.undelivered


async def test_a_look_that_is_throttled_delays_no_other() -> None:
    logs = SomeThrottled(aws_now)
    worker = Delivering(logs)
    logs.throttled = "job-1/"
    for job in (1, 2):
        await worker.follow(f"launch-{job}", facts=JobFacts("InProgress", "Training"))
    async with worker.running():
        await asyncio.sleep(600)
        for job in range(3, 9):
            await worker.follow(f"launch-{job}")
            logs.put(f"job-{job}/algo-1-1700000000", "begun")
            await asyncio.sleep(6)
            assert worker.lines(f"launch-{job}") == ["begun"]
            await asyncio.sleep(24)


async def test_a_log_that_could_never_be_read_holds_up_no_end(logs: CloudWatchLogs) -> None:
    """The policy does not allow it: the launch ends after the usual longest wait for late lines."""
    worker = Delivering(logs, give_up_after=24 * HOUR)
    held = await worker.follow()
    worker.client.before_call = lambda: logs.failures.append(
        AwsError("AccessDeniedException", "not allowed", status=403)
    )
    async with worker.running():
        await asyncio.sleep(HOUR)
        assert not worker.delivered, "never while the job runs"
        started = aws_now()
        await worker.end(held, limit=HOUR)
        assert 300 <= aws_now() - started <= 400
    assert "AccessDenied" in held.record.log.undelivered


async def test_a_log_that_cannot_be_read_any_more_is_given_up_long_after_the_end(
    logs: CloudWatchLogs,
) -> None:
    worker = Delivering(logs, give_up_after=HOUR)
    held = await worker.follow()
    async with worker.running():
        logs.put(ONE, "read")
        await asyncio.sleep(10)
        worker.client.before_call = lambda: logs.failures.append(
            AwsError("AccessDeniedException", "not allowed", status=403)
        )
        await asyncio.sleep(2 * HOUR)
        assert not worker.delivered, "never while the job runs"
        started = aws_now()
        await worker.end(held, limit=3 * HOUR)
        assert aws_now() - started >= HOUR
    assert worker.lines() == ["read"]
    assert "AccessDenied" in held.record.log.undelivered
    assert held.record.state is LaunchState.ACCEPTED, "the supervisor finishes it"
    assert 'launch_given_up_total{step="log_reading"} 1.0' in worker.metrics.text().decode()
