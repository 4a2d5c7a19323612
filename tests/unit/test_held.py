"""The launches a worker holds: written newest, together, one write at a time, and let go when they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.fakes.ledger import MemoryLedger, SizedLedger
from tests.unit.records import OTHER, WORKER, record
from worker.errors import Unreachable
from worker.launch.record import LaunchRecord
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import RecordTooBig
from worker.ops.metrics import Metrics


class SlowLedger(MemoryLedger):
    """Saves wait at a gate; how many are under way is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most = 0

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        try:
            return await super().save(records, owner=owner)
        finally:
            self.under_way -= 1


@pytest.fixture
def ledger() -> SlowLedger:
    return SlowLedger()


@pytest.fixture
def held(ledger: SlowLedger) -> HeldLaunches:
    return HeldLaunches(ledger, WORKER, Metrics())


async def hold(held: HeldLaunches, ledger: MemoryLedger, *launch_ids: str) -> list[HeldLaunch]:
    launches = [HeldLaunch(record(launch_id)) for launch_id in launch_ids]
    for launch in launches:
        await ledger.create(launch.record)
        held.add(launch)
    return launches


async def test_what_is_changed_in_memory_is_written_by_a_save(held: HeldLaunches, ledger: SlowLedger) -> None:
    (launch,) = await hold(held, ledger, "launch-1")
    launch.update(stop_reason="why")
    assert await ledger.read("launch-1") == record()
    await held.save([launch])
    assert await ledger.read("launch-1") == record(stop_reason="why")


async def test_launches_are_written_together(held: HeldLaunches, ledger: SlowLedger) -> None:
    launches = await hold(held, ledger, "launch-1", "launch-2")
    await held.save(iter([*launches, launches[0]]))
    assert ledger.saves == [("launch-1", "launch-2")]
    await held.save([])
    assert len(ledger.saves) == 1


async def test_a_slow_write_never_puts_an_older_state_over_a_newer_one(
    held: HeldLaunches, ledger: SlowLedger
) -> None:
    (launch,) = await hold(held, ledger, "launch-1")
    ledger.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            launch.update(tries=number)
            tasks.create_task(held.save([launch]))
            await asyncio.sleep(0)
        ledger.gate.set()
    assert ledger.most == 1
    stored = await ledger.read("launch-1")
    assert stored is not None
    assert stored.tries == 4


async def test_a_launch_that_was_taken_over_is_lost_and_the_others_are_not(
    held: HeldLaunches, ledger: SlowLedger
) -> None:
    mine, theirs = await hold(held, ledger, "launch-1", "launch-2")
    told: list[HeldLaunch] = []
    held.when_lost(told.append)
    held.when_lost(told.append)
    assert await ledger.claim(theirs.record, OTHER) is not None
    await held.save([mine, theirs])
    assert (mine.lost, theirs.lost, told) == (False, True, [theirs, theirs])
    assert ("launch-1" in held, "launch-2" in held, len(held)) == (True, False, 1)
    await held.save([theirs])
    assert len(ledger.saves) == 1, "a lost launch is not written again"


async def test_a_ledger_that_does_not_answer_proves_nothing(held: HeldLaunches, ledger: SlowLedger) -> None:
    (launch,) = await hold(held, ledger, "launch-1")
    ledger.failing = Unreachable("no answer")
    with pytest.raises(Unreachable):
        await held.save([launch])
    assert not launch.lost
    ledger.failing = None
    await held.save([launch])
    assert "launch-1" in held


TOO_BIG = "x" * 410_000


async def test_one_that_is_too_big_keeps_no_other_from_being_written_or_lost() -> None:
    ledger = SizedLedger()
    held = HeldLaunches(ledger, WORKER, Metrics())
    mine, big, theirs = await hold(held, ledger, "launch-1", "launch-2", "launch-3")
    assert await ledger.claim(theirs.record, OTHER) is not None
    mine.update(tries=1)
    big.update(message=TOO_BIG)
    with pytest.raises(RecordTooBig, match="launch-2"):
        await held.save([mine, big, theirs])
    assert await ledger.read("launch-1") == mine.record
    assert (mine.lost, big.lost, theirs.lost) == (False, False, True)


async def test_one_that_is_too_big_keeps_no_other_from_being_given_back() -> None:
    ledger = SizedLedger()
    held = HeldLaunches(ledger, WORKER, Metrics())
    mine, big = await hold(held, ledger, "launch-1", "launch-2")
    big.update(message=TOO_BIG)
    await held.release()
    assert await ledger.read("launch-1") == replace(mine.record, owner="")
    assert len(held) == 0


async def test_a_release_gives_back_what_is_held_as_it_stands(held: HeldLaunches, ledger: SlowLedger) -> None:
    first, second, lost = await hold(held, ledger, "launch-1", "launch-2", "launch-3")
    first.update(stop_reason="not written yet")
    lost.lost = True
    await held.release()
    assert len(held) == 0
    assert await ledger.read("launch-1") == record("launch-1", stop_reason="not written yet", owner="")
    assert await ledger.read("launch-2") == replace(second.record, owner="")
    assert await ledger.read("launch-3") == lost.record
    await held.release()
    assert len(ledger.saves) == 1, "nothing is left to give back"


async def test_dropping_a_launch_leaves_a_newer_claim_of_it_alone(
    held: HeldLaunches, ledger: SlowLedger
) -> None:
    (old,) = await hold(held, ledger, "launch-1")
    new = HeldLaunch(replace(old.record, epoch=2))
    held.add(new)
    held.drop(old)
    assert list(held) == [new]


async def test_launches_may_be_dropped_while_they_are_walked(held: HeldLaunches, ledger: SlowLedger) -> None:
    await hold(held, ledger, "launch-1", "launch-2")
    for launch in held:
        held.drop(launch)
    assert len(held) == 0
