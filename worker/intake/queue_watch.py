"""How many launches wait in SQS, and since when: for /metrics, at a slow pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from worker.errors import WorkerError
from worker.intake.sqs import LaunchQueue
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

_log = get_logger()


class QueueWatch:
    """Asks GetQueueAttributes each `interval` seconds; SQS's numbers are approximate, and lag by a minute."""

    def __init__(
        self,
        queue: LaunchQueue,
        metrics: Metrics,
        interval: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._backed_up_since: float | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except WorkerError as error:
                _log.warning("queue_depth_unknown", error=str(error))
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """One look. SQS tells the age of the oldest message to CloudWatch only: here it is for how long the queue has
        not been seen empty. Raises what SQS raises."""
        depth = await self._queue.counts()
        for state, count in (
            ("waiting", depth.waiting),
            ("in_work", depth.in_work),
            ("delayed", depth.delayed),
        ):
            self._metrics.queue_messages.labels(state).set(count)
        now = self._clock()
        if not depth.waiting:
            self._backed_up_since = None
        elif self._backed_up_since is None:
            self._backed_up_since = now
        since = self._backed_up_since
        self._metrics.queue_backed_up.set(0.0 if since is None else now - since)
