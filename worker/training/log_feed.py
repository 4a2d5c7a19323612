"""One reader for the logs of all jobs: FilterLogEvents over up to 100 streams a call.

How CloudWatch behaves (CloudWatch Logs API, FilterLogEvents and DescribeLogStreams): pages hold at most 1 MB or
10,000 events and may be empty before the end; `startTime` and `endTime` are inclusive; one stream name that does
not exist fails the whole call; the log group does not exist before the account's first container has logged.

GetLogEvents was not built in, for a very hot stream neither. A page of it is no larger, and W&B takes two posts a
second of a run, here of 5,000 events each: a little more than a page a second is all that one stream can use. Streams
behind a hot one are read by other calls (`stream_groups`). What it would bring is a quota of its own (10/s to 30/s by
Region), so that a hot stream would leave more of FilterLogEvents' 5/s to 25/s to the others. Against it stand a
second kind of position (order is documented for FilterLogEvents only, and positions rely on it; events of
GetLogEvents have no id) and, when a stream changes over, telling taken events from new ones by counts. Neither way
was measured against the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.aio import Breather, backoff
from worker.clients.aws import AwsRefused, call
from worker.errors import Again, Throttled
from worker.launch.log_state import StreamPosition
from worker.ops.logging import get_logger
from worker.training.cursor import LogEvent, after_position
from worker.training.stream_groups import MAX_STREAMS, stream_groups

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_logs.type_defs import FilterLogEventsResponseTypeDef

    from worker.ops.metrics import Metrics
    from worker.ops.rates import Rates

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
"""Where SageMaker sends what training containers print (SageMaker developer guide, 'CloudWatch logs')."""
_MAX_EVENTS = 25_000
_MAX_CHARACTERS = 8 << 20
"""What one sweep of a group may hold in memory; the rest waits in CloudWatch."""
_SETTLED_MS = 2_000
"""What was ingested so long before a page was asked for is on it: AWS's time is known to half a second."""
_PATIENT_AT_ONCE = 2
"""Calls of readers with time (closing, replays, reports) that wait for the rate at once. It serves who came first, and
hundreds of jobs may end in a moment: each read of the running ones would wait behind a page for each of those."""
_MAX_TRIES = 8
"""Further tries of a page that was throttled; about half a minute."""

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep found: new events in the API's order, and whether more are waiting."""

    events: tuple[LogEvent, ...]
    cut_at: Mapping[str, int]
    """Streams that were not read to their end → event time (ms) up to which they were; the rest comes next time."""
    missing: frozenset[str]
    """Streams that are gone (deleted, or retention)."""


@dataclass(frozen=True, slots=True)
class _Page:
    """One answer."""

    number: int
    """Its place among the answers to one request; 0 is the first."""
    events: list[LogEvent]


@dataclass(slots=True)
class _Reading:
    """What went on while a group of streams was read."""

    missing: set[str] = field(default_factory=set)
    split: bool = False
    """A stream was missing, so that the group was read in parts, one after the other."""
    live: bool = True
    """It waits for the rate with the first; False: only some at a time do."""


