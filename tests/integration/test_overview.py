"""What `jobs`, `stop` and `workers` find in a ledger, and who is said to do it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.fakes.aws_server import AwsServer
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import OTHER, WORKER, record
from worker.clients.aws import AwsClients
from worker.launch.identity import id_of_given
from worker.launch.record import JobFacts, LaunchState
from worker.ledger.port import WorkerBeat
from worker.operating.overview import AlreadyOver, NoSuchLaunch, Overview, Stopping
from worker.settings import load_settings

LOOK = 0.3
"""Seconds; a living worker beats much more often here."""


@contextlib.asynccontextmanager
async def beating(ledger: MemoryLedger, worker: str) -> AsyncIterator[None]:
    async def beat() -> None:
        each = WorkerBeat(worker, 0, "default", "host", 0.0)
        while True:
            each = replace(each, version=each.version + 1)
            await ledger.beat(each)
            await asyncio.sleep(LOOK / 20)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(beat(), name=f"beat of {worker}")
        await asyncio.sleep(LOOK / 10)
        yield
        task.cancel()


async def stopped(ledger: MemoryLedger, aws: AwsClients, owner: str) -> Stopping:
    launch = record(owner=owner)
    await ledger.create(launch)
    return await Overview(ledger, aws, load_settings(None, {})).stop(launch, "wrong data", look=LOOK)


async def test_a_stop_is_by_the_owner_where_the_owner_lives(aws: AwsClients) -> None:
    ledger = MemoryLedger()
    async with beating(ledger, OTHER), beating(ledger, WORKER):
        stopping = await stopped(ledger, aws, WORKER)
    assert (stopping.by_owner, stopping.note) == (True, f"told {WORKER}")


@pytest.mark.parametrize("has_beat", [True, False])
async def test_another_worker_that_lives_is_not_the_owner(
    aws: AwsClients, aws_server: AwsServer, has_beat: bool
) -> None:
    ledger = MemoryLedger()
    if has_beat:
        await ledger.beat(WorkerBeat(WORKER, 7, "default", "host", 0.0))
    async with beating(ledger, OTHER):
        stopping = await stopped(ledger, aws, WORKER)
    assert not stopping.by_owner
    assert "its next owner" in stopping.note
    assert f"{WORKER} gives no heartbeat" in stopping.note
    assert aws_server.requests("StopTrainingJob") == []


async def test_a_launch_is_found_by_the_id_that_its_message_gave(aws: AwsClients) -> None:
    ledger = MemoryLedger()
    launch = record(id_of_given("blue", "nightly-2026-11-23"))
    await ledger.create(launch)
    theirs = Overview(ledger, aws, load_settings(None, {"LAUNCH_DEPLOYMENT": "blue"}))
    assert await theirs.find("nightly-2026-11-23") == launch
    with pytest.raises(NoSuchLaunch):
        await Overview(ledger, aws, load_settings(None, {})).find("nightly-2026-11-23")


async def test_what_is_over_cannot_be_stopped(aws: AwsClients) -> None:
    ledger = MemoryLedger()
    over = record(state=LaunchState.FINISHED, facts=JobFacts("Completed", "Completed"))
    await ledger.create(over)
    with pytest.raises(AlreadyOver, match=r"is over already: .*completed"):
        await Overview(ledger, aws, load_settings(None, {})).stop(over, "wrong data", look=LOOK)
    assert await ledger.stop_requests() == []


async def test_a_released_launch_is_its_next_owners(aws: AwsClients) -> None:
    ledger = MemoryLedger()
    async with beating(ledger, OTHER):
        stopping = await stopped(ledger, aws, "")
    assert (stopping.by_owner, stopping.note) == (False, "told its next owner, the next worker to take it")


async def test_where_nobody_lives_sagemaker_is_asked(aws: AwsClients, aws_server: AwsServer) -> None:
    ledger = MemoryLedger()
    await ledger.beat(WorkerBeat(WORKER, 7, "default", "host", 0.0))
    aws_server.answers["StopTrainingJob"] = lambda _: {}
    stopping = await stopped(ledger, aws, WORKER)
    assert not stopping.by_owner
    assert "SageMaker was asked from here" in stopping.note
    assert len(aws_server.requests("StopTrainingJob")) == 1
