"""Trying a step of a launch again: without end while its job runs, for a bounded time once it has ended.

A service that is down, a key that is rotated, a project that somebody restores: while the job runs, and for a day after
its end, W&B may come back, and nothing is lost meanwhile since the log waits in CloudWatch. After that the launch is
finished without what could not be told, and says so: in the worker's log, in a metric and in the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum

from worker.aio import backoff
from worker.clients.aws import NotPermitted
from worker.errors import Again, MustRestart, Stage, WorkerError
from worker.intake.refusal import Refusals
from worker.launch.record import LaunchRecord
from worker.ledger.held import HeldLaunch
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.training.status import ended_at, has_ended

GIVE_UP_AFTER = 86_400.0
"""Seconds after a job's end (default of LAUNCH_LOG_GIVE_UP)."""
_AT_LEAST = 600.0
"""Seconds that each worker tries on its own, however long ago the job ended: the one before may have been dead."""
_LONGEST_PAUSE = 300.0
"""What a server asks for with Retry-After is kept, up to here."""

_log = get_logger()


class Tried(StrEnum):
    """How it went."""

    DONE = "done"
    LOST = "lost"
    """Another worker holds the launch now."""
    GIVEN_UP = "given up"
    """The launch's record says so (`log.undelivered`)."""


class Persistence:
    """How long, and how often."""

    def __init__(self, metrics: Metrics, give_up_after: float, refusals: Refusals | None = None) -> None:
        """`give_up_after`: seconds after the job's end. `refusals`: shows on queue items what the policy lacks."""
        self._metrics = metrics
        self._give_up_after = give_up_after
        self._refusals = refusals

    async def until_done(
        self,
        held: HeldLaunch,
        what: str,
        step: Callable[[], Awaitable[None]],
        *,
        cap: float = 60.0,
        for_ever: bool = False,
        final: tuple[type[Exception], ...] = (),
    ) -> Tried:
        """Repeat `step` with pauses of up to `cap` seconds; errors of the kinds in `final` are raised.
        `for_ever`: what the ledger has to know is never given up."""
        tries = 0
        failing_since = time.monotonic()
        while not held.lost:
            try:
                await step()
                return Tried.DONE
            except (
                Exception
            ) as error:  # one launch's trouble, also of a kind we did not foresee, ends no other
                if isinstance(error, (MustRestart, *final)):
                    raise
                if not isinstance(error, WorkerError):
                    _log.exception("step_failed_unexpectedly", step=what, launch_id=held.launch_id)
                if not has_ended(held.record.facts):
                    failing_since = time.monotonic()  # what a running job has waited does not count
                if not for_ever and self.is_over(held.record, failing_since):
                    self.give_up(held, what, str(error))
                    return Tried.GIVEN_UP
                pause = _pause(error, tries, cap)
                _log.warning(
                    "step_failed",
                    step=what,
                    launch_id=held.launch_id,
                    training_job=held.record.job_name,
                    error=str(error),
                    again_in=round(pause, 1),
                )
                await self.warn_of_permission(held.record, error, f"The worker cannot go on ({what})")
                tries += 1
                await asyncio.sleep(pause)
        return Tried.LOST

    async def warn_of_permission(self, record: LaunchRecord, error: Exception, cost: str) -> None:
        """Show on the launch's queue item that the worker's policy lacks something; `cost`: what comes of it."""
        if self._refusals is not None and isinstance(error, NotPermitted):
            await self._refusals.warn(record.item_id, "permission_missing", f"{cost}: {error}", Stage.RUN)

    def is_over(self, record: LaunchRecord, failing_since: float) -> bool:
        """Enough: `failing_since` is the monotonic time at which this worker began to fail, or saw the job's end."""
        if not has_ended(record.facts):
            return False
        tried = time.monotonic() - failing_since
        if tried >= self._give_up_after:
            return True
        ended = ended_at(record.facts)
        ended_long_ago = ended is not None and time.time() - ended >= self._give_up_after
        return ended_long_ago and tried >= min(_AT_LEAST, self._give_up_after)

    def give_up(self, held: HeldLaunch, what: str, why: str) -> None:
        """Tell it, loudly; the record, in memory, carries it to the ledger with the launch's end."""
        log = held.record.log
        self._metrics.given_up.labels(what).inc()
        _log.error(
            "gave_up_after_end_of_job",
            step=what,
            launch_id=held.launch_id,
            training_job=held.record.job_name,
            lines=log.next_line,
            error=why,
        )
        self._note(held, f"{what}: {why}")

    def without_log(self, held: HeldLaunch, why: str) -> None:
        """The worker may not read it, which was told once for all jobs; the record says so of this one."""
        self._metrics.given_up.labels("log_reading").inc()
        self._note(held, f"log_reading: {why}")

    def _note(self, held: HeldLaunch, undelivered: str) -> None:
        log = held.record.log
        if not log.undelivered:
            held.update(log=replace(log, undelivered=undelivered[:1000]))


def _pause(error: Exception, tries: int, cap: float) -> float:
    asked = error.retry_after if isinstance(error, Again) else None
    return min(asked, _LONGEST_PAUSE) if asked else backoff(tries, cap=cap)
