"""Percentiles of many waits without a list of them: counts in steps of 10 ms, up to ten minutes."""

from __future__ import annotations

_STEP = 10
_STEPS = 60_000


class Latency:
    """A histogram of milliseconds."""

    def __init__(self) -> None:
        self._counts = [0] * (_STEPS + 1)
        self.count = 0
        self.longest = 0

    def add(self, milliseconds: int) -> None:
        """One wait. A negative one counts as none: clocks are read at different moments."""
        waited = max(0, milliseconds)
        self._counts[min(_STEPS, waited // _STEP)] += 1
        self.count += 1
        self.longest = max(self.longest, waited)

    def percentile(self, share: float) -> float | None:
        """Seconds within which `share` (0 to 1) of all waits ended; None without waits."""
        if not self.count:
            return None
        wanted = share * self.count
        seen = 0
        for step, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return (step + 1) * _STEP / 1000
        return _STEPS * _STEP / 1000

    def summary(self) -> dict[str, float | None]:
        """p50, p95, p99 and the longest, seconds."""
        named = {f"p{round(share * 100)}": self.percentile(share) for share in (0.5, 0.95, 0.99)}
        return {**named, "max": self.longest / 1000 if self.count else None}
