"""A new version replaces the old one, worker by worker, while jobs run: nothing is lost, nothing is doubled."""

from __future__ import annotations

import pytest

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered
from tests.e2e.process import WorkerProcess

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


@pytest.mark.parametrize("ledger", ["dynamodb"])
async def test_two_workers_are_replaced_during_ten_jobs(shared_bench: Bench) -> None:
    bench = shared_bench
    # One message at a time each, so that both get some.
    old = [await bench.started(slots="1"), await bench.started(slots="1")]
    cases = [bench.launch(numbered(25), pause=0.8) for _ in range(10)]
    await bench.send(*cases)
    for case in cases:
        await bench.lines_in_wandb(case, 1)
    # As ECS and Kubernetes do it: the new ones are up before the old ones drain.
    new = [await bench.start(), await bench.start()]
    for old_one, new_one in zip(old, new, strict=True):
        await new_one.wait_for("worker_started")
        assert _running(old_one), "it has jobs when it is replaced"
        old_one.terminate()
        assert await old_one.exit_code() == 0
    await audit(bench, *cases)
    accepted = [event for worker in bench.workers for event in worker.events("job_accepted")]
    assert len(accepted) == len(cases)
    claimed = {event["launch_id"] for worker in new for event in worker.events("launch_claimed")}
    assert claimed, "the new ones went on with jobs of the old ones"


def _running(worker: WorkerProcess) -> set[str]:
    """Launch ids of the jobs that a worker holds."""
    accepted, finished = (
        {event["launch_id"] for event in worker.events(name)} for name in ("job_accepted", "job_finished")
    )
    return accepted - finished
