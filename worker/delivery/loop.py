"""One loop for the logs of all jobs.

A job has at most one assigned batch that W&B has not acknowledged; until it has, its log is not read further, so a
slow W&B leaves the backlog in CloudWatch and not in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from worker.aio import backoff
from worker.clients.aws import NotPermitted
from worker.delivery.closing import Closing
from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.errors import Again, WorkerError
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.permissions import MissingPermissions
from worker.training import cursor
from worker.training.cursor import LogEvent
from worker.training.log_feed import LogFeed, Sweep
from worker.training.status import makes_new_streams

_DISCOVERIES = 20
"""DescribeLogStreams calls in one round: finding new streams must not hold up the known ones."""
_SILENCE_MS = 120_000
"""A silent stream counts as read up to this long ago; what turns up behind that later is a late event."""

_log = get_logger()


class LogDelivery:
    """Follows logs, and tells when a finished job's log is complete in W&B."""

    def __init__(
        self,
        *,
        feed: LogFeed,
        held: HeldLaunches,
        posting: Posting,
        closing: Closing,
        interval: float,
        quiet: float,
        drain_limit: float,
    ) -> None:
        self._feed = feed
        self._posting = posting
        self._closing = closing
        self._interval = interval
        self._quiet = quiet
        self._drain_limit = drain_limit
        self._logs: dict[str, JobLog] = {}
        self._permissions = MissingPermissions()
        self._has_read = False
        held.when_lost(self._forget)

    def follow(self, held: HeldLaunch) -> None:
        """Go on with a job's log where the ledger says it stands."""
        now = time.monotonic()
        log = JobLog(held, dict(held.record.log.positions), deep_swept_at=now, news_at=now)
        log.deep_swept_ms = log.newest_ingested
        log.posting = log.replay_due = held.record.log.batch is not None
        self._logs[held.launch_id] = log

    def job_changed(self, held: HeldLaunch) -> None:
        """The job's state changed: restarted containers write to new streams."""
        if (log := self._logs.get(held.launch_id)) and makes_new_streams(held.record.facts.secondary_status):
            log.look_at = 0.0

    def job_ended(self, held: HeldLaunch) -> None:
        """No container of this job runs any more: deliver what is left, then call `on_delivered`."""
        if (log := self._logs.get(held.launch_id)) and log.ended_at is None:
            log.ended_at = log.news_at = time.monotonic()
            log.look_at = 0.0

    async def run(self, on_delivered: Callable[[HeldLaunch], None]) -> None:
        """Serve all logs until cancelled; `on_delivered` is called once for each job whose log is complete."""
        tries, failing_since = 0, time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    busy = await self._round(tasks, on_delivered)
                    tries, failing_since = 0, time.monotonic()
                except WorkerError as error:  # also a refusal: one job's log must not end all others
                    self._give_up(error, failing_since, tasks, on_delivered)
                    pause = (error.retry_after if isinstance(error, Again) else None) or backoff(
                        tries, cap=30
                    )
                    self._tell(error, pause)
                    tries += 1
                    await asyncio.sleep(pause)
                    continue
                await asyncio.sleep(0 if busy else self._interval)

    async def _round(self, tasks: asyncio.TaskGroup, on_delivered: Callable[[HeldLaunch], None]) -> bool:
        """Read, assign, post; True when more is waiting already."""
        self._start_replays(tasks)
        logs = [log for log in self._logs.values() if log.is_read]
        await self._look_for_streams(logs)
        # Before reading on: a log that has something new each time would never come to it.
        async for late in self._closing.sweep_running(logs):
            await self._hand_on([late], tasks)
        logs = [log for log in logs if log.is_read]
        by_stream = {stream: log for log in logs for stream in log.positions}
        asked_at, asked_ms = time.monotonic(), self._feed.now_ms()
        sweep = await self._feed.sweep({stream: log.positions[stream] for stream, log in by_stream.items()})
        self._has_read = self._has_read or bool(by_stream)
        for stream in sweep.missing:
            del by_stream[stream].positions[stream]
        news: dict[JobLog, list[LogEvent]] = {}
        for event in sweep.events:
            news.setdefault(by_stream[event.stream], []).append(event)
        taken = [log.take(events) for log, events in news.items() if not log.held.lost]
        cut = any(batch.events < len(news[batch.log]) for batch in taken)
        # The states of a job that says nothing are told as well.
        taken += [log.assign(()) for log in logs if log.is_read and log.untold]
        _skip_silence(logs, sweep, asked_ms - _SILENCE_MS)
        read = [log for log in logs if not sweep.cut_at.keys() & log.positions.keys()]
        for log in read:
            log.swept_at = asked_at
        await self._hand_on(taken, tasks)
        # Only what this round has read to its end and found nothing in: a backlog is not quiet, however old it is.
        quiet = [log for log in read if log.is_read and self._is_quiet(log)]
        self._close(quiet, tasks, on_delivered)
        return cut or bool(sweep.cut_at)

    def _close(
        self,
        quiet: Sequence[JobLog],
        tasks: asyncio.TaskGroup,
        on_delivered: Callable[[HeldLaunch], None],
    ) -> None:
        given_up = [log for log in self._logs.values() if log.given_up and not log.closing]
        for log in (*quiet, *given_up):
            log.closing = True
            tasks.create_task(self._close_one(log, on_delivered), name=f"close {log.held.record.job_name}")

    def _tell(self, error: WorkerError, pause: float) -> None:
        if isinstance(error, NotPermitted):
            action = f"logs:{str(error).partition(':')[0]}"
            cost = "jobs run and end, without their log in W&B"
            self._permissions.tell(action, cost=cost, error=error)
        else:
            _log.warning("log_round_failed", error=str(error), again_in=round(pause, 1))

    def _give_up(
        self,
        error: WorkerError,
        failing_since: float,
        tasks: asyncio.TaskGroup,
        on_delivered: Callable[[HeldLaunch], None],
    ) -> None:
        """CloudWatch cannot be read, or not any more: jobs that ended long ago do not wait for it for ever, and hardly
        where the worker's policy has never let it read one."""
        persistence = self._posting.persistence
        for log in self._logs.values():
            since = max(failing_since, log.ended_at or failing_since)
            if not log.is_read or log.given_up:
                continue
            # What was permitted once, somebody may have taken away by mistake, and give back.
            forbidden = isinstance(error, NotPermitted) and log.ended_at is not None and not self._has_read
            if forbidden and time.monotonic() - since >= self._drain_limit:
                persistence.without_log(log.held, str(error))
                log.given_up = True
            elif persistence.is_over(log.held.record, since):
                persistence.give_up(log.held, "log_reading", str(error))
                log.given_up = True
        self._close((), tasks, on_delivered)

    def _start_replays(self, tasks: asyncio.TaskGroup) -> None:
        for log in self._logs.values():
            if log.replay_due:
                log.replay_due = False
                tasks.create_task(self._posting.replay(log), name=f"replay {log.held.record.job_name}")

    async def _look_for_streams(self, logs: Sequence[JobLog]) -> None:
        now = time.monotonic()
        due = [log for log in logs if log.look_at <= now and (log.expects_streams or log.look_at == 0.0)]
        for log in sorted(due, key=lambda log: log.looked_at)[:_DISCOVERIES]:
            asked_at = time.monotonic()
            for stream in await self._feed.streams(log.held.record.job_name):
                if stream not in log.positions:
                    # One that was missing for a while goes on where it stood.
                    log.positions[stream] = log.held.record.log.positions.get(stream, cursor.NOTHING_TAKEN)
                    log.news_at = time.monotonic()
            log.looked_at = asked_at
            log.look_at = now + 3 * self._interval
            if log.ended_at is not None and now < log.ended_at + self._quiet / 2:
                # A stream may appear after its job's end: look a second time within the quiet period.
                log.look_at = 0.0

    async def _hand_on(self, batches: Sequence[AssignedBatch], tasks: asyncio.TaskGroup) -> None:
        """Batches are written and posted at once: an assignment that a failed call left behind would never be."""
        for batch in await self._posting.make_durable(batches):
            tasks.create_task(self._posting.post(batch), name=f"post {batch.log.held.record.job_name}")

    def _is_quiet(self, log: JobLog) -> bool:
        """Nothing came for the quiet time, and that was looked at: neither waiting nor a full round counts as quiet."""
        if log.ended_at is None or log.looked_at < log.ended_at:
            return False
        found_nothing = (
            log.swept_at - log.news_at >= self._quiet and log.looked_at >= log.ended_at + self._quiet / 2
        )
        return found_nothing or log.swept_at - log.ended_at >= self._drain_limit

    async def _close_one(self, log: JobLog, on_delivered: Callable[[HeldLaunch], None]) -> None:
        if not log.given_up:
            await self._closing.close(log)
        self._forget(log.held)
        if not log.held.lost:
            on_delivered(log.held)

    def _forget(self, held: HeldLaunch) -> None:
        log = self._logs.get(held.launch_id)
        if log is not None and log.held is held:  # it may have been claimed anew meanwhile
            del self._logs[held.launch_id]


def _skip_silence(logs: Iterable[JobLog], sweep: Sweep, until_ms: int) -> None:
    """Move the streams that had nothing new: left behind, they would make every sweep start at their beginning."""
    speaking = {event.stream for event in sweep.events}
    for log in logs:
        for stream, position in log.positions.items():
            if stream not in speaking:
                until = min(until_ms, sweep.cut_at.get(stream, until_ms + 1) - 1)
                log.positions[stream] = cursor.skip_silence(position, until)
