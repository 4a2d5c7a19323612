"""W&B fails, cuts connections after it has taken the lines, is slow: no line is lost or doubled."""

from __future__ import annotations

import pytest

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


async def test_outages_of_all_kinds(bench: Bench) -> None:
    wandb = bench.services.wandb
    failing, cutting, slow, closed, gone, large = (bench.launch(numbered(8), pause=0.2) for _ in range(6))
    faults = [
        wandb.fault(f"{failing.run_id}-sagemaker", status=500, times=4),
        wandb.fault(f"{cutting.run_id}-sagemaker", cut=True, when="after", times=4),
        wandb.fault(f"file_stream acme/e2e/{slow.run_id}", latency=1.5, times=3),
        wandb.fault(f"{gone.run_id}-sagemaker", status=404, times=3),
        wandb.fault(f"{large.run_id}-sagemaker", status=413, times=2),
        wandb.fault("UpsertBucket", status=503, times=2),
        wandb.fault("CreateRunFiles", cut=True, when="after", times=2),
    ]
    worker = await bench.started()
    launches = (failing, cutting, slow, closed, gone, large)
    await bench.send(*launches)
    await audit(bench, *launches)
    assert [fault.times for fault in faults] == [0] * len(faults), "every fault has happened"
    assert worker.events("step_failed")


async def test_crash_after_a_post_whose_answer_was_lost(bench: Bench) -> None:
    case = bench.launch(numbered(10), pause=0.2)
    worker = await bench.started()
    fault = bench.services.wandb.fault(
        f"file_stream acme/e2e/{case.run_id}", cut=True, when="after", times=10_000
    )
    await bench.send(case)
    await worker.wait_for("step_failed", step="log_delivery", training_job=case.job_name)
    await worker.kill()
    fault.times = 0
    await bench.start()
    await audit(bench, case)
