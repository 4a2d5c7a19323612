"""What a sweep tells about the streams that it was of: events that wait for their turn, pace, silence.

Times are monotonic seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from worker.delivery.job_log import JobLog
from worker.training import cursor
from worker.training.log_feed import Sweep

_SILENCE_MS = 120_000
"""A silent stream counts as read up to this long ago; what turns up behind that later is a late event."""
_MAX_AHEAD = 40_000
"""Events of all jobs that wait in memory for their turn at W&B; beyond, nothing more is read."""
_STUCK_AFTER = 10.0
"""Seconds without W&B's answer to a log's newest batch, after which what is read ahead of it makes room for others."""


def make_room(logs: Collection[JobLog], now: float) -> bool:
    """Whether more of `logs` may be read. When there is no room, those that W&B does not take (it may be a run that was
    deleted) let go of what they hold: it stays in CloudWatch, and is read again once W&B has their batch."""
    if _has_room(logs):
        return True
    for log in logs:
        # Not one of this round: it would pass for read to its end.
        if log.posting and not log.reading and now - log.posted_at >= _STUCK_AFTER:
            log.ahead.clear()
            log.due_at = 0.0
    return _has_room(logs)


def _has_room(logs: Collection[JobLog]) -> bool:
    return sum(len(log.ahead) for log in logs) < _MAX_AHEAD


def take_in(sweep: Sweep, group: Mapping[str, JobLog], asked_ms: int) -> None:
    """`group`: stream → its log, of all streams that the sweep was asked for at `asked_ms`."""
    for stream in sweep.missing:
        group[stream].positions.pop(stream, None)
    present = {stream: log for stream, log in group.items() if stream not in sweep.missing}
    for event in sweep.events:
        present[event.stream].ahead.append(event)
    _note_rates(sweep, present, asked_ms)
    _skip_silence(sweep, present, asked_ms - _SILENCE_MS)


def _skip_silence(sweep: Sweep, group: Mapping[str, JobLog], until_ms: int) -> None:
    """Move the streams that had nothing new: left behind, they would make every sweep start at their beginning."""
    speaking = {event.stream for event in sweep.events}
    for stream, log in group.items():
        if stream not in speaking:
            until = min(until_ms, sweep.cut_at.get(stream, until_ms + 1) - 1)
            log.positions[stream] = cursor.skip_silence(log.positions[stream], until)


def _note_rates(sweep: Sweep, group: Mapping[str, JobLog], asked_ms: int) -> None:
    """Remember how busy each stream is: by what was found behind its position, and over what time."""
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for event in sweep.events:
        counts[event.stream] += 1
        first.setdefault(event.stream, event.timestamp)
    for stream, log in group.items():
        if stream in counts:
            span = (sweep.cut_at.get(stream, asked_ms) - first[stream]) / 1000
            log.rates[stream] = counts[stream] / max(1.0, span)
        else:
            log.rates.pop(stream, None)
