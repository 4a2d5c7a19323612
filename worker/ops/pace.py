"""How fast an API is called, by how its calls end: additive increase, multiplicative decrease; no clock, no waiting.

AWS's quotas hold for a whole account and Region, so other workers and strangers draw from the same bucket. Each pace
starts at half its bound, grows while calls succeed and falls when AWS throttles: that shares a bucket without talking.

Where a second's worth is several calls, a bucket saves some up, and how far the pace falls goes by the share of calls
that were throttled lately (as DCTCP does, RFC 8257). Where it is one call or two (CreateTrainingJob), a bucket may save
nothing up: then each call that the network hands over a moment early is throttled, with nobody else there, and of two
workers that call in step one always comes first. `SlowPace` is for those.
"""

from __future__ import annotations

import random

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
    """The pace of an API of whose calls many are made in a second."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.per_second = bound / 2
        self._throttled_share = 1.0
        self._throttled_pace: float | None = None
        self._throttled_at = -_ROUND
        self._since_change = 0

    def gap(self, now: float) -> float:
        """Distance to the next call, in calls: 1 is just the pace."""
        del now
        return 1.0

    def succeeded(self, now: float) -> None:
        """A call was served at `now` (seconds): after about a second's worth of them, go a step faster."""
        del now
        self._throttled_share *= 1 - self._weight
        self._since_change += 1
        if self._since_change >= self.per_second:
            self._since_change = 0
            self.per_second = max(self.per_second, min(self.bound * _FASTEST, self._faster()))

    def throttled(self, now: float) -> float | None:
        """A call was throttled at `now` (seconds): go slower. Returns the seconds until the next one may start; None:
        this round has been dealt with already."""
        self._throttled_share += (1 - self._throttled_share) * self._weight
        if now - self._throttled_at < _ROUND:
            return None
        self._throttled_at = now
        self._since_change = 0
        self._throttled_pace = self.per_second
        self.per_second = max(self.bound * _FLOOR, self.per_second * (1 - self._throttled_share / 2))
        return 1 / self.per_second

    def _faster(self) -> float:
        if self._throttled_pace is None:
            return self.per_second * _START_GROWTH
        near = self.per_second >= _NEAR * self._throttled_pace
        return self.per_second + self.bound * (_SMALL_STEP if near else _STEP)

    @property
    def _weight(self) -> float:
        """Of one call, when a second's calls together have `_MEMORY`."""
        return _MEMORY / max(1.0, self.per_second)


SLOW = 2.0
"""Quotas up to here, calls a second, have a `SlowPace`."""
_AT_ONCE = 2
"""Throttled calls in a row that are tried again at once: they may have come a moment early."""
_SOON = 0.05
"""The longest pause before that, in calls at the bound."""
_SHARED = 60.0
"""Seconds for which others count as there since the last call that lost to them."""
_DECREASE = 0.75
_SHARED_STEP = 0.1
"""Share of the bound that a second adds."""
_SHARED_FLOOR = 0.5
"""Smallest share of the bound. A worker that keeps a quota busy leaves another one gaps of hundredths of a second: who
asks less often does not find them, and a throttled call uses nothing up."""
_SPREAD = (0.3, 1.7)
"""Distances of calls while the quota is shared, in calls: nobody is in step with anybody, so that each call of each
worker is as likely to be served."""
_LONGEST_STEP = 5.0
"""Seconds of success that one served call may stand for."""


class SlowPace:
    """The pace of an API with a quota of a call or two a second, that may be used up by a single call."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.per_second = bound / 2
        self._in_a_row = 0
        self._changed_at: float | None = None
        self._throttled_at = -_ROUND
        self._shared_until: float | None = None

    def gap(self, now: float) -> float:
        """As `Pace.gap`."""
        return random.uniform(*_SPREAD) if self._is_shared(now) else 1.0  # noqa: S311  # no secret

    def succeeded(self, now: float) -> None:
        """A call was served at `now` (seconds): go faster by the time since the last change, not by the calls, or the
        faster one of two workers would also gain more."""
        self._in_a_row = 0
        since = 1.0 if self._changed_at is None else min(now - self._changed_at, _LONGEST_STEP)
        if since < 1.0:
            return
        self._changed_at = now
        if self._shared_until is None:
            faster = self.per_second * _START_GROWTH**since
        else:
            faster = self.per_second + self.bound * since * _SHARED_STEP
        self.per_second = max(self.per_second, min(self.bound * _FASTEST, faster))

    def throttled(self, now: float) -> float | None:
        """As `Pace.throttled`; at first only the next try is sooner, and the pace stays."""
        self._in_a_row += 1
        if not self._is_shared(now) and self._in_a_row <= _AT_ONCE:
            return random.uniform(0, _SOON) * self._in_a_row / self.bound  # noqa: S311  # no secret
        if now - self._throttled_at < _ROUND:
            return None
        self._shared_until = now + _SHARED
        self._throttled_at = self._changed_at = now
        self.per_second = max(self.bound * _SHARED_FLOOR, self.per_second * _DECREASE)
        return random.uniform(*_SPREAD) / self.per_second  # noqa: S311  # no secret

    def _is_shared(self, now: float) -> bool:
        return self._shared_until is not None and now < self._shared_until