class LogFeed:
    """Reads CloudWatch Logs within the rates; keeps no state between calls."""

    def __init__(
        self,
        logs: CloudWatchLogsClient,
        rates: Rates,
        metrics: Metrics,
        *,
        breather: Breather,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now`: epoch seconds by AWS's clock, which stamps ingestion; this host's own may be wrong."""
        self._logs = logs
        self._now = now
        self._filter_rate = rates["FilterLogEvents"]
        self._describe_rate = rates["DescribeLogStreams"]
        self._metrics = metrics
        self._breather = breather
        self._patient = asyncio.Semaphore(_PATIENT_AT_ONCE)

    @property
    def calls_a_second(self) -> float:
        """Of FilterLogEvents, at the most."""
        return self._filter_rate.bound

    @property
    def looks_a_second(self) -> float:
        """Of DescribeLogStreams, at the most."""
        return self._describe_rate.bound

    def now_ms(self) -> int:
        """AWS's time, ms since the epoch."""
        return int(self._now() * 1000)

    async def streams(self, job_name: str) -> tuple[str, ...]:
        """The streams of a job, by name; empty while no container has logged."""
        names: list[str] = []
        token: dict[str, Any] = {}
        while True:
            request = {"logGroupName": LOG_GROUP, "logStreamNamePrefix": f"{job_name}/", **token}
            try:
                page = await call(
                    "DescribeLogStreams",
                    lambda request=request: self._logs.describe_log_streams(**request),  # type: ignore[misc]
                    self._describe_rate,
                )
            except AwsRefused as error:
                if error.aws_code == "ResourceNotFoundException":
                    return ()
                raise
            names += [stream["logStreamName"] for stream in page["logStreams"]]
            if not page.get("nextToken"):
                return tuple(sorted(names))
            token = {"nextToken": page["nextToken"]}

    async def sweep(self, positions: Mapping[str, StreamPosition]) -> Sweep:
        """Everything new behind each stream's position, oldest first; bounded, so that memory is.

        Streams at like positions share a call: a silent one must not make busy ones be read again."""
        started = time.monotonic()
        events: list[LogEvent] = []
        missing: set[str] = set()
        cut_at: dict[str, int] = {}
        for group in stream_groups({stream: at.timestamp for stream, at in positions.items()}, {}):
            since = max(0, min(positions[stream].timestamp for stream in group))
            reading = _Reading()
            found, read_until = await self._read(group, since, positions, reading)
            missing |= reading.missing
            if read_until is not None:
                # Of the two halves that a missing stream leads to, one may not have been read at all.
                cut_at |= dict.fromkeys(group, 0 if reading.split else read_until)
            events += found
        self._metrics.log_events.inc(len(events))
        self._metrics.log_sweep_seconds.observe(time.monotonic() - started)
        return Sweep(tuple(events), cut_at, frozenset(missing))

    async def pages(
        self, streams: Sequence[str], since: int, until: int | None, *, live: bool = False
    ) -> AsyncIterator[list[LogEvent]]:
        """All events of some streams in [since, until] ms (None: to the end), in the API's order, page by page,
        whatever was taken before. `live`: logs of running jobs wait for it, and few such reads are under way; all
        others leave the rate to them and to sweeps."""
        for start in range(0, len(streams), MAX_STREAMS):
            group = streams[start : start + MAX_STREAMS]
            async for page in self._pages(group, max(0, since), until, _Reading(live=live)):
                yield page.events

    async def _read(
        self, streams: Sequence[str], since: int, positions: Mapping[str, StreamPosition], reading: _Reading
    ) -> tuple[list[LogEvent], int | None]:
        """Events at or behind their streams' positions; and up to when was read, if there was too much (else None).

        Events that were taken before are dropped page by page: did they count, a silent stream beside busy ones
        could make every sweep end before the first new event.

        What was ingested after the first page that has events was asked for is left to the next sweep: a part of the
        same PutLogEvents may belong on that page, and would be behind the position then."""
        found: list[LogEvent] = []
        tied: list[LogEvent] = []
        reached = {stream: _reached(positions[stream]) for stream in streams}
        characters = 0
        asked_ms, settled, read_until = self.now_ms(), None, None
        async for page in self._pages(streams, since, None, reading):
            events = page.events
            if page.number == 0:
                settled = None
            if settled is not None:
                events = _ingested_by(settled, events)
            elif events:
                settled = max(asked_ms - _SETTLED_MS, *(event.ingested for event in events))
            new = [event for event in events if event.key >= reached[event.stream]]
            tied += [event for event in new if event.key == reached[event.stream]]
            found += new
            characters += sum(len(event.message) for event in new)
            if len(events) < len(page.events):
                read_until = page.events[len(events)].timestamp
                break
            if len(found) >= _MAX_EVENTS or characters >= _MAX_CHARACTERS:
                read_until = events[-1].timestamp
                break
        return _without_taken(found, tied, positions), read_until

    async def _pages(
        self, streams: Sequence[str], since: int, until: int | None, reading: _Reading
    ) -> AsyncIterator[_Page]:
        """Pages of one call; where a stream is missing, of the two halves."""
        request: dict[str, Any] = {
            "logGroupName": LOG_GROUP,
            "logStreamNames": list(streams),
            "startTime": since,
        }
        if until is not None:
            request["endTime"] = until
        for number in itertools.count():
            try:
                page = await self._page(request, live=reading.live)
            except AwsRefused as error:
                if error.aws_code != "ResourceNotFoundException":
                    raise
                if "nextToken" in request:
                    raise Again("a log stream went away while it was being read") from error
                break
            await self._breather()  # to read a full page's JSON has taken its milliseconds already
            events = [
                LogEvent(
                    event["logStreamName"],
                    event["timestamp"],
                    event["ingestionTime"],
                    event.get("message", ""),
                    number,
                )
                for event in page["events"]
            ]
            yield _Page(number, events)
            if not page.get("nextToken"):
                return
            request["nextToken"] = page["nextToken"]
        if len(streams) == 1:
            _log.warning("log_stream_missing", stream=streams[0])
            reading.missing.add(streams[0])
            return
        reading.split = True
        middle = len(streams) // 2
        for half in (streams[:middle], streams[middle:]):
            async for part in self._pages(half, since, until, reading):
                yield part

    async def _page(self, request: Mapping[str, Any], *, live: bool) -> FilterLogEventsResponseTypeDef:
        """One page; a further one that is throttled is asked for again, since starting over might never come to the end
        of a long read."""
        for tries in itertools.count():
            try:
                # Not while the call is under way: how many those are is up to the rate.
                async with contextlib.nullcontext() if live else self._patient:
                    await self._filter_rate.acquire()
                return await call(
                    "FilterLogEvents",
                    lambda: self._logs.filter_log_events(**request),
                    self._filter_rate,
                    acquired=True,
                )
            except Throttled as error:
                if "nextToken" not in request or tries == _MAX_TRIES:
                    raise
                _log.warning("log_read_throttled", streams=len(request["logStreamNames"]))
                await asyncio.sleep(error.retry_after or backoff(tries, base=0.5, cap=8))
        raise AssertionError


def by_stream(events: Iterable[LogEvent]) -> dict[str, list[LogEvent]]:
    """Stream → its events, in their order; a stream that has none is not there."""
    found: dict[str, list[LogEvent]] = {}
    for event in events:
        found.setdefault(event.stream, []).append(event)
    return found


def _ingested_by(moment: int, events: Sequence[LogEvent]) -> list[LogEvent]:
    """`events` up to the first one that was ingested later."""
    return list(itertools.takewhile(lambda event: event.ingested <= moment, events))


def _reached(position: StreamPosition) -> tuple[int, int]:
    return position.timestamp, position.ingested


def _without_taken(
    found: Sequence[LogEvent], tied: Sequence[LogEvent], positions: Mapping[str, StreamPosition]
) -> list[LogEvent]:
    """`found` without those of `tied`, the events just at their streams' positions, that were taken before."""
    new = {
        id(event)
        for stream, events in by_stream(tied).items()
        for event in after_position(events, positions[stream])
    }
    taken = {id(event) for event in tied} - new
    return [event for event in found if id(event) not in taken]
