"""Quotas as AWS keeps them: a token bucket an API, and a count of what was asked and refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping


class TokenBucket:
    """`rate` calls a second, and at once as many as `burst`."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def take(self) -> bool:
        """Take a token; False when there is none."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        # A little grace for floating point: a caller exactly at the rate is within it.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True


class Quotas:
    """The buckets by API name, and what happened at them. APIs without a bucket are free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        self.calls: Counter[str] = Counter()
        self.throttled: Counter[str] = Counter()

    def set(self, rates: Mapping[str, float | None]) -> None:
        """Calls a second by API; at once a second's worth, at least one. None takes a quota away."""
        for api, rate in rates.items():
            self._buckets.pop(api, None)
            if rate is not None:
                self._buckets[api] = TokenBucket(rate, max(1.0, rate), self._clock)

    def admit(self, api: str) -> bool:
        """Count a call; False: it is to be throttled."""
        self.calls[api] += 1
        bucket = self._buckets.get(api)
        if bucket is None or bucket.take():
            return True
        self.throttled[api] += 1
        return False

    def reset_counts(self) -> None:
        """Begin a new window."""
        self.calls.clear()
        self.throttled.clear()
