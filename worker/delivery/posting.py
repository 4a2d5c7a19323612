"""Assigned batches on their way to W&B: durable first, then posted until W&B has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from worker.aio import Breather, backoff, effect
from worker.delivery.job_log import AssignedBatch, JobLog
from worker.errors import Never, WorkerError
from worker.intake.refusal import Refusals
from worker.launch.record import LaunchRecord
from worker.ledger.held import HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.persistence import GIVE_UP_AFTER, Persistence, Tried
from worker.submit_queue import HeartbeatLate
from worker.tracking.history import history_rows
from worker.tracking.port import Companion
from worker.training import cursor
from worker.training.cursor import LogEvent
from worker.training.log_feed import LogFeed

_MAX_PAGES_AGAIN = 5
"""Pages that the batches of several jobs may lie on to be read together."""

_LARGE = 16 << 10
"""Characters, each line with a hundred more, from which a post's JSON is a piece of work of its own: 0.1 ms, up to 20.
A sweep's posts all begin together, a hundred small ones too."""
_LATE_BEAT = 1.0
"""Seconds between two looks whether a late heartbeat has come through, which tells whose the launches are."""

_log = get_logger()


class Posting:
    """Writes assignments to the ledger and posts them; the same lines at the same place, however often."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        feed: LogFeed,
        companion: Companion,
        metrics: Metrics,
        breather: Breather,
        give_up_after: float = GIVE_UP_AFTER,
        refusals: Refusals | None = None,
        on_answer: Callable[[LaunchRecord, bool], None] = lambda *_: None,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """`give_up_after` (seconds after a job's end) and `refusals`: see `persistence`. `on_answer` is told whether
        W&B's answer says that somebody pressed Stop in the companion; `is_current`: no other worker can have
        taken this one's launches over."""
        self._on_answer = on_answer
        self._is_current = is_current
        self.persistence = Persistence(metrics, give_up_after, refusals)
        self._held = held
        self._feed = feed
        self._companion = companion
        self._breather = breather
        self.metrics = metrics

    async def make_durable(self, batches: Sequence[AssignedBatch]) -> list[AssignedBatch]:
        """Write the assignments of all jobs together; returns those that are still ours and may be posted.

        While the ledger does not answer nothing may be posted, so this waits for it."""
        if not batches:
            return []
        tries = 0
        while True:
            try:
                with effect("assign_log_batch"):
                    await self._held.save(batch.log.held for batch in batches)
                return [batch for batch in batches if not batch.log.held.lost]
            except Never as error:
                # A record that the ledger cannot hold: the others are durable if they are written on their own.
                if len(batches) == 1:
                    self._stands_still(batches[0], str(error))
                    return []
                return [durable for batch in batches for durable in await self.make_durable([batch])]
            except WorkerError as error:
                _log.warning("ledger_unreachable", error=str(error))
                await asyncio.sleep(backoff(tries, cap=10))
                tries += 1

    def _stands_still(self, batch: AssignedBatch, why: str) -> None:
        """Without the batch the record can be written, so that the launch ends in the ledger too."""
        log = batch.log
        _log.error("log_stands_still", launch_id=log.held.launch_id, error=why)
        log.held.update(log=batch.before)
        log.unwritable = why
        if log.ended_at is not None:
            self.give_up_unwritable(log)

    def give_up_unwritable(self, log: JobLog) -> None:
        """The job of a log that stands still has ended: the launch is finished without the rest."""
        self.persistence.give_up(log.held, "log_delivery", log.unwritable)
        log.given_up = True

    async def post(self, batch: AssignedBatch) -> None:
        """Post until W&B has the lines, the launch is somebody else's, or it is given up."""
        record = batch.log.held.record

        async def send() -> None:
            stopped = await self._companion.post_lines(
                record, batch.first_line, batch.lines, first_row=batch.first_row, rows=batch.rows
            )
            if stopped or batch.is_for_console:  # else W&B was not asked, and has not said that nobody did
                self._on_answer(record, stopped)

        size = _size(len(batch.lines), (line.content for line in batch.lines))
        if await self.until_done(batch.log, send, size):
            self.metrics.log_lines.inc(len(batch.lines))
            if batch.events:
                self.metrics.log_latency.observe(max(0.0, time.time() - batch.newest_ingested / 1000))
            if batch.is_for_console:
                batch.log.held.posted_at = time.monotonic()
            batch.log.acknowledged()

    async def read_again(self, logs: Sequence[JobLog]) -> Mapping[JobLog, Sequence[LogEvent]]:
        """What CloudWatch holds of the outstanding batches of some logs, of which there are not too many streams for a
        call; less than all of it if that takes many pages, or if CloudWatch does not answer: then each log's replay
        reads on its own."""
        try:
            return await self._outstanding(logs, _MAX_PAGES_AGAIN)
        except WorkerError as error:
            _log.warning("log_replays_not_read_together", jobs=len(logs), error=str(error))
            return {}

    async def _outstanding(
        self, logs: Sequence[JobLog], most_pages: int | None = None
    ) -> Mapping[JobLog, Sequence[LogEvent]]:
        batches = {log: batch for log in logs if (batch := log.held.record.log.batch)}
        owners = {stream: log for log, batch in batches.items() for stream in batch.streams}
        spans = [span for batch in batches.values() for span in batch.streams.values()]
        found: dict[JobLog, list[LogEvent]] = {log: [] for log in logs}
        if not spans:
            return found
        wanted = {log: frozenset(cursor.batch_hashes(batch)) for log, batch in batches.items()}
        since, until = min(first for first, _ in spans), max(last for _, last in spans)
        pages = 0
        # Groups are read one after the other, and none of their logs is read on before; single ones may be hundreds.
        async for page in self._feed.pages(sorted(owners), since, until, live=most_pages is not None):
            for event in page:
                if cursor.event_hash(event) in wanted[log := owners[event.stream]]:
                    found[log].append(event)
            pages += 1
            if pages == most_pages:
                break
        return found

    async def replay(self, log: JobLog, found: Sequence[LogEvent] = ()) -> None:
        """Post the batch that the ledger holds: its assigner may have died before W&B had it. `found`: what has been
        read of it already."""
        record = log.held.record
        batch = record.log.batch
        assert batch is not None

        async def send() -> None:
            try:
                events = cursor.replay(batch, found)
            except cursor.EventsGone:  # or `found` is not all there is
                events = cursor.replay(batch, (await self._outstanding([log]))[log])
            lines = [line for event in events for line in cursor.console_lines(event)]
            if cursor.lines_digest(lines) != batch.digest:
                _log.error("log_replay_differs", launch_id=record.launch_id, first_line=batch.first_line)
            rows = history_rows(record, batch.first_row, lines, batch.statuses)
            await self._companion.post_lines(
                record, batch.first_line, lines, first_row=batch.first_row, rows=rows
            )
            self.metrics.log_lines.inc(len(lines))

        try:
            size = _size(batch.lines, (event.message for event in found))
            done = await self.until_done(log, send, size)
        except cursor.EventsGone as error:
            # Retention or a deleted stream: most likely W&B has the lines; holding the rest back would help nobody.
            _log.error("log_replay_impossible", launch_id=record.launch_id, error=str(error))
            done = True
        if done:
            log.acknowledged()

    async def until_done(self, log: JobLog, send: Callable[[], Awaitable[None]], size: int = 0) -> bool:
        """Repeat `send`, whose post is of `size`, until it succeeds. False: the launch is lost, or given up a long time
        after its job's end; until then W&B's refusals are ridden out too: a key that is rotated or a server that is
        mended brings the log on, and the backlog stays in CloudWatch."""

        async def send_as_owner() -> None:
            if size >= _LARGE:
                await self._breather()  # before it is known whose the run is: the process may be frozen here
            # The lines of a worker that was frozen would do no harm, but they might revive a run that is over.
            while not (self._is_current() or log.held.lost):  # noqa: ASYNC110  # a point in time, no event
                await asyncio.sleep(_LATE_BEAT)
            if log.held.lost:
                raise HeartbeatLate("another worker has the launch")
            await send()

        tried = await self.persistence.until_done(
            log.held, "log_delivery", send_as_owner, cap=30, final=(cursor.EventsGone,)
        )
        log.given_up = log.given_up or tried is Tried.GIVEN_UP
        return tried is Tried.DONE


def _size(lines: int, texts: Iterable[str]) -> int:
    return 100 * lines + sum(map(len, texts))
