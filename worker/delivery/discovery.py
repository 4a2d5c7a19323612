"""Finding the log streams of jobs, beside reading those that are known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from worker.delivery.job_log import JobLog
from worker.training import cursor
from worker.training.log_feed import LogFeed

_AT_ONCE = 5
"""Looks under way at a time: with these AWS's 25 a second can be reached."""
_IN_ONE_ROUND = 100
"""Looks before what has changed meanwhile is taken into account again."""


class StreamDiscovery:
    """Looks for new streams where there may be some; jobs of which none is known yet come first."""

    def __init__(self, feed: LogFeed, *, interval: float, quiet: float) -> None:
        """Seconds: `interval` between two rounds of the log feed, `quiet` of silence after a job's end."""
        self._feed = feed
        self._interval = interval
        self._quiet = quiet

    async def look(self, logs: Iterable[JobLog]) -> tuple[bool, bool]:
        """Look where it is due, up to a bound; returns whether streams were found, and whether more looks are due.
        Raises as the feed does, once all looks that had begun are done."""
        now = time.monotonic()
        due = [log for log in logs if log.is_open and log.look_at <= now]
        due = [log for log in due if log.expects_streams or log.look_at == 0.0]
        due.sort(key=lambda log: (bool(log.positions), log.looked_at))
        at_once = asyncio.Semaphore(_AT_ONCE)
        looks = [self._look(log, at_once) for log in due[:_IN_ONE_ROUND]]
        found = await asyncio.gather(*looks, return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return any(found), len(due) > len(looks)

    async def _look(self, log: JobLog, at_once: asyncio.Semaphore) -> bool:
        async with at_once:
            asked_at = time.monotonic()
            streams = await self._feed.streams(log.held.record.job_name)
        found = False
        for stream in streams:
            if stream not in log.positions:
                # One that was missing for a while goes on where it stood.
                log.positions[stream] = log.held.record.log.positions.get(stream, cursor.NOTHING_TAKEN)
                log.news_at = time.monotonic()
                log.due_at, found = 0.0, True
        log.looked_at = asked_at
        log.look_at = time.monotonic() + 3 * self._interval
        if log.ended_at is not None and asked_at < log.ended_at + self._quiet / 2:
            # A stream may appear after its job's end: look a second time within the quiet period.
            log.look_at = 0.0
        return found
