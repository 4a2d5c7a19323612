"""Which batches of jobs that were taken over are read again in one call: pure."""

from __future__ import annotations

from collections.abc import Sequence

from worker.delivery.job_log import JobLog
from worker.training.stream_groups import MAX_STREAMS, stream_groups

_MAX_LINES = 10_000
"""Lines in memory for one group, but for a batch that is larger."""
_LEAST_SPAN = 60.0
"""Seconds that a batch's lines count as spread over: a burst says little about what was printed before it."""


def replay_groups(logs: Sequence[JobLog]) -> list[list[JobLog]]:
    """Logs whose outstanding batches one call can bring: near to each other in time, and not too many lines."""
    by_id = {log.held.launch_id: log for log in logs}
    since: dict[str, int] = {}
    rates: dict[str, float] = {}
    for launch_id, log in by_id.items():
        batch = log.held.record.log.batch
        assert batch is not None
        first = min((first for first, _ in batch.streams.values()), default=0)
        last = max((last for _, last in batch.streams.values()), default=0)
        since[launch_id] = first
        rates[launch_id] = batch.lines / max(_LEAST_SPAN, (last - first) / 1000)
    groups: list[list[JobLog]] = []
    for together in stream_groups(since, rates):
        groups.append([])
        streams = lines = 0
        for log in (by_id[launch_id] for launch_id in together):
            batch = log.held.record.log.batch
            assert batch is not None
            streams, lines = streams + len(batch.streams), lines + batch.lines
            if groups[-1] and (streams > MAX_STREAMS or lines > _MAX_LINES):
                groups.append([])
                streams, lines = len(batch.streams), batch.lines
            groups[-1].append(log)
    return groups
