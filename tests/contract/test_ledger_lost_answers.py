"""A write that happened although its answer was lost is never taken for somebody else's doing."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from tests.fakes.dynamodb import DynamoDbDouble, dynamodb_client, serve_dynamodb
from worker.errors import Unreachable
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.ledger.adoption import Adoption
from worker.ledger.dynamodb import DynamoDbLedger, create_table_request
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat
from worker.ops.metrics import Metrics


def a_record(launch_id: str, **changes: object) -> LaunchRecord:
    launch = LaunchRecord(
        launch_id=launch_id, state=LaunchState.ACCEPTED, run=RunRef("team", "proj", "run"), owner="w1"
    )
    return replace(launch, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def double() -> Iterator[DynamoDbDouble]:
    with serve_dynamodb() as running:
        yield running


@pytest.fixture
async def ledger(double: DynamoDbDouble) -> AsyncIterator[DynamoDbLedger]:
    table = f"launch-ledger-{secrets.token_hex(4)}"
    async with dynamodb_client(double.url) as client:
        await client.create_table(**create_table_request(table))
        yield DynamoDbLedger(client, table)
    assert double.pending_failures() == 0


async def test_a_create_whose_answer_is_lost_is_found_as_ones_own(
    ledger: DynamoDbLedger, double: DynamoDbDouble
) -> None:
    double.lose_next("PutItem")
    with pytest.raises(Unreachable):
        await ledger.create(a_record("a"))
    existing = await ledger.create(a_record("a"))
    assert existing == a_record("a"), "its owner says whose it is"


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["PutItem", "TransactWriteItems"])
async def test_a_save_whose_answer_is_lost_loses_nothing(
    ledger: DynamoDbLedger, double: DynamoDbDouble, names: tuple[str, ...]
) -> None:
    metrics = Metrics()
    held = HeldLaunches(ledger, "w1", metrics)
    launches = [HeldLaunch(a_record(name)) for name in names]
    for launch in launches:
        await ledger.create(launch.record)
        held.add(launch)
        launch.update(tries=1)
    double.lose_next("PutItem" if len(names) == 1 else "TransactWriteItems")
    with pytest.raises(Unreachable):
        await held.save(launches)
    await held.save(launches)
    assert not any(launch.lost for launch in launches)
    assert [await ledger.read(name) for name in names] == [launch.record for launch in launches]


async def test_a_claim_whose_answer_is_lost_is_looked_up(
    ledger: DynamoDbLedger, double: DynamoDbDouble
) -> None:
    await ledger.create(a_record("a", owner=""))
    metrics = Metrics()
    held = HeldLaunches(ledger, "w2", metrics)
    adoption = Adoption(
        ledger=ledger,
        membership=Membership(ledger, WorkerBeat("w2", 0, "default", "host", 0.0), 1.0),
        held=held,
        worker="w2",
        heartbeat=1.0,
        metrics=metrics,
    )
    adopted: list[HeldLaunch] = []
    double.lose_next("UpdateItem")
    with pytest.raises(Unreachable):
        await adoption._round(adopted.append)
    await adoption._round(adopted.append)
    assert [launch.record.owner for launch in adopted] == ["w2"]
    assert await ledger.read("a") == adopted[0].record


async def test_a_lock_whose_answer_is_lost_is_ones_own_at_the_next_try(
    ledger: DynamoDbLedger, double: DynamoDbDouble
) -> None:
    double.lose_next("PutItem")
    with pytest.raises(Unreachable):
        await ledger.lock("tag", "w1")
    assert await ledger.lock("tag", "w2") == "w1"
    assert await ledger.lock("tag", "w1") == "w1"
    double.lose_next("DeleteItem")
    with pytest.raises(Unreachable):
        await ledger.unlock("tag", "w1")
    await ledger.unlock("tag", "w1")
    assert await ledger.lock("tag", "w2") == "w2"


async def test_a_run_whose_claim_has_no_answer_is_found_as_ones_own(
    ledger: DynamoDbLedger, double: DynamoDbDouble
) -> None:
    double.lose_next("PutItem")
    with pytest.raises(Unreachable):
        await ledger.claim_run("r", "a", expires_at=4e9)
    assert await ledger.claim_run("r", "b", expires_at=4e9) == "a"
    assert await ledger.claim_run("r", "a", expires_at=4e9) == "a"
