"""The worker's heartbeat, and what it is for: launches that nobody holds any more are claimed and gone on with."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

from worker.aio import backoff, effect
from worker.errors import WorkerError
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.membership import MISSED_BEATS, Membership
from worker.ledger.port import Ledger, RecordTooBig
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

_CLAIMS_AT_ONCE = 20

_log = get_logger()


class Adoption:
    """Beats, watches the other workers, and adopts the launches of the dead and the released ones."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        membership: Membership,
        held: HeldLaunches,
        worker: str,
        heartbeat: float,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._membership = membership
        self._held = held
        self._worker = worker
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._unanswered: set[str] = set()
        """Launch ids of claims whose answer was lost."""
        self._gap = False
        self._leaving = False
        self._beaten_at = time.monotonic()
        self.beating = False
        """The last heartbeat reached the ledger: for /readyz."""

    async def run(self, on_adopted: Callable[[HeldLaunch], None]) -> None:
        """Until cancelled; the first round comes at once, so a worker that starts adopts what was released."""
        tries = 0
        while True:
            try:
                done = await self._round(on_adopted)
                self.beating, tries = True, 0
            except WorkerError as error:
                self.beating = False
                _log.warning("heartbeat_failed", error=str(error))
                await asyncio.sleep(min(self._heartbeat, backoff(tries)))
                tries += 1
                continue
            self._count()
            await asyncio.sleep(self._heartbeat if done else 0)

    def stop_claiming(self) -> None:
        """Beat on, but take nothing over any more."""
        self._leaving = True

    def _is_leaving(self) -> bool:
        """Asked anew after each wait."""
        return self._leaving

    async def leave(self) -> None:
        """Remove the heartbeat of this worker, once everything is released.

        It stays where a claim got no answer or something is still ours: only the launches of a worker whose heartbeat
        is there, and silent, are taken over."""
        if not self._unanswered and not await self._ledger.open_records(self._worker):
            await self._ledger.forget_worker(self._worker)

    @property
    def is_current(self) -> bool:
        """No peer can have taken this worker for dead: what it posts about its launches is its own to say."""
        return time.monotonic() - self._beaten_at < MISSED_BEATS * self._heartbeat

    async def _round(self, on_adopted: Callable[[HeldLaunch], None]) -> bool:
        """Beat, and claim for as long as the next heartbeat is not due; False: there is more to be claimed."""
        asked_at = time.monotonic()
        beat = await self._membership.beat_once()
        self._gap = self._gap or beat.gap
        if self._gap:
            # Frozen or cut off for so long that peers may have claimed our launches: the ledger knows.
            _log.warning("heartbeat_gap", launches=len(self._held))
            try:
                await self._held.save(self._held)
            except RecordTooBig as error:  # all others are written, and no further try would write it
                _log.error("record_too_big", error=str(error))
            self._gap = False
        self._beaten_at = asked_at
        if self._is_leaving():
            return True
        await self._look_up_unanswered(on_adopted)
        for owner in ("", *sorted(beat.dead)):
            records = await self._ledger.open_records(owner)
            if not await self._claim_all(
                filter(_can_be_adopted, records), on_adopted, asked_at + self._heartbeat
            ):
                return False
            if owner and not records:
                await self._ledger.forget_worker(owner)
        return True

    async def _claim_all(
        self, records: Iterable[LaunchRecord], on_adopted: Callable[[HeldLaunch], None], until: float
    ) -> bool:
        """Claim launches, several at once, until all are tried (True) or it is `until` (monotonic seconds): whoever
        claims the thousand launches of a dead worker must not be taken for dead meanwhile."""
        waiting = list(records)
        random.shuffle(waiting)  # peers that claim at the same time shall not all try the same one
        errors: list[WorkerError] = []

        async def claim(record: LaunchRecord) -> None:
            if self._is_leaving():
                return
            try:
                await self._claim(record, on_adopted)
            except WorkerError as error:
                errors.append(error)

        for start in range(0, len(waiting), _CLAIMS_AT_ONCE):
            if self._is_leaving():
                break
            if time.monotonic() >= until:
                return False
            async with asyncio.TaskGroup() as tasks:
                for record in waiting[start : start + _CLAIMS_AT_ONCE]:
                    tasks.create_task(claim(record), name=f"claim {record.launch_id}")
            if errors:
                raise errors[0]
        return True

    async def _look_up_unanswered(self, on_adopted: Callable[[HeldLaunch], None]) -> None:
        """Claims that got no answer may have happened: then the launch is ours, and nobody else would take it."""
        for launch_id in list(self._unanswered):
            record = await self._ledger.read(launch_id)
            self._unanswered.discard(launch_id)
            ours = record is not None and record.owner == self._worker and launch_id not in self._held
            if record is not None and ours and _can_be_adopted(record):
                await self._claim(record, on_adopted)

    async def _claim(self, record: LaunchRecord, on_adopted: Callable[[HeldLaunch], None]) -> None:
        self._unanswered.add(record.launch_id)
        with effect("claim_launch"):
            claimed = await self._ledger.claim(record, self._worker)
        self._unanswered.discard(record.launch_id)
        if claimed is None:
            return
        self._metrics.claims.inc()
        _log.info(
            "launch_claimed",
            launch_id=claimed.launch_id,
            training_job=claimed.job_name,
            previous_owner=record.owner,
            epoch=claimed.epoch,
        )
        on_adopted(HeldLaunch(claimed))

    def _count(self) -> None:
        for state in (LaunchState.WAITING, LaunchState.ACCEPTED):
            count = sum(1 for held in self._held if held.record.state is state)
            self._metrics.jobs.labels(state).set(count)
        accepted = (each.record.facts for each in self._held if each.record.state is LaunchState.ACCEPTED)
        states = Counter((facts.status, facts.secondary_status) for facts in accepted)
        self._metrics.job_states.clear()  # a state that no job has any more
        for (status, secondary), count in states.items():
            self._metrics.job_states.labels(status, secondary).set(count)


def _can_be_adopted(record: LaunchRecord) -> bool:
    """Leg 1 of a dead worker comes back with its SQS message, and so does a launch whose key only that has. A refusal
    that nobody was told is told by whoever finds it."""
    if record.state is LaunchState.WAITING:
        return not record.needs_message
    return record.is_open and record.state is not LaunchState.INTENT
