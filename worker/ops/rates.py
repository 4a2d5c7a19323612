"""Named rates: one budget for each AWS API, shared by everything in the process that calls it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from worker.aio import wait_for_event
from worker.ops.metrics import Metrics
from worker.ops.pace import SLOW, Pace, SlowPace

QUOTAS: Mapping[str, float] = {
    "CreateTrainingJob": 1.0,
    "DescribeTrainingJob": 5.0,
    "ListTrainingJobs": 2.0,
    "StopTrainingJob": 1.0,
    "ListTags": 2.0,
    "FilterLogEvents": 5.0,
    "DescribeLogStreams": 25.0,
}
"""Calls a second an account and Region, by Service Quotas and 'CloudWatch Logs quotas' (FilterLogEvents: the lowest
Region's value). None is published for ListTags, which only a further attempt calls."""

_UNUSED = 1000
"""Turns, of which a caller has one or two."""


class Rate:
    """The budget of one API: a token bucket whose pace changes in place, also for those who wait already.

    (aiolimiter's pace is fixed when a limiter is made; replacing one would hand out a new burst each time and leave
    the waiting at the old pace.) `acquire` waits for a turn; the caller then says how the call ended."""

    def __init__(self, api: str, bound: float, metrics: Metrics) -> None:
        self.api = api
        self._pace: Pace | SlowPace = SlowPace(bound) if bound <= SLOW else Pace(bound)
        self._metrics = metrics
        self._tokens = 1.0
        self._filled_at: float | None = None
        self._unused: deque[float] = deque(maxlen=_UNUSED)
        """What was taken for turns that are neither used nor given back, oldest first."""
        self._turn = asyncio.Lock()
        self._sooner = asyncio.Event()
        self._tell()

    @property
    def bound(self) -> float:
        """The fastest it may ever be, calls a second."""
        return self._pace.bound

    @property
    def per_second(self) -> float:
        """The present pace, calls a second."""
        return self._pace.per_second

    async def acquire(self) -> None:
        """Wait until one more call may start; first come, first served."""
        async with self._turn:
            while (missing := 1.0 - self._fill()) > 1e-6:
                self._sooner.clear()
                # Not longer than a second at a time: the pace may have grown meanwhile.
                await wait_for_event(self._sooner, min(1.0, missing / self.per_second))
            gap = self._pace.gap(self._now())
            self._tokens -= gap
            self._unused.append(gap)

    def sent(self) -> None:
        """The call that `acquire` allowed is made now."""
        self._take_unused()
        self._metrics.aws_calls.labels(self.api).inc()

    def give_back(self) -> None:
        """The call that `acquire` allowed is not made after all."""
        self._tokens += self._take_unused()
        self._sooner.set()

    def _take_unused(self) -> float:
        return self._unused.popleft() if self._unused else 0.0

    def succeeded(self) -> None:
        """The call was not throttled."""
        before = self.per_second
        self._pace.succeeded(self._now())
        if self.per_second != before:
            self._tell()

    def throttled(self) -> None:
        """AWS said to slow down: go slower, and give up what has been saved; or try again at once, see `SlowPace`."""
        self._metrics.aws_throttles.labels(self.api).inc()
        pause = self._pace.throttled(self._now())
        if pause is not None:
            self._fill()
            self._tokens = 1.0 - pause * self.per_second
            self._sooner.set()
            self._tell()

    def _fill(self) -> float:
        now = self._now()
        if self._filled_at is not None:
            # At most a second's worth is saved up: AWS's own buckets forgive no more.
            most = max(1.0, self.per_second)
            self._tokens = min(most, self._tokens + (now - self._filled_at) * self.per_second)
        self._filled_at = now
        return self._tokens

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _tell(self) -> None:
        self._metrics.aws_rate.labels(self.api).set(self.per_second)


class Rates:
    """All rates of the process, by API name."""

    def __init__(self, metrics: Metrics, bounds: Mapping[str, float | None]) -> None:
        self._rates = {api: Rate(api, bounds.get(api) or quota, metrics) for api, quota in QUOTAS.items()}

    def __getitem__(self, api: str) -> Rate:
        return self._rates[api]
