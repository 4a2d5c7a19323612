"""Where the log of a job stands: what has been assigned to which console lines, per stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The last event taken from one CloudWatch stream, in FilterLogEvents' own order.

    That order is timestamp, then ingestion time, then PutLogEvents id (CloudWatch Logs API, FilterLogEvents).
    """

    timestamp: int
    """Event time of the last event taken, ms since the epoch."""
    ingested: int
    """Its ingestion time, ms since the epoch."""
    ties: int
    """How many events with exactly this (timestamp, ingested) have been taken."""
    marks: tuple[tuple[int, int], ...] = ()
    """Steps since the last deep sweep: (timestamp reached, newest ingestion time seen by then).

    An event behind a step's timestamp that was ingested after the step's mark came late."""
    tied: str = ""
    """base64 of 4 bytes of hash of each event that `ties` counts, if they are few: two PutLogEvents of one
    millisecond have no order of their own, so that an event may turn up before one that was taken."""


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Events that have been given console lines `first_line … first_line + lines - 1`.

    It is written to the ledger before it is posted. Whoever posts it, however often, posts the same lines at the
    same place: `events` identifies and orders them, `streams` says where to read them again."""

    first_line: int
    lines: int
    streams: Mapping[str, tuple[int, int]]
    """Stream name → (first, last) event time, ms, both inclusive."""
    events: str
    """base64 of one 8-byte hash an event, in console order."""
    digest: str
    """sha256 (hex) of the posted lines; a replay that differs is a defect and is logged."""
    first_row: int = 0
    """Where the batch's rows begin in the run's history: first `statuses`, then the metrics of its lines."""
    statuses: tuple[tuple[str, float], ...] = ()
    """Secondary states of the job that this batch tells, each with its start time (epoch seconds)."""


@dataclass(frozen=True, slots=True)
class LogState:
    """Everything needed to go on with a job's log on any worker, without a gap or a double."""

    next_line: int = 0
    positions: Mapping[str, StreamPosition] = field(default_factory=dict)
    batch: LogBatch | None = None
    """The newest assigned batch. It counts as posted once the next one is assigned."""
    sketch: str = ""
    """All events taken so far, as a `training.sketch`: what CloudWatch holds in the end is compared with it."""
    undelivered: str = ""
    """Why the end of the log never reached W&B; empty: it did, or is on its way."""
    next_row: int = 0
    """Rows of the run's history that have been assigned, of all attempts."""
    statuses: int = 0
    """How many of the present job's secondary states have a row."""
    acknowledged: bool = False
    """W&B has `batch`. Not written for its own sake: it goes along with whatever is written next, so after a crash it
    may be missing, and the batch is posted once more."""
