"""W&B launch queues mirrored: what the real `wandb launch -q` pushes becomes finished jobs, whoever mirrors it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import aiohttp
import pytest

from tests.e2e.audit import audit, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.jobs import add_job
from tests.e2e.launches import PROJECT, LaunchCase, arguments, numbered, script
from tests.e2e.process import until
from tests.e2e.queues import MIRROR, case_of, queued
from worker.intake.unstarted import NO_INIT, NOT_STARTED
from worker.launch.record import LaunchState
from worker.local.stack import ENTITY, WANDB_KEY
from worker.local.wandb_records import Agent, Queue, QueueItem

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

LOG = "step 0 on algo-1\nstep 1 on algo-1\n"


def sagemaker_queue(bench: Bench) -> Queue:
    """A launch queue as it is made in W&B: of resource sagemaker, with the arguments that all its launches share."""
    queue = bench.services.wandb.queue(ENTITY, f"sm-{bench.deployment}")
    queue.resource = "sagemaker"
    queue.config = {
        "RoleArn": bench.services.role_arn,
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 120},
    }
    return queue


async def wandb_launch(bench: Bench, queue: Queue, config: dict[str, Any], *options: str) -> None:
    """The real command line."""
    home = bench.folder / "home"
    home.mkdir(exist_ok=True)
    (home / "launch.json").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wandb", "launch", "-q", queue.name, "-e", ENTITY, "-p", PROJECT),
        *("-c", "launch.json", *options),
        cwd=home,
        env={
            "PATH": os.defpath,
            "HOME": str(home),
            "TMPDIR": str(home),
            "LC_ALL": "C.UTF-8",
            "WANDB_BASE_URL": bench.services.wandb.base_url,
            "WANDB_API_KEY": WANDB_KEY,
            "WANDB_ERROR_REPORTING": "false",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def agents_of(bench: Bench, queue: Queue) -> list[Agent]:
    return [agent for agent in bench.services.wandb.agents.values() if agent.queues == [queue.id]]


def claimed_by_its_run(item: QueueItem, case: LaunchCase) -> bool:
    return (item.state, item.run_name) == ("CLAIMED", case.run_id)


@pytest.mark.parametrize("ledger", ["dynamodb"], indirect=True)
async def test_the_command_line_two_mirrors_and_two_workers(shared_bench: Bench) -> None:
    bench, wandb = shared_bench, shared_bench.services.wandb
    queue = sagemaker_queue(bench)
    lines = numbered(2)
    overrides = {"overrides": {"entry_point": ["sh", "-c"], "args": arguments(script(lines, 0.05))}}
    await wandb_launch(bench, queue, overrides, "-d", bench.image, "-P", "high")
    await wandb_launch(bench, queue, overrides, "-j", add_job(bench, "image", {"image": bench.image}))
    of_image, of_job = queue.items
    assert (of_image.priority, "job" in of_job.spec) == (1, True)
    cases = {item.id: (item, case_of(bench, item, lines)) for item in queue.items}
    for _ in range(2):
        item, case = queued(bench, queue.name, lines)
        cases[item.id] = item, case
    for _, case in cases.values():
        wandb.run_by_hand(ENTITY, PROJECT, case.run_id)
    mirrors = [await bench.start("mirror", wandb_queues=queue.name, **MIRROR) for _ in range(2)]
    workers = [await bench.start() for _ in range(2)]
    await audit(bench, *(case for _, case in cases.values()))
    assert all(claimed_by_its_run(item, case) for item, case in cases.values())
    assert all(item.error is None for item, _ in cases.values())
    for process in (*mirrors, *workers):
        process.terminate()
    assert [await process.exit_code() for process in (*mirrors, *workers)] == [0, 0, 0, 0]
    agents = agents_of(bench, queue)
    assert len(agents) == 2
    for agent in agents:
        statuses = [status for _, status in agent.statuses]
        assert (statuses[0], statuses[-1]) == ("POLLING", "KILLED")
        assert set(statuses[1:-1]) <= {"POLLING", "RUNNING"}
        run = wandb.run(ENTITY, "model-registry", agent.name)
        assert run is not None
        assert run.state == "finished"


async def test_a_worker_with_a_mirror_in_it_does_all_of_it(bench: Bench) -> None:
    """Priority, what is refused, what is left, and runs that their containers never started."""
    wandb, queue = bench.services.wandb, sagemaker_queue(bench)
    lines = numbered(2)
    late, late_case = queued(bench, queue.name, lines, priority=3)
    early, early_case = queued(bench, queue.name, lines, priority=0, tail="exit 7")
    scheduler = wandb.push(
        ENTITY, queue.name, {"uri": "placeholder-uri-scheduler", "resource": "local-process"}
    )
    wandb.sweeps[ENTITY, PROJECT, "over"] = "FINISHED"
    wandb.sweeps[ENTITY, PROJECT, "on"] = "RUNNING"
    over, over_case = queued(bench, queue.name, lines, sweep_id="over")
    of_sweep, sweep_case = queued(bench, queue.name, lines, sweep_id="on")
    wandb.run_by_hand(ENTITY, PROJECT, sweep_case.run_id)
    gone = wandb.push(ENTITY, queue.name, {}, priority=0)
    gone.state = "DELETED"
    worker = await bench.start("run", "--mirror", wandb_queues=queue.name, init_grace="0.5", **MIRROR)
    await audit(bench, late_case, sweep_case)
    await audit(bench, early_case, end="failed", exit_code=7)
    (agent,) = agents_of(bench, queue)
    order = [event["queue_item"] for event in worker.events("launch_mirrored")]
    assert order == [early.id, over.id, of_sweep.id, late.id]
    _failed_as_never_started(bench, agent, late, NO_INIT)
    _failed_as_never_started(bench, agent, early, f"{NOT_STARTED}: ")
    assert of_sweep.error is None
    assert over.error is not None
    assert (over.error["stage"], over.error["filePaths"]) == ("agent", None)
    assert "Sweep over is over (finished)" in over.error["message"]
    assert bench.jobs(over_case) == []
    await bench.dead_letters(1)
    assert scheduler.state == "LEASED"
    assert scheduler.pops >= 1
    assert len(worker.events("queue_item_left", queue=queue.name)) == 1
    assert gone.pops == 0
    worker.terminate()
    assert await worker.exit_code() == 0
    assert agent.status == "KILLED"


def _failed_as_never_started(bench: Bench, agent: Agent, item: QueueItem, message: str) -> None:
    path = f"{item.id}/error/error.log"
    assert item.error is not None
    assert item.error["message"].startswith(message)
    assert (item.error["stage"], item.error["filePaths"]) == ("run", [path])
    run = bench.services.wandb.run(ENTITY, "model-registry", agent.name)
    assert run is not None
    assert run.files[path].decode() == LOG


async def test_stopped_in_wandb_it_ends_and_leaves_the_queue_alone(bench: Bench) -> None:
    queue = sagemaker_queue(bench)
    mirror = await bench.start("mirror", wandb_queues=queue.name, **MIRROR)
    await mirror.wait_for("mirror_started")
    (agent,) = agents_of(bench, queue)
    agent.stop_polling = True
    assert await mirror.exit_code() == 0
    assert mirror.events("mirror_stopped_in_wandb")
    assert agent.status == "KILLED"
    item, _ = queued(bench, queue.name, [])
    assert (item.state, await bench.depth()) == ("PENDING", (0, 0))


async def test_the_backlog_stays_in_wandb_where_it_can_be_deleted(fifo_bench: Bench) -> None:
    """No worker runs: two launches go to SQS, the rest stays; what is deleted there is never launched."""
    bench = fifo_bench
    wandb, queue = bench.services.wandb, sagemaker_queue(bench)
    made = [queued(bench, queue.name, numbered(1)) for _ in range(4)]
    for _, case in made:
        wandb.run_by_hand(ENTITY, PROJECT, case.run_id)
    wandb.fault("popFromRunQueue", status=429, retry_after=0.5, times=2)
    mirror = await bench.start("mirror", wandb_queues=queue.name, mirror_backlog="2", **MIRROR)

    async def two_acked() -> bool:
        return [item.state for item, _ in made] == ["CLAIMED", "CLAIMED", "PENDING", "PENDING"]

    await until(two_acked, "two items are mirrored")
    assert len(mirror.events("mirroring_failed")) == 2
    deleted, deleted_case = made.pop(2)
    deleted.state = "DELETED"
    await bench.start()
    await audit(bench, *(case for _, case in made))
    assert bench.jobs(deleted_case) == []
    assert (deleted.pops, deleted.error) == (0, None)


async def test_an_agent_that_wandb_forgets_registers_again(bench: Bench) -> None:
    wandb, queue = bench.services.wandb, sagemaker_queue(bench)
    mirror = await bench.start("mirror", wandb_queues=queue.name, **MIRROR)
    started = await mirror.wait_for("mirror_started")
    (first,) = agents_of(bench, queue)
    del wandb.agents[first.id]
    await mirror.wait_for("agent_unknown")
    item, case = queued(bench, queue.name, numbered(1))
    wandb.run_by_hand(ENTITY, PROJECT, case.run_id)

    async def acked() -> bool:
        return claimed_by_its_run(item, case)

    await until(acked, "the item is mirrored")
    (second,) = agents_of(bench, queue)
    assert item.agent == second.id != first.id
    async with aiohttp.ClientSession(f"http://127.0.0.1:{started['http_port']}") as http:
        async with http.get("/readyz") as answer:
            assert await answer.json() == {"ready": True, "reason": ""}
        async with http.get("/metrics") as answer:
            assert 'launch_mirror_items_total{result="acked"} 1.0' in await answer.text()
    await bench.clients.sqs.purge_queue(QueueUrl=bench.queue_url)
    await queue_empty(bench)


async def test_wrong_settings_end_it_at_once(bench: Bench) -> None:
    queue = sagemaker_queue(bench)
    for settings, told in (
        ({"wandb_queues": "nobody-has-this"}, queue.name),
        ({"wandb_queues": ""}, "LAUNCH_WANDB_QUEUES"),
    ):
        mirror = await bench.start("mirror", **MIRROR, **settings)
        assert await mirror.exit_code() == 2
        assert told in mirror.printed()
    bench.workers.clear()  # they print a sentence for people, no event


async def test_a_refused_launch_is_in_the_ledger_with_its_queue(bench: Bench) -> None:
    queue = sagemaker_queue(bench)
    item, case = queued(bench, queue.name, [], instance_type="ml.p5.48xlarge")
    await bench.start("run", "--mirror", wandb_queues=queue.name, allowed_instance_types="ml.m5.*", **MIRROR)
    await bench.dead_letters(1)
    await queue_empty(bench)
    record = await bench.record(case)
    assert record is not None
    assert (record.state, record.queue, record.queue_entity) == (LaunchState.REFUSED, queue.name, ENTITY)
    (agent,) = agents_of(bench, queue)
    assert record.agent_run == agent.name
    assert item.error is not None
    assert item.state == "FAILED"
