"""How many launches wait in the ledger to be submitted, of all workers."""

from __future__ import annotations

from worker.launch.record import LaunchState
from worker.ledger.port import Ledger


async def count_waiting(ledger: Ledger) -> int:
    """One look at the heartbeats and one at the open records of each worker, so not for every second. Launches that
    keep their SQS message (their own W&B key) are left out: their message is counted already."""
    owners = {"", *(beat.worker for beat in await ledger.beats())}
    count = 0
    for owner in owners:
        records = await ledger.open_records(owner)
        count += sum(r.state is LaunchState.WAITING and not r.private_key for r in records)
    return count
