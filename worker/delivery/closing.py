"""What is done once a job has ended and its log is quiet: late events, then the full record as files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.launch.log_state import StreamPosition
from worker.ops.logging import get_logger
from worker.tracking.log_files import LogFile, NumberedFiles
from worker.tracking.port import Companion
from worker.training import cursor, reconcile
from worker.training.log_feed import LogFeed, by_stream
from worker.training.sketch import Sketch
from worker.training.stream_groups import MAX_STREAMS

_DEEP_SWEEP_EVERY = 300.0
_DEEP_SWEEP_BACK_MS = 600_000
_STEP_MS = 300_000
"""Sweeps of running jobs look ten minutes and one step back, every second one two steps, every fourth four, and so
on: an event that is late by any time is found in about that time, and each event is read a few times more, whatever
the length of the job."""
_RECONCILIATIONS = 10
"""At most so often a log that has ended is compared with CloudWatch: each time found something new before."""

_log = get_logger()


class Closing:
    """Deep sweeps and the last steps of a log."""

    def __init__(self, *, feed: LogFeed, posting: Posting, companion: Companion) -> None:
        self._feed = feed
        self._posting = posting
        self._companion = companion

    def due(self, logs: Iterable[JobLog]) -> list[JobLog]:
        """The logs that are to be searched now, as many as share a call; those with used up marks first."""
        now = time.monotonic()
        due = [log for log in logs if _is_due(log, now)]
        due.sort(key=lambda log: (not _used_up(log), log.deep_swept_at))
        streams = 0
        for count, log in enumerate(due):
            streams += len(log.positions)
            if streams > MAX_STREAMS and count:
                return due[:count]
        return due

    async def sweep_running(self, logs: Sequence[JobLog]) -> AsyncIterator[AssignedBatch]:
        """Look for late events where it is due; for each job those of one stream are assigned and given out."""
        now_ms = self._feed.now_ms()
        due = {stream: (log, since) for log in logs for stream, since in _due(log, now_ms).items()}
        async for batch in self._late_batches(due, live=True):
            yield batch

    async def close(self, log: JobLog) -> None:
        """The deep sweep after the end, then the files, and with them the comparison of the whole log. May be
        repeated at any point."""

        async def late() -> None:
            found = True
            while found:
                found = False
                everything = dict.fromkeys(log.positions, (log, 0))
                async for batch in self._late_batches(everything):
                    found = True
                    await self._deliver(batch)

        uploaded: dict[str, bytes] = {}

        async def whole() -> None:
            for _ in range(_RECONCILIATIONS):
                held = Sketch()
                async for file in self._full_record(log, held):
                    digest = hashlib.sha256(file.content).digest()
                    if uploaded.get(file.name) != digest:
                        await self._companion.upload(log.held.record, file.name, file.content)
                        uploaded[file.name] = digest
                if not await self._take_strays(log, held):
                    return

        if await self._posting.until_done(log, late):
            await self._posting.until_done(log, whole)

    async def _take_strays(self, log: JobLog, held: Sketch) -> bool:
        """Deliver what CloudWatch holds and nobody has taken; True: there was some."""
        missing = reconcile.untaken(log.held.record.log, held)
        if missing is None:
            self._posting.metrics.log_unreconciled.inc()
            _log.error(
                "log_not_reconciled",
                launch_id=log.held.launch_id,
                training_job=log.held.record.job_name,
                what="the console may lack lines that came out of order; the files under logs/ have them all",
            )
            return False
        strays = reconcile.Strays(missing)
        if missing:
            async for page in self._feed.pages(sorted(log.positions), 0, None):
                strays.add(page)
        rest = strays.events
        while rest and not log.held.lost and not log.posting:
            taken = cursor.take(rest)
            rest = rest[len(taken) :]
            log.positions = dict(reconcile.behind(log.positions, taken))
            await self._deliver(log.assign(taken))
        return bool(strays.events)

    async def _deliver(self, batch: AssignedBatch) -> None:
        for durable in await self._posting.make_durable([batch]):
            await self._posting.post(durable)

    async def _late_batches(
        self, due: Mapping[str, tuple[JobLog, int]], *, live: bool = False
    ) -> AsyncIterator[AssignedBatch]:
        """`due`: stream → its log, and from when (ms) to look. Streams of many jobs share the calls."""
        streams = sorted((stream for stream in due if _position(due, stream).marks), key=lambda s: due[s][1])
        for start in range(0, len(streams), MAX_STREAMS):
            group = streams[start : start + MAX_STREAMS]
            since = due[group[0]][1]
            positions = {stream: _position(due, stream) for stream in group}
            searches = await self._search(positions, since, live=live)
            for stream, search in searches.items():
                log = due[stream][0]
                if not log.posting and (batch := _assign_late(log, stream, search, since)):
                    yield batch

    async def _search(
        self, positions: Mapping[str, StreamPosition], since: int, *, live: bool
    ) -> Mapping[str, cursor.LateSearch]:
        known = {stream: position.marks[-1][1] for stream, position in positions.items()}
        until = max(position.timestamp for position in positions.values())
        while True:
            searches = {s: cursor.LateSearch(position, known[s]) for s, position in positions.items()}
            async for page in self._feed.pages(sorted(positions), since, until, live=live):
                shown = by_stream(page)
                for stream, search in searches.items():
                    search.add(shown.get(stream, ()))  # a page without its events was a look at it, too
            if all(search.settled for search in searches.values()):
                return searches
            known = {stream: search.newest for stream, search in searches.items()}

    async def _full_record(self, log: JobLog, held: Sketch) -> AsyncIterator[LogFile]:
        """The files, from what CloudWatch holds now; all of it is added to `held`."""
        attempt = log.held.record.attempt
        folder = f"attempt-{attempt}/" if attempt > 1 else ""  # each attempt's job has an algo-1 of its own
        files: dict[str, NumberedFiles] = {}
        # A restarted host has a second stream; names end in their start time, so this is their order.
        for stream in sorted(log.positions):
            label = cursor.stream_label(stream)
            numbered = files.setdefault(label, NumberedFiles(f"{folder}{label}"))
            async for page in self._feed.pages([stream], 0, None):
                held.add(map(cursor.event_hash, page))
                for event in page:
                    for text in event.message.rstrip("\r\n").split("\n"):
                        if full := numbered.add(event.timestamp, text):
                            yield full
        for numbered in files.values():
            if rest := numbered.rest():
                yield rest


def _is_due(log: JobLog, now: float) -> bool:
    return (log.ended_at is None and now - log.deep_swept_at > _DEEP_SWEEP_EVERY) or _used_up(log)


def _used_up(log: JobLog) -> bool:
    return any(cursor.needs_deep_sweep(position) for position in log.positions.values())


def _due(log: JobLog, now_ms: int) -> Mapping[str, int]:
    """Streams to search now → from when, ms: all of them from time to time, else those whose marks are used up."""
    now = time.monotonic()
    if log.ended_at is None and now - log.deep_swept_at > _DEEP_SWEEP_EVERY:
        back = _window(log.deep_swept_ms, now_ms)
        log.deep_swept_at, log.deep_swept_ms = now, now_ms
        return {stream: max(0, position.timestamp - back) for stream, position in log.positions.items()}
    return {
        stream: cursor.newer_marks_since(position)
        for stream, position in log.positions.items()
        if cursor.needs_deep_sweep(position)
    }


def _window(before_ms: int, now_ms: int) -> int:
    """How far a sweep looks back (ms), from the time of the one before: by the highest power of two steps between.

    It depends on the clock alone, so a worker that takes over goes on with the same sequence."""
    between = (before_ms // _STEP_MS) ^ (now_ms // _STEP_MS)
    return int(_DEEP_SWEEP_BACK_MS + (_STEP_MS << max(0, between.bit_length() - 1)))


def _assign_late(log: JobLog, stream: str, search: cursor.LateSearch, since: int) -> AssignedBatch | None:
    taken = cursor.take_late(search.late)
    if len(taken) == len(search.late):
        log.positions[stream] = cursor.after_deep_sweep(log.positions[stream], search.known, since)
    else:
        log.positions[stream] = cursor.after_late(log.positions[stream], taken)
    return log.assign(taken) if taken else None


def _position(due: Mapping[str, tuple[JobLog, int]], stream: str) -> StreamPosition:
    return due[stream][0].positions[stream]
