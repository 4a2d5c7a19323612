"""What a sweep tells about the streams that it was of: events that wait for their turn, pace, silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from worker.delivery.job_log import JobLog
from worker.training import cursor
from worker.training.log_feed import Sweep

_SILENCE_MS = 120_000
"""A silent stream counts as read up to this long ago; what turns up behind that later is a late event."""


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
