"""Which log streams share a call of FilterLogEvents: pure.

A call reads all its streams from one time on, so one that stands far back makes the others be read again from there.
Streams at like positions share a call, up to AWS's hundred; a call ends earlier where reading again would cost more
than a further call does.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_STREAMS = 100
"""Log streams one FilterLogEvents may name (CloudWatch Logs API)."""
_READ_AGAIN = 1000.0
"""Events that may be read a second time for the sake of fewer calls: an eighth of a page."""


def stream_groups(since: Mapping[str, int], rates: Mapping[str, float]) -> list[list[str]]:
    """Streams for one call each, newest first. `since`: stream → from when it is to be read, ms since the epoch;
    `rates`: stream → about how many events a second it has, none if it is not there."""
    groups: list[list[str]] = []
    again, together, before = 0.0, 0.0, 0
    for stream in sorted(since, key=lambda stream: (-since[stream], stream)):
        again += together * (before - since[stream]) / 1000
        if not groups or len(groups[-1]) == MAX_STREAMS or again > _READ_AGAIN:
            groups.append([])
            again = together = 0.0
        groups[-1].append(stream)
        together += rates.get(stream, 0.0)
        before = since[stream]
    return groups
