"""Telling everybody that a launch is refused: W&B's queue item, then the dead-letter queue."""

from __future__ import annotations

from worker.clients.wandb_api import WandbRefused
from worker.intake.sqs import LaunchQueue
from worker.intake.wandb_queue import QueueItems
from worker.launch.intent import MAX_KEPT_BODY
from worker.launch.record import Failure, LaunchRecord
from worker.ops.logging import get_logger

_log = get_logger()


class Refusals:
    """Reports refusals and passing trouble. Repeating a report is harmless."""

    def __init__(self, items: QueueItems | None, queue: LaunchQueue) -> None:
        """`items`: None while W&B is offline."""
        self._items = items
        self._queue = queue

    async def report(self, record: LaunchRecord, failure: Failure) -> None:
        """Raises `Again` when W&B or SQS does not answer: the refusal stands and is reported later."""
        if record.item_id and self._items:
            try:
                await self._items.fail(record.item_id, failure.reason, failure.stage)
            except WandbRefused as error:
                # The item is gone or not ours to fail; the DLQ still tells.
                _log.warning("queue_item_not_failed", launch_id=record.launch_id, error=str(error))
        await self._queue.copy_to_dlq(
            record.message,
            record.launch_id,
            {
                "reason": failure.reason,
                "stage": failure.stage,
                "code": failure.code,
                "launchId": record.launch_id,
                "attempt": str(record.attempt) if record.attempt > 1 else "",
                "truncated": "true" if len(record.message) >= MAX_KEPT_BODY else "",
            },
        )

    async def warn(self, item_id: str, message: str, stage: str) -> None:
        """Show passing trouble on the queue item; never fails, since the trouble may be W&B itself."""
        if not item_id or self._items is None:
            return
        try:
            await self._items.warn(item_id, message, stage)
        except Exception as error:  # of any kind: an answer nobody foresaw must not end a loop of launches
            _log.warning("queue_item_not_warned", error=str(error) or type(error).__name__)
