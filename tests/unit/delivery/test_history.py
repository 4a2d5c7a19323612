"""Metrics and states of a job in the history: each once, at one place, whoever posts them."""

from __future__ import annotations

from dataclasses import replace

from tests.fakes.cloudwatch import CloudWatch
from tests.fakes.companion import FakeCompanion
from tests.fakes.ledger import MemoryLedger
from tests.unit.delivery.test_delivery import ONE, Worker, rounds, until
from tests.unit.records import OTHER, record
from worker.launch.record import JobFacts

METRICS = (("loss", r"loss=(\S+)"),)
STARTING = ("Starting", 1_700_000_000.0)
TRAINING = ("Training", 1_700_000_060.0)
RUNNING = JobFacts("InProgress", "Training", transitions=(STARTING, TRAINING))


def told(worker: Worker) -> list[object]:
    """Values and states, in the order of their rows; a gap is an error."""
    rows = worker.companion.history.get("launch-1", {})
    assert sorted(rows) == list(range(len(rows)))
    return [
        rows[number].get("loss", rows[number].get("sagemaker/secondary_status"))
        for number in range(len(rows))
    ]


async def test_a_batch_that_the_dead_have_posted_is_posted_the_same() -> None:
    worker = Worker(CloudWatch(), MemoryLedger(), FakeCompanion())
    await worker.follow(record(metrics=METRICS, facts=RUNNING))
    worker.cloud.put(ONE, "loss=0.5", "between", "loss=0.25")
    worker.companion.lost_answers = 10**6  # W&B has it, and nobody here knows
    async with worker.running():
        await until(lambda: len(worker.companion.console.get("launch-1", {})) == 3)
    worker.companion.lost_answers = 0
    second = Worker(worker.cloud, worker.ledger, worker.companion, OTHER)
    await second.adopt("launch-1")
    second.cloud.put(ONE, "loss=0.125")
    async with second.running():
        await until(lambda: len(worker.companion.console["launch-1"]) == 4)
    assert told(second) == ["Starting", "Training", 0.5, 0.25, 0.125]


async def test_a_job_that_says_nothing_has_its_states_told_once() -> None:
    worker = Worker(CloudWatch(), MemoryLedger(), FakeCompanion())
    held = await worker.follow(record(facts=replace(RUNNING, transitions=(STARTING,))))
    async with worker.running():
        await until(lambda: told(worker) == ["Starting"])
        held.update(facts=RUNNING)
        await until(lambda: len(told(worker)) == 2)
        await rounds(worker, 5)
    assert told(worker) == ["Starting", "Training"]
    assert (held.record.log.next_row, held.record.log.statuses, held.record.log.next_line) == (2, 2, 0)
    second = Worker(worker.cloud, worker.ledger, worker.companion, OTHER)
    await second.adopt("launch-1")
    async with second.running():
        await rounds(second, 5)
    assert told(second) == ["Starting", "Training"]


async def test_files_alone_have_no_history() -> None:
    worker = Worker(CloudWatch(), MemoryLedger(), FakeCompanion())
    await worker.follow(record(log_target="files", facts=RUNNING))
    async with worker.running():
        await rounds(worker, 5)
    assert told(worker) == []
