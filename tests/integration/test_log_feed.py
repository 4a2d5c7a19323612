"""The log feed on the wire: empty pages, missing streams, cut sweeps."""

from __future__ import annotations

import gc
import time
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from tests.fakes.aws_server import AwsError, AwsServer, LogsService, quick_rates
from tests.fakes.cloudwatch import CloudWatch
from worker.aio import Breather
from worker.clients.aws import AwsClients, AwsRefused
from worker.errors import Again, Throttled
from worker.ops.metrics import Metrics
from worker.training import log_feed
from worker.training.cursor import NOTHING_TAKEN, LogEvent, advance
from worker.training.log_feed import LOG_GROUP, LogFeed, Sweep

ONE, TWO = "job/algo-1-17", "job/algo-2-17"


@pytest.fixture
def cloud(aws_server: AwsServer) -> CloudWatch:
    """A CloudWatch behind the endpoint."""
    logs = LogsService(CloudWatch(), listing_page=3)
    aws_server.answers.update(logs.answers())
    return logs.cloud


@pytest.fixture
def feed(aws: AwsClients, cloud: CloudWatch) -> LogFeed:
    return LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather())


def texts(sweep: Sweep) -> list[str]:
    return [event.message for event in sweep.events]


async def test_streams_are_found_over_all_pages_and_only_of_this_job(
    feed: LogFeed, cloud: CloudWatch, aws_server: AwsServer
) -> None:
    for host in range(1, 8):
        cloud.put(f"job/algo-{host}-17", "x")
    cloud.put("job-2/algo-1-17", "somebody else's")
    assert await feed.streams("job") == tuple(f"job/algo-{host}-17" for host in range(1, 8))
    assert len(aws_server.requests("DescribeLogStreams")) == 3
    assert aws_server.requests("DescribeLogStreams")[0] == {
        "logGroupName": LOG_GROUP,
        "logStreamNamePrefix": "job/",
    }


async def test_before_the_accounts_first_container_has_logged_there_is_no_group(
    feed: LogFeed, aws_server: AwsServer
) -> None:
    aws_server.fail_next("DescribeLogStreams", AwsError("ResourceNotFoundException"))
    assert await feed.streams("job") == ()


async def test_other_refusals_are_told(feed: LogFeed, aws_server: AwsServer) -> None:
    aws_server.fail_next("DescribeLogStreams", AwsError("InvalidParameterException"))
    with pytest.raises(AwsRefused):
        await feed.streams("job")
    aws_server.fail_next("FilterLogEvents", AwsError("ThrottlingException"))
    with pytest.raises(Throttled):
        await feed.sweep({ONE: NOTHING_TAKEN})


async def test_empty_pages_with_a_token_end_no_sweep(feed: LogFeed, cloud: CloudWatch) -> None:
    cloud.page_size, cloud.empty_pages = 2, 3
    cloud.put(ONE, *map(str, range(7)))
    sweep = await feed.sweep({ONE: NOTHING_TAKEN})
    assert texts(sweep) == [str(n) for n in range(7)]
    assert sweep.cut_at == {}
    assert [event.page for event in sweep.events] == sorted(event.page for event in sweep.events)
    assert len({event.page for event in sweep.events}) == 4, "each answer is told apart"


async def test_only_what_is_new_to_each_stream_is_found(
    feed: LogFeed, cloud: CloudWatch, aws_server: AwsServer
) -> None:
    cloud.put(ONE, "a", "b", ingested=1000)
    cloud.put(TWO, "c", ingested=2000)
    first = await feed.sweep({ONE: NOTHING_TAKEN, TWO: NOTHING_TAKEN})
    assert texts(first) == ["a", "b", "c"]
    position = advance(NOTHING_TAKEN, first.events[:2])
    again = await feed.sweep({ONE: position, TWO: NOTHING_TAKEN})
    assert texts(again) == ["c"]
    cloud.put(ONE, "same moment, later", ingested=3000, age_ms=2000)
    assert texts(await feed.sweep({ONE: position})) == ["same moment, later"]
    assert aws_server.requests("FilterLogEvents")[-1]["startTime"] == 1000


async def test_a_missing_stream_costs_no_other_its_events(
    feed: LogFeed, cloud: CloudWatch, aws_server: AwsServer
) -> None:
    streams = [f"job/algo-{host}-17" for host in range(8)]
    for stream in streams:
        cloud.put(stream, stream)
    del cloud.streams[streams[2]], cloud.streams[streams[7]]
    sweep = await feed.sweep(dict.fromkeys(streams, NOTHING_TAKEN))
    assert sweep.missing == {streams[2], streams[7]}
    assert sorted(texts(sweep)) == sorted(cloud.streams)
    assert len(aws_server.requests("FilterLogEvents")) <= 2 * 2 * 3 + 1


async def test_a_stream_that_goes_while_it_is_read_is_looked_for_again(
    feed: LogFeed, cloud: CloudWatch
) -> None:
    cloud.page_size = 1
    cloud.put(ONE, "a", "b")
    reading = feed.pages([ONE], 0, None)
    assert [event.message for event in await anext(reading)] == ["a"]
    del cloud.streams[ONE]
    with pytest.raises(Again):
        await anext(reading)
    assert (await feed.sweep({ONE: NOTHING_TAKEN})).missing == {ONE}


