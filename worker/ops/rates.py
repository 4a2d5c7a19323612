"""Named rates: one AIMD budget for each AWS API, shared by everything in the process that calls it.

AWS's quotas hold for a whole account and Region, so other workers and strangers draw from the same bucket. Each
rate starts at half its bound, grows while calls succeed and falls when AWS throttles: additive increase,
multiplicative decrease shares a bucket fairly without talking.

How far it falls goes by the share of calls that were throttled lately (as DCTCP does, RFC 8257): at first by half; but
one throttled call among many served ones came a moment early, and half the pace would be thrown away for it.
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

_FASTEST = 0.98
"""Share of the bound: at a quota exactly, each call that the network hands over early is a throttled one."""
_START_GROWTH = 1.25
"""A second, until AWS throttles for the first time."""
_STEP, _SMALL_STEP = 0.05, 0.01
"""Shares of the bound that a second of success adds: far from the pace that was throttled last, and near to it."""
_NEAR = 0.9
_FLOOR = 0.02
"""Smallest share of the bound: a rate never stops, or it could not find out that there is room again."""
_ROUND = 1.0
"""Seconds in which several throttled calls count once: they were all sent at the same, too fast pace."""
_MEMORY = 0.2
"""Weight of the newest second in the share of throttled calls."""


class Pace:
    """How fast one API is called, by how its calls end; knows no clock and waits for nobody."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.per_second = bound / 2
        self._throttled_share = 1.0
        self._throttled_pace: float | None = None
        self._throttled_at = -_ROUND
        self._since_change = 0

    def succeeded(self) -> None:
        """A call was served: after about a second's worth of them, go a step faster."""
        self._throttled_share *= 1 - self._weight
        self._since_change += 1
        if self._since_change >= self.per_second:
            self._since_change = 0
            self.per_second = max(self.per_second, min(self.bound * _FASTEST, self._faster()))

    def throttled(self, now: float) -> bool:
        """A call was throttled at `now` (seconds): go slower; False: this round has been dealt with already."""
        self._throttled_share += (1 - self._throttled_share) * self._weight
        if now - self._throttled_at < _ROUND:
            return False
        self._throttled_at = now
        self._since_change = 0
        self._throttled_pace = self.per_second
        self.per_second = max(self.bound * _FLOOR, self.per_second * (1 - self._throttled_share / 2))
        return True

    def _faster(self) -> float:
        if self._throttled_pace is None:
            return self.per_second * _START_GROWTH
        near = self.per_second >= _NEAR * self._throttled_pace
        return self.per_second + self.bound * (_SMALL_STEP if near else _STEP)

    @property
    def _weight(self) -> float:
        """Of one call, when a second's calls together have `_MEMORY`."""
        return _MEMORY / max(1.0, self.per_second)


class Rate:
    """The budget of one API: a token bucket whose pace changes in place, also for those who wait already.

    (aiolimiter's pace is fixed when a limiter is made; replacing one would hand out a new burst each time and leave
    the waiting at the old pace.) `acquire` waits for a turn; the caller then says how the call ended."""

    def __init__(self, api: str, bound: float, metrics: Metrics) -> None:
        self.api = api
        self._pace = Pace(bound)
        self._metrics = metrics
        self._tokens = 1.0
        self._filled_at: float | None = None
        self._turn = asyncio.Lock()
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
            while (missing := 1.0 - self._fill()) > 1e-6:  # noqa: ASYNC110  # time fills it, no event does
                # Not longer than a second at a time: the pace may have grown meanwhile.
                await asyncio.sleep(min(1.0, missing / self.per_second))
            self._tokens -= 1.0
        self._metrics.aws_calls.labels(self.api).inc()

    def give_back(self) -> None:
        """The call that `acquire` allowed is not made after all."""
        self._tokens += 1.0

    def succeeded(self) -> None:
        """The call was not throttled."""
        before = self.per_second
        self._pace.succeeded()
        if self.per_second != before:
            self._tell()

    def throttled(self) -> None:
        """AWS said to slow down: go slower, and give up what has been saved."""
        self._metrics.aws_throttles.labels(self.api).inc()
        if self._pace.throttled(asyncio.get_running_loop().time()):
            self._tokens = min(self._tokens, 0.0)
            self._tell()

    def _fill(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._filled_at is not None:
            # At most a second's worth is saved up: AWS's own buckets forgive no more.
            most = max(1.0, self.per_second)
            self._tokens = min(most, self._tokens + (now - self._filled_at) * self.per_second)
        self._filled_at = now
        return self._tokens

    def _tell(self) -> None:
        self._metrics.aws_rate.labels(self.api).set(self.per_second)


class Rates:
    """All rates of the process, by API name."""

    def __init__(self, metrics: Metrics, bounds: Mapping[str, float | None]) -> None:
        self._rates = {api: Rate(api, bounds.get(api) or quota, metrics) for api, quota in QUOTAS.items()}

    def __getitem__(self, api: str) -> Rate:
        return self._rates[api]
