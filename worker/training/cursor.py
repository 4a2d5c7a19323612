"""Which events of a stream are new, and which lines they become: pure.

Order within a stream is FilterLogEvents' own: timestamp, then ingestion time, then PutLogEvents id. A position is
the last event taken in that order. An event that arrives *behind* a position was ingested after the sweep that
passed its timestamp; `marks` remember, per sweep, how far the position was and the newest ingestion time seen, so
that a deep sweep tells late events from taken ones without keeping a list of ids.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from worker.launch.console import ConsoleLine
from worker.launch.log_state import LogBatch, LogState, StreamPosition

MAX_BATCH_EVENTS = 4000
"""Events in one assigned batch: 8 bytes of hash each stay far below DynamoDB's 400 KB an item."""
MAX_BATCH_BYTES = 4 << 20
"""W&B's own clients send up to 10 MB a post; 413 would be fatal for the batch, so stay well below."""
MAX_MARKS = 32
"""Marks a position may carry; then a deep sweep is due."""
NOTHING_TAKEN = StreamPosition(timestamp=-1, ingested=-1, ties=0)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One CloudWatch event. Times are ms since the epoch."""

    stream: str
    timestamp: int
    ingested: int
    message: str

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the stream, but for ties."""
        return (self.timestamp, self.ingested)


def after_position(events: Sequence[LogEvent], position: StreamPosition) -> list[LogEvent]:
    """The events of one stream, in the API's order from `position.timestamp` on, that were not taken yet."""
    reached = (position.timestamp, position.ingested)
    fresh: list[LogEvent] = []
    ties = 0
    for event in events:
        if event.key < reached:
            continue
        if event.key == reached:
            ties += 1
            if ties <= position.ties:
                continue
        fresh.append(event)
    return fresh


def late_events(events: Sequence[LogEvent], position: StreamPosition) -> list[LogEvent]:
    """The events of one stream, from a deep sweep, that lie behind `position` and came after it had passed."""
    late: list[LogEvent] = []
    for event in events:
        if event.timestamp > position.timestamp or event.key >= (position.timestamp, position.ingested):
            continue
        passed = next((newest for reached, newest in position.marks if event.timestamp <= reached), None)
        if passed is not None and event.ingested > passed:
            late.append(event)
    return late


def advance(position: StreamPosition, taken: Sequence[LogEvent]) -> StreamPosition:
    """The position after taking `taken`, which follow it in the API's order."""
    if not taken:
        return position
    last = taken[-1].key
    ties = sum(1 for event in taken if event.key == last)
    if last == (position.timestamp, position.ingested):
        ties += position.ties
    newest = max(event.ingested for event in taken)
    if position.marks:
        newest = max(newest, position.marks[-1][1])
    marks = position.marks
    if marks and (marks[-1][1] == newest or len(marks) >= MAX_MARKS):
        # Nothing newer was ingested (or no room left): the step grows instead of a new one being added.
        marks = (*marks[:-1], (last[0], newest))
    else:
        marks = (*marks, (last[0], newest))
    return StreamPosition(last[0], last[1], ties, marks)


def take_late(late: Sequence[LogEvent]) -> Sequence[LogEvent]:
    """As many late events of one stream as a batch may hold, oldest ingestion first, never splitting one ingestion
    time: what was taken is then told from what is left by that time alone."""
    ordered = sorted(late, key=lambda event: (event.ingested, event.timestamp))
    if len(ordered) <= MAX_BATCH_EVENTS:
        return ordered
    last = ordered[MAX_BATCH_EVENTS - 1].ingested
    return [event for event in ordered if event.ingested <= last]


def after_late(position: StreamPosition, taken: Sequence[LogEvent]) -> StreamPosition:
    """The position once `taken` (from `take_late`) has been assigned: nothing ingested by then is late any more."""
    through = max(event.ingested for event in taken)
    marks = tuple((reached, max(newest, through)) for reached, newest in position.marks)
    return replace(position, marks=marks)


