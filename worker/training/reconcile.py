"""At the end of a log: what CloudWatch holds and nobody took, whatever the reason; pure.

It needs no order and no ingestion times, so it also finds what became visible behind something newer, which AWS does
not rule out, and what came too late for the marks of `cursor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from worker.launch.log_state import LogState, StreamPosition
from worker.training import cursor
from worker.training.cursor import LogEvent
from worker.training.sketch import Sketch, key_of


def untaken(state: LogState, held: Sketch) -> Mapping[int, int] | None:
    """Key → how often, of events that CloudWatch holds (`held`: all events of all streams) and the log has not got;
    None: too much differs to be told. Events that were taken and are gone (retention) are no loss."""
    if not state.sketch and state.batch is not None:
        return {}  # the log was begun by a version without sketches
    difference = held.without(Sketch(state.sketch))
    return None if difference is None else {key: count for key, count in difference.items() if count > 0}


class Strays:
    """Picks the events of `untaken` out of what is read again."""

    def __init__(self, missing: Mapping[int, int]) -> None:
        self.events: list[LogEvent] = []
        self._missing = dict(missing)

    def add(self, page: Iterable[LogEvent]) -> None:
        """Look through the next page."""
        for event in page:
            key = key_of(cursor.event_hash(event))
            if self._missing.get(key, 0) > 0:
                self._missing[key] -= 1
                self.events.append(event)


def behind(
    positions: Mapping[str, StreamPosition], strays: Sequence[LogEvent]
) -> Mapping[str, StreamPosition]:
    """The positions once `strays`, in the API's order, have been taken: what lies ahead of a position moves it."""
    moved = dict(positions)
    for event in strays:
        position = moved.get(event.stream, cursor.NOTHING_TAKEN)
        if event.key >= (position.timestamp, position.ingested):
            moved[event.stream] = cursor.advance(position, [event])
    return moved
