"""The ledger's port. Drawn on DynamoDB's limits: 400 KB items, conditional writes, transactions of 100 items.

Two adapters implement it, `sqlite` (one host) and `dynamodb` (many), held to one contract suite
(`tests/contract/test_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.errors import Never
from worker.launch.record import LaunchRecord

FINISHED_TTL = 30 * 24 * 3600.0
"""Seconds a finished or refused record is kept: longer than SQS's 14 days of retention, so that a late duplicate
of a message always meets the record of its launch."""


@dataclass(frozen=True, slots=True)
class WorkerBeat:
    """One write a worker and heartbeat: while `version` changes, the worker lives."""

    worker: str
    version: int
    deployment: str
    host: str
    started_at: float
    """Epoch seconds."""


STOP_TTL = 14 * 24 * 3600.0
"""Seconds a request to stop is kept if nobody takes it back."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody beside the owner of a launch wants it stopped. Only the owner writes its record, so this is a note."""

    launch_id: str
    reason: str
    """As it is told at the launch's end."""
    asked_at: float
    """Epoch seconds."""


RUN_CLAIM_TTL = 365 * 24 * 3600.0
"""Seconds a claim of a run is kept: longer than the record of the launch that has it, whatever its attempts last."""


class RecordTooBig(Never):
    """The store takes no record of this size. All others of the same `save` have been written."""

    def __init__(self, message: str, lost: frozenset[str] = frozenset()) -> None:
        """`lost`: what `save` would have returned."""
        super().__init__(message, code="LW-LEDGER-ITEM-SIZE")
        self.lost = lost


class Ledger(Protocol):
    """What must survive a worker. Raises `Unreachable` or `Throttled` when the store does not answer."""

    async def read(self, launch_id: str) -> LaunchRecord | None:
        """The record as last written (strongly consistent), or None."""
        ...

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        """Insert a record. None: inserted. Otherwise nothing was written and the existing record is returned."""
        ...

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        """Take over a record from the owner and epoch in which it was seen.

        Returns the record as stored now, with `owner=worker` and `epoch + 1`; None: somebody was faster."""
        ...

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        """Write records that `owner` holds, in as few transactions as the store allows.

        Each is written only if the stored record has this owner and the record's epoch; `record.owner` may be
        empty to release it. Returns the launch ids that were *not* written because they are no longer ours. Raises
        `RecordTooBig` when all but the records that are too big for the store are written."""
        ...

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        """All open records (`LaunchRecord.is_open`) of a worker; "" for released ones. May lag by a second or two
        (an index): claims and saves are conditional, so that is harmless."""
        ...

    async def beat(self, beat: WorkerBeat) -> None:
        """Write this worker's heartbeat."""
        ...

    async def beats(self) -> list[WorkerBeat]:
        """The heartbeats of all workers, this one's too. May lag as `open_records` does."""
        ...

    async def forget_worker(self, worker: str) -> None:
        """Remove the heartbeat of a worker that is gone and owns nothing any more."""
        ...

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        """Try to take a named lock; returns its holder: `worker` when taken.

        `held_by` names a dead holder whom the caller may replace (conditionally: only if it still holds it)."""
        ...

    async def unlock(self, name: str, worker: str) -> None:
        """Give a lock back; nothing happens if `worker` does not hold it."""
        ...

    async def claim_run(self, run: str, launch_id: str, *, expires_at: float, former: str = "") -> str:
        """Claim a run in W&B for a launch; returns the launch that has it: `launch_id` when it is claimed.

        `former` names a launch that the caller may replace (conditionally: only if it still has the run). A claim is
        never given back; the store may forget it after `expires_at`, epoch seconds."""
        ...

    async def records(self, *, over: bool) -> list[LaunchRecord]:
        """The records of all launches that are open; with `over` those of finished and refused ones as well. For
        people, now and then: it reads the whole store. May lag as `open_records` does."""
        ...

    async def ask_stop(self, request: StopRequest) -> None:
        """Leave a note for whoever owns the launch, now or later; a newer one takes the place of an older."""
        ...

    async def stop_requests(self) -> list[StopRequest]:
        """All notes. May lag as `open_records` does."""
        ...

    async def forget_stop(self, launch_id: str) -> None:
        """Take a note back; nothing happens if there is none."""
        ...
