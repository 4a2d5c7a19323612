"""One build of a tag at a time, whoever wants it; nobody waits for the dead."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.ledger import MemoryLedger
from worker.ledger.build_lock import BuildLocks
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat


class Slow(MemoryLedger):
    """Takes a lock at once, and answers only when told."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = asyncio.Event()

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        holder = await super().lock(name, worker, held_by=held_by)
        await self.answering.wait()
        return holder


class Site:
    """Counts who builds at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0

    async def build(self, locks: BuildLocks, tag: str, seconds: float = 0.02) -> None:
        async with locks.only_one(tag):
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(seconds)
            self.now -= 1


def locks_of(ledger: MemoryLedger, worker: str, membership: Membership | None = None) -> BuildLocks:
    beat = WorkerBeat(worker, 0, "default", "host", 0.0)
    return BuildLocks(ledger, membership or Membership(ledger, beat, 10.0), worker)


async def test_one_at_a_time_in_a_worker() -> None:
    ledger, site = MemoryLedger(), Site()
    locks = locks_of(ledger, "w1")
    await asyncio.gather(*(site.build(locks, "tag") for _ in range(5)))
    assert (site.most, site.total) == (1, 5)
    assert await ledger.lock("tag", "probe") == "probe"


async def test_other_tags_are_built_beside_it() -> None:
    site = Site()
    locks = locks_of(MemoryLedger(), "w1")
    await asyncio.gather(*(site.build(locks, f"tag-{i}") for i in range(3)))
    assert site.most == 3


async def test_one_at_a_time_over_two_workers() -> None:
    ledger, site = MemoryLedger(), Site()
    await asyncio.gather(*(site.build(locks_of(ledger, worker), "tag") for worker in ("w1", "w2")))
    assert (site.most, site.total) == (1, 2)


async def test_a_dead_holder_is_replaced() -> None:
    ledger, now = MemoryLedger(), 0.0
    await ledger.beat(WorkerBeat("dead", 1, "default", "host", 0.0))
    await ledger.lock("tag", "dead")
    membership = Membership(ledger, WorkerBeat("w1", 0, "default", "host", 0.0), 10.0, clock=lambda: now)
    for _ in range(5):
        await membership.beat_once()
        now += 10.0
    site = Site()
    async with asyncio.timeout(20):
        await site.build(locks_of(ledger, "w1", membership), "tag")
    assert site.total == 1
    assert await ledger.lock("tag", "probe") == "probe"


async def test_a_failed_build_gives_the_lock_back() -> None:
    ledger = MemoryLedger()
    with pytest.raises(RuntimeError):
        async with locks_of(ledger, "w1").only_one("tag"):
            raise RuntimeError("the build failed")
    assert await ledger.lock("tag", "probe") == "probe"


async def test_cancelled_while_the_ledger_has_not_answered_leaves_no_lock_behind() -> None:
    """It would be held for as long as this worker lives."""
    ledger = Slow()
    async with asyncio.TaskGroup() as tasks:
        building = tasks.create_task(Site().build(locks_of(ledger, "w1"), "tag"))
        await asyncio.sleep(0.02)
        building.cancel()
    ledger.answering.set()
    assert await ledger.lock("tag", "probe") == "probe"
