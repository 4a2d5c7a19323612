"""`launch-worker rebuild` against SageMaker's API: pages, jobs that are left out, runs that others have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.aws_server import AwsServer
from tests.fakes.ledger import MemoryLedger
from tests.unit.operating.test_forgotten import ENVIRONMENT, JOB
from worker.clients.aws import AwsClients
from worker.operating.rebuilding import Found, FoundJob, Rebuilding
from worker.settings import load_settings

HERS, HIS = "a" * 26, "b" * 26


def job(name: str, launch_id: str, run_id: str) -> dict[str, Any]:
    environment = {**ENVIRONMENT, "LAUNCH_ID": launch_id, "WANDB_RUN_ID": run_id}
    return {**JOB, "TrainingJobName": name, "Environment": environment, "CreationTime": 1_700_000_000}


def found_on(aws_server: AwsServer, *pages: list[dict[str, Any]]) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        number = int(request.get("NextToken") or 0)
        token = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        return {"Results": [{"TrainingJob": each} for each in pages[number]], **token}

    aws_server.answers["Search"] = answer


async def rebuilt(ledger: MemoryLedger, aws: AwsClients, *, dry_run: bool = False) -> list[FoundJob]:
    return await Rebuilding(ledger, aws, load_settings(None, {"LAUNCH_DEPLOYMENT": "blue"})).rebuild(
        dry_run=dry_run
    )


async def test_all_pages_are_read_and_of_two_attempts_the_later_one(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    found_on(aws_server, [job("one", HERS, "r1")], [job("two", HIS, "r2"), job("one-r2", HERS, "r1")])
    ledger = MemoryLedger()
    assert {each.job_name: each.found for each in await rebuilt(ledger, aws)} == {
        "one-r2": Found.ADDED,
        "two": Found.ADDED,
    }
    kept = await ledger.read(HERS)
    assert kept is not None
    assert (kept.attempt, kept.job_name, kept.owner) == (2, "one-r2", "")
    filters = aws_server.requests("Search")[0]["SearchExpression"]["Filters"]
    assert {"Name": "Tags.LaunchWorker", "Operator": "Equals", "Value": "blue"} in filters
    assert {each.found for each in await rebuilt(ledger, aws)} == {Found.KNOWN}
    assert await ledger.read(HERS) == kept, "nothing is written twice"


async def test_a_dry_run_writes_nothing(aws: AwsClients, aws_server: AwsServer) -> None:
    found_on(aws_server, [job("one", HERS, "r1")])
    ledger = MemoryLedger()
    assert [each.found for each in await rebuilt(ledger, aws, dry_run=True)] == [Found.MISSING]
    assert await ledger.read(HERS) is None
    assert await ledger.claim_run("acme/vision/r1", HIS, expires_at=1e12) == HIS, "nor is its run claimed"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_is_left_out_is_told_with_its_reason(
    aws: AwsClients, aws_server: AwsServer, dry_run: bool
) -> None:
    found_on(aws_server, [{**JOB, "CreationTime": 1_700_000_000, "Environment": {}}])
    (told,) = await rebuilt(MemoryLedger(), aws, dry_run=dry_run)
    assert (told.job_name, told.launch_id, told.found) == ("resnet", "", Found.LEFT_OUT)
    assert "Environment" in told.why


async def test_a_run_has_one_launch(aws: AwsClients, aws_server: AwsServer) -> None:
    found_on(aws_server, [job("one", HERS, "r"), job("two", HIS, "r")])
    ledger = MemoryLedger()
    first, second = await rebuilt(ledger, aws)
    assert (first.found, second.found) == (Found.ADDED, Found.LEFT_OUT)
    assert "another run_id" in second.why
    assert await ledger.read(HIS) is None
