"""Which events of a stream are new, and which lines they become: pure.

Order within a stream is FilterLogEvents' own: timestamp, then ingestion time, then PutLogEvents id. A position is
the last event taken in that order. An event that arrives *behind* a position was ingested after the answer that
made the position pass its timestamp; `marks` remember, step by step, how far the position went and the newest
ingestion time seen by then, so that a deep sweep tells late events from taken ones without keeping a list of ids.

While a job runs it is relied on that the events of one PutLogEvents have one ingestion time and appear together, and
that whatever was ingested by then is in an answer. The pages of one read are separate answers: what arrives between
two of them may be older than what the second one shows. AWS promises none of this, so the end relies on nothing: a
`sketch` of all events taken is compared with what CloudWatch holds then (`reconcile`).
"""

from __future__ import annotations

import base64
import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter

from worker.launch.console import ConsoleLine
from worker.launch.log_state import LogBatch, LogState, StreamPosition
from worker.training.sketch import Sketch

MAX_BATCH_EVENTS = 5000
"""Events in one assigned batch: 8 bytes of hash each stay far below DynamoDB's 400 KB an item, and two batches hold a
page of CloudWatch's."""
MAX_BATCH_BYTES = 4 << 20
"""W&B's own clients send up to 10 MB a post; 413 would be fatal for the batch, so stay well below."""
MAX_MARKS = 80
"""Marks a position may carry, about 30 bytes each in the ledger."""
DEEP_SWEEP_MARKS = 64
"""From here on a deep sweep is due; the rest is for the pages of the next batch."""
KEPT_MARKS = 24
"""Marks that a sweep leaves as they are for the time before its window: with windows that double, a job of 28 days
has no more. Were an older one forgotten, a late event would have to wait for the sketch to find it."""
MAX_TIED = 64
"""Tied events that are told apart by hash; more are counted."""
MAX_STORED_MARKS = 4000
"""Marks of all streams together in one ledger record: 120 KB of DynamoDB's 400 KB an item."""
NOTHING_TAKEN = StreamPosition(timestamp=-1, ingested=-1, ties=0)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One CloudWatch event. Times are ms since the epoch."""

    stream: str
    timestamp: int
    ingested: int
    message: str
    page: int = field(default=0, compare=False)
    """Which answer of a read it came with: the events of one answer were seen at one moment."""

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the stream, but for ties."""
        return (self.timestamp, self.ingested)


class EventsGone(Exception):
    """Events of an assigned batch are no longer in CloudWatch."""


def after_position(events: Sequence[LogEvent], position: StreamPosition) -> list[LogEvent]:
    """The events of one stream, in the API's order from `position.timestamp` on, that were not taken yet."""
    reached = (position.timestamp, position.ingested)
    fresh: list[LogEvent] = []
    ties = 0
    tied = Counter(_tied_hashes(position))
    for event in events:
        if event.key < reached:
            continue
        if event.key == reached:
            if tied:
                mark = event_hash(event)[:4]
                if tied[mark] > 0:
                    tied[mark] -= 1
                    continue
            elif not position.tied:
                ties += 1
                if ties <= position.ties:
                    continue
        fresh.append(event)
    return fresh


def late_events(events: Sequence[LogEvent], position: StreamPosition) -> list[LogEvent]:
    """The events of one stream, from a deep sweep, that lie behind `position` and came after it had passed.

    At the position's own millisecond nothing is late: newer ingestion sorts behind the position, so it is new."""
    late: list[LogEvent] = []
    for event in events:
        if event.timestamp >= position.timestamp:
            continue
        # The first mark beyond it: none reaches less far than the one before.
        index = bisect_right(position.marks, event.timestamp, key=itemgetter(0))
        if index < len(position.marks) and event.ingested > position.marks[index][1]:
            late.append(event)
    return late


class LateSearch:
    """Gathers the late events of one deep sweep over a stream, page by page.

    Only what was ingested by the first page is certain to be on the pages: taking anything newer would hide what
    arrived, between two pages, on one read already. Then the sweep is not `settled`: search again, from `newest`."""

    def __init__(self, position: StreamPosition, known: int) -> None:
        """`known`: an ingestion time (ms) that had been seen when the sweep began."""
        self.late: list[LogEvent] = []
        self.known = self.newest = known
        self._position = position
        self._first = True

    def add(self, page: Sequence[LogEvent]) -> None:
        """Take in the next page, in the API's order."""
        self.newest = max([self.newest, *(event.ingested for event in page)])
        if self._first:
            self.known, self._first = self.newest, False
        self.late += late_events(page, self._position)

    @property
    def settled(self) -> bool:
        """Nothing that may be late was ingested after `known`: `late` is all there was by then."""
        return all(event.ingested <= self.known for event in self.late)


def advance(position: StreamPosition, taken: Sequence[LogEvent]) -> StreamPosition:
    """The position after taking `taken`, which follow it in the API's order."""
    for _, page in groupby(taken, key=lambda event: event.page):
        position = _advance_one_page(position, list(page))
    return position


