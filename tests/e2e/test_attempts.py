"""Further attempts, quotas, leaving and coming back from the dead-letter queue, with everything real but AWS."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.audit import audit, ended, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.code import code_bench, reached, running_gate
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered
from tests.e2e.process import until
from tests.e2e.together import Outcomes, Scenarios, run_together
from worker.launch.record import LaunchState
from worker.ledger.opening import open_ledger
from worker.local.stack import ENTITY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

CAPACITY = "CapacityError: Unable to provision requested ML compute capacity."


def with_options(case: LaunchCase, **options: Any) -> LaunchCase:
    return replace(case, message={**case.message, "options": options})


def with_arguments(case: LaunchCase, **arguments: Any) -> LaunchCase:
    spec = case.message["runSpec"]
    sagemaker = {**spec["resource_args"]["sagemaker"], **arguments}
    return replace(
        case,
        message={**case.message, "runSpec": {**spec, "resource_args": {"sagemaker": sagemaker}}},
    )


def twice(case: LaunchCase) -> LaunchCase:
    return replace(case, printed=[*case.printed] * 2)


async def want_of_capacity(bench: Bench) -> None:
    """The next instance type of the list, the launch's own key, the message's own tags, the same run."""
    item = bench.services.wandb.push(ENTITY, "capacity", {})
    case = bench.launch(numbered(3), item_id=item.id, instance_type="ml.g5.xlarge", _wandb_api_key="5" * 40)
    case = with_arguments(
        with_options(case, retry="capacity=1", instance_types=["ml.g5.xlarge", "ml.g5.2xlarge"]),
        Tags=[{"Key": "team", "Value": "vision"}],
        CheckpointConfig={"S3Uri": "s3://launch-dev/checkpoints"},
    )
    bench.services.sagemaker.failing_jobs[case.job_name] = CAPACITY
    worker = await bench.started(retry_pause="0.2")
    await bench.send(case)
    (record,) = await audit(bench, twice(case), attempts=2)
    assert (record.instance_type, record.attempt) == ("ml.g5.2xlarge", 2)
    second = await bench.clients.sagemaker.describe_training_job(TrainingJobName=f"{case.job_name}-r2")
    assert second["ResourceConfig"]["InstanceType"] == "ml.g5.2xlarge"
    assert second["Environment"]["WANDB_API_KEY"] == "5" * 40
    assert second["Environment"]["WANDB_RESUME"] == "allow"
    assert second["CheckpointConfig"] == {"S3Uri": "s3://launch-dev/checkpoints"}
    tags = await bench.clients.sagemaker.list_tags(ResourceArn=second["TrainingJobArn"])
    assert {tag["Key"] for tag in tags["Tags"]} == {"team", "WandbRunId", "LaunchId", "LaunchWorker"}
    run = bench.companion(case)
    assert run is not None
    assert run.summary["launch/attempts"] == [[case.job_name, "ml.g5.xlarge", "capacity", CAPACITY]]
    (warning,) = item.warnings
    assert "CapacityError" in warning["message"]
    assert "5" * 40 not in worker.printed()


async def spot_machines_taken_away(bench: Bench) -> None:
    """Once SageMaker finds others itself: one job. Then there are none until MaxWait: another attempt."""
    sagemaker = bench.services.sagemaker
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 45, "MaxWaitTimeInSeconds": 50},
    }
    # Only the second attempt comes to its end by itself.
    case = bench.launch(numbered(3), tail='[ "$WANDB_RESUME" ] || sleep 60')
    case = with_arguments(case, **spot)
    await bench.started(retry="spot=1", retry_pause="0.2")
    await bench.send(case)
    await bench.lines_in_wandb(case, 3)
    sagemaker.interrupt(case.job_name)
    await bench.lines_in_wandb(case, 6)
    sagemaker.spot_machines = False
    sagemaker.interrupt(case.job_name)

    async def second() -> bool:
        return len(bench.jobs(case)) == 2

    try:
        await until(second, "the second attempt")
    finally:
        sagemaker.spot_machines = True
    await ended(bench, case)
    record = await bench.record(case)
    run = bench.companion(case)
    assert record is not None
    assert run is not None
    assert (run.state, run.overwrites, run.holes()) == ("finished", [], {})
    assert len(await bench.streams(case)) == 3, "of two lives of the first job, and of the second job"
    assert run.console_text() == [line.replace("{host}", "algo-1") for line in case.printed] * 3
    assert [past.kind for past in record.attempts] == ["spot"]


async def quota_used_up(bench: Bench) -> None:
    """Three launches, room for one machine: one after the other, each told once that it waits."""
    bench.services.sagemaker.jobs.instance_quotas["ml.c5.large"] = 1
    items = [bench.services.wandb.push(ENTITY, "quota", {}) for _ in range(3)]
    cases = [
        bench.launch(numbered(2), pause=0.5, item_id=item.id, instance_type="ml.c5.large") for item in items
    ]
    await bench.started()
    await bench.send(*cases)
    records = await audit(bench, *cases)
    spans = sorted((record.facts.created_at or 0, record.facts.ended_at or 0) for record in records)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert sorted(len(item.warnings) for item in items) == [0, 1, 1]


async def quota_too_small(bench: Bench) -> None:
    bench.services.sagemaker.jobs.instance_quotas["ml.c5.xlarge"] = 1
    case = bench.launch(hosts=2, instance_type="ml.c5.xlarge")
    await bench.started()
    await bench.send(case)
    (letter,) = await bench.dead_letters(1)
    assert letter["MessageAttributes"]["code"]["StringValue"] == "LW-QUOTA-TOO-SMALL"
    assert bench.jobs(case) == []


async def leaving_with_a_build_and_a_running_job(bench: Bench) -> None:
    """The second worker has the job long before the first one has finished its build, and gets what was built."""
    running = bench.launch(numbered(60), pause=0.2)
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        files = {**code.script(lines := numbered(2)), "Dockerfile": code.dockerfile(gate.step)}
        building = code.launch(await code.upload(files), lines, dockerfile="Dockerfile")
        first = await bench.started(heartbeat="1", shutdown_grace="30")
        await bench.send(building)
        await reached(gate.entered, "the build is in its last step")
        await bench.send(running)
        await first.wait_for("job_state", secondary_status="Training")
        second = await bench.started(heartbeat="1")
        stopped_at = time.monotonic()
        first.terminate()
        claimed = await second.wait_for("launch_claimed", launch_id=running.launch_id)
        assert claimed["previous_owner"] == ""
        assert time.monotonic() - stopped_at < 10, "not after the grace"
        assert first.alive, "it builds"
        gate.opened.set()
        assert await first.exit_code() == 0
        assert first.events("launch_ready", launch_id=building.launch_id)
        assert first.events("job_accepted", launch_id=building.launch_id) == [], "it submits nothing more"
        await code.audit(building)
        assert code.builds == 1
        await audit(bench, running)
    await no_heartbeat_left(bench, second.events("worker_started")[0]["worker"])


async def no_heartbeat_left(bench: Bench, but: str) -> None:
    async with open_ledger(bench.ledger, bench.clients.dynamodb) as ledger:
        assert {beat.worker for beat in await ledger.beats()} == {but}


async def second_signal(bench: Bench) -> None:
    """It ends now, although its build could use the grace; the launch goes on elsewhere."""
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        files = {**code.script(lines := numbered(2)), "Dockerfile": code.dockerfile(gate.step)}
        case = code.launch(await code.upload(files), lines, dockerfile="Dockerfile")
        first = await bench.started(shutdown_grace="60")
        await bench.send(case)
        await reached(gate.entered, "the build is in its last step")
        first.terminate()
        await first.wait_for("signal")
        ended_at = time.monotonic()
        first.send_signal(signal.SIGINT)
        assert await first.exit_code() == 1
        assert time.monotonic() - ended_at < 10, "not after the grace"
        gate.opened.set()
        await bench.start()
        await code.audit(case)


async def refused_mended_sent_back(bench: Bench) -> None:
    case = bench.launch(numbered(2), instance_type="ml.p5.48xlarge")
    policy = {"allowed_instance_types": "ml.m5.*"}
    strict = await bench.started(**policy)
    await bench.send(case)
    await strict.wait_for("launch_refused", launch_id=case.launch_id)
    await queue_empty(bench)
    code, out = await _dlq(bench, "list", "--json")
    (letter,) = json.loads(out)["letters"]
    assert (code, letter["launchId"], letter["code"]) == (0, case.launch_id, "LW-POLICY")
    strict.terminate()
    assert await strict.exit_code() == 0
    await bench.started()
    code, out = await _dlq(bench, "retry", case.launch_id)
    assert (code, "as attempt 2" in out) == (0, True)
    await ended(bench, case)
    record = await bench.record(case)
    assert record is not None
    assert (record.state, record.attempt) == (LaunchState.FINISHED, 2)
    assert bench.jobs(case) == [f"{case.job_name}-r2"]
    assert (await _dlq(bench, "list"))[1] == "no dead letters\n"


async def _dlq(bench: Bench, *arguments: str) -> tuple[int, str]:
    environment = {
        **bench.services.environment,
        **bench.credentials("dlq", *arguments),
        "HOME": str(bench.folder),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "LAUNCH_DEPLOYMENT": bench.deployment,
        "LAUNCH_QUEUE_URL": bench.queue_url,
        "LAUNCH_LEDGER": bench.ledger,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dlq", *arguments),
        cwd=bench.folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


SCENARIOS: Scenarios = {
    scenario.__name__: ("sqlite", scenario)
    for scenario in (
        want_of_capacity,
        spot_machines_taken_away,
        quota_used_up,
        quota_too_small,
        leaving_with_a_build_and_a_running_job,
        second_signal,
        refused_mended_sent_back,
    )
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each scenario that is asked for."""
    return await run_together(SCENARIOS, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_attempts(outcomes: Outcomes, scenario: str) -> None:
    if (error := outcomes[scenario]) is not None:
        raise error
