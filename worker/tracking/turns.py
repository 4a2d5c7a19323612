"""When each of many launches has its turn: at least once in an interval, at a moment of its own, so that they are
spread."""

from __future__ import annotations

import zlib
from collections.abc import Iterable


class Turns:
    """Times are seconds of any one clock. What is not asked about any more is forgotten."""

    def __init__(self, interval: float) -> None:
        """The first turn comes within half an `interval`, the second half to a whole one after it, and then one every
        interval: spread over all of it, also where all come at once."""
        self._interval = interval
        self._next: dict[str, tuple[float, float]] = {}
        """Launch → when its turn is, and seconds from then to the following one."""

    def due(self, launch_ids: Iterable[str], now: float) -> list[str]:
        """Of these, the ones whose turn has come since they were asked about last."""
        due: list[str] = []
        following: dict[str, tuple[float, float]] = {}
        for launch_id in launch_ids:
            at, gap = self._next.get(launch_id) or self._first(launch_id, now)
            if at <= now:
                due.append(launch_id)
                at, gap = at + gap, self._interval
                if at <= now:  # this process was asleep
                    at = now + self._first(launch_id, now)[1]
            following[launch_id] = at, gap
        self._next = following
        return due

    def _first(self, launch_id: str, now: float) -> tuple[float, float]:
        half = self._interval / 2
        share = zlib.crc32(launch_id.encode()) / (1 << 32)
        return now + half * share, half + half * share
