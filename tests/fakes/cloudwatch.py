"""CloudWatch Logs in memory, as harsh as its documentation allows, and a log feed that reads from it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from worker.launch.log_state import StreamPosition
from worker.training.cursor import LogEvent, after_position
from worker.training.log_feed import LogFeed, Sweep


@dataclass
class CloudWatch:
    """Streams with events in FilterLogEvents' order: timestamp, ingestion time, id."""

    streams: dict[str, list[LogEvent]] = field(default_factory=dict)
    page_size: int = 10_000
    empty_pages: int = 0
    """Empty pages, with a token, before each page that has something."""

    def put(self, stream: str, *texts: str, age_ms: int = 0, ingested: int | None = None) -> None:
        """One PutLogEvents: events of one moment, `age_ms` ago, ingested now."""
        now = int(time.time() * 1000)
        events = self.streams.setdefault(stream, [])
        when = max([now if ingested is None else ingested, *(event.ingested + 1 for event in events)])
        events += [LogEvent(stream, when - age_ms, when, text) for text in texts]

    def found(self, streams: Sequence[str], since: int, until: int | None) -> list[LogEvent]:
        """All events in [since, until], in order; a missing stream is a KeyError."""
        events = [event for stream in streams for event in self.streams[stream]]
        return sorted(
            (e for e in events if since <= e.timestamp and (until is None or e.timestamp <= until)),
            key=lambda event: event.key,
        )

    def pages(self, streams: Sequence[str], since: int, until: int | None) -> list[list[LogEvent]]:
        """What one call after the other answers."""
        found = self.found(streams, since, until)
        pages: list[list[LogEvent]] = []
        for start in range(0, max(1, len(found)), self.page_size):
            pages += [[] for _ in range(self.empty_pages)]
            number = len(pages)
            pages.append([replace(event, page=number) for event in found[start : start + self.page_size]])
        return pages

    def texts(self) -> list[str]:
        """Every message that any stream holds."""
        return [event.message for events in self.streams.values() for event in events]


class FakeLogFeed(LogFeed):
    """The feed's three questions, answered from memory."""

    def __init__(self, cloud: CloudWatch) -> None:
        self.cloud = cloud
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next calls of any kind."""
        self.hidden: set[str] = set()
        """Streams that FilterLogEvents calls missing, although DescribeLogStreams lists them."""
        self.swept: list[Mapping[str, StreamPosition]] = []
        self.listed: list[str] = []
        self.deep: list[tuple[tuple[str, ...], int, int | None]] = []
        self.after_sweep: Callable[[], None] = lambda: None
        """Called when a sweep has been answered, before the caller sees it."""

    @property
    def calls_a_second(self) -> float:
        return 5.0

    @property
    def looks_a_second(self) -> float:
        return 25.0

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    async def streams(self, job_name: str) -> tuple[str, ...]:
        self._fail()
        self.listed.append(job_name)
        return tuple(sorted(name for name in self.cloud.streams if name.startswith(f"{job_name}/")))

    async def sweep(self, positions: Mapping[str, StreamPosition]) -> Sweep:
        self._fail()
        self.swept.append(dict(positions))
        missing = frozenset(
            stream for stream in positions if stream in self.hidden or stream not in self.cloud.streams
        )
        present = [stream for stream in positions if stream not in missing]
        events: list[LogEvent] = []
        if present:
            since = max(0, min(positions[stream].timestamp for stream in present))
            events = [event for page in self.cloud.pages(present, since, None) for event in page]
        new = {
            id(event)
            for stream in present
            for event in after_position([e for e in events if e.stream == stream], positions[stream])
        }
        self.after_sweep()
        return Sweep(tuple(event for event in events if id(event) in new), {}, missing)

    async def pages(
        self, streams: Sequence[str], since: int, until: int | None, *, live: bool = False
    ) -> AsyncIterator[list[LogEvent]]:
        del live
        self._fail()
        self.deep.append((tuple(streams), since, until))
        present = [stream for stream in streams if stream in self.cloud.streams]
        for page in self.cloud.pages(present, since, until):
            yield page

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
