"""One loop for the logs of all jobs.

A job has at most one assigned batch that W&B has not acknowledged; until it has, its log is not read further: a slow
W&B leaves the backlog in CloudWatch. Beside the loop, streams are looked for and late events are searched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from worker.aio import Breather, wait_for_event
from worker.delivery.closing import Closing
from worker.delivery.discovery import StreamDiscovery
from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.delivery.read_trouble import ReadTrouble
from worker.delivery.replays import replay_groups
from worker.delivery.rounds import Paces, due, paces
from worker.delivery.taking_in import make_room, take_in
from worker.errors import WorkerError
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.training.cursor import LogEvent
from worker.training.log_feed import LogFeed
from worker.training.stream_groups import stream_groups

_POST_GAP = 0.5
"""Seconds between two batches of a job at the least: W&B allows a run two posts a second."""
_GATHER = 0.1
"""Seconds between two rounds at the least, in which acknowledgements come in: jobs read together share calls."""
_AT_ONCE = 3
"""Calls for groups of streams under way at a time; how many there are in a second is up to their rate."""
_LINES_A_TURN = 1000
"""Events assigned in one piece, if a log has not more of them ready: some milliseconds."""

OnDelivered = Callable[[HeldLaunch], None]


class LogDelivery:
    """Follows logs, and tells when a finished job's log is complete in W&B."""

    def __init__(
        self,
        *,
        feed: LogFeed,
        held: HeldLaunches,
        posting: Posting,
        closing: Closing,
        breather: Breather,
        interval: float,
        quiet: float,
        drain_limit: float,
    ) -> None:
        self._feed = feed
        self._posting = posting
        self._closing = closing
        self._discovery = StreamDiscovery(feed, interval=interval, quiet=quiet)
        self._trouble = ReadTrouble(posting.persistence, drain_limit=drain_limit)
        self._interval = interval
        self._quiet = quiet
        self._drain_limit = drain_limit
        self._post_gap = min(_POST_GAP, interval)
        self._logs: dict[str, JobLog] = {}
        self._wake = asyncio.Event()
        self._breather = breather
        self._tasks: asyncio.TaskGroup
        held.when_lost(self._forget)

    def follow(self, held: HeldLaunch) -> None:
        """Go on with a job's log where the ledger says it stands."""
        now = time.monotonic()
        state = held.record.log
        log = JobLog(held, dict(state.positions), deep_swept_at=now, news_at=now, changed_at=now)
        log.seen_status = held.record.facts.secondary_status
        log.deep_swept_ms = log.newest_ingested
        if log.has_all_streams:  # its state tells when there are more; else look at once
            log.look_at = now + self._interval
        log.posting = log.replay_due = state.batch is not None and not state.acknowledged
        self._logs[held.launch_id] = log
        self._wake.set()

    def job_changed(self, held: HeldLaunch) -> None:
        """The job's state may have changed: containers that start print soon, restarted ones write to new streams."""
        if log := self._logs.get(held.launch_id):
            log.job_changed()

    def job_ended(self, held: HeldLaunch) -> None:
        """No container of this job runs any more: deliver what is left, then call `on_delivered`."""
        if (log := self._logs.get(held.launch_id)) and log.ended_at is None:
            log.ended_at = log.news_at = time.monotonic()
            log.look_at = log.due_at = 0.0
            self._wake.set()

    async def run(self, on_delivered: OnDelivered) -> None:
        """Serve all logs until cancelled; `on_delivered` is called once for each job whose log is complete."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            loops = {
                "read logs": self._round,
                "look for streams": self._discover,
                "search logs": self._search,
            }
            for name, step in loops.items():
                tasks.create_task(self._persistently(step, on_delivered), name=name)

    async def _persistently(
        self, step: Callable[[OnDelivered], Awaitable[float]], on_delivered: OnDelivered
    ) -> None:
        """Repeat a step, with the pauses that it asks for; CloudWatch's refusals are ridden out."""
        tries, failing_since = 0, time.monotonic()
        while True:
            try:
                pause = await step(on_delivered)
                tries, failing_since = 0, time.monotonic()
            except WorkerError as error:  # also a refusal: one job's log must not end all others
                self._trouble.give_up(error, failing_since, self._logs.values())
                self._close((), on_delivered)
                pause = self._trouble.tell(error, tries)
                await self._trouble.warn(error, list(self._logs.values()))
                tries += 1
                await asyncio.sleep(pause)
                continue
            await (self._sleep(pause) if step == self._round else asyncio.sleep(pause))

    async def _round(self, on_delivered: OnDelivered) -> float:
        """Read what is due, assign, post, close; returns the seconds until something is due again."""
        self._start_replays()
        asked_at = time.monotonic()
        every = paces(self._logs.values(), asked_at, interval=self._interval, calls=self._feed.calls_a_second)
        logs = self._due(asked_at, every)
        for log in logs:
            log.reading = True
        try:
            await self._assign(self._logs.values())
            cut = await self._read_all([log for log in logs if not log.ahead])
        finally:
            for log in logs:
                log.reading = False
        now = time.monotonic()
        read = [log for log in logs if not log.ahead and not cut & log.positions.keys()]
        for log in read:
            log.swept_at = asked_at
            # All on one grid of time: what is due together shares calls.
            step = every.step(log, now)
            log.due_at = round(asked_at / step + 1) * step
        # The states of a job that says nothing are told as well.
        await self._hand_on([log.assign(()) for log in read if log.is_read and log.untold])
        # Only what this round has read to its end and found nothing in: a backlog is not quiet, however old it is.
        self._close([log for log in read if log.is_read and self._is_quiet(log)], on_delivered)
        return self._until_due()

    def _due(self, now: float, every: Paces) -> list[JobLog]:
        """The logs that a round reads: when some are due, also those that nearly are, since they share calls."""
        ready = [log for log in self._logs.values() if log.is_read and not log.ahead]
        if not any(log.ready_at(self._post_gap) <= now for log in ready):
            return []
        return due(ready, now, every, soon=now + self._interval / 4)

    def _until_due(self) -> float:
        now = time.monotonic()
        at = min((log.ready_at(self._post_gap) for log in self._logs.values() if log.is_read), default=now)
        return max(min(_GATHER, self._interval), min(at - now, self._interval))

    async def _sleep(self, pause: float) -> None:
        """So long, or until there is something new to do, but for a moment in which more of it may come together."""
        gather = min(_GATHER, pause)
        await asyncio.sleep(gather)
        if pause > gather:
            await wait_for_event(self._wake, pause - gather)
        self._wake.clear()

    async def _read_all(self, logs: Sequence[JobLog]) -> set[str]:
        """Read behind the positions of these logs and hand on what is found; returns the streams that were not read to
        their end. What fails for some groups puts off their logs alone; raises it if it fails for all."""
        by_stream = {stream: log for log in logs for stream in log.positions}
        since = {stream: log.positions[stream].timestamp for stream, log in by_stream.items()}
        rates = {stream: rate for log in logs for stream, rate in log.rates.items()}
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def read(group: Sequence[str]) -> Iterable[str]:
            async with at_once:
                if not make_room(self._logs.values(), time.monotonic()):
                    return group
                return await self._read({stream: by_stream[stream] for stream in group})

        groups = stream_groups(since, rates) or [[]]
        # None is cancelled for another one's trouble: what it has assigned already would never be posted.
        results = await asyncio.gather(*map(read, groups), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        cut: set[str] = set()
        put_off: set[JobLog] = set()
        for group, result in zip(groups, results, strict=True):
            if not isinstance(result, BaseException):
                cut |= set(result)
                continue
            if len(failed) == len(groups) or not isinstance(result, WorkerError):
                raise result
            own = {by_stream[stream] for stream in group}
            self._trouble.put_off(result, own)
            put_off |= own
            cut |= set(group)
        for log in set(logs) - put_off:
            log.failed_reads = 0
        return cut

    async def _read(self, group: dict[str, JobLog]) -> Iterable[str]:
        asked_ms = self._feed.now_ms()
        sweep = await self._feed.sweep({stream: log.positions[stream] for stream, log in group.items()})
        self._trouble.passed(read=bool(group))
        await self._breather()  # of a large sweep what was before takes milliseconds, and so does this
        take_in(sweep, group, asked_ms)
        await self._assign(dict.fromkeys(group.values()))
        return sweep.cut_at

    async def _assign(self, logs: Iterable[JobLog]) -> None:
        """Give what was read ahead its place and post it: of each log as much as a batch holds, if it may be posted."""
        now = time.monotonic()
        batches: list[AssignedBatch] = []
        done = 0
        for log in [log for log in logs if log.ahead]:
            if done + len(log.ahead) >= _LINES_A_TURN:
                done = 0
                await self._breather()
            if log.ahead and log.is_read and log.posted_at + self._post_gap <= now:
                batches.append(log.take())
                done += batches[-1].events
        await self._hand_on(batches)

    async def _hand_on(self, batches: Sequence[AssignedBatch]) -> None:
        """Batches are written and posted at once: an assignment that a failed call left behind would never be."""
        for batch in await self._posting.make_durable(batches):
            self._tasks.create_task(self._post(batch), name=f"post {batch.log.held.record.job_name}")

    async def _post(self, batch: AssignedBatch) -> None:
        await self._posting.post(batch)
        self._acknowledged(batch.log)

    def _acknowledged(self, log: JobLog) -> None:
        if log.ahead or log.due_at <= time.monotonic():
            self._wake.set()

    def _start_replays(self) -> None:
        again = [log for log in self._logs.values() if log.replay_due]
        for log in again:
            log.replay_due = False
        if again:
            self._tasks.create_task(self._replay(again), name="replay batches")

    async def _replay(self, logs: Sequence[JobLog]) -> None:
        """Batches of many jobs are read again together."""
        for group in replay_groups(logs):
            found = await self._posting.read_again(group)
            for log in group:
                name = f"replay {log.held.record.job_name}"
                self._tasks.create_task(self._replay_one(log, found.get(log, ())), name=name)

    async def _replay_one(self, log: JobLog, found: Sequence[LogEvent]) -> None:
        await self._posting.replay(log, found)
        self._acknowledged(log)

    async def _discover(self, _: OnDelivered) -> float:
        """Look for new streams; returns the seconds until it is worth while again."""
        found, more = await self._discovery.look(self._logs.values())
        if found:
            self._wake.set()
        return 0.0 if more else self._interval

    async def _search(self, _: OnDelivered) -> float:
        """Look for late events where it is due. A log that is searched is not read meanwhile, and one that is to be
        searched not any more: else a log that has something new each time would never come to it."""
        logs = [log for log in self._logs.values() if log.is_open]
        wanted = set(late := self._closing.due(logs))
        for log in logs:
            log.searching = log in wanted
        ready = [log for log in late if not (log.posting or log.reading)]
        try:
            for log in ready:
                log.ahead.clear()  # read before the search, it would pass for what the search has seen
                log.due_at = 0.0
            async for batch in self._closing.sweep_running(ready):
                await self._hand_on([batch])
        finally:
            for log in ready:
                log.searching = False
        self._wake.set()
        return min(_GATHER, self._interval) if late else self._interval

    def _close(self, quiet: Sequence[JobLog], on_delivered: OnDelivered) -> None:
        for log in self._logs.values():
            if log.unwritable and log.ended_at is not None and not log.given_up:
                self._posting.give_up_unwritable(log)
        given_up = [log for log in self._logs.values() if log.given_up and not log.closing]
        for log in (*quiet, *given_up):
            log.closing = True
            self._tasks.create_task(
                self._close_one(log, on_delivered), name=f"close {log.held.record.job_name}"
            )

    def _is_quiet(self, log: JobLog) -> bool:
        """Nothing came for the quiet time, and that was looked at: neither waiting nor a full round counts as quiet."""
        if log.ended_at is None or log.looked_at < log.ended_at:
            return False
        found_nothing = (
            log.swept_at - log.news_at >= self._quiet and log.looked_at >= log.ended_at + self._quiet / 2
        )
        return found_nothing or log.swept_at - log.ended_at >= self._drain_limit

    async def _close_one(self, log: JobLog, on_delivered: OnDelivered) -> None:
        if not log.given_up:
            await self._closing.close(log)
        self._forget(log.held)
        if not log.held.lost:
            on_delivered(log.held)

    def _forget(self, held: HeldLaunch) -> None:
        log = self._logs.get(held.launch_id)
        if log is not None and log.held is held:  # it may have been claimed anew meanwhile
            del self._logs[held.launch_id]
