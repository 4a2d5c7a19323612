"""The end of a job's log, for a report that has to be read by itself."""

from __future__ import annotations

from collections import deque

from worker.launch.record import LaunchRecord
from worker.training.cursor import stream_label
from worker.training.log_feed import LogFeed

MAX_CHARACTERS = 64 << 10
_LAST_MS = 600_000
"""How far before the last line it begins: a container may have printed for days."""


async def log_end(feed: LogFeed, record: LaunchRecord) -> str:
    """The last lines of all containers, at most 64 Ki characters of their last ten minutes; empty if nothing was
    printed."""
    positions = record.log.positions
    if not positions:
        return ""
    since = max(position.timestamp for position in positions.values()) - _LAST_MS
    labelled = len({stream_label(stream) for stream in positions}) > 1
    kept: deque[str] = deque()
    size = 0
    async for page in feed.pages(sorted(positions), since, None):
        for event in page:
            label = f"[{stream_label(event.stream)}] " if labelled else ""
            line = f"{label}{event.message.rstrip()}\n"[-MAX_CHARACTERS:]
            kept.append(line)
            size += len(line)
            while size > MAX_CHARACTERS:
                size -= len(kept.popleft())
    return "".join(kept)
