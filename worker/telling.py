"""What is told about a launch that waits or is refused; a refusal is decided in the ledger, told, then let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from worker.aio import backoff, effect
from worker.errors import Stage, WorkerError
from worker.intake.refusal import Refusals
from worker.launch.record import Failure
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger

_log = get_logger()


class RefusalTelling:
    """Refuses held launches, a refusal stays open until everybody knows of it; and tells what they wait for."""

    def __init__(self, held: HeldLaunches, refusals: Refusals) -> None:
        self._held = held
        self._refusals = refusals

    def decide(self, held: HeldLaunch, failure: Failure) -> None:
        """In memory; `tell` makes it durable first."""
        failure = held.refuse(failure, time.time())
        _log.warning(
            "launch_refused",
            launch_id=held.launch_id,
            stage=failure.stage,
            code=failure.code,
            reason=failure.reason,
        )

    async def tell(self, held: HeldLaunch, without_secrets: Callable[[str], str]) -> None:
        """W&B and the DLQ, for as long as it takes; then the launch is dropped."""
        assert held.record.failure is not None
        tries = 0
        while not held.lost:
            try:
                with effect("write_refused"):
                    await self._held.save([held])
                if not held.lost:
                    await self._refusals.report(held.record, held.record.failure)
                    held.update(reported=True, message="", request=None)
                    await self._held.save([held])
                break
            except Exception as error:  # of any kind: the refusal stays open until it is told
                told = without_secrets(str(error) or type(error).__name__)
                _log.warning("refusal_not_reported", launch_id=held.launch_id, error=told)
                await asyncio.sleep(backoff(tries, cap=60))
                tries += 1
        self._held.drop(held)

    async def tell_wait(self, held: HeldLaunch, waits: str, told: str) -> None:
        """Say on the queue item what the launch waits for: once, not at each try, nor by each worker."""
        held.update(waits_for=waits)
        _log.warning("launch_waits", launch_id=held.launch_id, reason=told)
        try:
            await self._held.save([held])
        except WorkerError as error:  # at worst it is told twice
            _log.warning("ledger_unreachable", error=str(error))
        if not held.lost:
            told = f"Waiting to be submitted: {told}"
            await self._refusals.warn(held.record.item_id, "launch_waits", told, Stage.RUN)
