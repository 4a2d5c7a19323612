"""The log of one launch, straight from CloudWatch: `launch-worker logs`.

It reads as the worker does (`LogFeed`, positions) but for itself: it takes nothing from what goes to W&B.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from worker.aio import Breather
from worker.clients.aws import AwsClients
from worker.errors import Again
from worker.launch.console import ConsoleLine
from worker.launch.log_state import StreamPosition
from worker.launch.record import LaunchRecord
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.training.cursor import advance, console_lines, stream_label
from worker.training.log_feed import LogFeed

LOOK_EVERY = 2.0
"""Seconds between two looks."""


class JobLogs:
    """Reads the streams of one training job."""

    def __init__(
        self, aws: AwsClients, *, host: str = "", since: float = 0.0, pause: float = LOOK_EVERY
    ) -> None:
        """`host`: only this container's (`algo-1`); `since`: epoch seconds; `pause`: between two looks."""
        self._feed = LogFeed(
            aws.logs, Rates(Metrics(), {}), Metrics(), breather=Breather(), now=aws.clock.now
        )
        self._host = host
        self._since = int(since * 1000)
        self._pause = pause
        self._positions: dict[str, StreamPosition] = {}
        self.hosts: set[str] = set()
        """Labels of all streams that were there, also of those that are not read."""

    async def lines(self, job: str) -> AsyncIterator[ConsoleLine]:
        """What is there and has not been read yet, oldest first within each sweep."""
        for stream in await self._feed.streams(job):
            self.hosts.add(stream_label(stream))
            if not self._host or stream_label(stream) == self._host:
                self._positions.setdefault(stream, StreamPosition(self._since - 1, 0, 0))
        more = bool(self._positions)
        while more:
            sweep = await self._feed.sweep(self._positions)
            for stream in list(self._positions):
                taken = [event for event in sweep.events if event.stream == stream]
                if taken:
                    self._positions[stream] = advance(self._positions[stream], taken)
            for event in sweep.events:
                for line in console_lines(event):
                    yield line
            more = bool(sweep.cut_at) and bool(sweep.events)

    async def follow(self, refresh: Callable[[], Awaitable[LaunchRecord]]) -> AsyncIterator[ConsoleLine]:
        """Of all attempts, until the launch is over; `refresh` reads its record again."""
        while True:
            record = await refresh()
            try:
                for job in jobs_of(record):
                    async for line in self.lines(job):
                        yield line
            except Again:  # the next look reads on from there
                await asyncio.sleep(self._pause)
                continue
            if not record.is_open:  # its worker has waited for late lines already
                return
            await asyncio.sleep(self._pause)


def jobs_of(record: LaunchRecord) -> list[str]:
    """The training jobs of a launch, oldest first; none while it has not been submitted."""
    jobs = [attempt.job_name for attempt in record.attempts]
    return [*jobs, record.job_name] if record.accepted_at and record.job_name else jobs
