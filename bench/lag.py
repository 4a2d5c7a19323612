"""How late the worker's event loop is, from its own metric `launch_loop_lag_seconds`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_BUCKET = re.compile(r'^launch_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)

_LONGEST = 60.0
"""Seconds that stand for whatever lies beyond the last bucket."""


@dataclass(frozen=True, slots=True)
class LoopLag:
    """Looks by how late they were: bound in seconds → looks that were not later."""

    within: Mapping[float, float]

    @classmethod
    def of(cls, exposition: str) -> LoopLag:
        """From the text of /metrics. Raises ValueError without the metric: no answer is not the same as no lag."""
        within = {float(bound): float(count) for bound, count in _BUCKET.findall(exposition)}
        if not within:
            raise ValueError("/metrics does not tell launch_loop_lag_seconds")
        return cls(within)

    def since(self, earlier: LoopLag) -> LoopLag:
        """What came after an earlier reading of the same worker."""
        return LoopLag({bound: count - earlier.within.get(bound, 0) for bound, count in self.within.items()})

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of all looks came, at most: a bucket's bound. 0 without looks."""
        total = self.within.get(math.inf, 0.0)
        if not total:
            return 0.0
        return min(_LONGEST, *(bound for bound, count in self.within.items() if count >= share * total))

    def summary(self) -> dict[str, float]:
        """The 99th percentile and the longest, at most."""
        return {"p99": self.quantile(0.99), "max": self.quantile(1.0)}
