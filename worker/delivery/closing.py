"""What is done once a job has ended and its log is quiet: late events, then the full record as files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence

from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.launch.log_state import StreamPosition
from worker.tracking.log_files import LogFile, NumberedFiles
from worker.tracking.port import Companion
from worker.training import cursor
from worker.training.log_feed import MAX_STREAMS, LogFeed

_DEEP_SWEEP_EVERY = 300.0
_DEEP_SWEEP_BACK_MS = 900_000
"""Long sweeps of running jobs look a quarter of an hour back; what comes later than that is found after the end."""


class Closing:
    """Deep sweeps and the last steps of a log."""

    def __init__(self, *, feed: LogFeed, posting: Posting, companion: Companion) -> None:
        self._feed = feed
        self._posting = posting
        self._companion = companion

    async def sweep_running(self, logs: Sequence[JobLog]) -> AsyncIterator[AssignedBatch]:
        """Look for late events where it is due; for each job those of one stream are assigned and given out."""
        due = {stream: (log, since) for log in logs for stream, since in _due(log).items()}
        async for batch in self._late_batches(due):
            yield batch

    async def close(self, log: JobLog) -> None:
        """The deep sweep after the end, then the files. May be repeated at any point."""

        async def late() -> None:
            found = True
            while found:
                found = False
                everything = dict.fromkeys(log.positions, (log, 0))
                async for batch in self._late_batches(everything):
                    found = True
                    for durable in await self._posting.make_durable([batch]):
                        await self._posting.post(durable)

        uploaded: set[str] = set()

        async def files() -> None:
            async for file in self._full_record(log):
                if file.name not in uploaded:
                    await self._companion.upload(log.held.record, file.name, file.content)
                    uploaded.add(file.name)

        if await self._posting.until_done(log, late):
            await self._posting.until_done(log, files)

    async def _late_batches(self, due: Mapping[str, tuple[JobLog, int]]) -> AsyncIterator[AssignedBatch]:
        """`due`: stream → its log, and from when (ms) to look. Streams of many jobs share the calls."""
        streams = sorted((stream for stream in due if _position(due, stream).marks), key=lambda s: due[s][1])
        for start in range(0, len(streams), MAX_STREAMS):
            group = streams[start : start + MAX_STREAMS]
            since = due[group[0]][1]
            searches = await self._search({stream: _position(due, stream) for stream in group}, since)
            for stream, search in searches.items():
                log = due[stream][0]
                if not log.posting and (batch := _assign_late(log, stream, search, since)):
                    yield batch

    async def _search(
        self, positions: Mapping[str, StreamPosition], since: int
    ) -> Mapping[str, cursor.LateSearch]:
        known = {stream: position.marks[-1][1] for stream, position in positions.items()}
        until = max(position.timestamp for position in positions.values())
        while True:
            searches = {s: cursor.LateSearch(position, known[s]) for s, position in positions.items()}
            async for page in self._feed.pages(sorted(positions), since, until):
                for stream, search in searches.items():
                    search.add([event for event in page if event.stream == stream])
            if all(search.settled for search in searches.values()):
                return searches
            known = {stream: search.newest for stream, search in searches.items()}

    async def _full_record(self, log: JobLog) -> AsyncIterator[LogFile]:
        attempt = log.held.record.attempt
        folder = f"attempt-{attempt}/" if attempt > 1 else ""  # each attempt's job has an algo-1 of its own
        files: dict[str, NumberedFiles] = {}
        # A restarted host has a second stream; names end in their start time, so this is their order.
        for stream in sorted(log.positions):
            label = cursor.stream_label(stream)
            numbered = files.setdefault(label, NumberedFiles(f"{folder}{label}"))
            async for page in self._feed.pages([stream], 0, None):
                for event in page:
                    for text in event.message.rstrip("\r\n").split("\n"):
                        if full := numbered.add(event.timestamp, text):
                            yield full
        for numbered in files.values():
            if rest := numbered.rest():
                yield rest


def _due(log: JobLog) -> Mapping[str, int]:
    """Streams to search now → from when, ms: all of them from time to time, else those whose marks are used up."""
    now = time.monotonic()
    if log.ended_at is None and now - log.deep_swept_at > _DEEP_SWEEP_EVERY:
        log.deep_swept_at = now
        return {
            stream: max(0, position.timestamp - _DEEP_SWEEP_BACK_MS)
            for stream, position in log.positions.items()
        }
    return {
        stream: cursor.newer_marks_since(position)
        for stream, position in log.positions.items()
        if cursor.needs_deep_sweep(position)
    }


def _assign_late(log: JobLog, stream: str, search: cursor.LateSearch, since: int) -> AssignedBatch | None:
    taken = cursor.take_late(search.late)
    if len(taken) == len(search.late):
        log.positions[stream] = cursor.after_deep_sweep(log.positions[stream], search.known, since)
    else:
        log.positions[stream] = cursor.after_late(log.positions[stream], taken)
    return log.assign(taken) if taken else None


def _position(due: Mapping[str, tuple[JobLog, int]], stream: str) -> StreamPosition:
    return due[stream][0].positions[stream]
