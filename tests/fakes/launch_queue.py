"""SQS and W&B's queue items in memory: what was done to each message, and the order in which it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from worker.clients.wandb_runs import RunAddress
from worker.intake.refusal import Refusals
from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage
from worker.intake.unstarted import UnstartedRuns
from worker.intake.wandb_queue import QueueItem, QueueItems
from worker.launch.record import LaunchRecord

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
        self.settle_errors: list[Exception | None] = []
        """Raised, oldest first, by the next deletes, hides, sends and looks at the depth; None lets one pass."""
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
        self.sent: list[tuple[str, str]] = []
        """(launch id, message group) of each message sent."""
        self.messages: int | None = None
        """What SQS tells of its depth; None: what is waiting."""
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

    async def send(
        self, body: str, launch_id: str, *, group: str = "", again: str = "", delay: int = 0
    ) -> str:
        await self._settling()
        message = a_message(f"sent-{launch_id}", body)
        self.put(message)
        self.sent.append((launch_id, group))
        self.told.append(f"send {launch_id}")
        return message.message_id

    async def depth(self) -> int:
        await self._settling()
        return self.messages if self.messages is not None else len(self._waiting)

    async def copy_to_dlq(self, body: str, launch_id: str, attributes: Mapping[str, str]) -> None:
        await asyncio.sleep(0)
        if self.dlq_errors:
            raise self.dlq_errors.pop(0)
        self.copied.append((body, launch_id, attributes))
        self.told.append("dlq")

    async def _settling(self) -> None:
        await asyncio.sleep(0)
        error = self.settle_errors.pop(0) if self.settle_errors else None
        if error is not None:
            raise error


class FakeQueueItems(QueueItems):
    """Failures and warnings as W&B would show them."""

    def __init__(self, told: list[str] | None = None) -> None:
        self.errors: list[Exception | None] = []
        """Raised, oldest first, by the next calls; None lets one pass."""
        self.failed: list[tuple[str, str, str]] = []
        """(item id, message, stage)"""
        self.warned: list[tuple[str, str, str]] = []
        self.files: dict[str, str] = {}
        """Path in the run of an agent → text."""
        self.attached: list[Sequence[str]] = []
        """The files of each failure and warning."""
        self.queued: dict[str, list[QueueItem]] = {}
        """Queue → its items, in the order of their pops."""
        self.popped: list[tuple[str, str, str]] = []
        """(entity, queue, agent id) of each pop."""
        self.acked: list[tuple[str, str]] = []
        """(item id, run id) of each acknowledgement."""
        self.taken: set[str] = set()
        """Items that somebody else has acknowledged."""
        self._told = [] if told is None else told

    async def pop(self, entity: str, queue: str, agent_id: str) -> QueueItem | None:
        await self._turn()
        self.popped.append((entity, queue, agent_id))
        items = self.queued.get(queue)
        return items.pop(0) if items else None

    async def ack(self, item_id: str, run_id: str) -> bool:
        await self._turn()
        self.acked.append((item_id, run_id))
        self._told.append(f"ack {item_id}")
        return item_id not in self.taken

    async def fail(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
        await self._turn()
        self.failed.append((item_id, message, stage))
        self.attached.append(files)
        self._told.append("wandb")

    async def warn(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
        await self._turn()
        self.warned.append((item_id, message, stage))
        self.attached.append(files)

    async def attach(
        self, agent: RunAddress, item_id: str, kind: Literal["error", "warning"], name: str, text: str
    ) -> str:
        await self._turn()
        path = f"{item_id}/{kind}/{name}"
        self.files[f"{'/'.join(agent)}/{path}"] = text
        return path

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


def no_unstarted_runs() -> UnstartedRuns:
    """As while W&B is offline: nobody looks for the run of an ended job."""

    async def no_log(_: LaunchRecord) -> str:
        return ""

    return UnstartedRuns(None, Refusals(None, FakeLaunchQueue()), no_log, grace=0)
