"""What is done about a CloudWatch that cannot be read: it is told, and jobs that ended long ago do not wait for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from worker.aio import backoff
from worker.clients.aws import NotPermitted
from worker.delivery.job_log import JobLog
from worker.errors import Again, WorkerError
from worker.ops.logging import get_logger
from worker.ops.permissions import MissingPermissions
from worker.persistence import Persistence

_WARNED_AT_ONCE = 20

_log = get_logger()


class ReadTrouble:
    """Remembers whether anything could ever be read."""

    def __init__(self, persistence: Persistence, *, drain_limit: float) -> None:
        """`drain_limit`: seconds after its end that a job waits for a log which the policy never let be read."""
        self.has_read = False
        """Since the start."""
        self._persistence = persistence
        self._drain_limit = drain_limit
        self._permissions = MissingPermissions()
        self._warned: set[str] = set()
        """Launch ids whose queue items tell that their logs may not be read; empty again once one could be."""

    def passed(self, *, read: bool) -> None:
        """A round has not failed; `read`: it was allowed to read some log."""
        if read:
            self.has_read = True
            self._warned.clear()

    def tell(self, error: WorkerError, tries: int) -> float:
        """A read failed, after `tries` others; returns the seconds until it is to be tried again."""
        pause = (error.retry_after if isinstance(error, Again) else None) or backoff(tries, cap=30)
        if isinstance(error, NotPermitted):
            action = f"logs:{str(error).partition(':')[0]}"
            cost = "jobs run and end, without their log in W&B"
            self._permissions.tell(action, cost=cost, error=error)
        else:
            _log.warning("log_round_failed", error=str(error), again_in=round(pause, 1))
        return pause

    def put_off(self, error: WorkerError, logs: Collection[JobLog]) -> None:
        """A call for these logs failed, and others did not: they are read again later, together, and nobody waits."""
        pause = self.tell(error, max(log.failed_reads for log in logs))
        now = time.monotonic()
        for log in logs:
            log.failing_since = log.failing_since if log.failed_reads else now
            log.failed_reads += 1
            log.due_at = now + pause
            self.give_up(error, log.failing_since, [log])

    async def warn(self, error: WorkerError, logs: Iterable[JobLog]) -> None:
        """On the queue items of the jobs whose log the policy hides, some in each round."""
        if not isinstance(error, NotPermitted):
            return
        # Streams that are known are read on where only looking for new ones is forbidden.
        only_new = str(error).startswith("DescribeLogStreams")
        hidden = [log for log in logs if not (only_new and log.positions)]
        untold = [log for log in hidden if log.held.launch_id not in self._warned]
        for log in untold[:_WARNED_AT_ONCE]:
            self._warned.add(log.held.launch_id)
            cost = "The job's log does not come to W&B"
            await self._persistence.warn_of_permission(log.held.record, error, cost)

    def give_up(self, error: WorkerError, failing_since: float, logs: Iterable[JobLog]) -> None:
        """CloudWatch cannot be read, or not any more: jobs that ended long ago do not wait for it for ever, and hardly
        where the worker's policy has never let it read one. `failing_since`: monotonic seconds."""
        for log in logs:
            since = max(failing_since, log.ended_at or failing_since)
            if not log.is_read or log.given_up:
                continue
            # What was permitted once, somebody may have taken away by mistake, and give back.
            forbidden = isinstance(error, NotPermitted) and log.ended_at is not None and not self.has_read
            if forbidden and time.monotonic() - since >= self._drain_limit:
                self._persistence.without_log(log.held, str(error))
                log.given_up = True
            elif self._persistence.is_over(log.held.record, since):
                self._persistence.give_up(log.held, "log_reading", str(error))
                log.given_up = True
