"""Launches that nobody holds any more are claimed once, and gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.fakes.ledger import MemoryLedger, SizedLedger
from tests.unit.waiting import until
from worker.errors import Unreachable
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.adoption import Adoption
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat
from worker.ops.metrics import Metrics

HEARTBEAT = 0.02


def a_record(
    name: str, owner: str = "", state: LaunchState = LaunchState.ACCEPTED, *, key: bool = False
) -> LaunchRecord:
    return LaunchRecord(launch_id=name, state=state, run=RunRef("e", "p", name), owner=owner, private_key=key)


class Flaky(MemoryLedger):
    """Loses the answer of a claim, and then fails to list records, as an outage does."""

    lose_claims = 0
    fail_lists = 0

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        claimed = await super().claim(seen, worker)
        if self.lose_claims:
            self.lose_claims -= 1
            raise Unreachable("the answer got lost")
        return claimed

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        if self.fail_lists and not self.lose_claims:
            self.fail_lists -= 1
            raise Unreachable("the ledger is away")
        return await super().open_records(owner)


@dataclass
class Peer:
    name: str
    ledger: MemoryLedger
    adopted: list[LaunchRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        metrics = self.metrics = Metrics()
        beat = WorkerBeat(self.name, 0, "default", "host", 0.0)
        self.held = HeldLaunches(self.ledger, self.name, metrics)
        self.adoption = Adoption(
            ledger=self.ledger,
            membership=Membership(self.ledger, beat, HEARTBEAT),
            held=self.held,
            worker=self.name,
            heartbeat=HEARTBEAT,
            metrics=metrics,
        )

    async def run(self) -> None:
        await self.adoption.run(self._adopt)

    def _adopt(self, held: HeldLaunch) -> None:
        self.adopted.append(held.record)
        self.held.add(held)


async def while_running(*peers: Peer, do: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(peer.run()) for peer in peers]
        await do()
        for task in running:
            task.cancel()


async def some_rounds() -> None:
    await asyncio.sleep(10 * HEARTBEAT)


async def test_released_launches_are_claimed_at_once_and_once() -> None:
    ledger = MemoryLedger()
    await ledger.create(a_record("waiting", state=LaunchState.WAITING))
    await ledger.create(a_record("accepted"))
    peers = [Peer("w1", ledger), Peer("w2", ledger)]
    await while_running(*peers, do=some_rounds)
    adopted = [record for peer in peers for record in peer.adopted]
    assert sorted(record.launch_id for record in adopted) == ["accepted", "waiting"]
    assert {record.epoch for record in adopted} == {2}


@pytest.mark.parametrize(
    "record",
    [
        a_record("key", state=LaunchState.WAITING, key=True),
        a_record("intent", state=LaunchState.INTENT),
        a_record("finished", state=LaunchState.FINISHED),
    ],
    ids=lambda record: record.launch_id,
)
async def test_what_only_its_message_can_bring_back_is_left_alone(record: LaunchRecord) -> None:
    ledger = MemoryLedger()
    await ledger.create(record)
    peer = Peer("w1", ledger)
    await while_running(peer, do=some_rounds)
    assert peer.adopted == []
    assert await ledger.read(record.launch_id) == record


async def test_a_running_job_with_a_key_of_its_own_is_adopted() -> None:
    ledger = MemoryLedger()
    await ledger.create(a_record("key", key=True))
    peer = Peer("w1", ledger)
    await while_running(peer, do=lambda: until(lambda: peer.adopted))
    assert [record.owner for record in peer.adopted] == ["w1"]


async def test_a_dead_workers_launches_are_claimed_and_then_it_is_forgotten() -> None:
    ledger = MemoryLedger()
    await ledger.beat(WorkerBeat("dead", 7, "default", "host", 0.0))
    await ledger.create(a_record("a", "dead"))
    await ledger.create(a_record("theirs", "alive"))
    peer = Peer("w1", ledger)

    async def forgotten() -> None:
        while {beat.worker for beat in await ledger.beats()} != {"w1"}:  # noqa: ASYNC110
            await asyncio.sleep(HEARTBEAT)

    await while_running(peer, do=forgotten)
    assert [(record.launch_id, record.epoch) for record in peer.adopted] == [("a", 2)]


@pytest.mark.parametrize("failing_lists", [0, 1, 3])
async def test_a_claim_without_an_answer_is_looked_up_again(failing_lists: int) -> None:
    """It happened: the record names this worker, which does not know it. Also when the outage goes on."""
    ledger = Flaky()
    ledger.lose_claims, ledger.fail_lists = 1, failing_lists
    await ledger.create(a_record("a"))
    peer = Peer("w1", ledger)
    await while_running(peer, do=lambda: until(lambda: peer.adopted, limit=15))
    assert [(record.launch_id, record.owner, record.epoch) for record in peer.adopted] == [("a", "w1", 3)]


async def test_one_record_that_cannot_be_written_does_not_stop_the_heart() -> None:
    """After a gap all are written, to learn which of them peers have claimed."""
    ledger = SizedLedger()
    peer = Peer("w1", ledger)
    for name in ("big", "theirs"):
        await ledger.create(a_record(name, "w1"))
        peer.held.add(HeldLaunch(a_record(name, "w1")))
    next(each for each in peer.held if each.launch_id == "big").update(message="x" * 410_000)

    async def gap() -> None:
        await until(lambda: peer.adoption.beating)
        assert await ledger.claim(a_record("theirs", "w1"), "w2") is not None
        ledger.failing = Unreachable("away")
        await asyncio.sleep(5 * HEARTBEAT)
        assert not peer.adoption.is_current
        ledger.failing = None
        await until(lambda: peer.adoption.beating and peer.adoption.is_current)

    await while_running(peer, do=gap)
    assert [held.launch_id for held in peer.held] == ["big"]


async def test_readiness_follows_the_heartbeat() -> None:
    ledger = MemoryLedger()
    peer = Peer("w1", ledger)

    async def outage() -> None:
        await until(lambda: peer.adoption.beating)
        ledger.failing = Unreachable("away")
        await until(lambda: not peer.adoption.beating)
        ledger.failing = None
        await until(lambda: peer.adoption.beating)

    await while_running(peer, do=outage)


class Slow(MemoryLedger):
    """Each claim takes a heartbeat."""

    beats_before: int = 0
    """Heartbeats written before the last claim ended."""
    written = 0

    async def beat(self, beat: WorkerBeat) -> None:
        self.written += 1
        await super().beat(beat)

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        await asyncio.sleep(HEARTBEAT)
        claimed = await super().claim(seen, worker)
        self.beats_before = self.written
        return claimed


async def test_whoever_claims_many_launches_goes_on_beating() -> None:
    """Silent until the last one is claimed, it would be taken for dead itself, and they would be claimed again."""
    ledger = Slow()
    for number in range(100):
        await ledger.create(a_record(f"l{number}"))
    peer = Peer("w1", ledger)
    await while_running(peer, do=lambda: until(lambda: len(peer.adopted) == 100, limit=30))
    assert ledger.beats_before >= 4


async def test_metrics_tell_a_job_that_hangs_from_one_that_trains() -> None:
    peer = Peer("w1", MemoryLedger())
    facts = [JobFacts("InProgress", state) for state in ("Pending", "Training", "Training")]
    for number, each in enumerate(facts):
        record = replace(a_record(f"l{number}", "w1"), facts=each)
        await peer.ledger.create(record)
        peer.held.add(HeldLaunch(record))

    def count(secondary: str) -> float | None:
        labels = {"status": "InProgress", "secondary_status": secondary}
        return peer.metrics.registry.get_sample_value("launch_job_states", labels)

    async def starts() -> None:
        await until(lambda: (count("Pending"), count("Training")) == (1, 2))
        held = next(each for each in peer.held if each.record.launch_id == "l0")
        held.record = replace(held.record, facts=JobFacts("InProgress", "Training"))
        await until(lambda: (count("Pending"), count("Training")) == (None, 3))

    await while_running(peer, do=starts)
