"""The log feed on LocalStack's CloudWatch Logs.

Unlike AWS it answers with nothing, not with an error, when a stream is missing; that part is tested on our own double.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from worker.aio import Breather
from worker.local.logs import TRAINING_JOBS_GROUP
from worker.ops.metrics import Metrics
from worker.ops.rates import QUOTAS, Rates
from worker.training import cursor
from worker.training.cursor import LogEvent
from worker.training.log_feed import LogFeed

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient

pytestmark = pytest.mark.asyncio(loop_scope="package")

NOW = int(time.time() * 1000) - 60_000


class Job:
    """A training job's name, and its streams."""

    def __init__(self, logs: CloudWatchLogsClient) -> None:
        self._logs = logs
        self.name = f"job-{uuid.uuid4().hex[:8]}"

    def stream(self, host: int = 1) -> str:
        return f"{self.name}/algo-{host}-1700000000"

    async def create(self, *hosts: int) -> None:
        for host in hosts:
            await self._logs.create_log_stream(
                logGroupName=TRAINING_JOBS_GROUP, logStreamName=self.stream(host)
            )

    async def put(self, host: int, *events: tuple[int, str]) -> None:
        """(milliseconds after NOW, message)."""
        await self._logs.put_log_events(
            logGroupName=TRAINING_JOBS_GROUP,
            logStreamName=self.stream(host),
            logEvents=[{"timestamp": NOW + offset, "message": message} for offset, message in events],
        )


@pytest_asyncio.fixture(loop_scope="package")
async def feed(logs: CloudWatchLogsClient) -> LogFeed:
    groups = await logs.describe_log_groups(logGroupNamePrefix=TRAINING_JOBS_GROUP)
    if not groups["logGroups"]:
        missing = LogFeed(logs, rates(), Metrics(), breather=Breather())
        assert await missing.streams("job") == (), "nobody has logged in this account yet"
        await logs.create_log_group(logGroupName=TRAINING_JOBS_GROUP)
    return LogFeed(logs, rates(), Metrics(), breather=Breather())


def rates() -> Rates:
    return Rates(Metrics(), dict.fromkeys(QUOTAS, 1000.0))


@pytest_asyncio.fixture(loop_scope="package")
async def job(logs: CloudWatchLogsClient, feed: LogFeed) -> Job:
    return Job(logs)


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [event.message for event in events]


async def test_streams_are_those_of_the_job_alone(feed: LogFeed, job: Job) -> None:
    assert await feed.streams(job.name) == ()
    await job.create(*range(1, 61))  # more than one page of DescribeLogStreams
    longer = Job(job._logs)
    longer.name = f"{job.name}0"
    await longer.create(1)
    assert await feed.streams(job.name) == tuple(sorted(job.stream(host) for host in range(1, 61)))


async def test_each_event_once_over_many_sweeps(feed: LogFeed, job: Job) -> None:
    await job.create(1, 2)
    positions = dict.fromkeys((job.stream(1), job.stream(2)), cursor.NOTHING_TAKEN)
    seen: list[str] = []
    for number in range(4):
        await job.put(1, (number * 10, f"a{number}"), (number * 10, f"a{number}'"))
        if number % 2:
            await job.put(2, (number * 10, f"b{number}"))
        sweep = await feed.sweep(positions)
        assert (sweep.cut_at, sweep.missing) == ({}, frozenset())
        seen += texts(sweep.events)
        for stream in positions:
            taken = [event for event in sweep.events if event.stream == stream]
            positions[stream] = cursor.advance(positions[stream], taken)
    expected = [f"a{n}{tick}" for n in range(4) for tick in ("", "'")] + ["b1", "b3"]
    assert sorted(seen) == sorted(expected)
    assert [text for text in seen if text.startswith("a")] == expected[:8], "in their stream's order"
    assert (await feed.sweep(positions)).events == ()


async def test_an_event_that_comes_late_is_found_by_a_deep_sweep(feed: LogFeed, job: Job) -> None:
    await job.create(1)
    stream = job.stream()
    await job.put(1, (0, "first"), (5000, "last"))
    sweep = await feed.sweep({stream: cursor.NOTHING_TAKEN})
    position = cursor.advance(cursor.NOTHING_TAKEN, sweep.events)
    time.sleep(0.01)  # noqa: ASYNC251  # ingestion times are milliseconds
    await job.put(1, (2500, "late"))
    assert (await feed.sweep({stream: position})).events == (), "it lies behind the position"
    found = [event async for page in feed.pages([stream], 0, position.timestamp) for event in page]
    assert texts(cursor.late_events(found, position)) == ["late"]


async def test_more_than_a_page(feed: LogFeed, job: Job) -> None:
    await job.create(1)
    for first in range(0, 12_000, 4000):
        await job.put(1, *((first + n, f"{first + n}") for n in range(4000)))
    events = [event async for page in feed.pages([job.stream()], 0, None) for event in page]
    assert texts(events) == [str(number) for number in range(12_000)]


async def test_a_span_is_inclusive_on_both_ends(feed: LogFeed, job: Job) -> None:
    await job.create(1)
    await job.put(1, (0, "a"), (1, "b"), (2, "c"), (3, "d"))
    pages = feed.pages([job.stream()], NOW + 1, NOW + 2)
    assert texts([event async for page in pages for event in page]) == ["b", "c"]


async def test_more_streams_than_one_call_takes(feed: LogFeed, job: Job) -> None:
    hosts = range(1, 131)
    await job.create(*hosts)
    for host in (1, 100, 130):
        await job.put(host, (host, f"from {host}"))
    streams = [job.stream(host) for host in hosts]
    sweep = await feed.sweep(dict.fromkeys(streams, cursor.NOTHING_TAKEN))
    assert sorted(texts(sweep.events)) == ["from 1", "from 100", "from 130"]
    assert sweep.cut_at == {}
