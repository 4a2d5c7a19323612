"""Requests to stop, in virtual time: heard by the owner, kept until the launch is over, taken back then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.fakes.ledger import MemoryLedger
from tests.unit.records import WORKER, record, waiting
from worker.errors import Unreachable
from worker.launch.record import JobFacts, LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import StopRequest
from worker.ops.metrics import Metrics
from worker.stop_requests import StopRequests

pytestmark = pytest.mark.looptime


class Owner:
    """A worker that notes what it is asked to stop."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.held = HeldLaunches(self.ledger, WORKER, Metrics())
        self.stopped: list[tuple[str, str]] = []
        self.refused = ""
        """The launch that cannot be stopped."""
        self.refusal: Exception = Unreachable("no")

    async def hold(self, launch: LaunchRecord) -> HeldLaunch:
        await self.ledger.create(launch)
        held = HeldLaunch(launch)
        self.held.add(held)
        return held

    async def stop(self, launch_id: str, reason: str) -> bool:
        if launch_id == self.refused:
            raise self.refusal
        self.stopped.append((launch_id, reason))
        return True

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(StopRequests(self.ledger, self.held, 10).run(self.stop))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.parametrize("launch", [record(), waiting()], ids=["its job runs", "it waits"])
async def test_the_owner_stops_a_launch_and_keeps_the_request_until_it_is_over(launch: LaunchRecord) -> None:
    owner = Owner()
    held = await owner.hold(launch)
    await owner.ledger.ask_stop(StopRequest(launch.launch_id, "too dear", 1.0))
    async with owner.listening():
        await asyncio.sleep(15)
        assert owner.stopped == [(launch.launch_id, "too dear")]
        held.update(facts=JobFacts("Stopping", "Stopping"))
        await asyncio.sleep(20)
        assert len(owner.stopped) == 1, "it is being stopped"
        held.update(state=LaunchState.FINISHED)
        await owner.held.save([held])
        owner.held.drop(held)
        await asyncio.sleep(10)
    assert await owner.ledger.stop_requests() == []


async def test_a_request_for_a_launch_of_somebody_else_is_left_to_him() -> None:
    owner = Owner()
    await owner.ledger.create(record(owner="other"))
    await owner.ledger.ask_stop(StopRequest("launch-1", "too dear", 1.0))
    async with owner.listening():
        await asyncio.sleep(25)
    assert owner.stopped == []
    assert len(await owner.ledger.stop_requests()) == 1


UNFORESEEN = KeyError("an answer nobody foresaw")


@pytest.mark.parametrize("trouble", [Unreachable("no"), UNFORESEEN], ids=type)
async def test_a_ledger_that_does_not_answer_is_asked_again(trouble: Exception) -> None:
    owner = Owner()
    await owner.hold(record())
    await owner.ledger.ask_stop(StopRequest("launch-1", "too dear", 1.0))
    owner.ledger.failing = trouble
    async with owner.listening():
        await asyncio.sleep(15)
        owner.ledger.failing = None
        await asyncio.sleep(10)
    assert owner.stopped == [("launch-1", "too dear")]


@pytest.mark.parametrize("trouble", [Unreachable("no"), UNFORESEEN], ids=type)
async def test_a_request_that_cannot_be_served_holds_up_no_other(trouble: Exception) -> None:
    owner = Owner()
    owner.refusal = trouble
    for number, launch_id in enumerate(("launch-1", "launch-2"), 1):
        await owner.hold(record(launch_id))
        await owner.ledger.ask_stop(StopRequest(launch_id, "too dear", float(number)))
    owner.refused = "launch-1"
    async with owner.listening():
        await asyncio.sleep(15)
    assert owner.stopped == [("launch-2", "too dear")]
