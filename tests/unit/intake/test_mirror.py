"""The mirror's decisions, in virtual time: when it pops, what it does with an item, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.unit.launches import message
from worker.clients.aws import AwsRefused
from worker.clients.wandb_api import WandbRefused
from worker.errors import SettingsError, Throttled, Unreachable
from worker.intake.backlog import Backlog
from worker.intake.launch_agent import AgentFacts, AgentStatus, LaunchAgent
from worker.intake.mirror import Mirror, MirrorFacts
from worker.intake.wandb_queue import QueueItem
from worker.launch.envelope import SCHEDULER
from worker.launch.identity import launch_id
from worker.ops.metrics import Metrics

pytestmark = pytest.mark.looptime

BASE_URL = "https://api.wandb.ai"
LIMIT, INTERVAL, HEARTBEAT, GRACE = 3, 5.0, 10.0, 12.0


class FakeAgent(LaunchAgent):
    """An agent without W&B."""

    def __init__(self) -> None:
        self.agent_id, self.name, self.entity = "", "", "acme"
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next registrations and heartbeats."""
        self.registrations = 0
        self.beats: list[AgentStatus] = []
        self.stop_polling = False
        self.ended = 0

    async def register(self) -> None:
        await self._turn()
        self.registrations += 1
        self.agent_id, self.name = f"id-{self.registrations}", f"agent-{self.registrations}"

    async def beat(self, status: AgentStatus) -> bool:
        await self._turn()
        self.beats.append(status)
        return self.stop_polling

    async def end(self) -> None:
        await self._turn()
        self.ended += 1

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


def item(item_id: str, **spec: Any) -> QueueItem:
    return QueueItem(item_id, {**message()["runSpec"], **spec})


def identity(name: str) -> str:
    return launch_id((BASE_URL, "acme", name))