async def test_more_than_a_hundred_streams_take_several_calls_and_like_positions_share_one(
    feed: LogFeed, cloud: CloudWatch, aws_server: AwsServer
) -> None:
    busy = [f"job/algo-{host}-17" for host in range(150)]
    silent = [f"job/silent-{host}-17" for host in range(50)]
    position = advance(NOTHING_TAKEN, [LogEvent(busy[0], 5000, 5000, "x")])
    for stream in [*busy, *silent]:
        cloud.put(stream, stream, ingested=6000)
    positions = dict.fromkeys(busy, position) | dict.fromkeys(silent, NOTHING_TAKEN)
    assert len(texts(await feed.sweep(positions))) == 200
    requests = aws_server.requests("FilterLogEvents")
    assert sorted((r["startTime"], len(r["logStreamNames"])) for r in requests) == [(0, 100), (5000, 100)]


async def test_a_sweep_is_bounded_and_says_up_to_where_it_went(
    feed: LogFeed, cloud: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_feed, "_MAX_EVENTS", 10)
    cloud.page_size = 4
    for moment in range(30):
        cloud.put(ONE, str(moment), ingested=1000 + moment)
    cloud.put(TWO, "later", ingested=5000)
    sweep = await feed.sweep({ONE: NOTHING_TAKEN, TWO: NOTHING_TAKEN})
    assert texts(sweep) == [str(n) for n in range(12)]
    assert sweep.cut_at == {ONE: 1011, TWO: 1011}


async def test_events_that_were_taken_before_cannot_end_a_sweep(
    feed: LogFeed, cloud: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_feed, "_MAX_EVENTS", 10)
    cloud.page_size = 4
    taken = []
    for moment in range(40):
        cloud.put(ONE, str(moment), ingested=1000 + moment)
        taken.append(LogEvent(ONE, 1000 + moment, 1000 + moment, str(moment)))
    cloud.put(ONE, "new", ingested=2000)
    cloud.put(TWO, "silent since", ingested=900)
    silent = advance(NOTHING_TAKEN, [LogEvent(TWO, 900, 900, "silent since")])
    sweep = await feed.sweep({ONE: advance(NOTHING_TAKEN, taken), TWO: silent})
    assert texts(sweep) == ["new"]
    assert sweep.cut_at == {}


async def test_after_a_missing_stream_a_cut_sweep_vouches_for_nothing(
    feed: LogFeed, cloud: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_feed, "_MAX_EVENTS", 2)
    cloud.put("job/algo-1-17", "a", "b", "c", ingested=1000)
    cloud.put("job/algo-3-17", "not read", ingested=500)
    streams = ["job/algo-1-17", "job/algo-2-17", "job/algo-3-17", "job/algo-4-17"]
    cloud.put("job/algo-4-17", "d", ingested=2000)
    sweep = await feed.sweep(dict.fromkeys(streams, NOTHING_TAKEN))
    assert texts(sweep) == ["a", "b", "c"]
    assert sweep.cut_at == dict.fromkeys(streams, 0), "the second half has not been read"


async def test_both_ends_of_a_span_belong_to_it(
    feed: LogFeed, cloud: CloudWatch, aws_server: AwsServer
) -> None:
    for moment in (999, 1000, 1500, 2000, 2001):
        cloud.put(ONE, str(moment), ingested=moment)
    found = [event.message async for page in feed.pages([ONE], 1000, 2000) for event in page]
    assert found == ["1000", "1500", "2000"]
    assert [event async for page in feed.pages([], 0, None) for event in page] == []
    assert aws_server.requests("FilterLogEvents")[-1]["endTime"] == 2000


class Steps:
    """Awaits a coroutine, and notes the CPU of its longest step: while one runs, nothing else does."""

    def __init__(self, coroutine: Coroutine[Any, Any, Sweep]) -> None:
        self._coroutine = coroutine
        self.longest = 0.0

    def __await__(self) -> Generator[Any, Any, Sweep]:
        while True:
            began = time.thread_time()
            try:
                awaited = self._coroutine.send(None)
            except StopIteration as done:
                found: Sweep = done.value
                return found
            finally:
                self.longest = max(self.longest, time.thread_time() - began)
            yield awaited


async def longest_step(feed: LogFeed, streams: list[str], *, events: int) -> float:
    """Of the best of three sweeps: the first one also opens the connection, and the machine may have other work."""
    sweeps = [Steps(feed.sweep(dict.fromkeys(streams, NOTHING_TAKEN))) for _ in range(3)]
    for sweep in sweeps:
        assert len((await sweep).events) == events
    return min(sweep.longest for sweep in sweeps)


async def test_others_have_their_turn_within_a_large_sweep(aws: AwsClients, cloud: CloudWatch) -> None:
    """All of it at once would be several times as long as one page's share."""
    # A minute later all of it has settled.
    feed = LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather(), now=lambda: time.time() + 60)
    streams = [f"job-{number}/algo-1-17" for number in range(10)]
    cloud.page_size = 1_000
    for stream in streams:
        cloud.put(stream, *map(str, range(2_000)))
    gc.disable()  # the tests' own objects are many
    try:
        little = await longest_step(feed, streams[:1], events=2_000)
        much = await longest_step(feed, streams, events=20_000)
    finally:
        gc.enable()
    assert much < 4 * little, "not in proportion to what there is"