def after_deep_sweep(position: StreamPosition, newest_seen: int, since: int) -> StreamPosition:
    """The position once a deep sweep over [`since`, position] has been dealt with; `newest_seen` is the newest
    ingestion time it saw (-1: none). The marks within collapse to one; one older mark remains for what may still
    arrive behind `since`."""
    if not position.marks:
        return position
    newest = max(position.marks[-1][1], newest_seen)
    kept: tuple[tuple[int, int], ...] = ()
    if 0 < since <= position.timestamp:
        kept = ((since - 1, next(passed for reached, passed in position.marks if reached >= since - 1)),)
    return replace(position, marks=(*kept, (position.timestamp, newest)))


def skip_silence(position: StreamPosition, until: int) -> StreamPosition:
    """Move a silent stream's position to `until` (ms), so that it is not read from its beginning for ever.

    Correct although nothing was taken: the step's mark says that whatever turns up behind it came late."""
    if until <= position.timestamp:
        return position
    newest = position.marks[-1][1] if position.marks else -1
    marks = (*position.marks[:-1], (until, newest)) if position.marks else ((until, newest),)
    return StreamPosition(until, -1, 0, marks)


def needs_deep_sweep(position: StreamPosition) -> bool:
    """The marks are nearly used up."""
    return len(position.marks) >= MAX_MARKS - 1


def console_lines(event: LogEvent) -> list[ConsoleLine]:
    """The lines an event becomes: always at least one, the same ones whenever it is read again.

    Progress bars (`\\r`) are folded to their last state; NUL and lone surrogates, which W&B's store refuses, go."""
    label = stream_label(event.stream)
    text = event.message.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")
    return [ConsoleLine(event.timestamp, label, _fold(line)) for line in text.rstrip("\r\n").split("\n")]


def stream_label(stream: str) -> str:
    """`<job>/algo-1-1700000000` → `algo-1`."""
    host = stream.rpartition("/")[2]
    head, _, tail = host.rpartition("-")
    return head if head and tail.isdigit() else host


def assign(
    state: LogState, positions: Mapping[str, StreamPosition], events: Sequence[LogEvent]
) -> tuple[LogState, list[ConsoleLine]]:
    """Give `events` the next console lines; `positions` are the streams' positions once they are taken."""
    lines = [line for event in events for line in console_lines(event)]
    spans: dict[str, tuple[int, int]] = {}
    for event in events:
        first, last = spans.get(event.stream, (event.timestamp, event.timestamp))
        spans[event.stream] = (min(first, event.timestamp), max(last, event.timestamp))
    batch = LogBatch(
        first_line=state.next_line,
        lines=len(lines),
        streams=spans,
        events=base64.b64encode(b"".join(map(event_hash, events))).decode(),
        digest=lines_digest(lines),
    )
    return LogState(state.next_line + len(lines), {**state.positions, **positions}, batch), lines


def replay(batch: LogBatch, events: Iterable[LogEvent]) -> list[LogEvent]:
    """The batch's own events, in its order, out of whatever its streams hold in its span now.

    Raises LookupError when one is gone (log retention, deleted stream)."""
    found = {event_hash(event): event for event in events}
    raw = base64.b64decode(batch.events)
    wanted = [raw[start : start + 8] for start in range(0, len(raw), 8)]
    missing = sum(1 for key in wanted if key not in found)
    if missing:
        raise LookupError(f"{missing} of {len(wanted)} events of the batch are no longer in CloudWatch")
    return [found[key] for key in wanted]


def take(events: Sequence[LogEvent]) -> Sequence[LogEvent]:
    """As many of `events`, from the front, as one batch may hold; at least one."""
    size = 0
    for index, event in enumerate(events[:MAX_BATCH_EVENTS]):
        size += len(event.message) + 100
        if size > MAX_BATCH_BYTES and index:
            return events[:index]
    return events[:MAX_BATCH_EVENTS]


def event_hash(event: LogEvent) -> bytes:
    """8 bytes that identify an event; equal events have equal lines, so a tie does no harm."""
    key = f"{event.stream}\0{event.timestamp}\0{event.ingested}\0{event.message}"
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()


def lines_digest(lines: Iterable[ConsoleLine]) -> str:
    """sha256 of the lines as posted."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line.timestamp}\0{line.label}\0{line.content}\n".encode())
    return digest.hexdigest()


def _fold(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]
