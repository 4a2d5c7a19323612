"""The mirror: items of W&B launch queues become SQS messages, never more than the workers can use soon.

    pop (W&B's lease, about a minute) ─▶ send to SQS ─▶ ack with the run that it becomes

A crash before the send: W&B returns the item, and somebody pops it again. A crash before the ack: likewise, and the
second message has the same launch id as the first, so it is the same launch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.aio import backoff, effect, wait_for_event
from worker.clients.aws import AwsRefused
from worker.clients.wandb_api import WandbRefused
from worker.errors import Again, MustRestart, SettingsError, Stage, Unreachable, WorkerError
from worker.intake.backlog import Backlog
from worker.intake.launch_agent import AgentStatus, LaunchAgent
from worker.intake.sqs import LaunchQueue
from worker.intake.wandb_queue import QueueItem, QueueItems
from worker.launch.envelope import Forward, Leave, Origin, TooLarge, envelope
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

T = TypeVar("T")

_LEASE = 45.0
"""Seconds after a pop in which it is finished or given up: W&B returns the item after a minute."""
_ACK_FIRST = 1
"""Seconds that a message is held back: W&B should hear of the run before a worker can fail the item."""
_START_TIMEOUT = 10.0
_END_TIMEOUT = 5.0
_REMEMBERED = 1000
"""Warnings that are not repeated."""
_THIS_ITEM_ONLY = frozenset({"InvalidMessageContents", "InvalidParameterValue"})
"""SendMessage's errors that are about the message, not about the queue."""

_log = get_logger()


@dataclass(frozen=True, slots=True)
class MirrorFacts:
    """What the mirror needs to know; fixed for the life of the process. Times are seconds."""

    base_url: str
    queues: tuple[str, ...]
    limit: int
    """Unsubmitted launches at which nothing more is popped."""
    interval: float
    """Pause when there is nothing to pop or no room."""
    heartbeat: float
    grace: float
    """Longest time to finish the item in hand at a stop."""


