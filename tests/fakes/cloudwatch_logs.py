"""CloudWatch Logs as harsh as its documents: the answers of the API, without a transport.

`answers` puts it behind `aws_server`, for the real client over HTTP; `LogsClient` stands for that client in tests in
virtual time. What the CloudWatch Logs API reference and its quotas page say is kept to the letter; where they
say nothing, the worst is assumed:

* FilterLogEvents: at most 100 names; names and prefix exclude each other; one unknown name, or an unknown group, fails
  the whole call; a page has at most 10,000 events or 1 MB, may be empty and still have a token; a token is good for the
  same request only, and for 24 h; order is event timestamp, ingestion time, id of the PutLogEvents; `startTime` and
  `endTime` are inclusive. Each page is read at its own moment: what came meanwhile behind it is not shown.
* GetLogEvents: `endTime` is exclusive, empty pages come with new tokens, the same token back is the end.
* DescribeLogStreams: 50 a page; `lastEventTimestamp` may be an hour old.
* PutLogEvents: one ingestion time for all events of a put; ids of puts have no order. Not documented, so assumed: a put
  may become visible after one that was ingested later.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from tests.fakes.aws_errors import AwsError
from worker.training.log_feed import LOG_GROUP

Request = dict[str, Any]
_DAY = 86_400.0
_PAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One event as CloudWatch keeps it; times are ms since the epoch."""

    stream: str
    timestamp: int
    ingested: int
    put: int
    """The id of its PutLogEvents."""
    index: int
    message: str
    visible_at: float

    @property
    def order(self) -> tuple[int, int, int, int]:
        return self.timestamp, self.ingested, self.put, self.index


@dataclass
class _Token:
    request: str
    after: tuple[int, int, int, int] | None
    issued: float
    page: int


