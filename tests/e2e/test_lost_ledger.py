"""The ledger is lost while jobs run: `launch-worker rebuild` finds them, and each line still is in W&B once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered, until_stopped
from tests.e2e.test_operating import answer, command
from worker.ledger.dynamodb import create_table_request
from worker.ledger.opening import SQLITE

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


async def test_running_jobs_are_found_by_their_tags(shared_bench: Bench) -> None:
    bench = shared_bench
    worker = await bench.started()
    tail = until_stopped("echo stopped; exit")
    cases = [bench.launch(numbered(2), tail=tail, hosts=hosts, max_runtime=900) for hosts in (1, 2)]
    await bench.send(*cases)
    for case in cases:
        await bench.lines_in_wandb(case, 2 * case.hosts)
    await worker.kill()
    await lose_ledger(bench)
    if bench.ledger.startswith(SQLITE):
        code, _, err = await command(bench, "jobs", "--all")
        assert (code, "`launch-worker rebuild`" in err) == (2, True), "looking makes no ledger"
    else:
        assert await answer(bench, "jobs", "--all") == []

    assert await found(bench, "--dry-run") == dict.fromkeys((case.launch_id for case in cases), "missing")
    assert await answer(bench, "jobs", "--all") == [], "it was only told"
    assert await found(bench) == dict.fromkeys((case.launch_id for case in cases), "added")
    assert await found(bench) == dict.fromkeys((case.launch_id for case in cases), "known")
    _, out, _ = await command(bench, "rebuild")
    assert out.splitlines()[-1] == "running jobs: 2 known"

    heir = await bench.started()
    for case in cases:
        await heir.wait_for("launch_claimed", launch_id=case.launch_id)
        await bench.clients.sagemaker.stop_training_job(TrainingJobName=case.job_name)
    whole = [replace(case, printed=[*case.printed, "stopped"]) for case in cases]
    await audit(bench, *whole, end="stopped from outside", exit_code=1)


async def found(bench: Bench, *options: str) -> dict[str, str]:
    """Launch id → what became of it."""
    jobs: list[dict[str, Any]] = await answer(bench, "rebuild", *options)
    return {job["launchId"]: job["found"] for job in jobs}


async def lose_ledger(bench: Bench) -> None:
    """As if it had never been."""
    if bench.ledger.startswith(SQLITE):
        path = Path(bench.ledger.removeprefix(SQLITE))
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    else:
        table = bench.ledger.removeprefix("dynamodb://")
        await bench.clients.dynamodb.delete_table(TableName=table)
        await bench.clients.dynamodb.create_table(**create_table_request(table))
