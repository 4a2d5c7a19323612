"""Finding the log streams of jobs, beside reading those that are known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from worker.delivery.job_log import JobLog
from worker.errors import Again
from worker.ops.logging import get_logger
from worker.training import cursor
from worker.training.log_feed import LogFeed

_AT_ONCE = 5
"""Looks under way at a time: with these AWS's 25 a second can be reached."""
_IN_ONE_ROUND = 100
"""Looks before what has changed meanwhile is taken into account again."""
_SILENT_SHARE = 0.5
"""Of DescribeLogStreams' quota, for the jobs that stay without a stream, however many they are: other workers need the
rest."""
_SILENT_AFTER = 60.0
"""Seconds after a job's newest state in which its first lines are expected at any moment."""

_log = get_logger()


class StreamDiscovery:
    """Looks for new streams where there may be some: first where something waits for it (a job that is new, has changed
    or has ended), then at the jobs of which no stream is known yet."""

    def __init__(self, feed: LogFeed, *, interval: float, quiet: float) -> None:
        """Seconds: `interval` between two rounds of the log feed, `quiet` of silence after a job's end."""
        self._feed = feed
        self._interval = interval
        self._quiet = quiet
        self._patience = 0.0
        """Seconds between two looks at a job that stays without a stream."""

    async def look(self, logs: Iterable[JobLog]) -> tuple[bool, bool]:
        """Look where it is due, up to a bound; returns whether streams were found, and whether more looks are due.
        Raises as the feed does, once all looks that had begun are done: what it refuses, and what fails for all. What
        only failed for some is due again next time."""
        now = time.monotonic()
        open_logs = [log for log in logs if log.is_open]
        expecting = sum(log.expects_streams for log in open_logs)
        self._patience = max(3 * self._interval, expecting / (self._feed.looks_a_second * _SILENT_SHARE))
        due = [log for log in open_logs if log.look_at <= now]
        due = [log for log in due if log.expects_streams or self._is_awaited(log)]
        due.sort(key=lambda log: (not self._is_awaited(log), bool(log.positions), log.looked_at))
        at_once = asyncio.Semaphore(_AT_ONCE)
        looks = [self._look(log, at_once) for log in due[:_IN_ONE_ROUND]]
        results = await asyncio.gather(*looks, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        for error in failed:
            if len(failed) == len(looks) or not isinstance(error, Again):
                raise error
        if failed:
            _log.warning("log_looks_failed", looks=len(looks), failed=len(failed), error=str(failed[0]))
        return any(result is True for result in results), len(due) > len(looks)

    def _is_awaited(self, log: JobLog) -> bool:
        """Something waits for the next look: an end is not told before it."""
        return log.look_at == 0.0 or (
            log.ended_at is not None and log.looked_at < self._second_look(log.ended_at)
        )

    def _second_look(self, ended_at: float) -> float:
        """A stream may appear after its job's end: when to look once more, within the quiet period."""
        return ended_at + self._quiet / 2

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
        silent = asked_at - log.changed_at >= _SILENT_AFTER
        log.look_at = time.monotonic() + (self._patience if silent else 3 * self._interval)
        if log.ended_at is not None and asked_at < self._second_look(log.ended_at):
            second = self._second_look(log.ended_at)
            log.look_at = min(log.look_at, second) if log.expects_streams else second
            if asked_at < log.ended_at:  # it ended meanwhile
                log.look_at = 0.0
        return found
