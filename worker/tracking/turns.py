"""When each of many launches has its turn: once in an interval, at a moment of its own, so that they are spread."""

from __future__ import annotations

import zlib
from collections.abc import Iterable


class Turns:
    """Times are seconds of any one clock. What is not asked about any more is forgotten."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next: dict[str, float] = {}

    def due(self, launch_ids: Iterable[str], now: float) -> list[str]:
        """Of these, the ones whose turn has come since they were asked about last."""
        due: list[str] = []
        following: dict[str, float] = {}
        for launch_id in launch_ids:
            at = self._next.get(launch_id)
            if at is None:
                at = now + self._interval * _share(launch_id)
            if at <= now:
                due.append(launch_id)
                at += self._interval
                if at <= now:  # this process was asleep
                    at = now + self._interval
            following[launch_id] = at
        self._next = following
        return due


def _share(launch_id: str) -> float:
    """Where in the interval a launch's turn is, 0 to 1."""
    return zlib.crc32(launch_id.encode()) / (1 << 32)
