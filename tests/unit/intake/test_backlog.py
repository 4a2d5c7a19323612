"""How much has left W&B's queue and is not submitted: SQS, the ledger, and what was just sent."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, WORKER, record, waiting
from worker.errors import Unreachable
from worker.intake.backlog import LEDGER_EVERY, SETTLE, Backlog
from worker.launch.record import LaunchState
from worker.ledger.port import WorkerBeat
from worker.ledger.waiting import count_waiting


@dataclass
class Bench:
    queue: FakeLaunchQueue = field(default_factory=FakeLaunchQueue)
    now: float = 100.0
    waiting: int = 0
    counts: int = 0

    def __post_init__(self) -> None:
        self.queue.messages = 0
        self.backlog = Backlog(self.queue, self.count, clock=lambda: self.now)

    async def count(self) -> int:
        self.counts += 1
        return self.waiting


async def test_messages_and_waiting_launches_are_added() -> None:
    bench = Bench(waiting=3)
    bench.queue.messages = 4
    assert await bench.backlog.size(20) == 7


async def test_what_was_sent_counts_until_sqs_shows_it() -> None:
    bench = Bench()
    bench.backlog.sent()
    bench.now += 1
    bench.backlog.sent()
    assert await bench.backlog.size(20) == 2
    bench.now += SETTLE - 0.5
    assert await bench.backlog.size(20) == 1
    bench.now += 1
    assert await bench.backlog.size(20) == 0


async def test_the_ledger_is_asked_now_and_then_and_only_if_its_answer_matters() -> None:
    bench = Bench(waiting=5)
    bench.queue.messages = 20
    assert await bench.backlog.size(20) == 20
    assert bench.counts == 0
    bench.queue.messages = 1
    assert await bench.backlog.size(20) == 6
    bench.waiting = 0
    bench.now += LEDGER_EVERY - 1
    assert await bench.backlog.size(20) == 6
    bench.now += 1
    assert await bench.backlog.size(20) == 1
    assert bench.counts == 2


async def test_without_a_ledger_sqs_alone_counts() -> None:
    queue = FakeLaunchQueue()
    queue.messages = 2
    assert await Backlog(queue, None).size(20) == 2


async def test_unknown_is_not_empty() -> None:
    bench = Bench()
    bench.queue.settle_errors = [Unreachable("SQS is away")]
    with pytest.raises(Unreachable):
        await bench.backlog.size(20)


async def test_waiting_launches_of_all_workers_are_counted() -> None:
    ledger = MemoryLedger()
    for worker in (WORKER, OTHER):
        await ledger.beat(WorkerBeat(worker, 1, "d", "h", 0.0))
    await ledger.create(waiting("launch-1"))
    await ledger.create(waiting("launch-2", owner=OTHER))
    await ledger.create(waiting("launch-3", owner=""))
    await ledger.create(waiting("launch-4", private_key=True))  # its message is still in SQS
    await ledger.create(record("launch-5"))
    await ledger.create(record("launch-6", state=LaunchState.FINISHED))
    assert await count_waiting(ledger) == 3
