"""Steps of a launch that are repeated until they succeed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from worker.aio import backoff
from worker.errors import Again, MustRestart, WorkerError
from worker.ledger.held import HeldLaunch
from worker.ops.logging import get_logger

_log = get_logger()


async def until_done(held: HeldLaunch, what: str, step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step until it succeeds or the launch is lost: nothing about a live job is ever given up."""
    tries = 0
    while not held.lost:
        try:
            return await step()
        except MustRestart:
            raise
        except Exception as error:  # one launch's unforeseen trouble ends no other
            if not isinstance(error, WorkerError):
                _log.exception("step_failed_unexpectedly", step=what, launch_id=held.launch_id)
            pause = (error.retry_after if isinstance(error, Again) else None) or backoff(tries, cap=60)
            _log.warning(
                "step_failed",
                step=what,
                launch_id=held.launch_id,
                training_job=held.record.job_name,
                error=str(error),
                again_in=round(pause, 1),
            )
            tries += 1
            await asyncio.sleep(pause)
    return None
