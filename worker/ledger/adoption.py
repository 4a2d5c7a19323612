"""The worker's heartbeat, and what it is for: launches that nobody holds any more are claimed and gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.aio import backoff, effect
from worker.errors import Again
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.membership import Membership
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

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
        self._unsure = False
        """A claim got no answer: it may have happened."""
        self.beating = False
        """The last heartbeat reached the ledger: for /readyz."""

    async def run(self, on_adopted: Callable[[HeldLaunch], None]) -> None:
        """Until cancelled; the first round comes at once, so a worker that starts adopts what was released."""
        tries = 0
        while True:
            try:
                await self._round(on_adopted)
                self.beating, tries = True, 0
            except Again as error:
                self.beating = False
                _log.warning("heartbeat_failed", error=str(error))
                await asyncio.sleep(min(self._heartbeat, backoff(tries)))
                tries += 1
                continue
            self._count()
            await asyncio.sleep(self._heartbeat)

    async def _round(self, on_adopted: Callable[[HeldLaunch], None]) -> None:
        beat = await self._membership.beat_once()
        if beat.gap:
            # Frozen or cut off for so long that peers may have claimed our launches: the ledger knows.
            _log.warning("heartbeat_gap", launches=len(self._held))
            await self._held.save(self._held)
        unsure, self._unsure = self._unsure, False
        for owner in ("", *sorted(beat.dead), *((self._worker,) if unsure else ())):
            records = await self._ledger.open_records(owner)
            for record in filter(_can_be_adopted, records):
                if record.launch_id not in self._held:
                    await self._claim(record, on_adopted)
            if owner and not records:
                await self._ledger.forget_worker(owner)

    async def _claim(self, record: LaunchRecord, on_adopted: Callable[[HeldLaunch], None]) -> None:
        try:
            with effect("claim_launch"):
                claimed = await self._ledger.claim(record, self._worker)
        except Again:
            self._unsure = True
            raise
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


def _can_be_adopted(record: LaunchRecord) -> bool:
    """Leg 1 of a dead worker comes back with its SQS message, and so does a launch whose key only that has."""
    if record.state is LaunchState.WAITING:
        return not record.private_key
    return record.state is LaunchState.ACCEPTED
