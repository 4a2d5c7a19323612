"""The end of a job's log, for a report."""

from __future__ import annotations

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.unit.records import record
from worker.launch.log_state import LogState, StreamPosition
from worker.launch.record import LaunchRecord
from worker.training.log_end import MAX_CHARACTERS, log_end


def logged(cloud: CloudWatch, *streams: str) -> LaunchRecord:
    """A launch whose log has been delivered."""
    last = {stream: cloud.streams[stream][-1] for stream in streams}
    positions = {stream: StreamPosition(event.timestamp, event.ingested, 1) for stream, event in last.items()}
    return record(log=LogState(next_line=1, positions=positions))


async def test_one_host_has_no_label() -> None:
    cloud = CloudWatch()
    cloud.put("job-1/algo-1-1700000000", "one\n", "two\r\n")
    assert await log_end(FakeLogFeed(cloud), logged(cloud, "job-1/algo-1-1700000000")) == "one\ntwo\n"


async def test_several_hosts_are_told_apart() -> None:
    cloud = CloudWatch()
    streams = ("job-1/algo-1-1700000000", "job-1/algo-2-1700000000")
    for stream in streams:
        cloud.put(stream, "hello")
    assert await log_end(FakeLogFeed(cloud), logged(cloud, *streams)) == "[algo-1] hello\n[algo-2] hello\n"


async def test_it_is_the_end_and_bounded() -> None:
    cloud = CloudWatch(page_size=100)
    stream = "job-1/algo-1-1700000000"
    cloud.put(stream, "an hour ago", age_ms=3_600_000)
    cloud.put(stream, *(f"{number:06d} {'x' * 200}" for number in range(1000)))
    end = await log_end(FakeLogFeed(cloud), logged(cloud, stream))
    assert MAX_CHARACTERS - 300 < len(end) <= MAX_CHARACTERS
    assert end.splitlines()[-1].startswith("000999")
    assert "an hour ago" not in end


async def test_one_endless_line_keeps_its_end() -> None:
    cloud = CloudWatch()
    stream = "job-1/algo-1-1700000000"
    cloud.put(stream, "x" * 300_000 + "boom")
    end = await log_end(FakeLogFeed(cloud), logged(cloud, stream))
    assert end.endswith("boom\n")
    assert len(end) <= MAX_CHARACTERS


async def test_nothing_was_printed() -> None:
    feed = FakeLogFeed(CloudWatch())
    assert await log_end(feed, record()) == ""
    assert feed.deep == []
