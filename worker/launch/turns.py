"""Whose turn it is to become a job: W&B's queues one after the other, within each the most urgent, then the oldest.

Pure. A team that sends five hundred launches at once has its turn as often as one that sends one: its burst waits for
itself alone. An hour of waiting makes a launch one priority more urgent, so that a steady stream of critical launches
holds a low one up for three hours and not for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.launch.record import LaunchRecord

QueueKey = tuple[str, str]
"""Entity and name of a W&B launch queue; launches that came without one are a queue of their own."""

_AGEING = 3600.0
"""Seconds of waiting that count as one priority."""


def queue_of(record: LaunchRecord) -> QueueKey:
    """The queue whose turn a launch uses."""
    return (record.queue_entity, record.queue)


def in_turn(
    waiting: Iterable[LaunchRecord], served: Mapping[QueueKey, int], now: float
) -> list[LaunchRecord]:
    """The waiting launches in the order in which they may be submitted, by who has been served how lately.

    `served`: queue → number of its last turn, greater is later; a queue that had none yet comes first. The first launch
    that can be submitted has the turn: whoever takes it counts it, and asks anew for the next. `now`: epoch seconds."""

    launches = list(waiting)
    oldest: dict[QueueKey, float] = {}
    for record in launches:
        queue = queue_of(record)
        oldest[queue] = min(_since(record), oldest.get(queue, _since(record)))

    def place(record: LaunchRecord) -> tuple[int, float, QueueKey, int, float]:
        queue = queue_of(record)
        return (served.get(queue, -1), oldest[queue], queue, _urgency(record, now), _since(record))

    return sorted(launches, key=place)


def _since(record: LaunchRecord) -> float:
    """Epoch seconds; what it has waited in earlier attempts counts."""
    return record.waiting_at - record.waited


def _urgency(record: LaunchRecord, now: float) -> int:
    return max(0, record.priority - int(max(0.0, now - _since(record)) // _AGEING))
