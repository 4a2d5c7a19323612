"""CloudWatch Logs with AWS's manners, where moto's differ: FilterLogEvents, and events kept in time order.

FilterLogEvents (API reference, and measured on AWS by many): a missing stream fails the whole call, at most 100 stream
names, events of all streams in one order (event time, then ingestion time, then PutLogEvents id), pages of at most
10,000 events or 1 MB.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moto.logs.exceptions import InvalidParameterException, ResourceNotFoundException
from moto.logs.models import LogEvent, LogStream, logs_backends
from moto.logs.responses import LogsResponse
from moto.logs.utils import EventMessageFilter

from worker.local.aws import ACCOUNT, REGION, replaced

TRAINING_JOBS_GROUP = "/aws/sagemaker/TrainingJobs"
_PAGE_EVENTS = 10_000
_PAGE_BYTES = 1 << 20

_Place = tuple[int, int, int]


def _place(event: LogEvent) -> _Place:
    return (event.timestamp, event.ingestion_time, event.event_id)


@contextlib.contextmanager
def aws_like_logs() -> Iterator[None]:
    """Give moto's CloudWatch Logs AWS's manners while the context is open."""
    put, writing = LogStream.put_log_events, threading.Lock()

    def put_log_events(self: LogStream, log_events: list[dict[str, Any]]) -> str:
        with writing:
            known = len(self.events)
            token: str = put(self, log_events)
            if 0 < known < len(self.events) and _place(self.events[known]) < _place(self.events[known - 1]):
                # Bound anew in one step: readers in other threads see the old or the new list, never a gap.
                self.events = sorted(self.events, key=_place)
        return token

    with (
        replaced(LogStream, put_log_events=put_log_events),
        replaced(LogsResponse, filter_log_events=_filter_log_events),
    ):
        yield


def _filter_log_events(response: LogsResponse) -> str:
    ask = response._get_param
    group = response.logs_backend.groups.get(ask("logGroupName"))
    if group is None:
        raise ResourceNotFoundException()
    streams = _searched_streams(group.streams, ask("logStreamNames") or [], ask("logStreamNamePrefix"))
    limit = int(ask("limit") or _PAGE_EVENTS)
    if limit > _PAGE_EVENTS:
        raise InvalidParameterException(
            constraint="Member must have value less than or equal to 10000", parameter="limit", value=limit
        )
    found = _between(streams, ask("startTime"), ask("endTime"), ask("filterPattern"))
    page, token = _page(found, limit, _read_token(ask("nextToken")))
    answer: dict[str, Any] = {
        "events": [{**event.to_filter_dict(), "logStreamName": name} for event, name in page],
        "searchedLogStreams": [],  # empty since 2020 (API reference)
    }
    if token:
        answer["nextToken"] = token
    return json.dumps(answer)


def _searched_streams(
    streams: dict[str, LogStream], names: Sequence[str], prefix: str | None
) -> list[LogStream]:
    if names and prefix:
        raise InvalidParameterException("Only one of logStreamNames and logStreamNamePrefix can be given.")
    if len(names) > 100:
        raise InvalidParameterException(
            constraint="Member must have length less than or equal to 100",
            parameter="logStreamNames",
            value=f"{len(names)} names",
        )
    if any(name not in streams for name in names):
        raise ResourceNotFoundException("The specified log stream does not exist.")
    if names:
        return [streams[name] for name in names]
    return [stream for name, stream in list(streams.items()) if name.startswith(prefix or "")]


def _between(
    streams: Iterable[LogStream], start: int | None, end: int | None, pattern: str | None
) -> list[tuple[LogEvent, str]]:
    """Events with start ≤ time ≤ end (ms), both optional, of all streams in AWS's order."""
    wanted = EventMessageFilter(pattern) if pattern else None
    found: list[tuple[LogEvent, str]] = []
    for stream in streams:
        events = stream.events
        first = bisect.bisect_left(events, start, key=lambda e: e.timestamp) if start else 0
        last = len(events) if end is None else bisect.bisect_right(events, end, key=lambda e: e.timestamp)
        found.extend(
            (event, stream.log_stream_name)
            for event in events[first:last]
            if wanted is None or wanted.matches(event.message)
        )
    return sorted(found, key=lambda item: _place(item[0]))


def _page(
    found: Sequence[tuple[LogEvent, str]], limit: int, after: _Place | None
) -> tuple[Sequence[tuple[LogEvent, str]], str | None]:
    first = 0 if after is None else bisect.bisect_right(found, after, key=lambda item: _place(item[0]))
    size, last = 0, first
    while last < len(found) and last - first < limit:
        size += len(found[last][0].message.encode()) + 26  # AWS counts 26 bytes of overhead an event
        if size > _PAGE_BYTES and last > first:
            break
        last += 1
    page = found[first:last]
    if not page or last == len(found):
        return page, None
    return page, "/".join(map(str, _place(page[-1][0])))


def _read_token(token: str | None) -> _Place | None:
    if not token:
        return None
    try:
        timestamp, ingested, number = map(int, token.split("/"))
    except ValueError as error:
        raise InvalidParameterException("The specified nextToken is invalid.") from error
    return (timestamp, ingested, number)


class TrainingJobLogs:
    """Writes container output where SageMaker writes it. Streams appear with their first line, as on AWS."""

    def __init__(self, account: str = ACCOUNT, region: str = REGION) -> None:
        self._account = account
        self._region = region

    def put(self, stream: str, events: Sequence[tuple[int, str]]) -> None:
        """Append (event time in ms, message) pairs, oldest first; creates the stream, and the group, at need."""
        backend = logs_backends[self._account][self._region]
        if TRAINING_JOBS_GROUP not in backend.groups:
            backend.create_log_group(TRAINING_JOBS_GROUP, {})
        backend.ensure_log_stream(TRAINING_JOBS_GROUP, stream)
        entries = [{"timestamp": timestamp, "message": message} for timestamp, message in events]
        backend.put_log_events(TRAINING_JOBS_GROUP, stream, entries)
