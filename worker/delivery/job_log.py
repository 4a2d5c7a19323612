"""One job's log in this worker's memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from worker.launch.console import CONSOLE_LIMIT, ConsoleLine
from worker.launch.log_state import LogState, StreamPosition
from worker.ledger.held import HeldLaunch
from worker.tracking.history import Row, history_rows
from worker.training import cursor
from worker.training.cursor import LogEvent
from worker.training.status import makes_new_streams

_QUIET_AFTER, _SILENT_AFTER = 30.0, 120.0
"""Seconds without a new line after which a log is read every second, and every third time only."""

# Containers that have not started cannot have a stream; asking for it would only spend DescribeLogStreams.
_NO_CONTAINER_YET = frozenset({"", "Starting", "Pending"})


@dataclass(frozen=True, slots=True)
class AssignedBatch:
    """Lines that have a place in the console, and are to be posted there and nowhere else."""

    log: JobLog
    first_line: int
    events: int
    """How many events became these lines."""
    lines: Sequence[ConsoleLine]
    newest_ingested: int
    """ms since the epoch, for the latency metric; 0: no event."""
    before: LogState
    """Where the log stood without it, as the ledger has it."""
    first_row: int = 0
    rows: Sequence[Row] = ()
    """What the events and the job's new states add to the history, and where."""

    @property
    def is_for_console(self) -> bool:
        """W&B's console takes it, so that its post has an answer; False: behind the limit, or in files only."""
        return self.first_line < CONSOLE_LIMIT and self.log.held.record.log_target != "files"


@dataclass(slots=True, eq=False)
class JobLog:
    """Where a job's log stands here; the durable part is `held.record.log`. Times are monotonic seconds."""

    held: HeldLaunch
    positions: dict[str, StreamPosition] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    """About how many events a second a stream has; none: it is silent."""
    ahead: list[LogEvent] = field(default_factory=list)
    """Read and not assigned yet: what one batch could not hold. Each stream's events are in the API's order, and until
    they are assigned the log is not read on."""
    due_at: float = 0.0
    """When to read on."""
    posted_at: float = float("-inf")
    """When the newest batch was assigned."""
    failed_reads: int = 0
    """One after the other, while other logs could be read."""
    failing_since: float = 0.0
    """When the first of them failed."""
    reading: bool = False
    """A call for its streams is under way."""
    searching: bool = False
    """It is, or is next to be, searched for late events: that needs positions that stand still."""
    posting: bool = False
    """A batch is assigned and W&B has not acknowledged it: nothing more is read until it has."""
    replay_due: bool = False
    """The ledger's last batch may not have reached W&B: it comes first."""
    look_at: float = 0.0
    """When to look for streams again."""
    deep_swept_at: float = 0.0
    deep_swept_ms: int = 0
    """By AWS's clock, since the epoch: the windows of deep sweeps grow with what has gone by since."""
    news_at: float = 0.0
    changed_at: float = 0.0
    """When its job's newest state was first seen here."""
    seen_status: str = ""
    """That secondary state."""
    looked_at: float = 0.0
    """When the newest complete look for streams began."""
    swept_at: float = 0.0
    """When the newest sweep that read all streams to their end began."""
    ended_at: float | None = None
    unwritable: str = ""
    """Why the ledger cannot hold its newest batch; empty: it can. It stands still, and is given up with the job."""
    closing: bool = False
    given_up: bool = False
    """W&B or CloudWatch have refused for so long after the job's end that the launch is finished without the rest."""

    @property
    def is_open(self) -> bool:
        """It is this worker's, and not at its end."""
        return not (self.closing or self.held.lost)

    @property
    def is_read(self) -> bool:
        """The loop may read on."""
        return not (self.posting or self.closing or self.searching or self.held.lost)

    def ready_at(self, post_gap: float) -> float:
        """When its next step can be taken: a batch for W&B, or a call of CloudWatch."""
        return self.posted_at + post_gap if self.ahead else self.due_at

    def pace(self, now: float) -> int:
        """In how many intervals it is read once at the most: a log that was silent for a while is read less often."""
        silent = now - self.news_at
        if self.ended_at is not None or silent < _QUIET_AFTER:
            return 1
        return 2 if silent < _SILENT_AFTER else 3

    @property
    def has_all_streams(self) -> bool:
        """Each container so far has one. Every restart (spot capacity that came back, RetryStrategy) makes new ones,
        and not before its containers log."""
        record = self.held.record
        restarts = sum(makes_new_streams(status) for status, _ in record.facts.transitions)
        return len(self.positions) >= record.instance_count * (1 + restarts)

    @property
    def expects_streams(self) -> bool:
        """More streams are to come: containers run, and not each of them has one yet."""
        starting = self.held.record.facts.secondary_status in _NO_CONTAINER_YET
        return not starting and not self.has_all_streams

    @property
    def newest_ingested(self) -> int:
        """The newest ingestion time that any stream has shown, ms since the epoch; 0: nothing was read yet."""
        marks = [position.marks[-1][1] for position in self.positions.values() if position.marks]
        return max(0, *marks, 0)

    @property
    def untold(self) -> tuple[tuple[str, float], ...]:
        """Secondary states of the job that no row of the history tells yet."""
        record = self.held.record
        if record.log_target == "files":  # no history either
            return ()
        return record.facts.transitions[record.log.statuses :]

    def job_changed(self) -> None:
        """Its job was described anew: look for streams soon if it is in a state that may bring some."""
        status = self.held.record.facts.secondary_status
        is_new = status != self.seen_status
        if makes_new_streams(status) or (is_new and self.expects_streams):
            self.look_at = 0.0
        if is_new:
            self.seen_status, self.changed_at = status, time.monotonic()

    def assign(self, events: Sequence[LogEvent]) -> AssignedBatch:
        """Give `events` the next console lines, and what they and the job's new states add to the history its next
        rows, in memory; `positions` must already stand behind them."""
        record, untold = self.held.record, self.untold
        before = record.log
        state, lines = cursor.assign(before, self.positions, events)
        rows = history_rows(record, before.next_row, lines, untold)
        assert state.batch is not None
        batch = replace(state.batch, first_row=before.next_row, statuses=untold)
        told = before.statuses + len(untold)
        state = replace(state, batch=batch, next_row=before.next_row + len(rows), statuses=told)
        self.held.update(log=state)
        self.posting = True
        self.posted_at = time.monotonic()
        newest = 0
        if events:
            self.news_at = time.monotonic()
            newest = max(event.ingested for event in events)
        return AssignedBatch(
            self, before.next_line, len(events), lines, newest, before, before.next_row, rows
        )

    def take(self) -> AssignedBatch:
        """Assign as much of what was read ahead as one batch may hold."""
        taken = cursor.take(self.ahead)
        del self.ahead[: len(taken)]
        own: dict[str, list[LogEvent]] = {}
        for event in taken:
            own.setdefault(event.stream, []).append(event)
        for stream, events in own.items():
            self.positions[stream] = cursor.advance(self.positions[stream], events)
        return self.assign(taken)

    def acknowledged(self) -> None:
        """W&B has the newest batch."""
        self.posting = False
        self.held.update(log=replace(self.held.record.log, acknowledged=True))
