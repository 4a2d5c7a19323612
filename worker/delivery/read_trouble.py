"""What is done about a CloudWatch that cannot be read: it is told, and jobs that ended long ago do not wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from worker.clients.aws import NotPermitted
from worker.delivery.job_log import JobLog
from worker.errors import WorkerError
from worker.ops.logging import get_logger
from worker.ops.permissions import MissingPermissions
from worker.persistence import Persistence

_log = get_logger()


class ReadTrouble:
    """Remembers whether anything could ever be read."""

    def __init__(self, persistence: Persistence, *, drain_limit: float) -> None:
        """`drain_limit`: seconds after its end that a job waits for a log which the policy never let be read."""
        self.has_read = False
        self._persistence = persistence
        self._drain_limit = drain_limit
        self._permissions = MissingPermissions()

    def tell(self, error: WorkerError, pause: float) -> None:
        """A read failed and is tried again in `pause` seconds."""
        if isinstance(error, NotPermitted):
            action = f"logs:{str(error).partition(':')[0]}"
            cost = "jobs run and end, without their log in W&B"
            self._permissions.tell(action, cost=cost, error=error)
        else:
            _log.warning("log_round_failed", error=str(error), again_in=round(pause, 1))

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
