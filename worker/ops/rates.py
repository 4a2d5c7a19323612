"""Named rates: one AIMD budget for each AWS API, shared by everything in the process that calls it.

AWS's quotas hold for a whole account and Region, so other workers and strangers draw from the same bucket. Each
rate starts at half its bound, grows by a small step while calls succeed and is halved when AWS throttles:
additive increase, multiplicative decrease shares a bucket fairly without talking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from worker.ops.metrics import Metrics

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

_STEPS = 20
"""Increases from nothing to the bound."""
_FLOOR = 0.02
"""Smallest share of the bound: a rate never stops, or it could not find out that there is room again."""
_ROUND = 1.0
"""Seconds in which several throttled calls count once: they were all sent at the same, too fast pace."""


class Rate:
    """The budget of one API: a token bucket whose pace changes in place, also for those who wait already.

    (aiolimiter's pace is fixed when a limiter is made; replacing one would hand out a new burst each time and leave
    the waiting at the old pace.) `acquire` waits for a turn; the caller then says how the call ended."""

    def __init__(self, api: str, bound: float, metrics: Metrics) -> None:
        self.api = api
        self.bound = bound
        self._metrics = metrics
        self._tokens = 1.0
        self._filled_at: float | None = None
        self._turn = asyncio.Lock()
        self._calls_since_change = 0
        self._halved_at = -_ROUND
        self._set(bound / 2)

    @property
    def per_second(self) -> float:
        """The present pace, calls a second."""
        return self._per_second

    async def acquire(self) -> None:
        """Wait until one more call may start; first come, first served."""
        async with self._turn:
            while (missing := 1.0 - self._fill()) > 1e-6:  # noqa: ASYNC110  # time fills it, no event does
                # Not longer than a second at a time: the pace may have grown meanwhile.
                await asyncio.sleep(min(1.0, missing / self._per_second))
            self._tokens -= 1.0
        self._metrics.aws_calls.labels(self.api).inc()

    def give_back(self) -> None:
        """The call that `acquire` allowed is not made after all."""
        self._tokens += 1.0

    def succeeded(self) -> None:
        """The call was not throttled: after about a second's worth of them, go a step faster."""
        self._calls_since_change += 1
        if self._per_second < self.bound and self._calls_since_change >= self._per_second:
            self._set(min(self.bound, self._per_second + self.bound / _STEPS))

    def throttled(self) -> None:
        """AWS said to slow down: halve, once per round of calls, and give up what has been saved."""
        self._metrics.aws_throttles.labels(self.api).inc()
        now = asyncio.get_running_loop().time()
        if now - self._halved_at >= _ROUND:
            self._halved_at = now
            self._tokens = min(self._tokens, 0.0)
            self._set(max(self.bound * _FLOOR, self._per_second / 2))

    def _fill(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._filled_at is not None:
            # At most a second's worth is saved up: AWS's own buckets forgive no more.
            most = max(1.0, self._per_second)
            self._tokens = min(most, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        return self._tokens

    def _set(self, per_second: float) -> None:
        self._per_second = per_second
        self._calls_since_change = 0
        self._metrics.aws_rate.labels(self.api).set(per_second)


class Rates:
    """All rates of the process, by API name."""

    def __init__(self, metrics: Metrics, bounds: Mapping[str, float | None]) -> None:
        self._rates = {api: Rate(api, bounds.get(api) or quota, metrics) for api, quota in QUOTAS.items()}

    def __getitem__(self, api: str) -> Rate:
        return self._rates[api]
