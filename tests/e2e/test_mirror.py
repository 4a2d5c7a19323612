"""W&B launch queues mirrored: what becomes of items, agents and the backlog, whatever happens to the mirror."""

from __future__ import annotations

import aiohttp
import pytest

from tests.e2e.audit import audit, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.launches import PROJECT, numbered
from tests.e2e.process import until
from tests.e2e.queues import MIRROR, agents_of, claimed_by_its_run, queued, sagemaker_queue
from worker.intake.unstarted import NO_INIT, NOT_STARTED
from worker.launch.envelope import SCHEDULER
from worker.launch.record import LaunchState
from worker.local.stack import ENTITY
from worker.local.wandb_records import Agent, QueueItem

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

LOG = "step 0 on algo-1\nstep 1 on algo-1\n"


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
    assert [warning["message"] for warning in scheduler.warnings] == [SCHEDULER]
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
    wandb.fault("popFromRunQueue", status=429, times=2)
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


@pytest.mark.parametrize("between", ["pop and send", "send and ack"])
async def test_a_mirror_frozen_in_the_middle_of_an_item_starts_nothing_twice(
    bench: Bench, between: str
) -> None:
    """W&B gives the item to another mirror meanwhile; woken, the first one goes on with what it had in hand."""
    wandb, queue = bench.services.wandb, sagemaker_queue(bench)
    first = await bench.start("mirror", wandb_queues=queue.name, **MIRROR)
    await first.wait_for("mirror_started")
    if between == "pop and send":
        held_up = wandb.fault("popFromRunQueue", latency=1.0)
    else:
        held_up = wandb.fault("ackRunQueueItem", status=503, times=1000)
    before = held_up.times

    async def in_hand() -> bool:
        return held_up.times < before

    if between == "pop and send":
        await until(in_hand, "the mirror is about to be given the item")
    item, case = queued(bench, queue.name, numbered(2))
    wandb.run_by_hand(ENTITY, PROJECT, case.run_id)
    await until(in_hand, "the mirror has the item")
    await first.freeze()
    if between == "pop and send":

        async def popped() -> bool:
            return item.state == "LEASED"

        await until(popped, "the item is given to the frozen mirror")
    held_up.times = 0
    second = await bench.start("mirror", wandb_queues=queue.name, **MIRROR)
    await second.wait_for("launch_mirrored", queue_item=item.id)
    first.wake()
    await first.wait_for("queue_item_lost", queue_item=item.id)
    await bench.start()
    await audit(bench, case)
    assert (item.pops, item.state, item.run_name, item.error) == (2, "CLAIMED", case.run_id, None)
