"""When each log is read: pure. Times are monotonic seconds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from worker.delivery.job_log import JobLog
from worker.training.stream_groups import MAX_STREAMS

_POSTS_A_SECOND = 350.0
"""Of all jobs: W&B allows a project 500, and other workers post too. With more busy jobs each is read less often."""
_QUIET_SHARE = 0.5
"""Of FilterLogEvents' quota, for the logs that say nothing, however many they are: they must not use up what those that
do, and other workers, need."""
_LOGS_A_ROUND = 300
"""Logs read in one round: one that has just become ready does not wait for all others."""


@dataclass(frozen=True, slots=True)
class Paces:
    """How often logs are read, by how many there are."""

    interval: float
    """Seconds between two reads of a log that has news."""
    quiet: int
    """In how many intervals a quiet log is read once, at least."""

    def step(self, log: JobLog, now: float) -> float:
        """Seconds between two reads of `log`: whole intervals, so that those that are due together stay together."""
        pace = log.pace(now)
        return self.interval * (pace if pace == 1 else max(pace, self.quiet))


def paces(logs: Iterable[JobLog], now: float, *, interval: float, calls: float) -> Paces:
    """For all that are followed. `interval`: seconds at the least; `calls`: FilterLogEvents a second, at the most."""
    busy = quiet_streams = 0
    for log in logs:
        if log.pace(now) == 1:
            busy += 1
        else:
            quiet_streams += len(log.positions)
    interval = max(interval, busy / _POSTS_A_SECOND)
    return Paces(interval, math.ceil(quiet_streams / MAX_STREAMS / (calls * _QUIET_SHARE) / interval))


def due(logs: Collection[JobLog], now: float, paces: Paces, *, soon: float) -> list[JobLog]:
    """Of `logs`, which are due by `soon`, those for one round. Which one has to be read before it misses its next turn
    comes first: thousands of quiet logs that are due do not hold up the few that print, nor are they forgotten."""
    ready = sorted(
        (log for log in logs if log.due_at <= soon), key=lambda log: log.due_at + paces.step(log, now)
    )
    return ready[:_LOGS_A_ROUND]
