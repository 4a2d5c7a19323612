"""SQS and W&B's queue items in memory: what was done to each message, and the order in which it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage
from worker.intake.wandb_queue import QueueItems

QUEUE_ARN = "arn:aws:sqs:us-east-1:123456789012:launches"


def a_message(name: str = "m-1", body: str = "{}", *, receives: int = 1) -> SqsMessage:
    """A received message; its handle is its id with a prefix."""
    return SqsMessage(name, f"handle-{name}", body, receives, "")


class FakeLaunchQueue(LaunchQueue):
    """The queue's methods, answered from memory. A receive waits for `put`, at most its long poll."""

    def __init__(self) -> None:
        self.facts = QueueFacts(
            "http://127.0.0.1/launches", QUEUE_ARN, fifo=False, dlq_url="http://127.0.0.1/dlq"
        )
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next receives."""
        self.settle_errors: list[Exception] = []
        """Raised, oldest first, by the next deletes and hides."""
        self.extend_errors: list[Exception] = []
        self.dlq_errors: list[Exception] = []
        self.wanted: list[int] = []
        """How many messages each receive asked for."""
        self.hidden: list[tuple[str, float]] = []
        """(message id, seconds) of each `hide`."""
        self.deleted: list[str] = []
        self.extended: list[list[str]] = []
        """Message ids of each renewal."""
        self.lost: set[str] = set()
        """Message ids whose renewal fails because they are somebody else's now."""
        self.copied: list[tuple[str, str, Mapping[str, str]]] = []
        """(body, launch id, attributes) of each copy in the DLQ."""
        self.told: list[str] = []
        """What was told to whom, in order; shared with `FakeQueueItems`."""
        self._waiting: list[SqsMessage] = []
        self._arrived = asyncio.Event()

    def put(self, *messages: SqsMessage) -> None:
        """Let a receive find these."""
        self._waiting += messages
        self._arrived.set()

    async def receive(self, limit: int, *, wait: float, visibility: float) -> list[SqsMessage]:
        self.wanted.append(limit)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        if not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        given, self._waiting = self._waiting[:limit], self._waiting[limit:]
        return given

    async def hide(self, message: SqsMessage, seconds: float) -> None:
        await self._settling()
        self.hidden.append((message.message_id, seconds))

    async def extend(self, messages: Sequence[SqsMessage], seconds: float) -> frozenset[str]:
        assert len(messages) <= 10
        await asyncio.sleep(0)
        if self.extend_errors:
            raise self.extend_errors.pop(0)
        self.extended.append([message.message_id for message in messages])
        return frozenset(m.receipt_handle for m in messages if m.message_id in self.lost)

    async def delete(self, message: SqsMessage) -> None:
        await self._settling()
        self.deleted.append(message.message_id)

    async def send(self, body: str, launch_id: str, *, group: str = "", again: str = "") -> str:
        message = a_message(f"sent-{launch_id}", body)
        self.put(message)
        return message.message_id

    async def copy_to_dlq(self, body: str, launch_id: str, attributes: Mapping[str, str]) -> None:
        await asyncio.sleep(0)
        if self.dlq_errors:
            raise self.dlq_errors.pop(0)
        self.copied.append((body, launch_id, attributes))
        self.told.append("dlq")

    async def _settling(self) -> None:
        await asyncio.sleep(0)
        if self.settle_errors:
            raise self.settle_errors.pop(0)


class FakeQueueItems(QueueItems):
    """Failures and warnings as W&B would show them."""

    def __init__(self, told: list[str] | None = None) -> None:
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next failures and warnings."""
        self.failed: list[tuple[str, str, str]] = []
        """(item id, message, stage)"""
        self.warned: list[tuple[str, str, str]] = []
        self._told = [] if told is None else told

    async def fail(self, item_id: str, message: str, stage: str) -> None:
        await self._turn()
        self.failed.append((item_id, message, stage))
        self._told.append("wandb")

    async def warn(self, item_id: str, message: str, stage: str) -> None:
        await self._turn()
        self.warned.append((item_id, message, stage))

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
