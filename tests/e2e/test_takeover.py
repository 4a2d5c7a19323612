"""Two workers: one dies, freezes or leaves in the middle of a log, the other goes on; no line is lost or doubled."""

from __future__ import annotations

import signal

import pytest
import pytest_asyncio

from tests.e2e.audit import audit
from tests.e2e.bench import Bench, LedgerKind
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered, until_stopped
from tests.e2e.together import Outcomes, Scenarios, run_together

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]
_LEDGERS: tuple[LedgerKind, ...] = ("sqlite", "dynamodb")


def long_job(bench: Bench, *, hosts: int = 1) -> LaunchCase:
    """A job that prints for a while and lives until it is stopped, however slow the machine makes its worker."""
    return bench.launch(numbered(40), pause=0.4, tail=until_stopped(), hosts=hosts, max_runtime=900)


async def stopped(bench: Bench, *cases: LaunchCase) -> None:
    """Stop jobs that have printed everything, and audit them."""
    for case in cases:
        await bench.lines_in_wandb(case, len(case.printed) * case.hosts)
        await bench.clients.sagemaker.stop_training_job(TrainingJobName=case.job_name)
    await audit(bench, *cases, end="stopped from outside", exit_code=1)


async def killed_in_the_middle_of_a_log(bench: Bench) -> None:
    cases = [long_job(bench, hosts=2), long_job(bench)]
    first = await bench.started()
    await bench.send(*cases)
    second = await bench.start()
    for case in cases:
        await bench.lines_in_wandb(case, 4)
    await second.wait_for("worker_started")
    await first.kill()
    await stopped(bench, *cases)
    assert {event["launch_id"] for event in second.events("job_finished")} == {c.launch_id for c in cases}


async def frozen_and_woken_after_its_jobs_were_claimed(bench: Bench) -> None:
    cases = [long_job(bench) for _ in range(2)]
    first = await bench.started()
    await bench.send(*cases)
    for case in cases:
        await bench.lines_in_wandb(case, 4)
    await first.freeze()
    second = await bench.started()
    for case in cases:
        await second.wait_for("launch_claimed", launch_id=case.launch_id)
        await bench.lines_in_wandb(case, 12)
    first.wake()
    for case in cases:
        await first.wait_for("launch_taken_over", launch_id=case.launch_id)
    await stopped(bench, *cases)
    assert first.events("job_finished") == []
    # The woken worker is as good as new: it alone gets the next launch.
    second.send_signal(signal.SIGTERM)
    assert await second.exit_code() == 0
    another = bench.launch(numbered(3))
    await bench.send(another)
    await first.wait_for("job_finished", launch_id=another.launch_id)
    await audit(bench, another)


async def frozen_and_woken_at_once(bench: Bench) -> None:
    """Woken before anybody claimed its jobs, it simply goes on."""
    case = bench.launch(numbered(12), pause=0.15)
    worker = await bench.started()
    await bench.send(case)
    await bench.lines_in_wandb(case, 3)
    await worker.freeze()
    await bench.container_ended(case)
    worker.wake()
    await audit(bench, case)
    assert len(worker.events("job_finished")) == 1


async def frozen_until_everything_is_over(bench: Bench) -> None:
    """The other worker has told the end in W&B; nothing that the woken one still does may change it."""
    case = bench.launch(numbered(12), pause=0.15)
    first = await bench.started()
    await bench.send(case)
    await bench.lines_in_wandb(case, 2)
    await first.freeze()
    await bench.started()
    await audit(bench, case)
    first.wake()
    await first.wait_for("launch_taken_over")
    another = bench.launch(numbered(1))
    await bench.send(another)
    await audit(bench, case, another)


async def terminated_in_leg_2(bench: Bench) -> None:
    """SIGTERM: the job is released and goes on at once, not after a dead worker's three heartbeats."""
    case = bench.launch(numbered(50), pause=0.4)
    first = await bench.started(heartbeat="1")
    await bench.send(case)
    await first.wait_for("job_state", secondary_status="Training")
    second = await bench.started(heartbeat="1")
    await bench.lines_in_wandb(case, 4)
    first.send_signal(signal.SIGTERM)
    assert await first.exit_code() == 0
    claimed = await second.wait_for("launch_claimed")
    assert claimed["previous_owner"] == ""
    assert first.events("worker_stopped")
    await audit(bench, case)


TAKEOVERS: Scenarios = {
    f"{scenario.__name__} {ledger}": (ledger, scenario)
    for scenario in (
        killed_in_the_middle_of_a_log,
        frozen_and_woken_after_its_jobs_were_claimed,
        frozen_and_woken_at_once,
        frozen_until_everything_is_over,
        terminated_in_leg_2,
    )
    for ledger in _LEDGERS
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each takeover that is asked for."""
    return await run_together(TAKEOVERS, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("takeover", TAKEOVERS)
async def test_takeover(outcomes: Outcomes, takeover: str) -> None:
    if (error := outcomes[takeover]) is not None:
        raise error


async def test_frozen_in_leg_1_past_its_lease(shared_bench: Bench) -> None:
    """Its message went to another worker, who made the job; woken, it makes no second one."""
    bench = shared_bench
    case = bench.launch(numbered(3), _wandb_api_key="5" * 40)
    bench.throttle(True)
    first = await bench.started()
    await bench.send(case)
    await first.wait_for("submit_throttled")
    await first.freeze()
    second = await bench.started()
    await second.wait_for("launch_claimed", launch_id=case.launch_id)
    bench.throttle(False)
    first.wake()
    await audit(bench, case)
    assert first.alive
    assert first.events("job_finished") == []


async def test_terminated_in_leg_1(bench: Bench) -> None:
    """A launch that cannot be finished within the grace is given back with its message."""
    case = bench.launch(numbered(3), _wandb_api_key="5" * 40)
    bench.throttle(True)
    first = await bench.started(shutdown_grace="0.5")
    await bench.send(case)
    await first.wait_for("submit_throttled")
    first.send_signal(signal.SIGTERM)
    assert await first.exit_code() == 0
    bench.throttle(False)
    await bench.start()
    await audit(bench, case)