@dataclass
class Throttle:
    """A token bucket: `rate` calls a second, `burst` saved up."""

    rate: float
    burst: float = 1.0
    _level: float = 1.0
    _at: float | None = None

    def take(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1.0:
            raise AwsError("ThrottlingException", "Rate exceeded")
        self._level -= 1.0


class CloudWatchLogs:
    """The log group of SageMaker's training jobs."""

    def __init__(self, now: Callable[[], float], *, seed: int = 0) -> None:
        """`now`: AWS's clock, epoch seconds."""
        self.now = now
        self.group_exists = True
        self.events: dict[str, list[Stored]] = {}
        self.listed_from: dict[str, float] = {}
        """Stream → when DescribeLogStreams begins to list it, epoch seconds."""
        self.page_events = 10_000
        self.empty_before: Callable[[int], int] = lambda page: 0
        """How many empty pages, with tokens, come before a request's page of that number."""
        self.throttles: dict[str, Throttle] = {}
        self.failures: list[Exception] = []
        """Raised, oldest first, by the next calls."""
        self.calls: list[tuple[str, Request]] = []
        self.while_paging: Callable[[], None] = lambda: None
        """Called before a page that follows another one."""
        self._random = random.Random(seed)
        self._tokens: dict[str, _Token] = {}
        self._numbers = itertools.count()

    # Containers.

    def put(
        self,
        stream: str,
        *texts: str,
        age_ms: int = 0,
        at: int | None = None,
        ingested: int | None = None,
        visible_in: float = 0.0,
        put_id: int | None = None,
    ) -> None:
        """One PutLogEvents: events of one moment (`at`, or `age_ms` ago), ingested now; seen `visible_in` s later."""
        arrived = int(self.now() * 1000) if ingested is None else ingested
        moment = arrived - age_ms if at is None else at
        number = self._random.getrandbits(60) if put_id is None else put_id
        self.events.setdefault(stream, []).extend(
            Stored(stream, moment, arrived, number, index, text, self.now() + visible_in)
            for index, text in enumerate(texts)
        )

    def texts(self, stream: str) -> list[str]:
        """What a stream holds in the end, in the API's order."""
        return [event.message for event in sorted(self.events[stream], key=lambda event: event.order)]

    # The API.

    def answer(self, operation: str, request: Request) -> dict[str, Any]:
        """Raises `AwsError` as AWS would."""
        self.calls.append((operation, dict(request)))
        if self.failures:
            raise self.failures.pop(0)
        if operation in self.throttles:
            self.throttles[operation].take(self.now())
        if not self.group_exists or request["logGroupName"] != LOG_GROUP:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        return {
            "FilterLogEvents": self._filter_log_events,
            "GetLogEvents": self._get_log_events,
            "DescribeLogStreams": self._describe_log_streams,
        }[operation](request)

    def answers(self) -> Mapping[str, Callable[[Request], dict[str, Any]]]:
        """To be put into `AwsServer.answers`."""
        operations = ("FilterLogEvents", "GetLogEvents", "DescribeLogStreams")
        return {name: partial(self.answer, name) for name in operations}

    def requests(self, operation: str) -> list[Request]:
        """The parameters of each call of an operation."""
        return [request for name, request in self.calls if name == operation]

    def _filter_log_events(self, request: Request) -> dict[str, Any]:
        streams = request.get("logStreamNames")
        if streams is not None and request.get("logStreamNamePrefix") is not None:
            raise AwsError("InvalidParameterException", "names and a prefix exclude each other")
        if streams is not None and not 1 <= len(streams) <= 100:
            raise AwsError("InvalidParameterException", "1 to 100 log streams")
        if streams is None:
            prefix = request.get("logStreamNamePrefix", "")
            streams = [name for name in self.events if name.startswith(prefix)]
        self._known(streams)
        token = self._redeem(request)
        if token.page:
            self.while_paging()
        found = self._visible(streams, request.get("startTime", 0), request.get("endTime"), token.after)
        if token.page % 1000 < self.empty_before(token.page // 1000):
            return self._page([], self._issue(request, token.after, token.page + 1))
        page = self._cut(found)
        if len(page) == len(found):
            return self._page(page, None)
        return self._page(page, self._issue(request, page[-1].order, (token.page // 1000 + 1) * 1000))

    def _get_log_events(self, request: Request) -> dict[str, Any]:
        stream = request["logStreamName"]
        self._known([stream])
        assert request.get("startFromHead"), "reading backwards is not needed here"
        token = self._redeem(request)
        until = None if request.get("endTime") is None else request["endTime"] - 1
        found = self._visible([stream], request.get("startTime", 0), until, token.after)
        if token.page % 1000 < self.empty_before(token.page // 1000):
            forward = self._issue(request, token.after, token.page + 1)
            return {"events": [], "nextForwardToken": forward, "nextBackwardToken": "b/0"}
        page = self._cut(found)
        if not page and request.get("nextToken"):
            forward = request["nextToken"]
        else:
            after = page[-1].order if page else token.after
            forward = self._issue(request, after, (token.page // 1000 + 1) * 1000)
        events = [{"timestamp": e.timestamp, "ingestionTime": e.ingested, "message": e.message} for e in page]
        return {"events": events, "nextForwardToken": forward, "nextBackwardToken": "b/0"}

    def _describe_log_streams(self, request: Request) -> dict[str, Any]:
        if request.get("orderBy") == "LastEventTime" and request.get("logStreamNamePrefix"):
            raise AwsError("InvalidParameterException", "a prefix cannot be ordered by LastEventTime")
        token = self._redeem(request)
        names = sorted(
            name
            for name in self.events
            if name.startswith(request.get("logStreamNamePrefix", ""))
            and self.listed_from.get(name, 0.0) <= self.now()
        )
        page = names[token.page : token.page + min(50, request.get("limit", 50))]
        end = token.page + len(page)
        answer: dict[str, Any] = {
            # The time lies: it is an hour old.
            "logStreams": [{"logStreamName": n, "lastEventTimestamp": 1, "storedBytes": 0} for n in page]
        }
        return answer if end == len(names) else {**answer, "nextToken": self._issue(request, None, end)}

    # How it is made.

    def _known(self, streams: Sequence[str]) -> None:
        if any(stream not in self.events for stream in streams):
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")

    def _visible(
        self,
        streams: Sequence[str],
        since: int,
        until: int | None,
        after: tuple[int, int, int, int] | None,
    ) -> list[Stored]:
        now = self.now()
        events = (event for stream in streams for event in self.events[stream])
        return sorted(
            (
                e
                for e in events
                if e.visible_at <= now
                and since <= e.timestamp
                and (until is None or e.timestamp <= until)
                and (after is None or e.order > after)
            ),
            key=lambda event: event.order,
        )

    def _cut(self, found: Sequence[Stored]) -> list[Stored]:
        size = 0
        for index, event in enumerate(found):
            size += len(event.message.encode()) + 26
            if index == self.page_events or (size > _PAGE_BYTES and index):
                return list(found[:index])
        return list(found)

    def _redeem(self, request: Request) -> _Token:
        text = request.get("nextToken")
        if text is None:
            return _Token("", None, self.now(), 0)
        token = self._tokens.get(text)
        if token is None or token.request != _same(request) or self.now() - token.issued > _DAY:
            raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")
        return token

    def _issue(self, request: Request, after: tuple[int, int, int, int] | None, page: int) -> str:
        text = f"f/{next(self._numbers)}"
        self._tokens[text] = _Token(_same(request), after, self.now(), page)
        return text

    def _page(self, page: Sequence[Stored], token: str | None) -> dict[str, Any]:
        events = [
            {
                "logStreamName": e.stream,
                "timestamp": e.timestamp,
                "ingestionTime": e.ingested,
                "message": e.message,
                "eventId": f"{e.timestamp:020d}{e.put:020d}{e.index:016d}",
            }
            for e in page
        ]
        answer: dict[str, Any] = {"events": events, "searchedLogStreams": []}
        return answer if token is None else {**answer, "nextToken": token}


def _same(request: Request) -> str:
    return json.dumps({key: value for key, value in request.items() if key != "nextToken"}, sort_keys=True)


@dataclass
class LogsClient:
    """What the log feed calls of the real client; errors are botocore's."""

    logs: CloudWatchLogs
    before_call: Callable[[], Any] = field(default=lambda: None)
    """May raise what a call then raises."""

    async def filter_log_events(self, **request: Any) -> dict[str, Any]:
        return self._call("FilterLogEvents", request)

    async def describe_log_streams(self, **request: Any) -> dict[str, Any]:
        return self._call("DescribeLogStreams", request)

    def _call(self, operation: str, request: Request) -> dict[str, Any]:
        self.before_call()
        try:
            return self.logs.answer(operation, request)
        except AwsError as error:
            told = {
                "Error": {"Code": error.code, "Message": str(error)},
                "ResponseMetadata": {"HTTPStatusCode": error.status},
            }
            raise ClientError(told, operation) from error  # type: ignore[arg-type]
