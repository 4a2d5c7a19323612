"""CloudWatch Logs over what virtual jobs print: events are made when they are read.

FilterLogEvents as AWS documents it: at most 100 streams, a missing one fails the call, events of all streams in one
order (event time, ingestion time, then place), pages of at most 10,000 events or 1 MB (26 bytes an event beside its
message), both ends of the time range inclusive."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.simulator.errors import AwsError
from bench.simulator.jobs import VirtualJob, VirtualJobs

Json = dict[str, Any]
GROUP = "/aws/sagemaker/TrainingJobs"
_PAGE_EVENTS = 10_000
_PAGE_BYTES = 1 << 20
_OVERHEAD = 26
_FAR = 1 << 62

_Row = tuple[int, int, int, int]
"""Event time, ingestion time, number of the job, number of the line: their order is AWS's."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Lines of one job: `first` to before `end`."""

    job: VirtualJob
    first: int
    end: int

    def until(self, moment: int) -> int:
        """How many of them were printed at or before `moment` (ms)."""
        return max(0, min(self.end, self.job.printer.count(moment)) - self.first)

    def rows(self, until: int) -> list[_Row]:
        """Those printed at or before `until`."""
        printer, number = self.job.printer, self.job.number
        lines = printer.times(self.first, self.first + self.until(until))
        return [(at, printer.ingested(at), number, line) for line, at in lines]


class LogsOperations:
    """One method an operation; the big answers are JSON text already."""

    def __init__(self, jobs: VirtualJobs) -> None:
        self._jobs = jobs
        self.events = 0
        """Events given out."""

    def op_DescribeLogStreams(self, ask: Json) -> Json:
        """The stream of the job that the prefix names. Streams exist from their first line on."""
        now = int(time.time() * 1000)
        job = self._jobs.get(str(ask.get("logStreamNamePrefix", "")).rstrip("/"))
        if job is None or not job.printer.count(job.printer.seen_until(now)):
            return {"logStreams": []}
        created = int(job.created_at * 1000)
        stream = {"logStreamName": job.stream, "creationTime": created, "firstEventTimestamp": created}
        return {"logStreams": [stream]}

    def op_FilterLogEvents(self, ask: Json) -> str:
        """A page of events of up to 100 streams."""
        ranges, after = self._asked(ask)
        most = _page_size(ask, [part.job for part in ranges])
        until = _FAR
        if sum(part.end - part.first for part in ranges) > most:
            until = _moment_of(ranges, most + _ties(ranges, after))
        rows = sorted(row for part in ranges for row in part.rows(until) if after is None or row > after)
        more = len(rows) > most or any(part.until(until) < part.end - part.first for part in ranges)
        page = rows[:most]
        self.events += len(page)
        by_number = {part.job.number: part.job for part in ranges}
        events = ",".join(_event(by_number[row[2]], row, with_stream=True) for row in page)
        token = f',"nextToken":"{"/".join(map(str, page[-1]))}"' if more and page else ""
        return f'{{"events":[{events}],"searchedLogStreams":[]{token}}}'

    def op_GetLogEvents(self, ask: Json) -> str:
        """A page of one stream, forwards."""
        stream = str(ask["logStreamName"])
        job = self._jobs.of_stream(stream)
        now = int(time.time() * 1000)
        if job is None:
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        token = str(ask.get("nextToken", ""))
        first = (
            int(token[2:]) if token.startswith("f/") else job.printer.count(int(ask.get("startTime", 0)) - 1)
        )
        end = min(job.printer.count(job.printer.seen_until(now)), first + _page_size(ask, [job]))
        rows = [
            (at, job.printer.ingested(at), job.number, line) for line, at in job.printer.times(first, end)
        ]
        self.events += len(rows)
        events = ",".join(_event(job, row, with_stream=False) for row in rows)
        behind = max(first, end)
        return f'{{"events":[{events}],"nextForwardToken":"f/{behind}","nextBackwardToken":"b/{first}"}}'

    def _asked(self, ask: Json) -> tuple[list[_Range], _Row | None]:
        names = ask.get("logStreamNames") or []
        if len(names) > 100:
            raise AwsError("InvalidParameterException", "At most 100 log streams may be named.")
        now = int(time.time() * 1000)
        after = _row_of(ask["nextToken"]) if ask.get("nextToken") else None
        start = max(int(ask.get("startTime", 0)), after[0] if after else 0)
        until = int(ask.get("endTime", _FAR))
        ranges = []
        for name in names:
            job = self._jobs.of_stream(name)
            seen = job.printer.seen_until(now) if job else 0
            if job is None or not job.printer.count(seen):
                raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
            first = job.printer.count(start - 1)
            end = job.printer.count(min(until, seen))
            if end > first:
                ranges.append(_Range(job, first, end))
        return ranges, after


def _page_size(ask: Json, jobs: Sequence[VirtualJob]) -> int:
    longest = max((job.line_bytes for job in jobs), default=1)
    return min(int(ask.get("limit", _PAGE_EVENTS)), _PAGE_BYTES // (longest + _OVERHEAD))


def _ties(ranges: Sequence[_Range], after: _Row | None) -> int:
    """Events of the same moment as the last page's end: some of them were on it."""
    return sum(part.until(after[0]) for part in ranges) if after else 0


def _moment_of(ranges: Sequence[_Range], wanted: int) -> int:
    """The first moment (ms) by which more than `wanted` events were printed: nobody has to make all of them."""
    low = min(part.job.printer.times(part.first, part.first + 1)[0][1] for part in ranges)
    high = max(part.job.printer.times(part.end - 1, part.end)[0][1] for part in ranges)
    while low < high:
        middle = (low + high) // 2
        if sum(part.until(middle) for part in ranges) > wanted:
            high = middle
        else:
            low = middle + 1
    return low


def _row_of(token: str) -> _Row:
    try:
        timestamp, ingested, job, line = map(int, token.split("/"))
    except ValueError as error:
        raise AwsError("InvalidParameterException", "The specified nextToken is invalid.") from error
    return timestamp, ingested, job, line


def _event(job: VirtualJob, row: _Row, *, with_stream: bool) -> str:
    timestamp, ingested, number, line = row
    text = f"seq={line} put={ingested} "
    message = text + "x" * (job.line_bytes - len(text))
    beside = (
        f'"eventId":"{number:028d}{line:028d}","logStreamName":{json.dumps(job.stream)},'
        if with_stream
        else ""
    )
    return f'{{{beside}"timestamp":{timestamp},"message":"{message}","ingestionTime":{ingested}}}'
