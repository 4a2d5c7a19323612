"""What is done once a job has ended and its log is quiet: late events, then the full record as files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.launch.log_state import StreamPosition
from worker.tracking.companion import CompanionRuns
from worker.tracking.log_files import LogFile, NumberedFiles
from worker.training import cursor
from worker.training.log_feed import LogFeed

_DEEP_SWEEP_EVERY = 300.0
_DEEP_SWEEP_BACK_MS = 3_600_000


class Closing:
    """Deep sweeps and the last steps of a log."""

    def __init__(self, *, feed: LogFeed, posting: Posting, companion: CompanionRuns) -> None:
        self._feed = feed
        self._posting = posting
        self._companion = companion

    @staticmethod
    def deep_sweep_is_due(log: JobLog) -> bool:
        """Marks are used up, or it is time; only for jobs that have logged at all."""
        if any(cursor.needs_deep_sweep(position) for position in log.positions.values()):
            return True
        return log.held.record.log.next_line > 0 and time.monotonic() - log.deep_swept_at > _DEEP_SWEEP_EVERY

    async def sweep_running(self, log: JobLog) -> AssignedBatch | None:
        """Look for late events of a running job; those of one stream are assigned and returned."""
        log.deep_swept_at = time.monotonic()
        return await self._deep_sweep(log, back_ms=_DEEP_SWEEP_BACK_MS)

    async def close(self, log: JobLog) -> None:
        """The deep sweep after the end, then the files. May be repeated at any point."""

        async def late() -> None:
            while (batch := await self._deep_sweep(log, back_ms=None)) is not None:
                for durable in await self._posting.make_durable([batch]):
                    await self._posting.post(durable)

        async def files() -> None:
            async for file in self._full_record(log):
                await self._companion.upload(log.held.record, file.name, file.content)

        if await self._posting.until_done(log, late):
            await self._posting.until_done(log, files)

    async def _deep_sweep(self, log: JobLog, *, back_ms: int | None) -> AssignedBatch | None:
        for stream, position in sorted(log.positions.items()):
            if not position.marks:
                continue
            since = 0 if back_ms is None else max(0, position.timestamp - back_ms)
            search = await self._search(stream, position, since)
            taken = cursor.take_late(search.late)
            if len(taken) == len(search.late):
                log.positions[stream] = cursor.after_deep_sweep(position, search.known, since)
            else:
                log.positions[stream] = cursor.after_late(position, taken)
            if taken:
                return log.assign(taken)
        return None

    async def _search(self, stream: str, position: StreamPosition, since: int) -> cursor.LateSearch:
        known = position.marks[-1][1]
        while True:
            search = cursor.LateSearch(position, known)
            async for page in self._feed.pages([stream], since, position.timestamp):
                search.add(page)
            if search.settled:
                return search
            known = search.newest

    async def _full_record(self, log: JobLog) -> AsyncIterator[LogFile]:
        files: dict[str, NumberedFiles] = {}
        # A restarted host has a second stream; names end in their start time, so this is their order.
        for stream in sorted(log.positions):
            label = cursor.stream_label(stream)
            numbered = files.setdefault(label, NumberedFiles(label))
            async for page in self._feed.pages([stream], 0, None):
                for event in page:
                    for text in event.message.rstrip("\r\n").split("\n"):
                        if full := numbered.add(event.timestamp, text):
                            yield full
        for numbered in files.values():
            if rest := numbered.rest():
                yield rest
