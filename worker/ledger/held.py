"""The launches that this worker holds, in memory, and the only way to write their records.

Writes of one worker are serialised and always carry the newest record, so that a slow write can never put an older
state over a newer one; writes of other workers are fenced off by (owner, epoch).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from worker.launch.record import Failure, LaunchRecord
from worker.launch.refused import refused
from worker.ledger.port import FINISHED_TTL, Ledger, RecordTooBig
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

_log = get_logger()


class HeldLaunch:
    """A launch this worker holds. `record` is replaced, never changed; it may be ahead of the ledger."""

    __slots__ = ("api_key", "looked_at", "lost", "posted_at", "record", "request", "stopping")

    def __init__(self, record: LaunchRecord, api_key: SecretStr | None = None) -> None:
        self.record = record
        self.api_key = api_key
        """The launch's own W&B key, in memory only."""
        self.looked_at = time.monotonic()
        """When its job's state was last asked for, monotonic seconds."""
        self.request: Mapping[str, Any] | None = None
        """The request of the job that was just made, in memory only: the ledger's record drops it."""
        self.stopping = ""
        """The job that this process asked SageMaker to stop."""
        self.posted_at = float("-inf")
        """When W&B last took lines of it, monotonic seconds."""
        self.lost = False
        """Another worker has taken it over: write nothing, post nothing new."""

    @property
    def launch_id(self) -> str:
        """Its identity."""
        return self.record.launch_id

    def update(self, **changes: object) -> None:
        """Replace fields of the record, in memory; `HeldLaunches.save` makes it durable."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]

    def refuse(self, failure: Failure, now: float) -> Failure:
        """It can never become a job, in memory; returns the failure as the record has it. `now`: epoch seconds."""
        self.record = refused(self.record, failure, now=now, kept_for=FINISHED_TTL)
        assert self.record.failure is not None
        return self.record.failure


class HeldLaunches:
    """All launches of leg 2 that this worker holds."""

    def __init__(self, ledger: Ledger, worker: str, metrics: Metrics) -> None:
        self._ledger = ledger
        self._worker = worker
        self._metrics = metrics
        self._launches: dict[str, HeldLaunch] = {}
        self._writing = asyncio.Lock()
        self._on_lost: list[Callable[[HeldLaunch], None]] = []

    def __iter__(self) -> Iterator[HeldLaunch]:
        return iter(list(self._launches.values()))

    def __len__(self) -> int:
        return len(self._launches)

    def __contains__(self, launch_id: str) -> bool:
        return launch_id in self._launches

    def silent_for(self, seconds: float) -> list[LaunchRecord]:
        """Those of which W&B has taken no lines for so long: lines keep a run alive as a heartbeat does."""
        now = time.monotonic()
        return [held.record for held in self if now - held.posted_at >= seconds]

    def is_silent_for(self, launch_id: str, seconds: float) -> bool:
        """`silent_for` has this one."""
        held = self._launches.get(launch_id)
        return held is not None and time.monotonic() - held.posted_at >= seconds

    def when_lost(self, callback: Callable[[HeldLaunch], None]) -> None:
        """Tell `callback` about each launch that another worker took over."""
        self._on_lost.append(callback)

    def add(self, held: HeldLaunch) -> None:
        """Hold a launch; its record must name this worker as owner."""
        self._launches[held.launch_id] = held

    def drop(self, held: HeldLaunch) -> None:
        """Hold it no longer: it is finished, refused, released or lost."""
        if self._launches.get(held.launch_id) is held:  # it may have been claimed anew meanwhile
            del self._launches[held.launch_id]

    async def save(self, launches: Iterable[HeldLaunch]) -> None:
        """Write the newest records of `launches`, together. Those that another worker took over are marked `lost`,
        dropped and told to `when_lost`. Raises `Again` when the ledger does not answer: nothing is known then; and
        `RecordTooBig` once all others are written."""
        async with self._writing:
            wanted = {held.launch_id: held for held in launches if not held.lost}
            if not wanted:
                return
            too_big: RecordTooBig | None = None
            try:
                gone = await self._ledger.save([held.record for held in wanted.values()], owner=self._worker)
            except RecordTooBig as error:
                gone, too_big = error.lost, error
        for launch_id in gone:
            self._lose(wanted[launch_id])
        if too_big is not None:
            raise too_big

    async def advance(self, held: HeldLaunch, **changes: object) -> None:
        """Change a launch in the ledger first and then in memory, for a step that nobody may take before it is
        durable. Raises as `save`; a launch that another worker took over is marked lost and left as it is."""
        async with self._writing:
            if held.lost:
                return
            record = replace(held.record, **changes)  # type: ignore[arg-type]
            gone = await self._ledger.save([record], owner=self._worker)
            if not gone:
                held.update(**changes)
                return
        self._lose(held)

    async def release(self) -> None:
        """Give every launch back, so that another worker may claim it at once. One that is too big to be written stays
        this worker's in the ledger, until that counts as dead."""
        async with self._writing:
            leaving = list(self)
            records = [replace(held.record, owner="") for held in leaving if not held.lost]
            try:
                if records:
                    await self._ledger.save(records, owner=self._worker)
            except RecordTooBig as error:
                _log.error("record_too_big", error=str(error))
        for held in leaving:  # and not what has come meanwhile
            self.drop(held)

    def _lose(self, held: HeldLaunch) -> None:
        held.lost = True
        self.drop(held)
        self._metrics.ownership_lost.inc()
        _log.warning("launch_taken_over", launch_id=held.launch_id, training_job=held.record.job_name)
        for callback in self._on_lost:
            callback(held)