class Mirror:
    """Moves items one at a time: each is in SQS and acknowledged before the next is popped."""

    def __init__(
        self,
        *,
        facts: MirrorFacts,
        agent: LaunchAgent,
        items: QueueItems,
        queue: LaunchQueue,
        backlog: Backlog,
        metrics: Metrics,
    ) -> None:
        self._facts = facts
        self._agent = agent
        self._items = items
        self._queue = queue
        self._backlog = backlog
        self._metrics = metrics
        self._turns = list(facts.queues)
        self._told: set[tuple[str, str]] = set()
        """(queue, why) that has been warned of."""
        self._warned: set[str] = set()
        """Ids of items that are left, and whose warning W&B shows."""
        self._troubles: dict[str, str] = {}
        self._status = AgentStatus.POLLING
        self._leave = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why nothing is mirrored now, empty while all is well: for /readyz."""
        return next(
            iter(self._troubles.values()), "" if self._agent.registered else "not registered with W&B"
        )

    async def start(self) -> None:
        """Register, so that wrong settings end the process at once: raises `SettingsError`. A W&B that does not answer
        is left to `run`."""
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await self._agent.register()
        except (Again, TimeoutError) as error:
            _log.warning("agent_not_registered", error=str(error) or "W&B does not answer")
        except WandbRefused as error:
            if error.status in (401, 403):
                raise SettingsError(f"WANDB_API_KEY: W&B does not accept it: {error}") from error
            raise SettingsError(f"LAUNCH_ENTITY, LAUNCH_WANDB_QUEUES: {error}") from error

    async def run(self, stop: asyncio.Event) -> None:
        """Mirror until `stop`, or until somebody stops the agent in W&B; the item in hand is finished first."""
        async with asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(self._move_until_leave(), name="mirror launch queues")
            others = (
                tasks.create_task(self._beat_until_leave(), name="agent heartbeat"),
                tasks.create_task(self._note_stop(stop), name="note the stop of the mirror"),
            )
            await self._leave.wait()
            await asyncio.wait({moving}, timeout=self._facts.grace)
            for task in (moving, *others):
                task.cancel()
        try:
            async with asyncio.timeout(_END_TIMEOUT):
                await self._agent.end()
        except (WorkerError, TimeoutError) as error:
            _log.warning("agent_end_not_told", error=str(error) or "W&B does not answer")
        _log.info("mirror_ended", agent=self._agent.name)

    async def _note_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._leave.set()

    # The agent lives.

    async def _beat_until_leave(self) -> None:
        failures = 0
        pause = self._facts.heartbeat
        while not await wait_for_event(self._leave, pause):
            async with self._ridden_out("agent_heartbeat_failed") as trouble:
                if not self._agent.registered:
                    await self._agent.register()
                elif await self._agent.beat(self._status):
                    _log.warning("mirror_stopped_in_wandb", agent=self._agent.name)
                    self._leave.set()
            failures = failures + 1 if trouble else 0
            pause = max(self._facts.heartbeat, _pause(trouble[0], failures) if trouble else 0.0)

    # Items move.

    async def _move_until_leave(self) -> None:
        failures = 0
        while not self._leave.is_set():
            moved = False
            async with self._ridden_out("mirroring_failed") as trouble:
                moved = await self._move_one()
            failures = failures + 1 if trouble else 0
            pause = _pause(trouble[0], failures) if trouble else self._facts.interval
            if not moved:
                await wait_for_event(self._leave, pause)

    async def _move_one(self) -> bool:
        """One item, if there is room and an item."""
        if not self._agent.registered:
            return False
        size = await self._backlog.size(self._facts.limit)
        self._metrics.mirror_backlog.set(size)
        self._status = AgentStatus.RUNNING if size else AgentStatus.POLLING
        if size >= self._facts.limit:
            return False
        popped = await self._pop()
        if popped is None:
            return False
        await self._settle(*popped)
        return True

    async def _pop(self) -> tuple[str, QueueItem, float] | None:
        """An item, its queue, and until when it is ours: the lease runs from the question, however late the answer.

        The queues take turns: one that gave an item goes to the end. A queue that W&B refuses holds up no other."""
        refusals: list[WandbRefused] = []
        for queue in tuple(self._turns):
            deadline = asyncio.get_running_loop().time() + _LEASE
            try:
                item = await self._items.pop(self._agent.entity, queue, self._agent.agent_id)
            except WandbRefused as error:
                refusals.append(error)
                self._tell_once("queue_not_popped", queue, str(error))
                continue
            if item is not None:
                self._turns.remove(queue)
                self._turns.append(queue)
                self._count("popped")
                return queue, item, deadline
        if len(refusals) == len(self._turns):
            raise refusals[0]
        return None

    async def _settle(self, queue: str, item: QueueItem, deadline: float) -> None:
        origin = Origin(self._facts.base_url, self._agent.entity, queue, self._agent.name)
        match envelope(item.item_id, item.run_spec, origin, max_bytes=self._queue.facts.max_bytes):
            case Leave(why, warning):
                self._count("left")
                self._tell_once("queue_item_left", queue, why)
                if warning:
                    await self._warn_once(item, warning)
            case TooLarge(reason):
                await self._fail(item, reason, deadline)
            case Forward() as message:
                try:
                    await self._until(deadline, lambda: self._send(message, queue, deadline))
                except AwsRefused as error:
                    if error.aws_code.rpartition(".")[2] not in _THIS_ITEM_ONLY:
                        raise
                    told = f"{error.code}: SQS does not take the launch: {error.aws_message}"
                    await self._fail(item, told, deadline)
                else:
                    await self._ack(item, message, deadline)

    async def _send(self, message: Forward, queue: str, deadline: float) -> None:
        if (
            asyncio.get_running_loop().time() >= deadline
        ):  # frozen, or answered late: somebody may have it now
            raise Unreachable("the lease of the popped item is over; W&B returns it to the queue")
        with effect("send_launch"):
            await self._queue.send(message.body, message.launch_id, group=queue, delay=_ACK_FIRST)
        self._backlog.sent()
        self._count("sent")

    async def _ack(self, item: QueueItem, message: Forward, deadline: float) -> None:
        """Said with the run id that the workers will use. Whatever comes of it, the launch is in SQS."""
        try:
            ours = await self._until(deadline, lambda: self._items.ack(item.item_id, message.run_id))
        except WorkerError as error:
            # W&B returns it to the queue; popped again it becomes the same launch.
            _log.warning("queue_item_not_acked", queue_item=item.item_id, error=str(error))
            return
        self._count("acked" if ours else "lost")
        _log.info(
            "launch_mirrored" if ours else "queue_item_lost",
            queue_item=item.item_id,
            launch_id=message.launch_id,
            run_id=message.run_id,
        )

    async def _fail(self, item: QueueItem, reason: str, deadline: float) -> None:
        self._count("failed")
        _log.warning("queue_item_failed", queue_item=item.item_id, reason=reason)
        await self._until(deadline, lambda: self._items.fail(item.item_id, reason, Stage.AGENT))

    async def _warn_once(self, item: QueueItem, warning: str) -> None:
        """An item that is left comes back with each lease's end."""
        if item.item_id in self._warned:
            return
        if len(self._warned) >= _REMEMBERED:
            self._warned.clear()
        self._warned.add(item.item_id)
        try:
            await self._items.warn(item.item_id, warning, Stage.AGENT)
        except WorkerError as error:  # somebody else may have it by now
            _log.warning("queue_item_not_warned", queue_item=item.item_id, error=str(error))
            if isinstance(error, Again):
                self._warned.discard(item.item_id)

    # What is shared.

    async def _until(self, deadline: float, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step while the lease of its item lasts; `deadline` is of the loop's clock."""
        tries = 0
        while True:
            try:
                return await step()
            except Again as error:
                pause = error.retry_after or backoff(tries, cap=10)
                if asyncio.get_running_loop().time() + pause >= deadline:
                    raise
                _log.warning("mirror_step_again", error=str(error), again_in=round(pause, 1))
                await asyncio.sleep(pause)
                tries += 1

    @contextlib.asynccontextmanager
    async def _ridden_out(self, event: str) -> AsyncIterator[list[Exception]]:
        """No trouble with W&B or SQS ends the mirror; it is told, and given to the caller."""
        trouble: list[Exception] = []
        try:
            yield trouble
            self._troubles.pop(event, None)
        except MustRestart:
            raise
        except Exception as error:
            if not isinstance(error, WorkerError):
                _log.exception("mirror_failed_unexpectedly")
            self._troubles[event] = str(error) or type(error).__name__
            _log.warning(event, error=self._troubles[event])
            trouble.append(error)

    def _tell_once(self, event: str, queue: str, why: str) -> None:
        if (queue, why) not in self._told:
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told.add((queue, why))
            _log.warning(event, queue=queue, why=why)

    def _count(self, result: str) -> None:
        self._metrics.mirror_items.labels(result).inc()


def _pause(error: Exception, failures: int) -> float:
    """Seconds before the next try: as W&B asked for, else growing."""
    asked = error.retry_after if isinstance(error, Again) else None
    return asked or backoff(failures - 1, cap=60)
