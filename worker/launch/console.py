"""One line of a run's console: what the log feed makes and the companion run posts."""

from __future__ import annotations

from dataclasses import dataclass

CONSOLE_LIMIT = 100_000
"""Console lines W&B keeps a run (W&B documentation, limits); the whole log is in the numbered files."""


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """One line with CloudWatch's own time (ms since the epoch) and the host that printed it."""

    timestamp: int
    label: str
    content: str
