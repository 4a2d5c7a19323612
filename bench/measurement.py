"""What a scenario reads off, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WORKER = "launch-worker"
AGENT = "wandb launch-agent"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Judged:
    """What a measurement says about one of the goals (`bench.goals`)."""

    goal: str
    value: str
    """In words."""
    kept: bool | None = None
    """None: it is not for this program, or not for this size."""
    distance: float = 0.0
    """How near it is to missing its goal, or how far beyond: 1 is just at it. Tells which of several is the worst."""
    why: str = ""
    """What the scenario knows about a miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One program in one scenario."""

    scenario: str
    program: str
    result: str
    """The number that the scenario is about, in words."""
    seconds: float
    """Length of the window that the counts below are of."""
    judged: tuple[Judged, ...] = ()
    calls: Mapping[str, int] = field(default_factory=dict)
    """AWS calls by API."""
    throttled: Mapping[str, int] = field(default_factory=dict)
    rss_mib: float | None = None
    pss_mib: float | None = None
    """Resident memory of the program and its children, shared pages divided."""
    cpu: float | None = None
    """Share of one core."""
    simulator_cpu: float | None = None
    latency: Mapping[str, float | None] = field(default_factory=dict)
    """Seconds from CloudWatch's ingestion to W&B, by percentile."""
    lines: int = 0
    lost: int = 0
    doubled: int = 0
    """Also lines at a second place, and posts that changed what stood already."""
    lag: Mapping[str, float] = field(default_factory=dict)
    """How late the worker's event loop came back to a task, seconds: p99, max."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """More, by name."""
    notes: tuple[str, ...] = ()
    """What a reader has to know to judge it."""
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Series for plots."""


def at_most(
    goal: str, value: float, limit: float, words: str, *, and_also: bool = True, why: str = ""
) -> Judged:
    """Kept when `value` is no more than `limit`, and `and_also` holds; `why` is told of a miss."""
    return Judged(goal, words, value <= limit and and_also, value / limit, why)


def at_least(goal: str, value: float, limit: float, words: str, *, and_also: bool = True) -> Judged:
    """Kept when `value` is no less than `limit`, and `and_also` holds."""
    return Judged(goal, words, value >= limit and and_also, limit / max(value, 1e-6))


def mib(size: int) -> float:
    """Bytes as MiB, one decimal."""
    return round(size / _MIB, 1)
