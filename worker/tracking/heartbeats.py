"""Signs of life of companion runs, and what their answers bring: a Stop that was pressed in W&B."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from worker.clients.aws import NotPermitted
from worker.errors import MustRestart
from worker.launch.record import LaunchRecord, LaunchState
from worker.ops.logging import get_logger
from worker.ops.permissions import MissingPermissions
from worker.tracking.port import Companion

_AT_ONCE = 20

_log = get_logger()

StopJob = Callable[[str, str], Awaitable[bool]]
"""Launch id and reason."""


class CompanionHeartbeats:
    """One loop for the companions of all running jobs."""

    def __init__(
        self,
        companion: Companion,
        *,
        interval: float,
        start_timeout: float,
        running: Callable[[], Iterable[LaunchRecord]],
        is_current: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`running`: the launches this worker holds; `is_current`: no other worker can have taken them over; `now`:
        epoch seconds by AWS's clock."""
        self._now = now
        self._permissions = MissingPermissions()
        self._companion = companion
        self._interval = interval
        self._start_timeout = start_timeout
        self._running = running
        self._is_current = is_current

    async def run(self, stop: StopJob) -> None:
        """Until cancelled; `stop` is asked to stop a job, with the reason."""
        while True:
            await asyncio.sleep(self._interval)
            # Between two attempts no job runs, but the companion does, and Stop can be pressed in it.
            running = [
                record
                for record in self._running()
                if record.state is LaunchState.ACCEPTED or record.is_between_attempts
            ]
            for start in range(0, len(running), _AT_ONCE):
                async with asyncio.TaskGroup() as tasks:
                    for record in running[start : start + _AT_ONCE]:
                        tasks.create_task(self._beat(record, stop), name=f"heartbeat {record.job_name}")

    async def _beat(self, record: LaunchRecord, stop: StopJob) -> None:
        # A worker that may have been taken for dead must not revive a run that another one has ended.
        if not self._is_current():
            return
        try:
            pressed = await self._companion.heartbeat(record)
            if record.facts.status != "Stopping" and (reason := self._reason(record, pressed)):
                await stop(record.launch_id, reason)
        except MustRestart:
            raise
        except NotPermitted as error:
            cost = "Stop in W&B and LAUNCH_START_TIMEOUT have no effect: jobs end by themselves or by their time limit"
            self._permissions.tell("sagemaker:StopTrainingJob", cost=cost, error=error)
        except Exception as error:  # one run's unforeseen trouble ends no other
            _log.warning("companion_heartbeat_failed", launch_id=record.launch_id, error=str(error))

    def _reason(self, record: LaunchRecord, pressed: bool) -> str:
        """Why the job has to be stopped; empty: it need not be."""
        if pressed:
            return "Stop was pressed in W&B."
        # SageMaker's own time where it is known: the worker that submitted the job may have had a wrong clock.
        waited = self._now() - (record.facts.created_at or record.accepted_at)
        pending = record.state is LaunchState.ACCEPTED and record.facts.started_at is None
        if 0 < self._start_timeout < waited and pending:
            return f"It did not start within {waited:.0f} s (LAUNCH_START_TIMEOUT)."
        return ""