@dataclass
class Bench:
    queues: tuple[str, ...] = ("sm",)
    agent: FakeAgent = field(default_factory=FakeAgent)
    queue: FakeLaunchQueue = field(default_factory=FakeLaunchQueue)
    metrics: Metrics = field(default_factory=Metrics)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.items = FakeQueueItems(self.queue.told)
        self.queue.messages = 0
        loop = asyncio.get_running_loop()
        self.mirror = Mirror(
            facts=MirrorFacts(BASE_URL, self.queues, LIMIT, INTERVAL, HEARTBEAT, GRACE),
            agent=self.agent,
            items=self.items,
            queue=self.queue,
            backlog=Backlog(self.queue, None, clock=loop.time),
            metrics=self.metrics,
        )

    def put(self, *names: str, queue: str = "sm") -> None:
        self.items.queued.setdefault(queue, []).extend(item(name) for name in names)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The mirror runs; leaving stops it and waits for its end."""
        async with asyncio.TaskGroup() as tasks:
            await self.mirror.start()
            task = tasks.create_task(self.mirror.run(self.stop))
            yield task
            self.stop.set()

    def count(self, result: str) -> float:
        value = self.metrics.registry.get_sample_value("launch_mirror_items_total", {"result": result})
        return value or 0.0


async def test_an_item_is_sent_then_acknowledged_with_its_run() -> None:
    bench = Bench()
    bench.put("a")
    async with bench.running():
        await asyncio.sleep(1)
    assert bench.queue.told == [f"send {identity('a')}", "ack a"]
    assert bench.items.acked == [("a", identity("a")[:10])]
    assert bench.queue.sent == [(identity("a"), "sm")]
    assert bench.items.popped[0] == ("acme", "sm", "id-1")
    (received,) = await bench.queue.receive(1, wait=0, visibility=1)
    assert json.loads(received.body)["agentRun"] == "agent-1"
    assert [bench.count(r) for r in ("popped", "sent", "acked", "lost")] == [1, 1, 1, 0]


async def test_no_more_is_popped_than_there_is_room_for() -> None:
    bench = Bench()
    bench.put(*"abcdef")
    async with bench.running():
        await asyncio.sleep(5)
        assert [acked for acked, _ in bench.items.acked] == ["a", "b", "c"], "what was sent counts at once"
        bench.queue.messages = 2
        await asyncio.sleep(20)
        assert len(bench.items.acked) == 4, "two in SQS leave room for one, until SQS shows it"
        bench.queue.messages = 3
        await asyncio.sleep(60)
        assert len(bench.items.acked) == 4
        assert bench.agent.beats[-1] is AgentStatus.RUNNING
        bench.queue.messages = 0
        await asyncio.sleep(30)
        assert len(bench.items.acked) == 6
    assert bench.metrics.registry.get_sample_value("launch_mirror_backlog") is not None


async def test_nothing_to_pop_is_asked_for_at_an_easy_pace() -> None:
    bench = Bench(queues=("x", "y"))
    async with bench.running():
        await asyncio.sleep(10 * INTERVAL - 1)
        assert len(bench.items.popped) == 2 * 10
    assert set(bench.agent.beats) == {AgentStatus.POLLING}


async def test_queues_take_turns() -> None:
    bench = Bench(queues=("x", "y"))
    bench.put("x1", "x2", queue="x")
    bench.put("y1", queue="y")
    async with bench.running():
        await asyncio.sleep(1)
    assert [acked for acked, _ in bench.items.acked] == ["x1", "y1", "x2"]


async def test_a_queue_that_wandb_refuses_holds_up_no_other() -> None:
    class OneRefused(FakeQueueItems):
        async def pop(self, entity: str, queue: str, agent_id: str) -> QueueItem | None:
            if queue == "gone":
                raise WandbRefused("run queue gone not found", status=200)
            return await super().pop(entity, queue, agent_id)

    bench = Bench(queues=("gone", "sm"))
    bench.items = bench.mirror._items = OneRefused(bench.queue.told)
    bench.put("a", "b")
    async with bench.running():
        await asyncio.sleep(1)
    assert [acked for acked, _ in bench.items.acked] == ["a", "b"]


async def test_an_item_of_somebody_else_is_dropped_without_harm() -> None:
    bench = Bench()
    bench.items.taken = {"a"}
    bench.put("a", "b")
    async with bench.running():
        await asyncio.sleep(1)
    assert bench.items.failed == [], "it is the winner's item"
    assert (bench.count("lost"), bench.count("acked")) == (1, 1)


async def test_what_is_not_ours_stays_in_the_queue() -> None:
    bench = Bench()
    scheduler = QueueItem("s", {"uri": "placeholder-uri-scheduler", "resource": "local-process"})
    bench.items.queued["sm"] = [scheduler, item("k", resource="kubernetes"), scheduler, item("a")]
    async with bench.running():
        await asyncio.sleep(1)
    assert [acked for acked, _ in bench.items.acked] == ["a"]
    assert bench.items.failed == []
    assert bench.items.warned == [("s", SCHEDULER, "agent")], "once, however often it comes back"
    assert SCHEDULER.startswith("LW-SWEEP-SCHEDULER: "), "as in docs/errors.md"
    assert bench.count("left") == 3
    assert len(bench.mirror._told) == 2, "one warning a queue and reason"


async def test_an_item_that_sqs_can_never_take_fails_with_the_reason() -> None:
    bench = Bench()
    bench.items.queued["sm"] = [item("huge", name="x" * (1 << 20)), item("a")]
    async with bench.running():
        await asyncio.sleep(1)
    ((failed, reason, stage),) = bench.items.failed
    assert (failed, stage) == ("huge", "agent")
    assert "LW-MESSAGE-SIZE" in reason
    assert [acked for acked, _ in bench.items.acked] == ["a"]


async def test_a_message_that_sqs_refuses_fails_its_item_only() -> None:
    bench = Bench()
    bench.put("a", "b")
    bench.queue.settle_errors = [None, AwsRefused("SendMessage", "InvalidMessageContents", "bad"), None]
    async with bench.running():
        await asyncio.sleep(1)
    assert [failed for failed, _, _ in bench.items.failed] == ["a"]
    assert [acked for acked, _ in bench.items.acked] == ["b"]


async def test_not_sent_is_not_acknowledged() -> None:
    """SQS is away for longer than the lease: W&B returns the item, and it is popped again."""
    bench = Bench()
    bench.put("a")
    bench.queue.settle_errors = [None, *(Unreachable("away") for _ in range(100))]
    async with bench.running():
        await asyncio.sleep(50)
        assert (bench.queue.sent, bench.items.acked) == ([], [])
        bench.queue.settle_errors.clear()
        bench.put("a")
        await asyncio.sleep(100)
    assert [acked for acked, _ in bench.items.acked] == ["a"]
    assert len(bench.queue.sent) == 1


async def test_an_item_that_comes_late_is_left_to_wandb() -> None:
    """The lease runs from the pop; whoever sleeps through it has the item no more."""

    class Late(FakeQueueItems):
        async def pop(self, entity: str, queue: str, agent_id: str) -> QueueItem | None:
            popped = await super().pop(entity, queue, agent_id)
            if popped and popped.item_id == "late":
                await asyncio.sleep(50)
            return popped

    bench = Bench()
    bench.items = bench.mirror._items = Late(bench.queue.told)
    bench.put("late", "b")
    async with bench.running():
        await asyncio.sleep(100)
    assert [acked for acked, _ in bench.items.acked] == ["b"]
    assert [sent for sent, _ in bench.queue.sent] == [identity("b")]


async def test_a_queue_of_aws_that_is_gone_leaves_the_item_to_wandb() -> None:
    bench = Bench()
    bench.put("a")
    gone = AwsRefused("SendMessage", "AWS.SimpleQueueService.NonExistentQueue", "gone")
    bench.queue.settle_errors = [None, gone]
    async with bench.running():
        await asyncio.sleep(0.5)
        assert bench.mirror.trouble
    assert bench.items.failed == []
    assert bench.items.acked == []


async def test_an_acknowledgement_is_repeated_while_the_lease_lasts() -> None:
    bench = Bench()
    bench.put("a")
    bench.items.errors = [None, Unreachable("away"), Throttled("slow", retry_after=7)]
    async with bench.running():
        await asyncio.sleep(5)
        assert bench.items.acked == []
        await asyncio.sleep(6)
        assert len(bench.items.acked) == 1
    assert len(bench.queue.sent) == 1


async def test_an_acknowledgement_that_never_comes_through_is_given_up() -> None:
    bench = Bench()
    bench.put("a")
    bench.items.errors = [None, *(Unreachable("away") for _ in range(30))]
    async with bench.running():
        await asyncio.sleep(60)
        bench.items.errors.clear()
        bench.put("b")
        await asyncio.sleep(60)
        assert [acked for acked, _ in bench.items.acked] == ["b"]


async def test_a_rate_limit_is_waited_for() -> None:
    bench = Bench()
    bench.items.errors = [Throttled("429", retry_after=100)]
    async with bench.running():
        bench.put("a")
        await asyncio.sleep(99)
        assert bench.items.popped == []
        await asyncio.sleep(2)
        assert len(bench.items.acked) == 1


async def test_a_wandb_that_is_away_is_ridden_out() -> None:
    bench = Bench()
    async with bench.running():
        bench.items.errors = [Unreachable("away") for _ in range(5)]
        bench.agent.errors = [Unreachable("away"), WandbRefused("the key is revoked", status=401)]
        await asyncio.sleep(3 * HEARTBEAT)
        assert bench.mirror.trouble
        bench.put("a")
        await asyncio.sleep(120)
        assert bench.mirror.trouble == ""
        assert len(bench.items.acked) == 1
    assert bench.agent.ended == 1


async def test_a_defect_ends_nothing() -> None:
    bench = Bench()
    bench.items.errors = [ValueError("nobody foresaw this")]
    async with bench.running():
        bench.put("a")
        await asyncio.sleep(10)
        assert len(bench.items.acked) == 1


async def test_nothing_is_popped_before_the_agent_is_registered() -> None:
    bench = Bench()
    bench.put("a")
    bench.agent.errors = [Unreachable("away"), Unreachable("away")]
    async with bench.running():
        await asyncio.sleep(HEARTBEAT + 1)
        assert bench.items.popped == []
        assert bench.mirror.trouble
        await asyncio.sleep(3 * HEARTBEAT)
        assert len(bench.items.acked) == 1
        assert bench.mirror.trouble == ""


async def test_a_wandb_without_an_answer_holds_up_no_start() -> None:
    class Silent(FakeAgent):
        async def register(self) -> None:
            await asyncio.sleep(60)

    bench = Bench(agent=Silent())
    loop = asyncio.get_running_loop()
    async with bench.running():
        assert loop.time() <= 15, "the worker around it has to start"
    assert not bench.agent.registered


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (WandbRefused("no", status=401), "WANDB_API_KEY"),
        (WandbRefused("no", status=403), "WANDB_API_KEY"),
        (WandbRefused("no", status=200), "LAUNCH_WANDB_QUEUES"),
        (SettingsError("LAUNCH_WANDB_QUEUES: no such queue"), "LAUNCH_WANDB_QUEUES"),
    ],
)
async def test_wrong_settings_are_told_at_the_start(error: Exception, name: str) -> None:
    bench = Bench()
    bench.agent.errors = [error]
    with pytest.raises(SettingsError, match=name):
        await bench.mirror.start()


async def test_stop_in_wandb_ends_it() -> None:
    bench = Bench()
    async with bench.running() as task:
        await asyncio.sleep(HEARTBEAT / 2)
        bench.agent.stop_polling = True
        await asyncio.sleep(HEARTBEAT)
        assert task.done()
        assert not bench.stop.is_set(), "the worker around it goes on"
    assert bench.agent.ended == 1


async def test_the_item_in_hand_is_finished_at_a_stop() -> None:
    bench = Bench()
    bench.put("a", "b")
    bench.queue.settle_errors = [None, Unreachable("away"), Unreachable("away")]
    async with bench.running():
        await asyncio.sleep(0.1)
        assert bench.queue.sent == []
    assert [acked for acked, _ in bench.items.acked] == ["a"], "and no other is popped"
    assert bench.agent.ended == 1


async def test_a_stop_waits_no_longer_than_the_grace() -> None:
    bench = Bench()
    bench.put("a")
    bench.queue.settle_errors = [None, *(Unreachable("away") for _ in range(100))]
    loop = asyncio.get_running_loop()
    async with bench.running():
        await asyncio.sleep(0.1)
        stopped_at = loop.time()
    assert loop.time() - stopped_at == pytest.approx(GRACE, abs=0.5)
    assert bench.items.acked == []
    assert bench.agent.ended == 1


async def test_an_end_that_wandb_does_not_take_is_an_end_all_the_same() -> None:
    bench = Bench()
    async with bench.running():
        await asyncio.sleep(0.1)
        bench.agent.errors = [Unreachable("away")]
    assert bench.agent.ended == 0


def test_an_agent_is_not_registered_by_being_made() -> None:
    facts = AgentFacts("", ("sm",), "host", "v", {})
    assert not LaunchAgent(None, facts).registered  # type: ignore[arg-type]