def _advance_one_page(position: StreamPosition, taken: Sequence[LogEvent]) -> StreamPosition:
    first, last = taken[0], taken[-1]
    tied = [event_hash(event)[:4] for event in taken if event.key == last.key]
    ties = len(tied)
    if last.key == (position.timestamp, position.ingested):
        ties += position.ties
        tied = [*_tied_hashes(position), *tied]
    known = position.marks[-1][1] if position.marks else -1
    newest = max(known, *(event.ingested for event in taken))
    marks = (*position.marks[:-1], (last.timestamp, newest))
    if newest > known:
        # Up to the first event nothing was taken: that stretch may have been read on an earlier page.
        marks = (*position.marks[:-1], (first.timestamp, known), (last.timestamp, newest))
    told = base64.b64encode(b"".join(tied)).decode() if ties == len(tied) <= MAX_TIED else ""
    return StreamPosition(last.timestamp, last.ingested, ties, _newest(marks, MAX_MARKS), told)


def _tied_hashes(position: StreamPosition) -> list[bytes]:
    raw = base64.b64decode(position.tied)
    return [raw[start : start + 4] for start in range(0, len(raw), 4)]


def _newest(marks: tuple[tuple[int, int], ...], most: int) -> tuple[tuple[int, int], ...]:
    """At most so many marks: the oldest, which what is later than all others is measured by, and the newest."""
    return marks if len(marks) <= most else (marks[0], *marks[1 - most :])


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


def after_deep_sweep(position: StreamPosition, known: int, since: int) -> StreamPosition:
    """The position once a deep sweep over [`since`, position] has been dealt with; `known` is the ingestion time up
    to which it saw everything. The marks within collapse to one; older ones remain for what came, or may still come,
    behind `since`."""
    if not position.marks:
        return position
    older: tuple[tuple[int, int], ...] = ()
    if 0 < since <= position.timestamp:
        older = tuple(mark for mark in position.marks if mark[0] <= since)
        cut = next((newest for reached, newest in position.marks if reached > since), None)
        if cut is not None and (not older or older[-1][0] < since):
            older = (*older, (since, cut))
    newest = max(position.marks[-1][1], known)
    return replace(position, marks=(*_newest(older, KEPT_MARKS), (position.timestamp, newest)))


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
    return len(position.marks) >= DEEP_SWEEP_MARKS


def newer_marks_since(position: StreamPosition) -> int:
    """From when (ms) a short sweep has to look to make all marks but the kept ones one. Its window grows until a
    long one comes."""
    return position.marks[KEPT_MARKS - 1][0]


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
    hashes = [event_hash(event) for event in events]
    spans: dict[str, tuple[int, int]] = {}
    for event in events:
        first, last = spans.get(event.stream, (event.timestamp, event.timestamp))
        spans[event.stream] = (min(first, event.timestamp), max(last, event.timestamp))
    batch = LogBatch(
        first_line=state.next_line,
        lines=len(lines),
        streams=spans,
        events=base64.b64encode(b"".join(hashes)).decode(),
        digest=lines_digest(lines),
    )
    sketch = ""
    if state.sketch or state.batch is None:  # else the log was begun by a version without sketches
        taken = Sketch(state.sketch)
        taken.add(hashes)
        sketch = taken.text
    stored = _within_marks({**state.positions, **positions})
    following = replace(state, next_line=state.next_line + len(lines), positions=stored, batch=batch)
    return replace(following, acknowledged=False, sketch=sketch), lines


def _within_marks(positions: Mapping[str, StreamPosition]) -> Mapping[str, StreamPosition]:
    """Positions that fit into a ledger record: with very many streams each keeps fewer, its newest marks."""
    most = max(2, MAX_STORED_MARKS // max(1, len(positions)))
    return {
        stream: replace(position, marks=_newest(position.marks, most))
        if len(position.marks) > most
        else position
        for stream, position in positions.items()
    }


def replay(batch: LogBatch, events: Iterable[LogEvent]) -> list[LogEvent]:
    """The batch's own events, in its order, out of whatever its streams hold in its span now.

    Raises `EventsGone` when one is missing (log retention, deleted stream)."""
    found = {event_hash(event): event for event in events}
    wanted = batch_hashes(batch)
    missing = sum(1 for key in wanted if key not in found)
    if missing:
        raise EventsGone(f"{missing} of {len(wanted)} events of the batch are no longer in CloudWatch")
    return [found[key] for key in wanted]


def batch_hashes(batch: LogBatch) -> list[bytes]:
    """The hashes of a batch's events, in console order."""
    raw = base64.b64decode(batch.events)
    return [raw[start : start + 8] for start in range(0, len(raw), 8)]


def take(events: Sequence[LogEvent]) -> Sequence[LogEvent]:
    """As many of `events`, from the front, as one batch may hold; at least one."""
    size = 0
    for index, event in enumerate(events[:MAX_BATCH_EVENTS]):
        # In the post a line is JSON within JSON: quotes and backslashes are escaped twice.
        size += 2 * len(event.message.encode("utf-8", "replace")) + 100
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
