"""Telling everybody that a launch is refused or waits: W&B's queue item with its files, the dead-letter queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from worker.clients.wandb_api import WandbRefused
from worker.clients.wandb_runs import RunAddress
from worker.errors import Again, Stage
from worker.intake.sqs import LaunchQueue
from worker.intake.wandb_queue import QUEUE_PROJECT, QueueItems
from worker.launch.intent import MAX_KEPT_BODY
from worker.launch.record import Failure, LaunchRecord
from worker.ops.logging import get_logger
from worker.ops.warning_codes import code_of

_REMEMBERED = 1000
"""Items whose last warning is known, so that it is not told again."""

_LATE_EVERY = 10.0
"""Seconds between two looks at warnings that W&B did not take."""

Telling = Callable[[QueueItems], Awaitable[None]]

_log = get_logger()


class Refusals:
    """Reports refusals and passing trouble. Repeating a report is harmless."""

    def __init__(self, items: QueueItems | None, queue: LaunchQueue) -> None:
        """`items`: None while W&B is offline."""
        self._items = items
        self._queue = queue
        self._warned: dict[str, str] = {}
        self._late: dict[str, Telling] = {}
        """Queue item → its newest warning, which W&B did not take."""

    async def report(self, record: LaunchRecord, failure: Failure) -> None:
        """Raises `Again` when W&B or SQS does not answer: the refusal stands and is reported later."""
        await self.fail_item(record, f"{failure.code}: {failure.reason}", failure.stage, log=failure.log)
        await self._queue.copy_to_dlq(
            record.message,
            record.launch_id,
            {
                "reason": failure.reason,
                "stage": failure.stage,
                "code": failure.code,
                "launchId": record.launch_id,
                "attempt": str(record.attempt) if record.attempt > 1 else "",
                "truncated": "true" if record.message_cut or len(record.message) >= MAX_KEPT_BODY else "",
            },
        )

    async def fail_item(self, record: LaunchRecord, message: str, stage: str, *, log: str = "") -> None:
        """The queue item of a launch has failed; `log` becomes its `error.log`. Raises `Again`."""
        if not record.item_id or self._items is None:
            return
        try:
            files = await self._attached(self._items, record, "error", "error.log", log)
            await self._items.fail(record.item_id, message, stage, files)
        except WandbRefused as error:
            # The item is gone or not ours to fail; ledger and DLQ still tell.
            _log.warning("queue_item_not_failed", launch_id=record.launch_id, error=str(error))

    async def run(self) -> None:
        """Until cancelled: what W&B did not take is told once it does, the newest of each item."""
        while True:
            await asyncio.sleep(_LATE_EVERY)
            for item_id, tell in list(self._late.items()):
                if self._late.get(item_id) is tell:
                    await self._tell(item_id, tell)
                if item_id in self._late:
                    break  # W&B is still away, or has had enough

    async def warn(self, item_id: str, event: str, text: str, stage: str) -> None:
        """Show passing trouble on the queue item, once while it stays the same and with the code of `event`, and later
        if W&B does not answer; never fails, since the trouble may be W&B itself."""
        message = f"{code_of(event)}: {text}"
        if not item_id or self._warned.get(item_id) == message:
            return

        async def tell(items: QueueItems) -> None:
            await items.warn(item_id, message, stage)

        self._remember(item_id, message)
        await self._tell(item_id, tell)

    async def warn_of_build(
        self, record: LaunchRecord, warnings: Sequence[str], packages: Sequence[str]
    ) -> None:
        """Shown as `warn` does; the list of `packages` that the image lacks goes along as a file."""
        for warning in warnings:
            _log.warning("build_warning", launch_id=record.launch_id, what=warning)
        if not warnings or not record.item_id:
            return
        text = "".join(f"{package}\n" for package in packages)

        async def tell(items: QueueItems) -> None:
            files = await self._attached(items, record, "warning", "failed-packages.log", text)
            for warning in warnings:
                told = f"{code_of('build_warning')}: {warning}"
                await items.warn(record.item_id, told, Stage.BUILD, files)

        await self._tell(record.item_id, tell)

    async def _tell(self, item_id: str, tell: Telling) -> None:
        self._late.pop(item_id, None)
        if self._items is None:
            return
        try:
            await tell(self._items)
        except Exception as error:  # of any kind: an answer nobody foresaw must not end a loop of launches
            _log.warning("queue_item_not_warned", error=str(error) or type(error).__name__)
            if isinstance(error, Again) and len(self._late) < _REMEMBERED:
                self._late[item_id] = tell
            else:
                self._warned.pop(item_id, None)  # the next time it is told again

    def _remember(self, item_id: str, message: str) -> None:
        self._warned.pop(item_id, None)
        self._warned[item_id] = message
        if len(self._warned) > _REMEMBERED:
            del self._warned[next(iter(self._warned))]

    async def _attached(
        self, items: QueueItems, record: LaunchRecord, kind: Literal["error", "warning"], name: str, text: str
    ) -> list[str]:
        """The paths of what could be attached: files belong to the run of the agent that mirrored the item."""
        if not text or not record.agent_run:
            return []
        agent = RunAddress(record.queue_entity or record.run.entity, QUEUE_PROJECT, record.agent_run)
        try:
            return [await items.attach(agent, record.item_id, kind, name, text)]
        except WandbRefused as error:
            # The agent's run may be deleted: the message matters more than its file.
            _log.warning("queue_item_file_refused", launch_id=record.launch_id, error=str(error))
            return []
