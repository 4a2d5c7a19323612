"""What leg 1 lets go is free for others in the end, however long the ledger is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, WORKER, record, waiting
from tests.unit.waiting import until
from worker.errors import Unreachable
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.giving_back import GivingBack

INTENT = record(state=LaunchState.INTENT)


class Bench:
    """A worker's leg 1 and leg 2 are sets of launch ids."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.in_work: set[str] = set()
        self.held: set[str] = set()
        self.giving_back = GivingBack(
            self.ledger, WORKER, in_work=self.in_work, is_held=lambda launch_id: launch_id in self.held
        )

    def stored(self) -> LaunchRecord:
        found = self.ledger._get("launch-1")
        assert found is not None
        return found


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("worker.ledger.giving_back._LOOK_EVERY", 0.01)
    return Bench()


@contextlib.asynccontextmanager
async def running(giving_back: GivingBack) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(giving_back.run())
        yield
        task.cancel()


async def some_looks() -> None:
    await asyncio.sleep(0.05)


async def test_it_is_released_as_leg_1_has_it(bench: Bench) -> None:
    await bench.ledger.create(INTENT)
    await bench.giving_back.give_back(record(state=LaunchState.INTENT, tries=1))
    assert bench.stored() == record(state=LaunchState.INTENT, tries=1, owner="")


@pytest.mark.parametrize("there", [INTENT, waiting()], ids=["intent", "waiting"])
async def test_a_release_without_an_answer_is_made_good_as_the_ledger_has_it(
    bench: Bench, there: LaunchRecord
) -> None:
    await bench.ledger.create(there)
    bench.ledger.failing = Unreachable("away")
    await bench.giving_back.give_back(waiting())
    async with running(bench.giving_back):
        await some_looks()
        bench.ledger.failing = None
        await until(lambda: bench.stored().owner == "")
    assert bench.stored().state is there.state


@pytest.mark.parametrize(
    "there",
    [
        record(state=LaunchState.INTENT, owner=OTHER),
        record(state=LaunchState.FINISHED),
        record(state=LaunchState.REFUSED, reported=True),
    ],
    ids=["another worker's", "finished", "refused"],
)
async def test_what_is_not_open_and_ours_is_left_alone(bench: Bench, there: LaunchRecord) -> None:
    await bench.ledger.create(there)
    bench.giving_back.owe("launch-1")
    bench.giving_back.owe("launch-that-was-never-written")
    async with running(bench.giving_back):
        await some_looks()
    assert bench.stored() == there


async def test_what_leg_2_has_is_left_alone(bench: Bench) -> None:
    await bench.ledger.create(waiting())
    bench.held.add("launch-1")
    bench.giving_back.owe("launch-1")
    async with running(bench.giving_back):
        await some_looks()
    assert bench.stored() == waiting()


async def test_what_leg_1_is_at_work_on_again_is_looked_at_afterwards(bench: Bench) -> None:
    await bench.ledger.create(INTENT)
    bench.in_work.add("launch-1")
    bench.giving_back.owe("launch-1")
    async with running(bench.giving_back):
        await some_looks()
        assert bench.stored() == INTENT
        bench.in_work.clear()
        await until(lambda: bench.stored().owner == "")


async def test_leg_1_may_begin_while_the_ledger_is_asked(bench: Bench) -> None:
    class Slow(MemoryLedger):
        async def read(self, launch_id: str) -> LaunchRecord | None:
            found = await super().read(launch_id)
            bench.in_work.add(launch_id)
            return found

    ledger = Slow()
    await ledger.create(INTENT)
    giving_back = GivingBack(ledger, WORKER, in_work=bench.in_work, is_held=bench.held.__contains__)
    giving_back.owe("launch-1")
    async with running(giving_back):
        await until(lambda: bench.in_work)
        await some_looks()
    assert ledger.saves == []


async def test_a_write_that_was_cut_off_may_come_late(bench: Bench) -> None:
    """The ledger had the request and was slower than the cancellation."""
    await bench.giving_back.give_back_unclear("launch-1")
    await bench.ledger.create(INTENT)
    async with running(bench.giving_back):
        await until(lambda: bench.stored().owner == "")
